"""Activations of the MLP; their names stand in model/config/kinds.py.  Changes with another one.  Legend: F width of the MLP.

A plain one maps x_F.  A gated one (Dauphin et al. 2016, arXiv:1612.08083; Shazeer 2020, "GLU variants improve transformer",
arXiv:2002.05202) is given values and gates side by side, x_2F, and returns values x f(gates).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]


def gelu_erf(x: Tensor) -> Tensor:
    """x Phi(x): Hendrycks and Gimpel 2016, arXiv:1606.08415."""
    return F.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))): the same paper's approximation, which GPT-NeoX's fused kernel computes."""
    return F.gelu(x, approximate="tanh")


def identity(x: Tensor) -> Tensor:
    """x"""
    return x


def gated(function: Activation) -> Activation:
    """values x function(gates)"""

    def activate(x_2F: Tensor) -> Tensor:
        value_F, gate_F = x_2F.chunk(2, dim=-1)
        return function(gate_F) * value_F

    return activate


def flash_attn_swiglu(x_2F: Tensor) -> Tensor:
    """SwiGLU by flash-attn's kernel, whose backward pass computes silu(gates) again instead of keeping it."""
    from flash_attn.ops.activations import swiglu

    value_F, gate_F = x_2F.chunk(2, dim=-1)
    y_F: Tensor = swiglu(gate_F, value_F)
    return y_F


def flash_attn_missing(device: torch.device) -> str:
    """Why flash-attn cannot run on a device, and what to do; empty: it can."""
    if device.type != "cuda":
        return "flash-attn has no kernels for it: remove use_flashattn_swiglu"
    return "" if importlib.util.find_spec("flash_attn") else "it is not installed: pip install flash-attn"
