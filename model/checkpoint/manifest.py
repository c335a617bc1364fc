"""The format of a checkpoint: its manifest, version 1."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from model.config.schedule import Schedule

FORMAT_VERSION: Literal[1] = 1
MANIFEST = "manifest.json"
WEIGHT = "weight"
"""The kind of an fp32 weight; other kinds are what the optimizer keeps of it."""


class Slice(BaseModel):
    """A contiguous piece of one tensor.

    The whole tensor has ``global_shape``; its shard has ``shard_shape`` and begins at ``shard_offset`` of dimension ``shard_dim``;
    the slice is elements [start, start + length) of the flattened shard.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    global_shape: tuple[int, ...]
    shard_shape: tuple[int, ...]
    shard_dim: int | None
    shard_offset: int
    start: int
    length: int
    file: str
    key: str
    crc32: int
    """Of the slice's bytes, fp32, little endian."""


class StoredFile(BaseModel):
    """A file of the checkpoint and its size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    bytes: int


class Manifest(BaseModel):
    """What a checkpoint holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = FORMAT_VERSION
    step: int
    """Steps taken, the skipped ones of fp16 among them."""
    optimizer_steps: int
    """Steps that changed the weights."""
    optimizer: str = "adam"
    """``optimizer.type``."""
    schedule: Schedule | None = None
    """The learning rate over steps; not in checkpoints of before it was remembered, and where it is a schedule of DeepSpeed's."""
    loss_scaler: dict[str, float] = {}
    """fp16: the scale and the counters by which it moves, under DeepSpeed's names."""
    rotary_frequencies: tuple[float, ...] | None = None
    """Radians a position of each rotating pair, where ``rotary_save_freqs_buffer`` keeps them."""
    run: str
    """Name of the run that wrote it."""
    vocab_size: int
    padded_vocab_size: int
    precision: str
    files: tuple[StoredFile, ...]
    slices: tuple[Slice, ...]


class DamagedCheckpoint(ValueError):
    """A checkpoint is not what its writer left; the message names the file.  An older one may be whole."""


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint; ``check_files`` looks whether the files are what it promises.

    Raises:
        DamagedCheckpoint: there is none, or it cannot be read.
    """
    path = directory / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{directory}: no whole checkpoint: it has no {MANIFEST}") from error
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise DamagedCheckpoint(f"{path}: damaged or of another format version: {str(error).splitlines()[0]}") from error


def check_files(directory: Path, manifest: Manifest) -> None:
    """All files are there at their full size.

    Raises:
        DamagedCheckpoint: one is missing or short; the message names it.
    """
    for stored in manifest.files:
        file = directory / stored.name
        size = file.stat().st_size if file.is_file() else None
        if size != stored.bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            raise DamagedCheckpoint(f"{file}: damaged checkpoint: {found}, its manifest promises {stored.bytes}")
