"""Causal attention: softmax(q k^T / sqrt(H) + mask) v; changes when it is computed otherwise.

Legend: B batch, N heads, Q queries, K keys, H head size.  The queries are the last Q of the K positions.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Attention(Protocol):
    """An implementation of causal attention.  ``doc_ids_BQ``: a query sees keys of its own document only (then Q = K)."""

    def __call__(
        self, q_BNQH: Tensor, k_BNKH: Tensor, v_BNKH: Tensor, *, doc_ids_BQ: Tensor | None, dropout: float, softmax_in_fp32: bool
    ) -> Tensor: ...


def eager_attention(
    q_BNQH: Tensor, k_BNKH: Tensor, v_BNKH: Tensor, *, doc_ids_BQ: Tensor | None, dropout: float, softmax_in_fp32: bool
) -> Tensor:
    """Scores, mask, softmax and product one after another; holds B N Q K scores.

    torch's softmax sums in fp32 in any case; ``softmax_in_fp32`` spares the scores before it the rounding to the model's precision.
    """
    if softmax_in_fp32:
        q_BNQH, k_BNKH = q_BNQH.float(), k_BNKH.float()
    scores_BNQK = (q_BNQH * q_BNQH.shape[-1] ** -0.5) @ k_BNKH.transpose(-1, -2)
    hidden = visible(q_BNQH.shape[2], k_BNKH.shape[2], doc_ids_BQ, q_BNQH.device).logical_not_()
    p_BNQK = scores_BNQK.masked_fill_(hidden, float("-inf")).softmax(-1).to(v_BNKH.dtype)
    return (F.dropout(p_BNQK, dropout) if dropout else p_BNQK) @ v_BNKH


def sdpa_attention(
    q_BNQH: Tensor, k_BNKH: Tensor, v_BNKH: Tensor, *, doc_ids_BQ: Tensor | None, dropout: float, softmax_in_fp32: bool
) -> Tensor:
    """torch's fused attention (flash or memory-efficient, whichever the device has); its softmax is in fp32 always.

    Only documents, or several tokens behind a cache, need a mask in memory.
    """
    queries, keys = q_BNQH.shape[2], k_BNKH.shape[2]
    if doc_ids_BQ is None and queries in (1, keys):
        return F.scaled_dot_product_attention(q_BNQH, k_BNKH, v_BNKH, dropout_p=dropout, is_causal=queries > 1)
    mask = visible(queries, keys, doc_ids_BQ, q_BNQH.device)
    return F.scaled_dot_product_attention(q_BNQH, k_BNKH, v_BNKH, attn_mask=mask, dropout_p=dropout)


def visible(queries: int, keys: int, doc_ids_BQ: Tensor | None, device: torch.device) -> Tensor:
    """True where a query sees a key: QK, or B1QK with documents."""
    causal_QK = torch.ones(queries, keys, dtype=torch.bool, device=device).tril_(keys - queries)
    if doc_ids_BQ is None:
        return causal_QK
    assert queries == keys, "a cached sequence is one document"
    return (doc_ids_BQ[:, None, :, None] == doc_ids_BQ[:, None, None, :]) & causal_QK
