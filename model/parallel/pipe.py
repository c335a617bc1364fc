"""What pipeline stages hand on while sampling, where nothing goes back (training is scheduled by DeepSpeed's pipeline engine).

Changes when stages talk otherwise.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from model.parallel.groups import Groups


def send(x: Tensor, groups: Groups) -> None:
    """To the next stage."""
    dist.send(x.contiguous(), group=groups.pipe_group, group_dst=groups.pipe_rank + 1)


def receive(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, groups: Groups) -> Tensor:
    """From the stage before."""
    x = torch.empty(shape, dtype=dtype, device=device)
    dist.recv(x, group=groups.pipe_group, group_src=groups.pipe_rank - 1)
    return x


def from_last(x: Tensor | None, shape: tuple[int, ...], like: Tensor, groups: Groups) -> Tensor:
    """What the last stage has, on every stage; ``x`` is ``None`` on the others."""
    if groups.pipe_group is None:
        assert x is not None, "the only stage is the last one"
        return x
    whole = like.new_empty(shape) if x is None else x.contiguous()
    dist.broadcast(whole, group=groups.pipe_group, group_src=groups.layout.pipe - 1)
    return whole
