"""Which tokens make which sample: GPT-NeoX's packed samples, its split and its blending.

All of it is pure in the documents' lengths, the sequence length and the seed.  Facts: GPT-NeoX ``gpt2_dataset.py``,
``data_utils.py``, ``blendable_dataset.py`` and ``helpers.cpp``; a sample is ``seq_length + 1`` tokens, and neighbours share one.
Changes when GPT-NeoX's order of samples does, that is never: a run must see the same samples after an update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_SOURCES = 254
"""Files in one blend (GPT-NeoX's limit; their numbers are kept as uint8)."""
PIECE = 1 << 22
"""Samples whose beginnings are found at a time."""
LANES, LANE = 1 << 14, 1 << 10
"""Most lanes of a blend that advance together, and the fewest samples that make a lane worth it."""


@dataclass(frozen=True, kw_only=True)
class SampleIndex:
    """Where each sample begins, and the order in which samples are served."""

    document_order: NDArray[np.int32]
    """Documents one after another, all epochs shuffled together."""
    starts: NDArray[Any]
    """[samples + 1, 2] int32 or int64: position in document_order, and token within that document."""
    order: NDArray[Any]
    """[samples] uint32 or int64: served sample i is sample order[i]."""

    def __len__(self) -> int:
        return len(self.order)


def epochs_needed(tokens: int, seq_length: int, samples: int) -> int:
    """The fewest passes over ``tokens`` that hold ``samples`` samples."""
    return max(1, -(-(samples * seq_length + 1) // tokens))


def build_samples(lengths: NDArray[Any], documents: NDArray[Any], *, seq_length: int, samples: int, seed: int) -> SampleIndex:
    """The packed samples of ``documents`` (indices into ``lengths``, in tokens); at least ``samples`` of them.

    Raises:
        ValueError: the documents hold no tokens.
    """
    tokens = int(lengths[documents].sum(dtype=np.int64))
    if not tokens:
        raise ValueError("no tokens" if len(documents) else "no documents")
    epochs = epochs_needed(tokens, seq_length, samples)
    rng = np.random.RandomState(seed)  # the legacy generator: its shuffles are GPT-NeoX's
    document_order = np.tile(documents.astype(np.int32), epochs)
    rng.shuffle(document_order)
    count = (epochs * tokens - 1) // seq_length
    order = np.arange(count, dtype=np.uint32 if count < 2**32 - 2 else np.int64)
    rng.shuffle(order)
    return SampleIndex(document_order=document_order, starts=_starts(lengths[document_order], seq_length, count), order=order)


def _starts(ordered_lengths: NDArray[Any], seq_length: int, count: int) -> NDArray[Any]:
    """Sample i begins at token i x seq_length of the concatenated documents: the last token of sample i - 1."""
    ends = np.cumsum(ordered_lengths, dtype=np.int64)
    starts = np.zeros((count + 1, 2), dtype=np.int32 if 2 * (count + 1) < 2**31 - 1 else np.int64)  # sample 0 begins at (0, 0)
    for first in range(1, count + 1, PIECE):  # in pieces, to need little memory
        position = np.arange(first, min(first + PIECE, count + 1), dtype=np.int64) * seq_length
        document = np.searchsorted(ends, position, side="right")
        starts[first : first + len(position), 0] = document
        starts[first : first + len(position), 1] = position - (ends[document] - ordered_lengths[document])
    return starts


def split_documents(split: str, count: int) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """The document ranges [begin, end) of train, valid and test by shares such as ``969, 30, 1``.

    Raises:
        ValueError: the text is no list of shares.
    """
    shares = split_shares(split)
    bounds = [0]
    for share in shares:
        bounds.append(bounds[-1] + round(share * float(count)))
    excess = bounds[-1] - count  # what rounding gave too much is taken from every bound, so that the last one is right
    train, valid, test = (max(0, bound - excess) for bound in bounds[1:])
    return (0, train), (train, valid), (valid, test)


def split_shares(split: str) -> tuple[float, float, float]:
    """Shares of train, valid and test; they add up to 1.

    Raises:
        ValueError: the text is no list of shares.
    """
    try:
        shares = [float(part) for part in split.split("," if "," in split else "/")]
    except ValueError as error:
        raise ValueError(f"split: {split!r} is no list of numbers\n  fix: write three shares, e.g. 969, 30, 1") from error
    train, valid, test = [*shares, 0.0, 0.0, 0.0][:3]
    total = train + valid + test
    if not (min(train, valid, test) >= 0 and 0 < total < float("inf")):
        raise ValueError(f"split: {split!r}: shares must not be negative, nor all zero\n  fix: write three shares, e.g. 969, 30, 1")
    return train / total, valid / total, test / total


def blend(weights: NDArray[np.float64], samples: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Which source gives sample i, and which of its samples that is: always the source that lags most behind its share.

    Sample i goes to the source d with the largest ``weights[d] * max(i, 1) - samples of d so far``; ties go to the first.

    That is a chain, but one that soon forgets where it began: it is cut into lanes that begin at an estimate and advance
    together.  A lane whose estimate turns out not to be the end of the lane before it is run again from there, so the result is
    exact whatever the estimates were.  (10^7 samples of 5 sources: 0.9 s on one core.)

    Raises:
        ValueError: too many sources.
    """
    if len(weights) > MAX_SOURCES:
        raise ValueError(f"{len(weights)} data files are blended, at most {MAX_SOURCES} can be\n  fix: join some of them")
    shares = weights / weights.sum()
    lanes = max(1, min(LANES, samples // LANE))
    length = -(-samples // lanes)
    begin = np.arange(lanes, dtype=np.int64) * length
    taken = _estimate(shares, begin)
    source = np.empty((length, lanes), dtype=np.uint8)
    stale = np.arange(lanes)
    while len(stale):
        ends, source[:, stale] = _advance(shares, begin[stale], taken[:, stale], length)
        stale, ends = stale[stale + 1 < lanes] + 1, ends[:, stale + 1 < lanes]
        wrong = np.any(taken[:, stale] != ends, axis=0)
        taken[:, stale] = ends
        stale = stale[wrong]
    chosen = source.T.reshape(-1)[:samples]
    return chosen, _positions(chosen, len(weights))


def _estimate(shares: NDArray[np.float64], begin: NDArray[np.int64]) -> NDArray[np.int64]:
    """[sources, lanes]: samples that each source has probably given before ``begin``; they add up to it."""
    exact = shares[:, None] * begin
    taken = np.floor(exact).astype(np.int64)
    rank = np.argsort(np.argsort(taken - exact, axis=0, kind="stable"), axis=0)
    return np.where(rank < begin - taken.sum(axis=0), taken + 1, taken)


def _advance(
    shares: NDArray[np.float64], begin: NDArray[np.int64], taken: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Deal ``length`` samples in each lane, from ``begin`` and ``taken``; the new ``taken``, and the sources [length, lanes]."""
    counts = taken.astype(np.float64)
    source = np.empty((length, len(begin)), dtype=np.uint8)
    for step in range(length):
        at = np.maximum(begin + step, 1).astype(np.float64)
        behind, most = np.zeros(len(begin), dtype=np.intp), shares[0] * at - counts[0]
        for d in range(1, len(shares)):
            lag = shares[d] * at - counts[d]
            larger = lag > most
            behind[larger] = d
            np.maximum(lag, most, out=most)
        counts[behind, np.arange(len(begin))] += 1
        source[step] = behind
    return counts.astype(np.int64), source


def _positions(chosen: NDArray[np.uint8], sources: int) -> NDArray[np.int64]:
    """How many samples each sample's source gave before it."""
    position = np.empty(len(chosen), dtype=np.int64)
    for d in range(sources):
        of_source = np.flatnonzero(chosen == d)
        position[of_source] = np.arange(len(of_source))
    return position
