"""Collectives with their gradients (Shoeybi et al. 2019, "Megatron-LM", arXiv:1909.08053, figure 3: the functions f and g).

Changes when activations are cut otherwise: sequence parallelism makes ``copy_in`` an all-gather and ``sum_out`` a reduce-scatter.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def copy_in(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The same on every rank of ``group``; its gradient is summed over them."""
    return x if group is None else _CopyIn.apply(x, group)  # type: ignore[no-untyped-call]


def sum_out(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over ``group``, written over ``x``; its gradient goes to each as it is."""
    return x if group is None else _SumOut.apply(x, group)  # type: ignore[no-untyped-call]


def gather_last(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The shards of the last dimension side by side, in rank order.  No gradient."""
    if group is None:
        return x
    shards = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(shards, x.contiguous(), group=group)
    return torch.cat(shards, dim=-1)


class _CopyIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].clone(memory_format=torch.contiguous_format)  # autograd may hand the same tensor to another branch
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _SumOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        assert x.is_contiguous(), "the output of a matrix product"
        ctx.mark_dirty(x)
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
