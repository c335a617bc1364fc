"""What optimizers have in common that update every element by itself: a formula for one tensor, and a loop around it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor


class Elementwise(torch.optim.Optimizer):
    """Updates one tensor after the other; ZeRO may cut the tensors as it likes."""

    @abstractmethod
    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Change ``weight`` and ``state`` in place.  ``state["step"]`` has counted this step: 1 at the first."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step on every tensor that has a gradient."""
        assert closure is None, "DeepSpeed computes the gradient"
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "step" not in state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                state["step"] += 1
                self.update(weight, weight.grad, state, group)
