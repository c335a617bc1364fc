"""Cases of the grid, called on the ranks: a cell is trained, and what it has become is handed back."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from model.config import RunConfig
from model.engine.fragments import Fragment, fragments_of
from model.engine.start import join_ranks
from model.engine.trainer import Trainer
from model.gpt import GPT
from model.mup_base import read_base_shapes
from model.parallel.groups import make_groups
from model.parallel.parameters import GlobalParameter, global_parameters
from tests.model.grid.cells import BETAS, CLIP, RATE, VOCAB
from tests.model.grid.mutations import MUTATIONS
from tests.model.grid.training import STEPS, samples
from tests.ranks import TIMEOUT


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some contiguous elements of a parameter's flattened local shard."""

    name: str
    shard_dim: int | None
    shard_offset: int
    shard_shape: tuple[int, ...]
    start: int
    values: Tensor
    on_every_data_rank: bool
    """All data ranks hold the same."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one rank saw and held."""

    rank: int
    place: tuple[int, int, int]
    """On the axes pipe, data, tensor."""
    losses: tuple[float, ...]
    norms: tuple[float, ...]
    initial: tuple[Piece, ...]
    gradients: tuple[Piece, ...]
    """Of the first step, before clipping."""
    final: tuple[Piece, ...]


def train_cell(keys: dict[str, Any], mutation: str | None = None, steps: int = STEPS) -> Found:
    """Train some steps at the layout of ``keys``, with the ``mutation`` of that name applied.

    ZeRO leaves no gradient to look at.  What the first step's optimizer was given is read from the moments that it made: Adam's
    first one is (1 - beta1) x gradient, scaled by the clipping that the norm of that step says.  So it is what came out of all
    sums and means over micro-batches, ranks and tied stages, at every stage of ZeRO by the same reading.
    """
    join_ranks(torch.device("cpu"), "gloo", TIMEOUT)
    config = RunConfig.from_keys(keys)
    assert not config.untrained(), config.untrained()
    rank = dist.get_rank()
    with (
        _remembered_groups(),
        mock.patch.object(functional, "linear", functional.linear),  # ZeRO-3 puts its own there, for good
        MUTATIONS[mutation].apply() if mutation else mock.patch.dict({}),
    ):
        layout = config.layout(dist.get_world_size())
        groups = make_groups(layout, rank, sequence_parallel=config.parallelism.sequence_parallel)
        batch, tokens = config.batch_sizes(layout), config.architecture.seq_length
        model = GPT(config, VOCAB, groups, base=read_base_shapes(config))
        initial = tuple(_whole(p) for p in global_parameters(model))
        trainer = Trainer(model, config, batch, groups, torch.device("cpu"))
        losses, norms, gradients = [], [], ()
        for step in range(steps):
            micro_steps = range(step * batch.accumulation, (step + 1) * batch.accumulation)
            begins = ((micro_step * layout.data + groups.data_rank) * batch.micro for micro_step in micro_steps)
            result = trainer.train_step([samples(begin, batch.micro, tokens) for begin in begins], RATE)
            losses.append(result.loss)
            norms.append(result.grad_norm)
            if step == 0:
                clipped = min(1.0, CLIP / (result.grad_norm + 1e-6))
                gradients = _pieces(trainer.engine, config, "exp_avg", 1 / ((1 - BETAS[0]) * clipped))
        final = _pieces(trainer.engine, config, "weight")
    del trainer, model
    gc.collect()  # an engine is a knot of references; its hooks would go on
    return Found(
        rank=rank,
        place=(groups.pipe_rank, groups.data_rank, groups.tensor_rank),
        losses=tuple(losses),
        norms=tuple(norms),
        initial=initial,
        gradients=gradients,
        final=final,
    )


def _whole(p: GlobalParameter) -> Piece:
    values = p.detach().flatten().clone()
    return Piece(
        name=p.global_name,
        shard_dim=p.shard_dim,
        shard_offset=p.shard_offset,
        shard_shape=tuple(p.shape),
        start=0,
        values=values,
        on_every_data_rank=True,
    )


def _pieces(engine: Any, config: RunConfig, tensor: str, factor: float = 1.0) -> tuple[Piece, ...]:
    return tuple(_piece(fragment, tensor, factor) for fragment in fragments_of(engine, config))


def _piece(fragment: Fragment, tensor: str, factor: float) -> Piece:
    p = fragment.parameter
    return Piece(
        name=p.global_name,
        shard_dim=p.shard_dim,
        shard_offset=p.shard_offset,
        shard_shape=fragment.shard_shape,
        start=fragment.start,
        values=fragment.tensors[tensor].detach() * factor,
        on_every_data_rank=fragment.whole_on_every_data_rank,
    )


_GROUPS: dict[Any, Any] = {}


@contextmanager
def _remembered_groups() -> Iterator[None]:
    """A cell uses the process groups of the cells before it: they are never freed, and each keeps sockets and a thread.

    Within a cell, whoever asks for a group of the same ranks again gets another one, as outside of tests.
    """
    asked: Counter[Any] = Counter()
    make = dist.new_group

    def new_group(ranks: Any = None, *args: Any, **kwargs: Any) -> Any:
        wanted = (None if ranks is None else tuple(ranks), args, tuple(sorted(kwargs.items())))
        key = (wanted, asked[wanted])
        asked[wanted] += 1
        if key not in _GROUPS:
            _GROUPS[key] = make(ranks, *args, **kwargs)
        return _GROUPS[key]

    with mock.patch.object(dist, "new_group", new_group):
        yield
