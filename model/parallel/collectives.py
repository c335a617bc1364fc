"""What tensor-parallel ranks exchange, with gradients (Shoeybi et al. 2019, "Megatron-LM", arXiv:1909.08053, figure 3: f and g;
Korthikanti et al. 2022, arXiv:2205.05198, figure 5: with a share of the sequence on every rank).

Changes when activations are cut otherwise.  Legend: B batch, S tokens, s this tensor rank's contiguous share of them, D width.

Between the matrices of a block the residual stream is x_BSD, the same on every tensor rank, or x_BsD under sequence parallelism:

    ``sum_out``    partial x_BSD -> x_BSD  (all-reduce)     or x_BsD (reduce-scatter); backward: nothing, or all-gather
    ``share``      parameters that every rank holds, used on its share of the tokens; backward: all-reduce

What goes into a matrix is taken by ``start_gather`` and ``start_sum_in`` (model/parallel/linear.py, loss.py), beside products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.parallel.groups import Groups

Finish = Callable[[], Tensor]
"""Waits for a collective that was started, and gives its result."""


def sum_out(x: Tensor, groups: Groups) -> Tensor:
    """The sum over the tensor ranks of a matrix product, perhaps written over ``x``; or this rank's share of the sequence."""
    return x if groups.tensor_group is None else _SumOut.apply(x, groups)  # type: ignore[no-untyped-call]


def share(groups: Groups, *parameters: Tensor) -> tuple[Tensor, ...]:
    """The same parameters; their gradients, each from a share of the tokens or heads, are summed over the tensor ranks at once."""
    return parameters if groups.tensor_group is None else _Share.apply(groups, *parameters)  # type: ignore[no-untyped-call]


def share_of_sequence(x_BSD: Tensor, groups: Groups) -> Tensor:
    """This rank's share of a sequence that every tensor rank holds.  A view, without a gradient's collective."""
    size = x_BSD.shape[1] // groups.layout.tensor
    return x_BSD.narrow(1, groups.tensor_rank * size, size)


def gather_last(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The shards of the last dimension side by side, in rank order.  No gradient."""
    if group is None:
        return x
    shards = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(shards, x.contiguous(), group=group)
    return torch.cat(shards, dim=-1)


# Without gradients, started and finished apart so that matrices can be multiplied meanwhile --------------------------------


def start_sum(x: Tensor, groups: Groups) -> Finish:
    """All-reduce over the tensor ranks; ``x`` is contiguous and may be written over."""
    assert x.is_contiguous()
    wide = x.float() if groups.reduce_in_fp32 else x
    work = dist.all_reduce(wide, group=groups.tensor_group, async_op=True)

    def finish() -> Tensor:
        work.wait()
        return x if wide is x else x.copy_(wide)

    return finish


def start_gather(x_BsD: Tensor, groups: Groups) -> Finish:
    """x_BSD from every tensor rank's share."""
    ranks = groups.layout.tensor
    B, s, D = x_BsD.shape
    out = x_BsD.new_empty((ranks * B, s, D))
    work = dist.all_gather_into_tensor(out, x_BsD.contiguous(), group=groups.tensor_group, async_op=True)

    def finish() -> Tensor:
        work.wait()
        return out.view(B, ranks * s, D) if B == 1 else out.view(ranks, B, s, D).transpose(0, 1).reshape(B, ranks * s, D)

    return finish


def start_sum_of_share(x_BSD: Tensor, groups: Groups) -> Finish:
    """x_BsD: the sum over the tensor ranks of this rank's share (reduce-scatter)."""
    ranks = groups.layout.tensor
    B, S, D = x_BSD.shape
    parts = x_BSD.view(B, ranks, S // ranks, D).transpose(0, 1).flatten(0, 1)
    wide = parts.float() if groups.reduce_in_fp32 else parts
    out = wide.new_empty((B, S // ranks, D))
    work = dist.reduce_scatter_tensor(out, wide, group=groups.tensor_group, async_op=True)

    def finish() -> Tensor:
        work.wait()
        return out.to(x_BSD.dtype)

    return finish


def start_sum_in(grad: Tensor, groups: Groups) -> Finish:
    """The gradient of what went into a column-parallel matrix: all-reduce, or the reduce-scatter of sequence parallelism."""
    if groups.sequence_parallel:
        return start_sum_of_share(grad, groups)
    return start_sum(grad, groups)


class _SumOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: Groups) -> Tensor:
        ctx.groups = groups
        if groups.sequence_parallel:
            return start_sum_of_share(x, groups)()
        ctx.mark_dirty(x)
        return start_sum(x, groups)()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return start_gather(grads[0], ctx.groups)() if ctx.groups.sequence_parallel else grads[0], None


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, groups: Groups, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.groups = groups
        return tuple(parameter.view_as(parameter) for parameter in parameters)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat = start_sum(torch.cat([grad.flatten() for grad in grads]), ctx.groups)()
        parts = flat.split([grad.numel() for grad in grads])
        return None, *(part.view_as(grad) for part, grad in zip(parts, grads, strict=True))
