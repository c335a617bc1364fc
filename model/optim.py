"""What the optimizer is told: parameter groups, the optimizer, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from model.config import RunConfig
from model.mup import split_by_width


def learning_rate(config: RunConfig, step: int) -> float:
    """The learning rate of optimizer step ``step`` (0 is the first).

    GPT-NeoX ``learning_rates.py``, W = warmup x decay steps, N = decay steps, u = step - W, E = N - W:
    up to W it rises to the peak by max(1, step) / W; then linear peak (E - u) / E, cosine
    min + (peak - min) / 2 (cos(pi u / E) + 1), exponential peak exp(-0.693 u / E), constant; never below min_lr.
    Two defects are left out: a warm-up shorter than one step does not overshoot the peak, and the cosine does not rise again
    after N.
    """
    peak, floor = config.optimization.optimizer.params.lr, config.learning_rate.min_lr
    steps = config.lr_decay_steps
    warmup = config.learning_rate.warmup * steps
    if warmup >= 1 and step <= warmup:
        return peak * max(1, step) / warmup
    span = max(steps - warmup, 1e-12)
    progress = min(max(step - warmup, 0.0), span) / span
    style = config.learning_rate.lr_decay_style
    if style == "linear":
        rate = peak * (1 - progress)
    elif style == "cosine":
        rate = floor + (peak - floor) / 2 * (math.cos(math.pi * progress) + 1)
    elif style == "exponential":
        rate = peak * math.exp(-0.693 * progress)
    else:
        rate = peak
    return max(rate, floor)


def give_rate(groups: Iterable[dict[str, Any]], rate: float) -> None:
    """Let every group of an optimizer learn at ``rate``, times what muP asks of it."""
    for group in groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay; biases and norms (one dimension) without."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.dim() > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(config: RunConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """torch's AdamW, or its Adam when ``adam_w_mode`` is false (weight decay as a part of the gradient)."""
    params = config.optimization.optimizer.params
    kind = torch.optim.AdamW if params.adam_w_mode else torch.optim.Adam
    groups = split_by_width(parameter_groups(parameters, config.optimization.weight_decay), "adam")
    return kind(groups, lr=params.lr, betas=params.betas, eps=params.eps, fused=True)
