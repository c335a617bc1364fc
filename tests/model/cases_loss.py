"""Cases of tests/model/test_loss.py, called on the ranks."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from model.config import Layout
from model.parallel.groups import make_groups
from model.parallel.loss import Cut, head_loss


def loss_on_ranks(
    x_BSD: Tensor, weight_VD: Tensor, labels_BS: Tensor, mask_BS: Tensor, cut: Cut, sequence_parallel: bool, how: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and what this rank has of the gradients of x and of the weight."""
    world = dist.get_world_size()
    groups = make_groups(Layout(world_size=world, tensor=world), dist.get_rank(), sequence_parallel=sequence_parallel, **how)
    x = x_BSD.chunk(world, dim=1)[groups.rank] if sequence_parallel else x_BSD
    weight = weight_VD.chunk(world, dim=0 if cut == "column" else 1)[groups.rank]
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    value = head_loss(x, weight, labels_BS, mask_BS, groups, cut=cut, z_loss=1e-2)
    value.backward()
    assert x.grad is not None
    assert weight.grad is not None
    return value.detach(), x.grad, weight.grad
