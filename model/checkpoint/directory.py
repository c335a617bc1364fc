"""The directory of a run's checkpoints: names, the newest whole one, how many are kept."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from model.checkpoint.manifest import read_manifest

LATEST = "latest"
_NAME = re.compile(r"global_step(\d+)")


def checkpoint_name(step: int) -> str:
    """GPT-NeoX's name of the checkpoint after ``step`` steps."""
    return f"global_step{step}"


def checkpoints_in(save: Path) -> list[tuple[int, Path]]:
    """Step and directory of every checkpoint, oldest first.  Unfinished ones have other names."""
    if not save.is_dir():
        return []
    found = ((_NAME.fullmatch(path.name), path) for path in save.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def newest_checkpoint(save: Path, say: Callable[[str], None] = lambda message: None) -> Path | None:
    """The newest whole checkpoint in ``save`` (or ``save`` itself, if it is one); ``None`` where there is none at all.

    Damaged ones are passed over, each told to ``say``.

    Raises:
        ValueError: there are checkpoints, and every one is damaged.
    """
    if _NAME.fullmatch(save.name) and not checkpoints_in(save):
        read_manifest(save)
        return save
    damaged = []
    for _, path in reversed(checkpoints_in(save)):
        try:
            read_manifest(path)
        except ValueError as error:
            damaged.append(str(error))
            say(f"passed over: {error}")
            continue
        return path
    if damaged:
        raise ValueError(f"{save}: no whole checkpoint: {damaged[0]}")
    return None


def publish(save: Path, partial: Path, step: int) -> Path:
    """Give a finished checkpoint its name, then point ``latest`` at it."""
    final = save / checkpoint_name(step)
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)
    _sync(save)
    pointer = save / f"{LATEST}.partial"
    pointer.write_text(f"{final.name}\n", encoding="utf-8")
    os.replace(pointer, save / LATEST)
    _sync(save)
    return final


def remove_old(save: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints."""
    for _, path in checkpoints_in(save)[:-keep]:
        doomed = path.with_name(f"{path.name}.removed")  # so that a half-removed one is no checkpoint
        os.replace(path, doomed)
        shutil.rmtree(doomed)


def remove_unfinished(save: Path) -> None:
    """Remove what an interrupted save or removal left."""
    if save.is_dir():
        for path in save.glob("global_step*.*"):
            shutil.rmtree(path)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
