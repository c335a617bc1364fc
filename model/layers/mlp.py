"""The feed-forward sub-layer: linear, activation, linear; changes when the MLP has another shape."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import RunConfig
from model.layers.init import input_init, output_init
from model.parallel.groups import Groups
from model.parallel.linear import ColumnParallelLinear, PairedColumnParallelLinear, RowParallelLinear


class MLP(nn.Module):
    """x_BSD -> x_BSD through a width of ``ffn_size``; a gated activation is given twice that: values, then gates."""

    def __init__(self, config: RunConfig, groups: Groups, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        shape = config.architecture
        width, bias = shape.hidden_size, shape.use_bias_in_mlp
        first = PairedColumnParallelLinear if shape.gated else ColumnParallelLinear
        self.linear1 = first(width, shape.ffn_size, bias=bias, init=input_init(config), groups=groups)
        self.linear2 = RowParallelLinear(shape.ffn_size, width, bias=bias, init=output_init(config), groups=groups)
        self._activation = activation
        self._again = config.recomputes == "selective"

    def forward(self, x_BSD: Tensor, *, partial: bool = False) -> Tensor:
        """x_BSD -> x_BSD; ``partial``: this rank's term of the sum over tensor ranks, without the bias."""
        inner_BSF = self.linear1(x_BSD)
        if not (self._again and self.training):
            out_BSD: Tensor = self.linear2(self._activation(inner_BSF), partial=partial)
            return out_BSD
        part_BSD: Tensor = checkpoint(self._activated_product, inner_BSF, use_reentrant=False, preserve_rng_state=False)
        return part_BSD if partial else self.linear2.finish(part_BSD)

    def _activated_product(self, inner_BSF: Tensor) -> Tensor:
        """Together, because the product keeps its input.  Recomputing stops there, before it multiplies."""
        out_BSD: Tensor = self.linear2(self._activation(inner_BSF), partial=True)
        return out_BSD
