"""Cases of the optimizer tests, called on the ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from model.config import RunConfig
from model.optim import make_optimizer
from model.parallel.groups import make_groups


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
