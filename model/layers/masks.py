"""What a query sees of the keys before it, and by how much its scores there are raised; changes when masks are made otherwise.

A mask is a pattern (window, blocks) and a bias by distance (ALiBi, T5), made once for a shape and shared by the layers of one kind.
Legend: N heads here, Q queries, K keys, D distances.  The queries are the last Q of the K positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Pattern(Protocol):
    """Which keys a query sees, of those up to its own."""

    def __call__(self, query_Q1: Tensor, key_1K: Tensor) -> Tensor:
        """1QK or NQK of bool, from positions."""

    def sees_all(self, keys: int) -> bool:
        """It hides nothing among so many keys."""


class Bias(Protocol):
    """What is added to the scores of two tokens by their distance."""

    learned: bool
    """It has a gradient, and is another one after every step."""

    def by_distance(self, distances: int) -> Tensor:
        """bias_ND in fp32 for the distances 0, 1, 2 …"""


class Window:
    """A query sees its own key and ``width`` before it: Beltagy et al. 2020, "Longformer", arXiv:2004.05150, section 3.1.

    GPT-NeoX's count: Hugging Face's and Mistral's ``sliding_window`` is one more.
    """

    def __init__(self, width: int) -> None:
        self._width = width

    def __call__(self, query_Q1: Tensor, key_1K: Tensor) -> Tensor:
        return (query_Q1 - key_1K <= self._width)[None]

    def sees_all(self, keys: int) -> bool:
        return keys <= self._width + 1


class Mask:
    """The mask of layers of one kind; the last one made is kept, for all of them."""

    def __init__(self, patterns: Sequence[Pattern], bias: Bias | None) -> None:
        self._patterns, self._bias = tuple(patterns), bias
        self._seen: tuple[tuple[int, int, torch.device], Tensor] | None = None
        self._added: tuple[tuple[int, int, torch.device, torch.dtype], Tensor] | None = None

    def __call__(self, queries: int, keys: int, device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """Of bool, 1QK or NQK; or in ``dtype``, to be added; or ``None``: every key up to the query's own, alike."""
        if self._bias is None:
            plain = all(pattern.sees_all(keys) for pattern in self._patterns)
            return None if plain else self._pattern(queries, keys, device)
        if self._bias.learned:
            return self._sum(self._bias, queries, keys, device, dtype)
        if self._added is None or self._added[0] != (queries, keys, device, dtype):
            self._added = (queries, keys, device, dtype), self._sum(self._bias, queries, keys, device, dtype)
        return self._added[1]

    def _pattern(self, queries: int, keys: int, device: torch.device) -> Tensor:
        if self._seen is None or self._seen[0] != (queries, keys, device):
            query_Q1 = torch.arange(keys - queries, keys, device=device)[:, None]
            key_1K = torch.arange(keys, device=device)[None]
            seen = (key_1K <= query_Q1)[None]
            for pattern in self._patterns:
                seen = seen & pattern(query_Q1, key_1K)
            self._seen = (queries, keys, device), seen
        return self._seen[1]

    def _sum(self, bias: Bias, queries: int, keys: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        bias_ND = bias.by_distance(keys)
        bias_NQK = over_pairs(bias_ND.to(device, bias_ND.dtype if bias.learned else dtype), queries)  # gradients are summed in fp32
        return bias_NQK.masked_fill_(~self._pattern(queries, keys, device), float("-inf")).to(dtype)


def over_pairs(bias_ND: Tensor, queries: int) -> Tensor:
    """bias_NQK from bias_ND: query i and key j are K - Q + i - j apart, where K = D; keys after the query get 0.

    Windows over the distances from the last to the first, so that the backward pass sums diagonals without an index.
    """
    heads, keys = bias_ND.shape
    falling = torch.cat([bias_ND.flip(-1), bias_ND.new_zeros(heads, queries - 1)], dim=-1)
    return falling.unfold(-1, keys, 1).flip(1)
