"""From a configuration to the batch of a step: pure in seed, step and data-parallel rank.

The index of samples is built once (by one rank), kept as .npy files and memory-mapped by all.  Changes when a run's way from
keys to batches does.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.config import BatchSizes, RunConfig
from model.data.batch import Batch
from model.data.samples import SampleIndex, blend, build_samples, split_documents, split_shares
from model.data.tokens import TokenFile

SPLITS = ("train", "valid", "test")
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
    """The token whose loss is masked."""
    vocab_size: int | None
    """Tokens are below this; ``None`` checks no more than their sign."""

    def __len__(self) -> int:
        """Samples that a run asks for."""
        return self.samples

    def batch(self, micro_step: int, data_rank: int) -> Batch:
        """Micro-batch ``micro_step`` of ``data_rank``: its contiguous share of the global micro-batch.

        Beyond the last sample it begins again with the first.

        Raises:
            ValueError: the token file holds a token that the vocabulary has not.
        """
        begin = (micro_step * self.data_ranks + data_rank) * self.micro
        tokens = torch.from_numpy(np.stack([self._sample((begin + row) % self.samples) for row in range(self.micro)]))
        labels = tokens[:, 1:].contiguous()
        mask = torch.ones_like(labels, dtype=torch.float32)
        if self.eod is not None:
            mask[tokens[:, :-1] == self.eod] = 0  # GPT-NeoX masks where the token is the input, not the label
        numbers = torch.arange(begin, begin + self.micro)
        return Batch(tokens_BS=tokens[:, :-1].contiguous(), labels_BS=labels, loss_mask_BS=mask, sample_B=numbers)

    def _sample(self, number: int) -> NDArray[np.int64]:
        source, position = (0, number) if self.blend is None else (int(self.blend.source[number]), int(self.blend.position[number]))
        tokens = self.sources[source].sample(position)
        if tokens.min() < 0 or (self.vocab_size is not None and tokens.max() >= self.vocab_size):
            wrong = tokens.min() if tokens.min() < 0 else tokens.max()
            raise ValueError(
                f"{self.sources[source].tokens.data_path}: holds token {wrong}, the vocabulary has {self.vocab_size}\n"
                "  fix: use the tokenizer that the text was tokenized with (tokenizer_type, vocab_file)"
            )
        return tokens


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What a run trains, validates and tests on."""

    train: Split
    valid: Split | None
    test: Split | None


def open_data(
    config: RunConfig, batch: BatchSizes, index_dir: Path, *, build: bool, eod: int | None = None, vocab_size: int | None = None
) -> Splits:
    """Open the token files of a run and their sample indices.

    ``build``: write the indices that are missing (one rank, before the others open them).  ``eod``: the end-of-document token,
    whose loss is masked when ``eod_mask_loss`` is set.  ``vocab_size``: batches with other tokens are refused.

    Raises:
        ValueError: no data is configured, a token file is missing or damaged, or a split holds no tokens.
    """
    if config.data.eod_mask_loss and eod is None:
        raise ValueError("eod_mask_loss: the tokenizer has no end-of-document token\n  fix: remove eod_mask_loss")
    wanted = _samples_of(config, batch)
    masked = eod if config.data.eod_mask_loss else None
    opened: dict[str, Split] = {}
    for name, chosen in _sources_of(config).items():
        if wanted[name] and chosen:
            sources, dealt = _open_sources(name, chosen, wanted[name], config, _Cache(index_dir, build))
            opened[name] = Split(
                sources=sources,
                blend=dealt,
                samples=wanted[name],
                micro=batch.micro,
                data_ranks=batch.data,
                eod=masked,
                vocab_size=vocab_size,
            )
    return Splits(train=opened["train"], valid=opened.get("valid"), test=opened.get("test"))


@dataclass(frozen=True)
class _Chosen:
    """Some documents [begin, end) of a token file, their weight among the files of the split, and the samples asked of them."""

    tokens: TokenFile
    begin: int
    end: int
    share: float
    margin: float


def _samples_of(config: RunConfig, batch: BatchSizes) -> dict[str, int]:
    """Samples that a run asks of each split; GPT-NeoX's numbers, because the order of samples depends on them."""
    training = config.training
    if training.train_iters is None:
        raise ValueError("train_iters: is not given\n  fix: write how many steps to train")
    validations = training.train_iters // training.eval_interval + 1
    return {
        "train": training.train_iters * batch.train,
        "valid": validations * training.eval_iters * batch.train,
        "test": training.eval_iters * batch.train,
    }


def _sources_of(config: RunConfig) -> dict[str, list[_Chosen]]:
    data = config.data
    if data.data_path is not None:
        return _cut(_open_tokens("data_path", data.data_path), data.split, validates=config.training.eval_iters > 0)
    if data.train_data_paths is None:
        raise ValueError("data_path: is not given\n  fix: write data_path or train_data_paths (prefixes of .bin/.idx files)")
    return {
        "train": _weighed("train_data_paths", data.train_data_paths, data.train_data_weights),
        "valid": _weighed("valid_data_paths", data.valid_data_paths or (), data.valid_data_weights),
        "test": _weighed("test_data_paths", data.test_data_paths or (), data.test_data_weights),
    }


def _cut(tokens: TokenFile, split: str, *, validates: bool) -> dict[str, list[_Chosen]]:
    """One file, cut by ``split``.  A split that is asked for and would be empty is refused; test is never asked for."""
    ranges = dict(zip(SPLITS, split_documents(split, len(tokens)), strict=True))
    share = dict(zip(SPLITS, split_shares(split), strict=True))
    for name, needed in (("train", True), ("valid", validates and share["valid"] > 0)):
        if needed and ranges[name][0] == ranges[name][1]:
            spare = "" if name == "train" else ", or turn validation off with eval_iters: 0"
            raise ValueError(
                f"split: {split!r} of the {len(tokens)} documents in {tokens.index_path} leaves none for {name}\n"
                f"  fix: give {name} a larger share{spare}"
            )
    return {name: [_Chosen(tokens, begin, end, 1.0, 1.0)] if end > begin else [] for name, (begin, end) in ranges.items()}


def _weighed(key: str, paths: Sequence[str], weights: Sequence[float] | None) -> list[_Chosen]:
    """Several files.  One of weight 0 is left out (GPT-NeoX still serves it where all others are exactly at their share)."""
    kept = [(path, weight) for path, weight in zip(paths, weights or [1.0] * len(paths), strict=True) if weight > 0]
    total = sum(weight for _, weight in kept)
    files = [(_open_tokens(key, path), weight / total) for path, weight in kept]
    return [_Chosen(tokens, 0, len(tokens), share, BLEND_MARGIN) for tokens, share in files]


def _open_tokens(key: str, path: str) -> TokenFile:
    try:
        tokens = TokenFile(path)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    if not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"{key}: {tokens.index_path}: holds {tokens.dtype} values, not tokens\n  fix: name a file of tokens")
    return tokens


def _open_sources(
    name: str, chosen: list[_Chosen], samples: int, config: RunConfig, cache: _Cache
) -> tuple[tuple[Source, ...], Blend | None]:
    sources = tuple(_open_source(name, entry, math.ceil(samples * entry.share * entry.margin), config, cache) for entry in chosen)
    if len(sources) == 1:
        return sources, None
    shares = np.array([entry.share for entry in chosen], dtype=np.float64)
    arrays = cache.arrays(
        f"{name}-blend-{_key(samples, shares.tolist())}",
        lambda: dict(zip(("source", "position"), blend(shares, samples), strict=True)),
    )
    return sources, Blend(source=arrays["source"], position=arrays["position"])


def _open_source(name: str, entry: _Chosen, samples: int, config: RunConfig, cache: _Cache) -> Source:
    seq_length, seed = config.architecture.seq_length, config.training.seed
    lengths = np.ascontiguousarray(entry.tokens.lengths[entry.begin : entry.end])

    def make() -> dict[str, NDArray[Any]]:
        try:
            index = build_samples(lengths, np.arange(len(lengths)), seq_length=seq_length, samples=samples, seed=seed)
        except ValueError as error:
            where = f"documents {entry.begin} to {entry.end} of {len(entry.tokens)}"
            raise ValueError(f"{entry.tokens.data_path}: {error} for {name} ({where})\n  fix: give it text") from error
        return {"documents": index.document_order + np.int32(entry.begin), "starts": index.starts, "order": index.order}

    identity = hashlib.sha256(lengths.tobytes()).hexdigest()  # a file that was tokenized again gets another index
    arrays = cache.arrays(f"{name}-{_key(identity, entry.begin, seq_length, samples, seed)}", make)
    index = SampleIndex(document_order=arrays["documents"], starts=arrays["starts"], order=arrays["order"])
    return Source(tokens=entry.tokens, index=index, seq_length=seq_length)


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Cache:
    """Arrays in directories; a directory appears whole, by a rename."""

    directory: Path
    build: bool

    def arrays(self, name: str, make: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        """The arrays under ``name``, memory-mapped; made and written if they are not there, or damaged."""
        path = self.directory / name
        try:
            return _read_arrays(path)
        except ValueError:
            if not self.build:
                raise
        made = make()
        try:
            _write_arrays(path, made)
        except OSError as error:
            raise ValueError(f"{path}: cannot be written ({error})\n  fix: make room, or make it writable") from error
        return _read_arrays(path)


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    files = sorted(path.glob("*.npy"))
    if not files:
        raise ValueError(f"{path}: no sample index\n  fix: the first rank builds it; is this file system shared by all nodes?")
    try:
        return {file.stem: np.load(file, mmap_mode="r") for file in files}
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: damaged ({error})\n  fix: remove it, it is built again") from error


def _write_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
