"""Where this rank stands on each axis of the layout, and with whom it talks there.

Changes when the mesh gets another axis or order.  *Axis* is an axis of the mesh of ranks; a tensor has *dims*.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from model.config import Layout


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Coordinates and process groups of one rank.  A group is ``None`` where its axis has size 1."""

    layout: Layout
    rank: int = 0
    tensor_group: dist.ProcessGroup | None = None
    pipe_group: dist.ProcessGroup | None = None
    data_group: dist.ProcessGroup | None = None
    model_group: dist.ProcessGroup | None = None
    """The ranks that together hold one copy of the model: tensor x pipe."""
    ends_group: dist.ProcessGroup | None = None
    """The first and the last pipeline stage of one tensor and data place, which share a tied embedding; only on their ranks."""
    sequence_parallel: bool = False
    """Between matrices every tensor rank holds a contiguous share of the sequence; false where there is one tensor rank."""
    reduce_in_fp32: bool = False
    """Tensor-parallel sums are taken in fp32 (``fp32_allreduce``)."""

    @property
    def tensor_rank(self) -> int:
        """Place on the tensor axis, the fastest-moving one."""
        return self.layout.coordinates(self.rank)[0]

    @property
    def data_rank(self) -> int:
        """Place on the data axis."""
        return self.layout.coordinates(self.rank)[1]

    @property
    def pipe_rank(self) -> int:
        """Place on the pipe axis, the slowest-moving one."""
        return self.layout.coordinates(self.rank)[2]

    @property
    def first_stage(self) -> bool:
        """This rank holds the embedding."""
        return self.pipe_rank == 0

    @property
    def last_stage(self) -> bool:
        """This rank holds the head and computes the loss."""
        return self.pipe_rank == self.layout.pipe - 1

    @property
    def expert_rank(self) -> int:
        """Place on the expert axis, of size 1 until experts exist."""
        return 0


def one_rank() -> Groups:
    """The groups of a process by itself."""
    return Groups(layout=Layout(world_size=1))


def make_groups(
    layout: Layout, rank: int, *, sequence_parallel: bool = False, reduce_in_fp32: bool = False, timeout: timedelta | None = None
) -> Groups:
    """Make the process groups of every axis.  Collective: all ranks call it in the same order.

    Rank order is Megatron-LM's: rank = tensor + T (data + D pipe).
    """
    tensor, data, pipe = range(layout.tensor), range(layout.data), range(layout.pipe)

    def cell(t: int, d: int, p: int) -> int:
        return t + layout.tensor * (d + layout.data * p)

    return Groups(
        layout=layout,
        rank=rank,
        tensor_group=_group(rank, layout, timeout, [[cell(t, d, p) for t in tensor] for p in pipe for d in data]),
        pipe_group=_group(rank, layout, timeout, [[cell(t, d, p) for p in pipe] for d in data for t in tensor]),
        data_group=_group(rank, layout, timeout, [[cell(t, d, p) for d in data] for p in pipe for t in tensor]),
        model_group=_group(rank, layout, timeout, [[cell(t, d, p) for p in pipe for t in tensor] for d in data]),
        ends_group=_group(
            rank, layout, timeout, [[cell(t, d, p) for p in sorted({0, layout.pipe - 1})] for d in data for t in tensor]
        ),
        sequence_parallel=sequence_parallel and layout.tensor > 1,
        reduce_in_fp32=reduce_in_fp32,
    )


def _group(rank: int, layout: Layout, timeout: timedelta | None, rows: list[list[int]]) -> dist.ProcessGroup | None:
    """The group of the row that holds ``rank``; every rank makes all rows, in this order."""
    mine = None
    for row in rows:
        if len(row) == 1:
            continue
        group = dist.group.WORLD if len(row) == layout.world_size else dist.new_group(row, timeout=timeout)
        if rank in row:
            mine = group
    return mine
