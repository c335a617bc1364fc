"""What is optimized, and by whom: parameter groups, and the optimizer that the configuration names."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from model.config import RunConfig
from model.config.optimizers import Optimizer
from model.mup import split_by_width
from model.parallel.groups import Groups, one_rank


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


def make_optimizer(config: RunConfig, parameters: Iterable[nn.Parameter], ranks: Groups | None = None) -> torch.optim.Optimizer:
    """The optimizer of ``config`` (model/config/optimizers.py) over ``parameters``, with the numbers of ``optimizer.params``.

    Raises:
        ValueError: it comes from a package that is not installed, or cannot run here; the message says what to do.
    """
    kind = config.optimizer
    module, _, name = kind.make.partition(":")
    numbers: dict[str, Any] = dict(config.optimizer_numbers)
    if kind.takes_groups:
        numbers["ranks"] = ranks or one_rank()
    groups = parameter_groups(parameters, config.optimization.weight_decay)
    if kind.rates_by_width is not None:
        groups = split_by_width(groups, kind.rates_by_width)
    made: torch.optim.Optimizer = getattr(_imported(module, kind), name)(groups, lr=config.schedule.lr, **numbers)
    if kind.step == "counted for it":
        made.register_step_post_hook(_count)
    return made


def _imported(module: str, kind: Optimizer) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        if not kind.package:
            raise
        raise ValueError(
            f"optimizer: it comes from a package that is not installed: {error}\n  fix: pip install '{kind.package}'"
        ) from error


def begin_state(kind: Optimizer, kept: Iterable[str], weight: Tensor) -> dict[str, Any]:
    """What the optimizer keeps of ``weight`` before its first step."""
    step: Any = 0
    if kind.step != "number":
        beside = kind.step == "tensor beside the weight"
        step = torch.zeros((), dtype=torch.float32, device=weight.device if beside else "cpu")
    tensors = {name: weight.clone() if name in kind.from_weight else torch.zeros_like(weight) for name in kept}
    return {"step": step} | tensors


def _count(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """The steps of each tensor, as Adam counts them; checkpoints keep the number."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None:
                optimizer.state[weight]["step"] = optimizer.state[weight].get("step", torch.zeros(())) + 1
