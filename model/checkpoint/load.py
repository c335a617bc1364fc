"""Reading a checkpoint at any layout: each rank copies what overlaps with the pieces that it updates."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.checkpoint.manifest import WEIGHT, Manifest, Slice, read_manifest
from model.engine.fragments import Fragment
from model.parallel.parameters import GlobalParameter


def load_checkpoint(directory: Path, fragments: Sequence[Fragment], *, kinds: Iterable[str]) -> Manifest:
    """Fill the fragments' tensors of ``kinds`` from a checkpoint written at any layout.

    Raises:
        ValueError: the checkpoint is damaged, or is of another model: the first parameter that differs is named.
    """
    manifest = read_manifest(directory)
    stored = _Stored(directory, manifest)
    for fragment in fragments:
        p = fragment.parameter
        for kind in kinds:
            whole = stored.whole(p.global_name, kind, expected=p.global_shape)
            local = _local(p, whole, fragment.shard_shape).reshape(-1)
            fragment.tensors[kind].copy_(local[fragment.start : fragment.start + fragment.length])
    return manifest


def load_weights(directory: Path) -> dict[str, Tensor]:
    """All weights, whole, in fp32 on the CPU, by global name.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    manifest = read_manifest(directory)
    stored = _Stored(directory, manifest)
    return {name: stored.whole(name, WEIGHT) for name in dict.fromkeys(piece.name for piece in manifest.slices)}


class _Stored:
    """The slices of a checkpoint on disk; one whole tensor at a time is in memory."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._directory = directory
        self._slices: dict[tuple[str, str], list[Slice]] = defaultdict(list)
        for piece in manifest.slices:
            self._slices[piece.name, piece.kind].append(piece)

    def whole(self, name: str, kind: str, expected: tuple[int, ...] | None = None) -> Tensor:
        """A whole tensor from its slices.

        Raises:
            ValueError: it is not there, has another shape, or its slices do not cover it.
        """
        pieces = self._slices.get((name, kind), [])
        if not pieces:
            known = sorted({stored for stored, _ in self._slices})
            raise ValueError(f"{self._directory}: has no {kind} of {name} (it has {len(known)} parameters): it is of another model")
        shape = pieces[0].global_shape
        if expected is not None and shape != tuple(expected):
            raise ValueError(f"{self._directory}: {name} has shape {list(shape)}, this model's has {list(expected)}: another model")
        whole = torch.empty(shape)
        covered = 0
        for shard_pieces in _by_shard(pieces):
            first = shard_pieces[0]
            shard = whole if first.shard_dim is None else whole.narrow(first.shard_dim, first.shard_offset, first.shard_shape[first.shard_dim])
            flat = torch.empty(shard.numel())
            for piece in shard_pieces:
                flat[piece.start : piece.start + piece.length] = self._read(piece)
                covered += piece.length
            shard.copy_(flat.view(first.shard_shape))
        if covered != whole.numel():
            raise ValueError(f"{self._directory}: the slices of {name} hold {covered} of its {whole.numel()} elements")
        return whole

    def _read(self, piece: Slice) -> Tensor:
        path = self._directory / piece.file
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(piece.key)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: damaged checkpoint: {error}") from error
        if tensor.numel() != piece.length or zlib.crc32(tensor.numpy().data) != piece.crc32:
            raise ValueError(f"{path}: damaged checkpoint: {piece.name} ({piece.kind}) does not have its checksum")
        return tensor


def _by_shard(pieces: Iterable[Slice]) -> list[list[Slice]]:
    shards: dict[int, list[Slice]] = defaultdict(list)
    for piece in pieces:
        shards[piece.shard_offset].append(piece)
    return list(shards.values())


def _local(parameter: GlobalParameter, whole: Tensor, shard_shape: tuple[int, ...]) -> Tensor:
    if parameter.shard_dim is None:
        return whole
    return whole.narrow(parameter.shard_dim, parameter.shard_offset, shard_shape[parameter.shard_dim])
