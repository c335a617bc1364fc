"""Normalization of a sub-layer's input; changes with another norm.  LayerNorm: Ba, Kiros and Hinton 2016, arXiv:1607.06450."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from model.config import RunConfig
from model.parallel.collectives import share
from model.parallel.groups import Groups
from model.parallel.parameters import make_parameter, ones, zeros


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) weight + bias over the last dimension; statistics in fp32."""

    def __init__(self, config: RunConfig, groups: Groups) -> None:
        super().__init__()
        width = config.architecture.hidden_size
        self.weight: Tensor = make_parameter((width,), ones, groups)
        self.bias: Tensor = make_parameter((width,), zeros, groups)
        self._epsilon, self._groups = config.architecture.layernorm_epsilon, groups

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Same shape and type as the input."""
        gain_D, bias_D = self.weight, self.bias
        if self._groups.sequence_parallel:
            gain_D, bias_D = share(self._groups, gain_D, bias_D)
        return F.layer_norm(x_BSD, gain_D.shape, gain_D, bias_D, self._epsilon)


NORMS = {"layernorm": LayerNorm}
"""``norm`` -> its layer."""
