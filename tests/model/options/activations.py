"""Activations of the MLP, each by its published formula; widths of a gated MLP."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tests.model.options.option import Option
from tests.model.options.reference import ClosedForm

Function = Callable[[Tensor], Tensor]


def _plain(function: Function) -> type[ClosedForm]:
    """x -> function(linear1 x)"""
    return type("Plain", (ClosedForm,), {"activation": lambda self, x: function(x)})


def _gated(function: Function) -> type[ClosedForm]:
    """x -> function(gate x) (value x)"""

    def mlp(self: ClosedForm, x_BSD: Tensor, layer: int) -> Tensor:
        name = f"layers.{layer}.mlp.linear1"
        value_FD, gate_FD = self.w[f"{name}.weight"]
        biases = (self.w.get(f"{name}.first_bias", 0), self.w.get(f"{name}.second_bias", 0))
        value_BSF, gate_BSF = x_BSD @ value_FD.T + biases[0], x_BSD @ gate_FD.T + biases[1]
        return self.linear(function(gate_BSF) * value_BSF, f"layers.{layer}.mlp.linear2")

    return type("Gated", (ClosedForm,), {"mlp": mlp})


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def relu(x: Tensor) -> Tensor:
    return x * (x > 0)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def _tanh_gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


NARROW = {"intermediate_size": 96}
PLAIN: dict[str, Function] = {
    "relu": relu,
    "softsign": lambda x: x / (1 + x.abs()),
    "swish": silu,
    "silu": silu,
    "mish": lambda x: x * torch.tanh(torch.log(1 + torch.exp(x))),
}
GATED: dict[str, Function] = {
    "geglu": gelu,
    "reglu": relu,
    "swiglu": silu,
    "bilinear": lambda x: x,
    "glu": lambda x: 1 / (1 + torch.exp(-x)),
}
OPTIONS = (
    {name: Option(keys={"activation": name, **NARROW}, reference=_plain(function).logits) for name, function in PLAIN.items()}
    | {name: Option(keys={"activation": name, **NARROW}, reference=_gated(function).logits) for name, function in GATED.items()}
    | {
        "gelu by tanh": Option(keys={"bias_gelu_fusion": True, **NARROW}, reference=_plain(_tanh_gelu).logits),
        "gelu, expanded": Option(keys={"expansion_factor": 2.5}, reference=ClosedForm.logits),
        "swiglu, no biases": Option(
            keys={"activation": "swiglu", "use_bias_in_mlp": False, "expansion_factor": 3.1, "mlp_multiple_of": 6},
            reference=_gated(silu).logits,
        ),
    }
)
