"""SGD with heavy-ball momentum: torch's own, in one kernel a tensor list; weight decay is a part of the gradient."""

from __future__ import annotations

from typing import Any

import torch


def make_sgd(groups: list[dict[str, Any]], *, lr: float, momentum: float) -> torch.optim.Optimizer:
    """v <- momentum v + g, w <- w - lr v."""
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=True)
