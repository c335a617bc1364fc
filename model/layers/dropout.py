"""Dropout whose masks do not know the layout: each is a pure function of the run's seed, the sample's number and the place.

A sample's mask is the same on one rank and on many, on any pipeline stage, in any micro-batch, and when activations are computed
again; so resuming needs no random state.  Changes when masks are drawn otherwise.
Legend: B batch, S tokens, s this rank's share of them, D width, N heads here, Q queries, K keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.parallel.groups import Groups

EMBEDDING, ATTENTION_OUTPUT, MLP_OUTPUT, PROBABILITIES = range(4)
"""Places within a layer."""


class Dropout:
    """Drops entries of the residual stream, or of attention probabilities, and scales the others up."""

    def __init__(self, rate: float, seed: int, layer: int, place: int, groups: Groups) -> None:
        self.rate = rate
        self._seed = _mix(_mix(seed, layer), place)
        self._groups = groups

    def residual(self, x_BSD: Tensor, sample_B: Tensor) -> Tensor:
        """x_BSD, or under sequence parallelism this rank's share x_BsD of the tokens; a row's mask is drawn for all of them."""
        _, tokens, D = x_BSD.shape
        cut = self._groups.sequence_parallel
        first, whole = (self._groups.tensor_rank * tokens, self._groups.layout.tensor * tokens) if cut else (0, tokens)
        rows = [self._mask((whole, D), number, x_BSD)[first : first + tokens] for number in sample_B.tolist()]
        return x_BSD * torch.stack(rows)

    def probabilities(self, p_BNQK: Tensor, sample_B: Tensor) -> Tensor:
        """p_BNQK of the heads that lie here; a head's mask is its own."""
        B, N, Q, K = p_BNQK.shape
        first = self._groups.tensor_rank * N
        rows = [self._mask((Q, K), _mix(number, head), p_BNQK) for number in sample_B.tolist() for head in range(first, first + N)]
        return p_BNQK * torch.stack(rows).view(B, N, Q, K)

    def _mask(self, shape: tuple[int, ...], number: int, like: Tensor) -> Tensor:
        """0 where an entry is dropped, 1 / (1 - rate) elsewhere."""
        generator = torch.Generator(device=like.device).manual_seed(_mix(self._seed, number) >> 32)  # the CPU's uses 32 bits
        kept = torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(1 - self.rate, generator=generator)
        return kept.div_(1 - self.rate)


def _mix(left: int, right: int) -> int:
    """64 bits from two numbers: the finalizer of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
    generators", figure 16) over their weighted sum."""
    mask = (1 << 64) - 1
    z = (left * 0x9E3779B97F4A7C15 + right + 0x9E3779B97F4A7C15) & mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)
