"""The order of samples, against a slow and literal telling of GPT-NeoX's rules."""

from __future__ import annotations

import numpy as np
import pytest

from model.data import samples as module
from model.data.samples import blend, build_samples, epochs_needed, split_documents


def told_samples(lengths: list[int], documents: list[int], seq_length: int, samples: int, seed: int) -> tuple[list, list, list]:
    """The three arrays, walked document by document."""
    tokens, epochs = sum(lengths[d] for d in documents), 1
    while (epochs * tokens - 1) // seq_length < samples:
        epochs += 1
    rng = np.random.RandomState(seed)
    order = np.array(documents * epochs, dtype=np.int32)
    rng.shuffle(order)
    place, offset, starts = 0, 0, [[0, 0]]
    for _ in range((epochs * tokens - 1) // seq_length):
        missing = seq_length + 1
        while missing > lengths[order[place]] - offset:
            missing -= lengths[order[place]] - offset
            place, offset = place + 1, 0
        offset += missing - 1  # the last token of this sample is the first of the next
        starts.append([place, offset])
    served = np.arange(len(starts) - 1, dtype=np.uint32)
    rng.shuffle(served)
    return order.tolist(), starts, served.tolist()


def told_blend(weights: list[float], samples: int) -> tuple[list[int], list[int]]:
    """One sample after another to the source that is furthest behind."""
    given, source, position = [0] * len(weights), [], []
    for i in range(samples):
        lags = [weight * max(i, 1.0) - count for weight, count in zip(weights, given, strict=True)]
        chosen = lags.index(max(lags))
        source.append(chosen)
        position.append(given[chosen])
        given[chosen] += 1
    return source, position


@pytest.mark.parametrize("seq_length", [2, 7, 64, 1000])
@pytest.mark.parametrize("longest", [3, 40, 5000])
@pytest.mark.parametrize("seed", [0, 1234])
def test_samples_are_gpt_neox_samples(seq_length: int, longest: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(0, longest, 63).astype(np.int32)  # some documents are empty
    documents = np.arange(5, 60)
    built = build_samples(lengths, documents, seq_length=seq_length, samples=100, seed=seed)
    order, starts, served = told_samples(lengths.tolist(), documents.tolist(), seq_length, 100, seed)
    assert built.document_order.tolist() == order
    assert built.starts.tolist() == starts
    assert built.order.tolist() == served
    assert len(built) >= 100


def test_samples_are_built_in_pieces_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.random.default_rng(1).integers(0, 9, 50).astype(np.int32)
    whole = build_samples(lengths, np.arange(50), seq_length=4, samples=300, seed=1)
    monkeypatch.setattr(module, "PIECE", 7)
    pieces = build_samples(lengths, np.arange(50), seq_length=4, samples=300, seed=1)
    assert np.array_equal(whole.starts, pieces.starts)


@pytest.mark.parametrize("tokens", [1, 2, 63, 1000])
@pytest.mark.parametrize("samples", [0, 1, 5, 63])
def test_epochs_are_the_fewest_that_suffice(tokens: int, samples: int) -> None:
    epochs = epochs_needed(tokens, 8, samples)
    assert (epochs * tokens - 1) // 8 >= samples
    assert epochs == 1 or ((epochs - 1) * tokens - 1) // 8 < samples


@pytest.mark.parametrize(("lengths", "documents", "message"), [([0, 0], [0, 1], "no tokens"), ([3], [], "no documents")])
def test_no_text_is_refused(lengths: list[int], documents: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_samples(np.array(lengths), np.array(documents, dtype=np.int64), seq_length=4, samples=3, seed=1)


@pytest.mark.parametrize(
    ("split", "count", "ranges"),
    [
        ("969, 30, 1", 1000, ((0, 969), (969, 999), (999, 1000))),
        ("969, 30, 1", 100, ((0, 97), (97, 100), (100, 100))),
        ("969/30/1", 2000, ((0, 1938), (1938, 1998), (1998, 2000))),
        ("1", 7, ((0, 7), (7, 7), (7, 7))),
        ("9, 1", 10, ((0, 9), (9, 10), (10, 10))),
        ("1, 1, 1", 2, ((0, 0), (0, 1), (1, 2))),  # 1 + 1 + 1 is one too many: every bound moves down
        ("1, 1, 1", 4, ((0, 2), (2, 3), (3, 4))),  # 1 + 1 + 1 is one too few: every bound moves up
        ("0, 1, 1", 3, ((0, 0), (0, 1), (1, 3))),
        ("969, 30, 1", 0, ((0, 0), (0, 0), (0, 0))),
    ],
)
def test_documents_are_split_by_gpt_neox_rounding(split: str, count: int, ranges: tuple) -> None:
    assert split_documents(split, count) == ranges


@pytest.mark.parametrize("split", ["a, b", "", "1, -1, 1", "0, 0, 0", "nan, 1, 1", "inf"])
def test_a_split_that_is_no_list_of_shares_is_refused(split: str) -> None:
    with pytest.raises(ValueError, match=r"split: (.|\n)*fix: write three shares"):
        split_documents(split, 10)


@pytest.mark.parametrize("lane", [1, 16, 10**6])
@pytest.mark.parametrize(
    "weights",
    [[1.0], [1.0, 1.0, 1.0], [1.0, 2.0, 3.0], [0.5, 0.25, 0.25], [1e-6, 1.0, 1.0], np.random.default_rng(3).random(22).tolist()],
    ids=["one", "equal", "one-two-three", "halves", "tiny", "22"],
)
def test_a_blend_is_gpt_neox_blend_however_it_is_cut_into_lanes(
    monkeypatch: pytest.MonkeyPatch, weights: list[float], lane: int
) -> None:
    monkeypatch.setattr(module, "LANE", lane)
    shares = np.array(weights) / np.sum(weights)
    source, position = blend(np.array(weights), 1000)
    assert (source.tolist(), position.tolist()) == told_blend(shares.tolist(), 1000)


def test_a_blend_of_too_many_sources_is_refused() -> None:
    with pytest.raises(ValueError, match="255 data files are blended, at most 254"):
        blend(np.ones(255), 10)
