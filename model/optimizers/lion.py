"""Lion: the sign of an interpolated momentum.

Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675, algorithm 2:

    c = beta1 m + (1 - beta1) g;  w <- w - lr (sign(c) + decay w);  m <- beta2 m + (1 - beta2) g
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.optimizers.tensor_by_tensor import TensorByTensor


class Lion(TensorByTensor):
    """One moment, ``exp_avg``."""

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(weight)
        moment = state["exp_avg"]
        direction = moment.lerp(gradient, 1 - beta1).sign_()
        weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
        moment.lerp_(gradient, 1 - beta2)
