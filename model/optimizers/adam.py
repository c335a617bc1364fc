"""Adam and AdamW: torch's own, in one kernel a tensor list.

Kingma and Ba 2014, arXiv:1412.6980; decoupled weight decay: Loshchilov and Hutter 2017, arXiv:1711.05101.
"""

from __future__ import annotations

from typing import Any

import torch


def make_adam(
    groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, adam_w_mode: bool
) -> torch.optim.Optimizer:
    """AdamW, or Adam (weight decay as a part of the gradient) where ``adam_w_mode`` is false."""
    kind = torch.optim.AdamW if adam_w_mode else torch.optim.Adam
    return kind(groups, lr=lr, betas=betas, eps=eps, fused=True)
