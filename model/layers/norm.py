"""Normalization of a sub-layer's input, or of queries and keys; changes with another norm.  Legend: D the width that is normalized.

LayerNorm: Ba, Kiros and Hinton 2016, arXiv:1607.06450; without gain and bias: Groeneveld et al. 2024, "OLMo", arXiv:2402.00838,
section 2.1.  RMSNorm: Zhang and Sennrich 2019, arXiv:1910.07467, equation 4.  ScaleNorm: Nguyen and Salazar 2019, arXiv:1910.05895,
equation 5; its gain begins at 1, as GPT-NeoX's.  Statistics are in fp32 (fp64 for fp64) whatever the input's type.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import RunConfig
from model.parallel.collectives import share
from model.parallel.groups import Groups
from model.parallel.parameters import make_parameter, ones, zeros


class Norm(Protocol):
    """A kind of norm.  ``of_heads``: over the dimensions of a head, each head by itself; else over those of the residual stream."""

    def __call__(self, config: RunConfig, groups: Groups, *, of_heads: bool = False) -> nn.Module: ...


class NormLayer(nn.Module):
    """What norms have in common: the width, and parameters of which a rank may see only a part of the gradient."""

    def __init__(self, config: RunConfig, groups: Groups, *, of_heads: bool = False) -> None:
        super().__init__()
        self.width = config.architecture.head_size if of_heads else config.architecture.hidden_size
        self._groups = groups
        self._partly_used = groups.sequence_parallel or (of_heads and groups.tensor_group is not None)
        """Every tensor rank has the same parameters and uses them on a share of the tokens, or of the heads."""

    def _shared(self, *parameters: Tensor) -> tuple[Tensor, ...]:
        return share(self._groups, *parameters) if self._partly_used else parameters


class LayerNorm(NormLayer):
    """(x - mean) / sqrt(variance + eps) weight + bias; the bias only with ``use_bias_in_norms``."""

    def __init__(self, config: RunConfig, groups: Groups, *, of_heads: bool = False) -> None:
        super().__init__(config, groups, of_heads=of_heads)
        self.weight: Tensor = make_parameter((self.width,), ones, groups)
        self.bias: Tensor | None = None
        if config.architecture.use_bias_in_norms:
            self.bias = make_parameter((self.width,), zeros, groups)
        self._epsilon = config.architecture.layernorm_epsilon

    def forward(self, x_D: Tensor) -> Tensor:
        """Same shape and type as the input."""
        gain_D, *rest = self._shared(*(p for p in (self.weight, self.bias) if p is not None))
        return F.layer_norm(x_D, gain_D.shape, gain_D, rest[0] if rest else None, self._epsilon)


class NonParametricLayerNorm(NormLayer):
    """(x - mean) / sqrt(variance + eps)"""

    def __init__(self, config: RunConfig, groups: Groups, *, of_heads: bool = False) -> None:
        super().__init__(config, groups, of_heads=of_heads)
        self._epsilon = config.architecture.layernorm_epsilon

    def forward(self, x_D: Tensor) -> Tensor:
        """Same shape and type as the input."""
        return F.layer_norm(x_D, (self.width,), eps=self._epsilon)


class RMSNorm(NormLayer):
    """x / sqrt(mean of squares + eps) scale"""

    def __init__(self, config: RunConfig, groups: Groups, *, of_heads: bool = False) -> None:
        super().__init__(config, groups, of_heads=of_heads)
        self.scale: Tensor = make_parameter((self.width,), ones, groups)
        self._epsilon = config.architecture.rms_norm_epsilon

    def forward(self, x_D: Tensor) -> Tensor:
        """Same shape and type as the input."""
        (gain_D,) = self._shared(self.scale)
        return F.rms_norm(x_D, gain_D.shape, gain_D, self._epsilon)


class ScaleNorm(NormLayer):
    """x / max(|x|, eps) g, with one number g."""

    def __init__(self, config: RunConfig, groups: Groups, *, of_heads: bool = False) -> None:
        super().__init__(config, groups, of_heads=of_heads)
        self.g: Tensor = make_parameter((1,), ones, groups)
        self._epsilon = config.architecture.scalenorm_epsilon

    def forward(self, x_D: Tensor) -> Tensor:
        """Same shape and type as the input."""
        (gain_1,) = self._shared(self.g)
        wide = torch.promote_types(x_D.dtype, torch.float32)
        length_1 = torch.linalg.vector_norm(x_D, dim=-1, keepdim=True, dtype=wide).clamp(min=self._epsilon)
        return x_D * (gain_1 / length_1).to(x_D.dtype)
