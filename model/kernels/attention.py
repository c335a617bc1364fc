"""Causal attention: softmax(q k^T / sqrt(H) + mask) v.

Legend: B batch, N heads, Q queries, K keys, H head size.  The queries are the last Q of the K positions.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Attention(Protocol):
    """An implementation of causal attention."""

    def __call__(self, q_BNQH: Tensor, k_BNKH: Tensor, v_BNKH: Tensor, *, dropout: float, softmax_in_fp32: bool) -> Tensor: ...


def eager_attention(q_BNQH: Tensor, k_BNKH: Tensor, v_BNKH: Tensor, *, dropout: float, softmax_in_fp32: bool) -> Tensor:
    """Scores, mask, softmax and product one after another; holds B N Q K scores."""
    scores_BNQK = (q_BNQH / math.sqrt(q_BNQH.shape[-1])) @ k_BNKH.transpose(-1, -2)
    if softmax_in_fp32:
        scores_BNQK = scores_BNQK.float()
    scores_BNQK = scores_BNQK.masked_fill(~causal_mask(q_BNQH.shape[2], k_BNKH.shape[2], q_BNQH.device), float("-inf"))
    p_BNQK = scores_BNQK.softmax(-1).to(v_BNKH.dtype)
    return F.dropout(p_BNQK, dropout, training=dropout > 0) @ v_BNKH


def sdpa_attention(q_BNQH: Tensor, k_BNKH: Tensor, v_BNKH: Tensor, *, dropout: float, softmax_in_fp32: bool) -> Tensor:
    """torch's fused attention (flash or memory-efficient, whichever the device has); its softmax is in fp32 always."""
    queries, keys = q_BNQH.shape[2], k_BNKH.shape[2]
    if queries == keys:
        return F.scaled_dot_product_attention(q_BNQH, k_BNKH, v_BNKH, dropout_p=dropout, is_causal=True)
    mask = None if queries == 1 else causal_mask(queries, keys, q_BNQH.device)
    return F.scaled_dot_product_attention(q_BNQH, k_BNKH, v_BNKH, attn_mask=mask, dropout_p=dropout)


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """mask_QK: true where a query sees a key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
