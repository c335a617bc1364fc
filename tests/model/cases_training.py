"""Cases of the training tests, called on the ranks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from model.config import read_run
from model.data.batch import Batch
from model.engine.start import join_ranks
from model.engine.trainer import StepResult, Trainer
from model.failure import FailedElsewhere
from model.layers.block import Block
from model.layers.cache import LayerCache
from model.layers.ends import Head
from model.layers.stage import Stage
from model.ranks import Ranks
from model.training import train_joined
from tests.ranks import TIMEOUT


def train(run_file: Path) -> None:
    """Train a run on the ranks of the pool."""
    rank, world = dist.get_rank(), dist.get_world_size()
    join_ranks(torch.device("cpu"), "gloo", TIMEOUT)
    with mock.patch.object(functional, "linear", functional.linear):  # ZeRO-3 puts its own there, for good
        train_joined(read_run(run_file), run_file.parent, Ranks(rank=rank, world_size=world, local_rank=rank), torch.device("cpu"))


def refusal(run_file: Path) -> str:
    """Train a run that must not: the message of the rank that says why, nothing on the ranks that stop with it.

    All ranks stop at the same place, so that the pool lives on.
    """
    try:
        train(run_file)
    except FailedElsewhere:
        return ""
    except (ValueError, FloatingPointError) as error:
        return str(error)
    raise AssertionError("the run was not refused")


def refusal_with_infinity(run_file: Path, layer: int | None, step: int) -> str:
    """The same, where from a step's second micro-batch on a layer (``None``: the head) gives infinity on the rank that holds it."""
    steps: list[int] = []
    passes: list[int] = []
    forward, head_forward, train_step = Block.forward, Head.forward, Trainer.train_step

    def counted(self: Trainer, batches: Iterable[Batch], rate: float) -> StepResult:
        steps.append(1)
        passes.clear()
        return train_step(self, batches, rate)

    def infinite(self: Block, stage: Stage, cache: LayerCache | None = None) -> Stage:
        out = forward(self, stage, cache)
        if self.attention.query_key_value.weight.global_name.split(".")[1] != str(layer) or len(steps) < step:
            return out
        passes.append(1)
        return out if len(passes) % 2 else out._replace(x=out.x * float("inf"))

    def infinite_loss(self: Head, *args: Any, **options: Any) -> Tensor:
        loss = head_forward(self, *args, **options)
        if layer is not None or len(steps) < step:
            return loss
        passes.append(1)
        return loss if len(passes) % 2 else loss * float("inf")

    broken = mock.patch.object(Block, "forward", infinite), mock.patch.object(Head, "forward", infinite_loss)
    with broken[0], broken[1], mock.patch.object(Trainer, "train_step", counted):
        return refusal(run_file)
