"""Linear layers whose matrix is cut over the tensor ranks; changes when a matrix is cut otherwise.

x_BSI @ weight_OI: column-parallel cuts the outputs O, row-parallel the inputs I (arXiv:1909.08053, section 3).  Under sequence
parallelism a column-parallel layer takes this rank's share x_BsI of the tokens, and a row-parallel one returns it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.parallel.collectives import share, start_gather, start_sum_in, sum_out
from model.parallel.groups import Groups
from model.parallel.parameters import Init, make_parameter, zeros


class ColumnParallelLinear(nn.Module):
    """x_BSI -> y_BSo: every rank computes its share o of the outputs."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, init: Init, groups: Groups) -> None:
        super().__init__()
        self.weight = make_parameter((outputs, inputs), init, groups, shard_dim=0)
        self.bias = make_parameter((outputs,), zeros, groups, shard_dim=0) if bias else None
        self._groups = groups

    def forward(self, x_BSI: Tensor) -> Tensor:
        """The share of the outputs that lies here, of all tokens."""
        return column_linear(x_BSI, self.weight, self.bias, self._groups)


class PairedColumnParallelLinear(nn.Module):
    """x_BSI -> y_BSp: two column-parallel matrices in one product; p is this rank's share o of the first one's outputs, then the
    same share of the second one's.

    Whole, they are weight_2OI, which is cut along O: whatever the layout, outputs that belong together are on one rank.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool, init: Init, groups: Groups) -> None:
        super().__init__()
        self.weight = make_parameter((2, outputs, inputs), init, groups, shard_dim=1)
        self.first_bias: Tensor | None = None
        self.second_bias: Tensor | None = None
        if bias:
            self.first_bias, self.second_bias = (make_parameter((outputs,), zeros, groups, shard_dim=0) for _ in range(2))
        self._groups = groups

    def forward(self, x_BSI: Tensor) -> Tensor:
        """The shares of both outputs that lie here, of all tokens."""
        bias_p = None if self.first_bias is None or self.second_bias is None else torch.cat((self.first_bias, self.second_bias))
        return column_linear(x_BSI, self.weight.flatten(0, 1), bias_p, self._groups)


class RowParallelLinear(nn.Module):
    """y_BSi -> x_BSO: every rank holds a share i of the inputs; the outputs are their sum, the bias added once."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, init: Init, groups: Groups) -> None:
        super().__init__()
        self.weight = make_parameter((outputs, inputs), init, groups, shard_dim=1)
        self.bias = make_parameter((outputs,), zeros, groups) if bias else None
        self._groups = groups

    def forward(self, y_BSi: Tensor, *, partial: bool = False) -> Tensor:
        """The outputs; or, if ``partial``, this rank's term of their sum, without the bias."""
        if partial:
            return F.linear(y_BSi, self.weight)
        if self._groups.tensor_group is None:
            return F.linear(y_BSi, self.weight, self.bias)
        return self.finish(F.linear(y_BSi, self.weight))

    def finish(self, part_BSO: Tensor) -> Tensor:
        """The outputs from this rank's term."""
        return add_bias(sum_out(part_BSO, self._groups), self._groups, self.bias)


def add_bias(x_BSO: Tensor, groups: Groups, *biases: Tensor | None) -> Tensor:
    """Biases that every tensor rank holds, added once: the ranks have already been summed."""
    given = [bias for bias in biases if bias is not None]
    if not given:
        return x_BSO
    if groups.sequence_parallel:
        given = list(share(groups, *given))
    return x_BSO + (given[0] if len(given) == 1 else given[0] + given[1])


def column_linear(x_BSI: Tensor, weight_oI: Tensor, bias_o: Tensor | None, groups: Groups) -> Tensor:
    """y_BSo of a column-parallel matrix."""
    if groups.tensor_group is None:
        return F.linear(x_BSI, weight_oI, bias_o)
    return _ColumnLinear.apply(x_BSI, weight_oI, bias_o, groups)  # type: ignore[no-untyped-call]


class _ColumnLinear(torch.autograd.Function):
    """The exchange of one gradient goes on while the other one is multiplied.  Only this rank's share of the tokens is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, groups: Groups) -> Tensor:
        ctx.groups = groups
        ctx.save_for_backward(x, weight)
        return F.linear(start_gather(x, groups)() if groups.sequence_parallel else x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, groups = grads[0], ctx.groups
        x, weight = ctx.saved_tensors
        whole = start_gather(x, groups) if groups.sequence_parallel else None
        grad_x = start_sum_in(grad @ weight, groups) if ctx.needs_input_grad[0] else None
        grad_To = grad.flatten(0, -2)
        x_TI = (x if whole is None else whole()).flatten(0, -2)
        grad_weight = grad_To.T @ x_TI if ctx.needs_input_grad[1] else None
        grad_bias = grad_To.sum(0) if ctx.needs_input_grad[2] else None
        return None if grad_x is None else grad_x(), grad_weight, grad_bias, None
