"""Writing a checkpoint: every rank its slices, rank 0 the manifest, and the name last."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint.directory import checkpoint_name, publish, remove_old
from model.checkpoint.manifest import MANIFEST, Manifest, Slice, StoredFile
from model.config.schedule import Schedule
from model.engine.fragments import Fragment, Progress
from model.parallel.groups import Groups

_Share = tuple[StoredFile | None, list[Slice]]
"""What one rank has written."""


def save_checkpoint(
    save: Path,
    step: int,
    fragments: Sequence[Fragment],
    progress: Progress,
    groups: Groups,
    *,
    run: str,
    vocab_size: int,
    padded_vocab_size: int,
    precision: str,
    optimizer: str = "adam",
    schedule: Schedule | None = None,
    rotary_frequencies: tuple[float, ...] | None = None,
    keep: int | None = None,
) -> Path:
    """Write ``save``/global_step<step>.  Collective: all ranks call it.

    Until the last rename nothing has a checkpoint's name, so an interruption leaves the older ones and no half one.

    Raises:
        OSError: the directory cannot be written; the older checkpoints stay.
    """
    partial = save / f"{checkpoint_name(step)}.partial"
    if groups.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    _wait()
    tensors, slices = _mine(fragments, groups)
    stored = None
    if tensors:
        file = partial / f"rank{groups.rank}.safetensors"
        try:
            save_file(tensors, file)
        except (SafetensorError, OSError) as error:
            raise OSError(f"{file}: cannot be written: {error}") from error
        _sync_file(file)
        stored = StoredFile(name=file.name, bytes=file.stat().st_size)
    everyone = _gather((stored, slices), groups)
    if groups.rank == 0:
        manifest = Manifest(
            step=step,
            optimizer_steps=progress.optimizer_steps,
            loss_scaler=dict(progress.loss_scaler),
            run=run,
            vocab_size=vocab_size,
            padded_vocab_size=padded_vocab_size,
            precision=precision,
            optimizer=optimizer,
            schedule=schedule,
            rotary_frequencies=rotary_frequencies,
            files=tuple(file for file, _ in everyone if file is not None),
            slices=tuple(piece for _, pieces in everyone for piece in pieces),
        )
        path = partial / MANIFEST
        path.write_text(manifest.model_dump_json(), encoding="utf-8")
        _sync_file(path)
        publish(save, partial, step)
        if keep is not None:
            remove_old(save, keep)
    _wait()
    return save / checkpoint_name(step)


def _mine(fragments: Sequence[Fragment], groups: Groups) -> tuple[dict[str, Tensor], list[Slice]]:
    """The slices that this rank writes: what it updates, but of what several ranks hold only the first one's copy."""
    tensors: dict[str, Tensor] = {}
    slices = []
    for fragment in fragments:
        p = fragment.parameter
        if p.shard_dim is None and groups.tensor_rank:
            continue
        if fragment.whole_on_every_data_rank and groups.data_rank:
            continue
        if fragment.of_first_stage:
            continue
        for kind, tensor in fragment.tensors.items():
            key = f"{kind}/{p.global_name}/{groups.tensor_rank}/{fragment.start}"
            tensors[key] = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
            slices.append(
                Slice(
                    name=p.global_name,
                    kind=kind,
                    global_shape=p.global_shape,
                    shard_shape=fragment.shard_shape,
                    shard_dim=p.shard_dim,
                    shard_offset=p.shard_offset,
                    start=fragment.start,
                    length=tensor.numel(),
                    file=f"rank{groups.rank}.safetensors",
                    key=key,
                    crc32=zlib.crc32(tensors[key].numpy().data),
                )
            )
    return tensors, slices


def _gather(mine: _Share, groups: Groups) -> list[_Share]:
    """Every rank's share, on the first rank; nothing on the others."""
    if not _together():
        return [mine]
    everyone: list[_Share] = [mine] * (groups.layout.world_size if groups.rank == 0 else 0)
    dist.gather_object(mine, everyone if groups.rank == 0 else None)
    return everyone


def _wait() -> None:
    if _together():
        dist.barrier()


def _together() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
