"""Cross-entropy in fp32 over a vocabulary that is cut over the tensor ranks.

loss = log sum_v exp(z_v) - z_label, with the largest logit taken out first; each rank holds its share v of the logits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from model.parallel.groups import Groups


def cross_entropy(logits_BSv: Tensor, labels_BS: Tensor, groups: Groups) -> Tensor:
    """loss_BS in fp32, on every tensor rank."""
    if groups.tensor_group is None:
        flat = F.cross_entropy(logits_BSv.flatten(0, 1).float(), labels_BS.flatten(), reduction="none")
        return flat.view(labels_BS.shape)
    return _VocabParallel.apply(logits_BSv, labels_BS, groups)


def masked_mean(loss_BS: Tensor, mask_BS: Tensor) -> Tensor:
    """Mean over the labels that count; 0 where none does."""
    return (loss_BS * mask_BS).sum() / mask_BS.sum().clamp(min=1)


class _VocabParallel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_BSv: Tensor, labels_BS: Tensor, groups: Groups) -> Tensor:
        z_BSv = logits_BSv.float()
        largest_BS = z_BSv.amax(-1)
        dist.all_reduce(largest_BS, op=dist.ReduceOp.MAX, group=groups.tensor_group)
        z_BSv = z_BSv - largest_BS[..., None]
        local_BS = labels_BS - groups.tensor_rank * z_BSv.shape[-1]
        here_BS = (local_BS >= 0) & (local_BS < z_BSv.shape[-1])
        local_BS = local_BS.masked_fill(~here_BS, 0)
        label_BS = z_BSv.gather(-1, local_BS[..., None])[..., 0].masked_fill(~here_BS, 0)
        p_BSv = z_BSv.exp_()
        sums_2BS = torch.stack([label_BS, p_BSv.sum(-1)])
        dist.all_reduce(sums_2BS, group=groups.tensor_group)
        label_BS, total_BS = sums_2BS
        ctx.save_for_backward(p_BSv.div_(total_BS[..., None]), local_BS, here_BS)
        ctx.dtype = logits_BSv.dtype
        return total_BS.log() - label_BS

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        p_BSv, local_BS, here_BS = ctx.saved_tensors
        grad_BSv = p_BSv * grads[0][..., None]
        grad_BSv.scatter_add_(-1, local_BS[..., None], -(grads[0] * here_BS)[..., None])
        return grad_BSv.to(ctx.dtype), None, None
