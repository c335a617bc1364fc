"""From a configuration to the batch of a step: pure in seed, step and data-parallel rank.

The index of samples is built once (by one rank), kept as .npy files and memory-mapped by all.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.config import BatchSizes, RunConfig
from model.data.batch import Batch
from model.data.samples import SampleIndex, blend, build_samples, split_documents
from model.data.tokens import TokenFile

BLEND_MARGIN = 1.005
"""A blended source is asked for this much more than its share, so that rounding never runs it dry (GPT-NeoX's margin)."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The samples of one token file."""

    tokens: TokenFile
    index: SampleIndex
    seq_length: int

    def sample(self, number: int) -> NDArray[np.int64]:
        """``seq_length + 1`` tokens."""
        at = int(self.index.order[number % len(self.index)])
        (first, offset), (last, end) = self.index.starts[at], self.index.starts[at + 1]
        pieces = []
        for place in range(int(first), int(last) + 1):
            document = self.tokens.sequence(int(self.index.document_order[place]))
            pieces.append(document[int(offset) if place == first else 0 : int(end) + 1 if place == last else None])
        return np.concatenate(pieces).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Blend:
    """Which source gives each sample, and which of its samples that is."""

    source: NDArray[np.uint8]
    position: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Split:
    """The samples of train, valid or test, dealt into micro-batches."""

    sources: tuple[Source, ...]
    blend: Blend | None
    """``None`` with one source."""
    samples: int
    micro: int
    data_ranks: int
    eod: int | None

    def __len__(self) -> int:
        """Samples."""
        return self.samples

    def batch(self, micro_step: int, data_rank: int) -> Batch:
        """Micro-batch ``micro_step`` of ``data_rank``: its contiguous share of the global micro-batch.

        Beyond the last sample it begins again with the first.
        """
        begin = (micro_step * self.data_ranks + data_rank) * self.micro
        rows = [self._sample((begin + i) % len(self)) for i in range(self.micro)]
        tokens = torch.from_numpy(np.stack(rows))
        labels = tokens[:, 1:].contiguous()
        mask = torch.ones_like(labels, dtype=torch.float32)
        if self.eod is not None:
            mask[tokens[:, :-1] == self.eod] = 0
        return Batch(tokens_BS=tokens[:, :-1].contiguous(), labels_BS=labels, loss_mask_BS=mask)

    def _sample(self, number: int) -> NDArray[np.int64]:
        if self.blend is None:
            return self.sources[0].sample(number)
        return self.sources[int(self.blend.source[number])].sample(int(self.blend.position[number]))


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What a run trains, validates and tests on."""

    train: Split
    valid: Split | None
    test: Split | None


def open_data(config: RunConfig, batch: BatchSizes, index_dir: Path, *, build: bool, eod: int | None = None) -> Splits:
    """Open the token files of a run and their sample indices.

    ``build``: write the indices that are missing (one rank, before the others open them).  ``eod``: the end-of-document token,
    whose loss is masked when ``eod_mask_loss`` is set.

    Raises:
        ValueError: no data is configured, a token file is missing or damaged, or a split holds no tokens.
    """
    samples = _samples_of(config, batch)
    masked = eod if config.data.eod_mask_loss else None
    splits = {
        name: _open_split(name, sources, samples[name], config, batch, index_dir, build, masked)
        for name, sources in _sources_of(config).items()
        if samples[name] and sources
    }
    return Splits(train=splits["train"], valid=splits.get("valid"), test=splits.get("test"))


@dataclass(frozen=True)
class _Chosen:
    """A token file, its share of the split, and which of its documents."""

    path: str
    weight: float
    documents: tuple[int, int] | None


def _samples_of(config: RunConfig, batch: BatchSizes) -> dict[str, int]:
    """Samples that a run asks of each split (GPT-NeoX's numbers, eval_iters counting rounds of micro-batches)."""
    training = config.training
    if training.train_iters is None:
        raise ValueError("train_iters is absent: say how many steps to train")
    round_size = batch.micro * batch.data
    validations = training.train_iters // training.eval_interval + 1
    return {
        "train": training.train_iters * batch.train,
        "valid": validations * training.eval_iters * round_size,
        "test": training.eval_iters * round_size,
    }


def _sources_of(config: RunConfig) -> dict[str, list[_Chosen]]:
    data = config.data
    if data.data_path is not None:
        ranges = split_documents(data.split, len(TokenFile(data.data_path)))
        return {
            name: [_Chosen(data.data_path, 1.0, documents)] if documents[1] > documents[0] else []
            for name, documents in zip(("train", "valid", "test"), ranges, strict=True)
        }
    if data.train_data_paths is None:
        raise ValueError("no data: write data_path or train_data_paths (prefixes of .bin/.idx files)")
    return {
        "train": _weighed(data.train_data_paths, data.train_data_weights),
        "valid": _weighed(data.valid_data_paths or (), data.valid_data_weights),
        "test": _weighed(data.test_data_paths or (), data.test_data_weights),
    }


def _weighed(paths: Sequence[str], weights: Sequence[float] | None) -> list[_Chosen]:
    return [_Chosen(path, weight, None) for path, weight in zip(paths, weights or [1.0] * len(paths), strict=True) if weight > 0]


def _open_split(
    name: str,
    chosen: list[_Chosen],
    samples: int,
    config: RunConfig,
    batch: BatchSizes,
    index_dir: Path,
    build: bool,
    eod: int | None,
) -> Split:
    weights = np.array([entry.weight for entry in chosen], dtype=np.float64)
    shares = weights / weights.sum()
    sources = []
    for entry, share in zip(chosen, shares, strict=True):
        wanted = samples if len(chosen) == 1 else math.ceil(samples * share * BLEND_MARGIN)
        sources.append(_open_source(name, entry, wanted, config, index_dir, build))
    dealt = None
    if len(sources) > 1:
        stem = index_dir / f"{name}-blend-{_key(samples, [entry.path for entry in chosen], weights.tolist())}"
        arrays = _cached(stem, build, lambda: dict(zip(("source", "position"), blend(shares, samples), strict=True)))
        dealt = Blend(source=arrays["source"], position=arrays["position"])
    return Split(sources=tuple(sources), blend=dealt, samples=samples, micro=batch.micro, data_ranks=batch.data, eod=eod)


def _open_source(name: str, entry: _Chosen, samples: int, config: RunConfig, index_dir: Path, build: bool) -> Source:
    tokens = TokenFile(entry.path)
    seq_length, seed = config.architecture.seq_length, config.training.seed
    begin, end = entry.documents or (0, len(tokens))
    lengths = np.asarray(tokens.lengths)

    def make() -> dict[str, NDArray[Any]]:
        documents = np.arange(begin, end, dtype=np.int32)
        try:
            index = build_samples(lengths, documents, seq_length=seq_length, samples=samples, seed=seed)
        except ValueError as error:
            raise ValueError(f"{entry.path}: {error} for {name} (documents {begin} to {end} of {len(tokens)})") from error
        return {"documents": index.document_order, "starts": index.starts, "order": index.order}

    identity = hashlib.sha256(lengths.tobytes()).hexdigest()
    arrays = _cached(index_dir / f"{name}-{_key(entry.path, identity, begin, end, seq_length, samples, seed)}", build, make)
    index = SampleIndex(document_order=arrays["documents"], starts=arrays["starts"], order=arrays["order"])
    return Source(tokens=tokens, index=index, seq_length=seq_length)


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _cached(stem: Path, build: bool, make: Any) -> dict[str, NDArray[Any]]:
    """The arrays under ``stem``, made and written if they are not there.  A directory appears whole, by a rename."""
    if not stem.is_dir():
        if not build:
            raise ValueError(f"{stem}: the sample index is not there; rank 0 builds it before the others open it")
        partial = stem.with_name(f"{stem.name}.{os.getpid()}.partial")
        partial.mkdir(parents=True)
        for name, array in make().items():
            np.save(partial / f"{name}.npy", array)
        os.replace(partial, stem)
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(stem.glob("*.npy"))}
