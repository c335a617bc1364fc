"""The norm of the whole gradient, and clipping, where DeepSpeed's own is wrong: ZeRO-0 in fp32."""

from __future__ import annotations

import torch
import torch.distributed as dist

from model.parallel.groups import Groups
from model.parallel.parameters import GlobalParameter


@torch.no_grad()
def clip_gradients(parameters: list[GlobalParameter], groups: Groups, largest: float, *, local: bool = False) -> float:
    """Scale all gradients so that their norm is at most ``largest`` (0: do not scale); return the norm before.

    A parameter that lies on every tensor rank, or on two pipeline stages, is counted once.  ``local``: every data rank has
    gradients of its own; the norm is then the root of the mean of their squares, which that of their mean never exceeds.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    counted = [parameter.grad for parameter in parameters if parameter.grad is not None and counts(parameter, groups)]
    norms = torch.stack(torch._foreach_norm(counted)) if counted else torch.zeros(1, device=gradients[0].device)
    square = norms.double().square().sum()
    if groups.model_group is not None:
        dist.all_reduce(square, group=groups.model_group)
    if local and groups.data_group is not None:
        dist.all_reduce(square, group=groups.data_group)
        square /= groups.layout.data
    norm = float(square.sqrt())
    if largest and norm > largest:
        torch._foreach_mul_(gradients, largest / (norm + 1e-6))
    return norm


def counts(parameter: GlobalParameter, groups: Groups) -> bool:
    """This rank's copy stands for all copies of it among the ranks of one model."""
    once_on_tensor_ranks = parameter.tensor_model_parallel or groups.tensor_rank == 0
    return once_on_tensor_ranks and not getattr(parameter, "ds_pipe_replicated", False)
