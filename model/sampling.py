"""Choosing the next token and going on until the end of a document; changes when tokens are chosen otherwise.

Every choice is a pure function of the logits and one uniform number, and a sample's numbers are a pure function of the seed and the
sample's number: the same text whatever is sampled beside it, on any device, on every tensor rank.
Legend: B samples sampled together, S tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.config.training import Generation
from model.gpt import GPT


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What followed a context."""

    tokens: tuple[int, ...]
    """Without the end-of-document token."""
    finished: bool
    """The document ended by itself."""


def next_tokens(logits_BV: Tensor, uniform_B: Tensor, keys: Generation) -> Tensor:
    """token_B: the likeliest if temperature, top_k and top_p are all 0, else drawn from ``probabilities``.

    ``uniform_B`` in [0, 1) picks the token under whose part of the summed probabilities it falls.
    """
    if not (keys.temperature or keys.top_k or keys.top_p):
        return logits_BV.argmax(-1)
    sums_BV = probabilities(logits_BV, keys).double().cumsum(-1)
    target_B1 = uniform_B.double()[:, None] * sums_BV[:, -1:]  # the last sum is 1 but for rounding
    return torch.searchsorted(sums_BV, target_B1, right=True)[:, 0].clamp_(max=logits_BV.shape[-1] - 1)


def probabilities(logits_BV: Tensor, keys: Generation) -> Tensor:
    """p_BV in fp32 after temperature, then top_k, then top_p, in GPT-NeoX's order.

    Temperature 0 beside top_k or top_p counts as 1.  top_p keeps the likeliest tokens up to the one that passes the threshold
    (Holtzman et al. 2020, arXiv:1904.09751).
    """
    z_BV = logits_BV.float()
    if keys.temperature:
        z_BV = z_BV / keys.temperature
    if keys.top_k and keys.top_k < z_BV.shape[-1]:
        smallest_B1 = z_BV.topk(keys.top_k).values[:, -1:]
        z_BV = z_BV.masked_fill(z_BV < smallest_B1, float("-inf"))
    p_BV = z_BV.softmax(-1)
    if not keys.top_p:
        return p_BV
    sorted_BV, order_BV = p_BV.sort(descending=True, stable=True)
    passed_BV = sorted_BV.cumsum(-1) - sorted_BV > keys.top_p
    kept_BV = torch.zeros_like(p_BV).scatter_(-1, order_BV, sorted_BV.masked_fill(passed_BV, 0))
    return kept_BV / kept_BV.sum(-1, keepdim=True)


def uniforms(seed: int, sample: int, count: int) -> Tensor:
    """The numbers in [0, 1) that draw sample number ``sample``.

    NumPy's, whose seed is a sequence: torch's CPU generator uses the lower 32 bits of a seed only (2.13).
    """
    return torch.from_numpy(np.random.default_rng([seed, sample]).random(count))


@torch.no_grad()
def continue_together(
    network: GPT,
    context_BS: Tensor,
    uniform_BM: Tensor,
    keys: Generation,
    *,
    eod: int | None,
) -> list[Continuation]:
    """Up to M tokens after each of several contexts of the same length; a sample leaves the batch when its document ends."""
    cache = None if keys.recompute else network.new_cache()
    written: list[list[int]] = [[] for _ in context_BS]
    active = list(range(len(written)))
    seen_BS = new_BS = context_BS
    for step in range(uniform_BM.shape[1]):
        logits_BV = network.logits(seen_BS if cache is None else new_BS, cache, last_only=True)[:, -1]
        token_B = next_tokens(logits_BV, uniform_BM[active, step].to(logits_BV.device), keys)
        chosen = token_B.tolist()
        stays = [row for row, token in enumerate(chosen) if token != eod]
        for row in stays:
            written[active[row]].append(chosen[row])
        if len(stays) < len(active):
            active = [active[row] for row in stays]
            rows = torch.tensor(stays, device=token_B.device, dtype=torch.int64)
            seen_BS, token_B = seen_BS[rows], token_B[rows]
            for layer in cache or ():
                layer.keep(rows)
        if not active:
            break
        new_BS = token_B[:, None]
        seen_BS = torch.cat([seen_BS, new_BS], dim=1)
    return [Continuation(tokens=tuple(tokens), finished=number not in active) for number, tokens in enumerate(written)]


def batches(contexts: Sequence[Sequence[int]], largest: int) -> list[list[int]]:
    """Numbers of the contexts in groups of equal length, at most ``largest`` in each: nothing is padded."""
    by_length: dict[int, list[int]] = {}
    for number, context in enumerate(contexts):
        by_length.setdefault(len(context), []).append(number)
    return [group[i : i + largest] for _, group in sorted(by_length.items()) for i in range(0, len(group), largest)]
