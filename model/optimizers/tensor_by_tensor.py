"""What our own optimizers have in common: a formula for one tensor, and a loop around it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


class TensorByTensor(torch.optim.Optimizer):
    """Updates one tensor after the other."""

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


@runtime_checkable
class Packed(Protocol):
    """An optimizer whose states have not the weight's shape: checkpoints keep them unpacked, so that any layout can take them."""

    def unpacked(self, weight: Tensor) -> dict[str, Tensor]:
        """The states of ``weight``, in fp32 and its shape, by the names in ``Optimizer.keeps``; before the first step as well."""

    def pack(self, weight: Tensor, states: Mapping[str, Tensor]) -> None:
        """Keep them."""
