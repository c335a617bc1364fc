"""Which tokens make which sample: GPT-NeoX's packed samples, its split and its blending.

All of it is pure in the documents' lengths, the sequence length and the seed.  Facts: GPT-NeoX ``gpt2_dataset.py``,
``data_utils.py`` and ``blendable_dataset.py``; a sample is ``seq_length + 1`` tokens, and neighbours share one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class SampleIndex:
    """Where each sample begins, and the order in which samples are served."""

    document_order: NDArray[np.int32]
    """Documents one after another, all epochs shuffled together."""
    starts: NDArray[np.int64]
    """[samples + 1, 2]: position in document_order, and token within that document."""
    order: NDArray[np.int64]
    """Served sample i is sample order[i]."""

    def __len__(self) -> int:
        return len(self.order)


def epochs_needed(tokens: int, seq_length: int, samples: int) -> int:
    """The fewest passes over ``tokens`` that hold ``samples`` samples.

    Raises:
        ValueError: there are no tokens.
    """
    if tokens < 1:
        raise ValueError("no tokens")
    return max(1, -(-(samples * seq_length + 1) // tokens))


def build_samples(lengths: NDArray[np.int32], documents: NDArray[np.int32], *, seq_length: int, samples: int, seed: int) -> SampleIndex:
    """The packed samples of ``documents`` (indices into ``lengths``, in tokens).

    Raises:
        ValueError: the documents hold no tokens.
    """
    tokens = int(lengths[documents].sum(dtype=np.int64))
    epochs = epochs_needed(tokens, seq_length, samples)
    rng = np.random.RandomState(seed)  # the legacy generator, so that the order is GPT-NeoX's
    document_order = np.tile(documents.astype(np.int32), epochs)
    rng.shuffle(document_order)
    count = (epochs * tokens - 1) // seq_length
    starts = _starts(lengths[document_order], seq_length, count)
    order = np.arange(count, dtype=np.uint32 if count < 2**32 - 2 else np.int64)
    rng.shuffle(order)
    return SampleIndex(document_order=document_order, starts=starts, order=order.astype(np.int64))


def _starts(ordered_lengths: NDArray[np.int32], seq_length: int, count: int) -> NDArray[np.int64]:
    """Sample i begins at token i x seq_length of the concatenated documents: the last token of sample i - 1."""
    ends = np.cumsum(ordered_lengths, dtype=np.int64)
    position = np.arange(count + 1, dtype=np.int64) * seq_length
    document = np.searchsorted(ends, position, side="right")
    return np.stack([document, position - (ends[document] - ordered_lengths[document])], axis=1)


def split_documents(split: str, count: int) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """The document ranges of train, valid and test by shares such as ``969, 30, 1``.

    Raises:
        ValueError: the text is no list of shares.
    """
    try:
        shares = [float(part) for part in split.replace("/", ",").split(",")]
    except ValueError as error:
        raise ValueError(f"split {split!r}: write three shares, e.g. 969, 30, 1") from error
    shares = (shares + [0.0, 0.0, 0.0])[:3]
    if min(shares) < 0 or sum(shares) <= 0:
        raise ValueError(f"split {split!r}: shares must be positive")
    bounds = [0]
    for share in shares:
        bounds.append(bounds[-1] + int(round(share / sum(shares) * count)))
    excess = bounds[-1] - count
    bounds = [bounds[0], *(bound - excess for bound in bounds[1:])]
    return (bounds[0], bounds[1]), (bounds[1], bounds[2]), (bounds[2], bounds[3])


def blend(weights: NDArray[np.float64], samples: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Which source gives sample i, and which of its samples that is: always the source that lags most behind its share.

    Ties go to the first source.  Greedy and sequential: one pass over the samples, with at most 255 sources.

    Raises:
        ValueError: too many sources.
    """
    if len(weights) > 255:
        raise ValueError(f"{len(weights)} data files: at most 255 can be blended")
    source = np.empty(samples, dtype=np.uint8)
    position = np.empty(samples, dtype=np.int64)
    shares, taken, sources = (weights / weights.sum()).tolist(), [0] * len(weights), range(len(weights))
    for i in range(samples):
        at = max(i, 1)
        chosen = max(sources, key=lambda d: shares[d] * at - taken[d])  # noqa: B023 (called at once)
        source[i], position[i] = chosen, taken[chosen]
        taken[chosen] += 1
    return source, position
