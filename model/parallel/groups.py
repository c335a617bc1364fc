"""Where this rank stands on each axis of the layout, and with whom it talks there.

Changes when the mesh gets another axis or order.  *Axis* is an axis of the mesh of ranks; a tensor has *dims*.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    @property
    def tensor_rank(self) -> int:
        """Place on the tensor axis, the fastest-moving one."""
        return self.rank % self.layout.tensor

    @property
    def data_rank(self) -> int:
        """Place on the data axis."""
        return self.rank // self.layout.tensor % self.layout.data

    @property
    def pipe_rank(self) -> int:
        """Place on the pipe axis, the slowest-moving one."""
        return self.rank // (self.layout.tensor * self.layout.data)

    @property
    def expert_rank(self) -> int:
        """Place on the expert axis, of size 1 until experts exist."""
        return 0


def one_rank() -> Groups:
    """The groups of a process by itself."""
    return Groups(layout=Layout(world_size=1))


def make_groups(layout: Layout, rank: int) -> Groups:
    """Make the process groups of every axis.  Collective: all ranks call it in the same order.

    Rank order is Megatron-LM's: rank = tensor + T (data + D pipe).
    """
    cells = range(layout.world_size)
    place = {cell: Groups(layout=layout, rank=cell) for cell in cells}
    return Groups(
        layout=layout,
        rank=rank,
        tensor_group=_group(rank, [[c for c in cells if _same(place[c], place[h], "data", "pipe")] for h in cells]),
        pipe_group=_group(rank, [[c for c in cells if _same(place[c], place[h], "data", "tensor")] for h in cells]),
        data_group=_group(rank, [[c for c in cells if _same(place[c], place[h], "tensor", "pipe")] for h in cells]),
        model_group=_group(rank, [[c for c in cells if _same(place[c], place[h], "data")] for h in cells]),
    )


def _same(a: Groups, b: Groups, *axes: str) -> bool:
    return all(getattr(a, f"{axis}_rank") == getattr(b, f"{axis}_rank") for axis in axes)


def _group(rank: int, members_of: list[list[int]]) -> dist.ProcessGroup | None:
    mine = None
    for members in sorted({tuple(members) for members in members_of}):
        if len(members) == 1:
            continue
        group = dist.group.WORLD if len(members) == len(members_of) else dist.new_group(list(members))
        if rank in members:
            mine = group
    return mine
