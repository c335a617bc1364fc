"""Cases of the training tests, called on the ranks."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch.nn import functional

from model.config import read_run
from model.engine.start import join_ranks
from model.failure import FailedElsewhere
from model.ranks import Ranks
from model.training import train_joined


def train(run_file: Path) -> None:
    """Train a run on the ranks of the pool."""
    rank, world = dist.get_rank(), dist.get_world_size()
    join_ranks(torch.device("cpu"), "gloo")
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
