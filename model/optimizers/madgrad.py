"""MADGRAD with decoupled weight decay: dual averaging with a cube root, and momentum as an average of the iterates.

Defazio and Jelassi 2021, "Adaptivity without Compromise", arXiv:2101.11075, algorithm 1, at step k = 0, 1, …:

    l = lr sqrt(k + 1);  s <- s + l g;  v <- v + l g²;  z = x0 - s / (v^(1/3) + eps);  x <- momentum x + (1 - momentum) z

As in its authors' program and in GPT-NeoX, eps is added to lr, so that a rate of 0 does not stop the sums; as in GPT-NeoX's
``madgrad_wd`` the weight is first multiplied by 1 - lr decay (AdamW's way), which x0 is not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from model.optimizers.tensor_by_tensor import TensorByTensor


class MadGrad(TensorByTensor):
    """Keeps s, v and, with momentum, x0."""

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float, eps: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "eps": eps, "weight_decay": 0.0})

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        momentum, eps = group["momentum"], group["eps"]
        if "sum_of_squares" not in state:
            state |= {name: torch.zeros_like(weight) for name in ("sum_of_gradients", "sum_of_squares")}
            if momentum:
                state["first_weight"] = weight.clone()
        s, v = state["sum_of_gradients"], state["sum_of_squares"]
        lr = group["lr"] + eps
        size = lr * math.sqrt(float(state["step"]))
        weight.mul_(1 - lr * group["weight_decay"])
        # without momentum x0 is not kept: it is what the weight was before the last sums were taken away
        first = state["first_weight"] if momentum else weight.addcdiv(s, _root(v, eps))
        v.addcmul_(gradient, gradient, value=size)
        s.add_(gradient, alpha=size)
        weight.mul_(momentum).add_(torch.addcdiv(first, s, _root(v, eps), value=-1), alpha=1 - momentum)


def _root(v: Tensor, eps: float) -> Tensor:
    return v.pow(1 / 3).add_(eps)
