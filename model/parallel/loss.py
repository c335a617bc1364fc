"""Cross-entropy in fp32 over a vocabulary that is cut over the tensor ranks, with one buffer of the logits' size.

Changes when the loss is computed otherwise.  Legend: B batch, S tokens, T = B x S, v this rank's share of the padded vocabulary.

    loss_t = log sum_v exp(z_tv) - z_t,label        d loss_t / d z_tv = softmax(z_t)_v - [v is the label]

Logits stay in their own precision; fp32 exists for a block of rows at a time.  The backward pass writes the gradient over the
logits, which nobody needs any more: using them twice is an error that autograd itself reports.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.parallel.groups import Groups

BLOCK_CPU = 1 << 18
"""Logits in a block: 1 MiB of fp32 stays in a core's cache (2048 x 4096 on one core: logsumexp 12 ms, 23 ms as one block)."""

BLOCK_GPU = 1 << 26
"""256 MiB of fp32."""


def cross_entropy(logits_BSv: Tensor, labels_BS: Tensor, groups: Groups) -> Tensor:
    """loss_BS in fp32, on every tensor rank.  ``logits_BSv`` is consumed."""
    loss_T: Tensor = _CrossEntropy.apply(logits_BSv.flatten(0, 1), labels_BS.flatten(), groups)  # type: ignore[no-untyped-call]
    return loss_T.view(labels_BS.shape)


def reference(logits_TV: Tensor, labels_T: Tensor) -> Tensor:
    """The formula, of whole logits."""
    z_TV = logits_TV.float()
    return z_TV.logsumexp(-1) - z_TV.gather(-1, labels_T[:, None])[:, 0]


def masked_mean(loss_BS: Tensor, mask_BS: Tensor) -> Tensor:
    """Mean over the labels that count; 0 where none does."""
    return (loss_BS * mask_BS).sum() / mask_BS.sum().clamp(min=1)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_Tv: Tensor, labels_T: Tensor, groups: Groups) -> Tensor:
        lse_T = torch.cat([block.float().logsumexp(-1) for block in _blocks(logits_Tv)])
        local_T, absent_T = _local_labels(labels_T, logits_Tv.shape[-1], groups)
        label_T = logits_Tv.gather(-1, local_T[:, None])[:, 0].float()
        if absent_T is not None:
            label_T.masked_fill_(absent_T, 0)
            dist.all_reduce(label_T, group=groups.tensor_group)
            lse_T = _logsumexp_over_ranks(lse_T, groups)
        ctx.save_for_backward(logits_Tv, local_T, absent_T, lse_T)
        return lse_T - label_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits_Tv, local_T, absent_T, lse_T = ctx.saved_tensors
        grad_T = grads[0]
        at_label_T = -grad_T if absent_T is None else -grad_T.masked_fill(absent_T, 0)
        start = 0
        for block in _blocks(logits_Tv):
            rows = slice(start, start + len(block))
            grad = torch.sub(block, lse_T[rows, None]).exp_().mul_(grad_T[rows, None])  # fp32, as lse is
            block.copy_(grad.scatter_add_(-1, local_T[rows, None], at_label_T[rows, None]))
            start = rows.stop
        return logits_Tv, None, None


def _blocks(logits_Tv: Tensor) -> tuple[Tensor, ...]:
    block = BLOCK_CPU if logits_Tv.device.type == "cpu" else BLOCK_GPU
    return logits_Tv.split(max(1, block // logits_Tv.shape[-1]))


def _local_labels(labels_T: Tensor, width: int, groups: Groups) -> tuple[Tensor, Tensor | None]:
    """Labels as columns of this shard, and which of them stand on another rank (``None`` where there is no other)."""
    if groups.tensor_group is None:
        return labels_T, None
    local_T = labels_T - groups.tensor_rank * width
    absent_T = (local_T < 0) | (local_T >= width)
    return local_T.masked_fill_(absent_T, 0), absent_T


def _logsumexp_over_ranks(lse_T: Tensor, groups: Groups) -> Tensor:
    largest_T = lse_T.clone()
    dist.all_reduce(largest_T, op=dist.ReduceOp.MAX, group=groups.tensor_group)
    total_T = lse_T.sub_(largest_T).exp_()
    dist.all_reduce(total_T, group=groups.tensor_group)
    return total_T.log_().add_(largest_T)
