"""GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415) and its tanh approximation, which GPT-NeoX's fused kernel computes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def gelu_erf(x: Tensor) -> Tensor:
    """x Phi(x)"""
    return F.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))"""
    return F.gelu(x, approximate="tanh")
