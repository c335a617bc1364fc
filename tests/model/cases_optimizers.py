"""Cases of the optimizer tests, called on the ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from model.config import RunConfig
from model.optim import make_optimizer
from model.parallel.groups import make_groups
from tests.model.cases_engine import make_trainer
from tests.model.networks import small_batch


def steps_of_own_gradients(keys: dict[str, Any], first: Any, gradients: Any) -> Any:
    """A vector after steps of 1-bit Adam; ``gradients`` of every step and data rank, averaged by others while it asks for it."""
    config = RunConfig.from_keys(keys | {"weight_decay": 0.0})
    groups = make_groups(config.layout(dist.get_world_size()), dist.get_rank())
    weight = nn.Parameter(torch.tensor(first, dtype=torch.float32))
    made: Any = make_optimizer(config, [weight], groups)
    for step in gradients:
        taken = step[groups.data_rank] if made.takes_local_gradients else np.mean(step, axis=0)
        weight.grad = torch.tensor(taken, dtype=torch.float32)
        made.step()
    return weight.detach().double().numpy()


def gradients_by_step(keys: dict[str, Any], steps: int) -> tuple[int, list[float], float]:
    """The pipeline stage; what the optimizer was given at each step and the weights at the end, as numbers.  Data ranks differ."""
    trainer = make_trainer(keys)
    config = RunConfig.from_keys(keys)
    layout = config.layout(dist.get_world_size())
    place = make_groups(layout, dist.get_rank())
    seen: list[float] = []
    trainer._optimizer.register_step_pre_hook(lambda *_: seen.append(_sum(p.grad for p in trainer.model.parameters())))
    micro = config.batch_sizes(layout)
    for step in range(steps):
        first = (step * layout.data + place.data_rank) * micro.accumulation
        trainer.train_step([small_batch(seed=first + i, sequences=micro.micro) for i in range(micro.accumulation)], 1e-3)
    return place.pipe_rank, seen, _sum(trainer.model.parameters())


def _sum(tensors: Iterable[Any]) -> float:
    return float(sum(tensor.detach().double().abs().sum() for tensor in tensors if tensor is not None))
