"""Linear layers whose matrix is cut over the tensor ranks; changes when a matrix is cut otherwise.

x_BSI @ weight_OI: column-parallel cuts the outputs O, row-parallel the inputs I (arXiv:1909.08053, section 3).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from model.parallel.collectives import copy_in, sum_out
from model.parallel.groups import Groups
from model.parallel.parameters import Init, make_parameter, zeros


class ColumnParallelLinear(nn.Module):
    """x_BSI -> y_BSo: every rank computes its share o of the outputs."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, init: Init, groups: Groups) -> None:
        super().__init__()
        self.weight = make_parameter((outputs, inputs), init, groups, shard_dim=0)
        self.bias = make_parameter((outputs,), zeros, groups, shard_dim=0) if bias else None
        self._group = groups.tensor_group

    def forward(self, x_BSI: Tensor) -> Tensor:
        """The share of the outputs that lies here."""
        return F.linear(copy_in(x_BSI, self._group), self.weight, self.bias)


class RowParallelLinear(nn.Module):
    """y_BSi -> x_BSO: every rank holds a share i of the inputs; the outputs are their sum, the bias added once."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, init: Init, groups: Groups) -> None:
        super().__init__()
        self.weight = make_parameter((outputs, inputs), init, groups, shard_dim=1)
        self.bias = make_parameter((outputs,), zeros, groups) if bias else None
        self._group = groups.tensor_group

    def forward(self, y_BSi: Tensor) -> Tensor:
        """The whole outputs, on every rank."""
        if self._group is None:
            return F.linear(y_BSi, self.weight, self.bias)
        x_BSO = sum_out(self.partial(y_BSi), self._group)
        return x_BSO if self.bias is None else x_BSO + self.bias

    def partial(self, y_BSi: Tensor) -> Tensor:
        """This rank's term of the sum, without the bias."""
        return F.linear(y_BSi, self.weight)
