"""Causal attention: softmax(q k^T / sqrt(H) + mask) v; changes when it is computed otherwise.

Legend: B batch, N heads, M key-value heads, Q queries, K keys, H head size.  The queries are the last Q of the K positions.
A mask_NQK (or mask_1QK, for all heads) is of bool, true where a query sees a key, or is added to the scores, -inf where it does
not.  Causality is in it; without one a query sees every key up to its own.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Drop(Protocol):
    """Dropout on probabilities."""

    @property
    def rate(self) -> float:
        """Share that is dropped."""

    def __call__(self, p_BNQK: Tensor) -> Tensor:
        """p_BNQK with entries dropped and the others scaled up."""


class Attention(Protocol):
    """An implementation of causal attention.

    ``doc_ids_BQ``: of what the mask lets it see, a query sees its own document (then Q = K).  ``layer_scale``: scores are kept this
    much smaller until their softmax.  With fewer key-value heads M than heads N, N / M neighbours share one.
    """

    def __call__(
        self,
        q_BNQH: Tensor,
        k_BMKH: Tensor,
        v_BMKH: Tensor,
        *,
        mask_NQK: Tensor | None = None,
        doc_ids_BQ: Tensor | None,
        drop: Drop | None,
        softmax_in_fp32: bool,
        layer_scale: float = 1,
    ) -> Tensor: ...


def eager_attention(
    q_BNQH: Tensor,
    k_BMKH: Tensor,
    v_BMKH: Tensor,
    *,
    mask_NQK: Tensor | None = None,
    doc_ids_BQ: Tensor | None,
    drop: Drop | None,
    softmax_in_fp32: bool,
    layer_scale: float = 1,
) -> Tensor:
    """Scores, mask, softmax and product one after another; holds B N Q K scores.

    torch's softmax sums in fp32 in any case; ``softmax_in_fp32`` spares the scores before it the rounding to the model's precision.
    With a ``layer_scale`` above 1 they are rounded small, where fp16 does not overflow, and scaled back in fp32.
    """
    shared = q_BNQH.shape[1] // k_BMKH.shape[1]
    k_BNKH, v_BNKH = (x if shared == 1 else x.repeat_interleave(shared, dim=1) for x in (k_BMKH, v_BMKH))
    if softmax_in_fp32 and layer_scale == 1:
        q_BNQH, k_BNKH = q_BNQH.float(), k_BNKH.float()
    scores_BNQK = (q_BNQH * (q_BNQH.shape[-1] ** -0.5 / layer_scale)) @ k_BNKH.transpose(-1, -2)
    if layer_scale != 1:
        scores_BNQK = scores_BNQK.float() * layer_scale
    mask = visible(q_BNQH.shape[2], k_BNKH.shape[2], mask_NQK, doc_ids_BQ, q_BNQH.device)
    if mask.dtype == torch.bool:
        scores_BNQK = scores_BNQK.masked_fill_(mask.logical_not(), float("-inf"))
    else:
        scores_BNQK = scores_BNQK.add_(mask)
    p_BNQK = scores_BNQK.softmax(-1).to(v_BNKH.dtype)
    return (p_BNQK if drop is None else drop(p_BNQK)) @ v_BNKH


def sdpa_attention(
    q_BNQH: Tensor,
    k_BMKH: Tensor,
    v_BMKH: Tensor,
    *,
    mask_NQK: Tensor | None = None,
    doc_ids_BQ: Tensor | None,
    drop: Drop | None,
    softmax_in_fp32: bool,
    layer_scale: float = 1,
) -> Tensor:
    """torch's fused attention (flash or memory-efficient, whichever the device has); its scores and softmax are in fp32 always.

    Without a mask, documents or several tokens behind a cache there is none in memory.  Its dropout is drawn inside, from torch's
    generator.
    """
    queries, keys = q_BNQH.shape[2], k_BMKH.shape[2]
    rate, grouped = 0.0 if drop is None else drop.rate, q_BNQH.shape[1] != k_BMKH.shape[1]
    if mask_NQK is None and doc_ids_BQ is None and queries in (1, keys):
        causal = queries > 1
        return F.scaled_dot_product_attention(q_BNQH, k_BMKH, v_BMKH, dropout_p=rate, is_causal=causal, enable_gqa=grouped)
    mask = visible(queries, keys, mask_NQK, doc_ids_BQ, q_BNQH.device)
    if mask.dtype != torch.bool:
        mask = mask.to(q_BNQH.dtype)
    return F.scaled_dot_product_attention(q_BNQH, k_BMKH, v_BMKH, attn_mask=mask, dropout_p=rate, enable_gqa=grouped)


def visible(queries: int, keys: int, mask_NQK: Tensor | None, doc_ids_BQ: Tensor | None, device: torch.device) -> Tensor:
    """The mask that holds: QK or 1NQK, or BNQK with documents; of bool, or added to the scores, as the one given."""
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril_(keys - queries) if mask_NQK is None else mask_NQK[None]
    if doc_ids_BQ is None:
        return mask
    assert queries == keys, "a cached sequence is one document"
    same_B1QK = doc_ids_BQ[:, None, :, None] == doc_ids_BQ[:, None, None, :]
    return same_B1QK & mask if mask.dtype == torch.bool else mask.masked_fill(~same_B1QK, float("-inf"))
