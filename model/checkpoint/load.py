"""Reading a checkpoint at any layout: each rank copies what overlaps with the pieces that it updates."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.checkpoint.manifest import WEIGHT, DamagedCheckpoint, Manifest, Slice, check_files, read_manifest
from model.engine.fragments import Fragment
from model.parallel.parameters import GlobalParameter


def load_checkpoint(directory: Path, fragments: Sequence[Fragment], *, kinds: Iterable[str]) -> Manifest:
    """Fill the fragments' tensors of ``kinds`` from a checkpoint written at any layout.

    Raises:
        DamagedCheckpoint: the file is named.
        ValueError: it is of another model: the first parameter that differs is named.
    """
    manifest = read_manifest(directory)
    with ExitStack() as files:
        stored = _Stored(directory, manifest, files)
        for fragment in fragments:
            for kind in kinds:
                if kind in fragment.tensors:  # Muon keeps other things of a matrix than of a bias
                    stored.fill(fragment, kind)
    return manifest


def load_weights(directory: Path) -> dict[str, Tensor]:
    """All weights, whole, in fp32 on the CPU, by global name.

    Raises:
        DamagedCheckpoint: the file is named.
    """
    manifest = read_manifest(directory)
    check_files(directory, manifest)
    with ExitStack() as files:
        stored = _Stored(directory, manifest, files)
        return {name: stored.whole(name, WEIGHT) for name in dict.fromkeys(piece.name for piece in manifest.slices)}


class _Stored:
    """The slices of a checkpoint on disk; at most one whole tensor is in memory at a time."""

    def __init__(self, directory: Path, manifest: Manifest, files: ExitStack) -> None:
        self._directory, self._files = directory, files
        self._opened: dict[str, Any] = {}
        self._slices: dict[tuple[str, str], list[Slice]] = defaultdict(list)
        for piece in manifest.slices:
            self._slices[piece.name, piece.kind].append(piece)

    def fill(self, fragment: Fragment, kind: str) -> None:
        """Copy what a fragment's tensor of ``kind`` has in common with the stored slices.

        Where tensor parallelism cuts as it did, only the slices that overlap are read.
        """
        p, target = fragment.parameter, fragment.tensors[kind]
        cut = (p.shard_dim, p.shard_offset, fragment.shard_shape)
        pieces = self._pieces(p.global_name, kind, p.global_shape)
        alike = [piece for piece in pieces if (piece.shard_dim, piece.shard_offset, piece.shard_shape) == cut]
        if not alike:
            local = _local(p, self.whole(p.global_name, kind), fragment.shard_shape).reshape(-1)
            target.copy_(local[fragment.start : fragment.start + fragment.length])
            return
        covered = 0
        for piece in alike:
            begin, end = max(piece.start, fragment.start), min(piece.start + piece.length, fragment.start + fragment.length)
            if begin < end:
                target[begin - fragment.start : end - fragment.start] = self._read(piece)[begin - piece.start : end - piece.start]
                covered += end - begin
        self._check_cover(p.global_name, covered, fragment.length)

    def whole(self, name: str, kind: str) -> Tensor:
        """A whole tensor from its slices.

        Raises:
            ValueError: it is not there, or its slices do not cover it.
        """
        pieces = self._pieces(name, kind)
        whole = torch.empty(pieces[0].global_shape)
        covered = 0
        for shard_pieces in _by_shard(pieces):
            first = shard_pieces[0]
            dim = first.shard_dim
            shard = whole if dim is None else whole.narrow(dim, first.shard_offset, first.shard_shape[dim])
            flat = torch.empty(shard.numel())
            for piece in shard_pieces:
                flat[piece.start : piece.start + piece.length] = self._read(piece)
                covered += piece.length
            shard.copy_(flat.view(first.shard_shape))
        self._check_cover(name, covered, whole.numel())
        return whole

    def _pieces(self, name: str, kind: str, expected: tuple[int, ...] | None = None) -> list[Slice]:
        pieces = self._slices.get((name, kind), [])
        if not pieces:
            known = {stored for stored, _ in self._slices}
            raise ValueError(f"{self._directory}: has no {kind} of {name} (it has {len(known)} parameters): it is of another model")
        shape = pieces[0].global_shape
        if expected is not None and shape != tuple(expected):
            raise ValueError(f"{self._directory}: {name} has shape {list(shape)}, this model's has {list(expected)}: another model")
        return pieces

    def _check_cover(self, name: str, covered: int, wanted: int) -> None:
        if covered != wanted:
            held = f"the slices of {name} hold {covered} of {wanted} elements"
            raise DamagedCheckpoint(f"{self._directory}: damaged checkpoint: {held}")

    def _read(self, piece: Slice) -> Tensor:
        path = self._directory / piece.file
        try:
            if piece.file not in self._opened:
                self._opened[piece.file] = self._files.enter_context(safe_open(path, framework="pt"))
            tensor: Tensor = self._opened[piece.file].get_tensor(piece.key)
        except (OSError, SafetensorError) as error:
            raise DamagedCheckpoint(f"{path}: damaged checkpoint: {error}") from error
        if tensor.numel() != piece.length or zlib.crc32(tensor.numpy().data) != piece.crc32:
            raise DamagedCheckpoint(f"{path}: damaged checkpoint: {piece.name} ({piece.kind}) does not have its checksum")
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
