"""The directory of a run's checkpoints: names, the newest whole one, how many are kept."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from model.checkpoint.manifest import DamagedCheckpoint, check_files, read_manifest

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


def step_of(checkpoint: Path) -> int:
    """Steps taken before it was saved, from its name."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match, f"{checkpoint} is no checkpoint's name"
    return int(match[1])


def newest_checkpoint(save: Path, say: Callable[[str], None] = lambda message: None, *, below: int | None = None) -> Path | None:
    """The newest whole checkpoint in ``save`` (or ``save`` itself, if it is one); ``None`` where there is none at all.

    Damaged ones are passed over, each told to ``say``.  ``below``: only of fewer steps.

    Raises:
        ValueError: there are checkpoints, and every one is damaged.
    """
    found = checkpoints_in(save)
    if not found and _NAME.fullmatch(save.name) and save.is_dir():
        found = [(step_of(save), save)]
    damaged = ""
    for step, path in reversed(found):
        if below is not None and step >= below:
            damaged = damaged or f"{path} is damaged"
            continue
        try:
            check_files(path, read_manifest(path))
        except DamagedCheckpoint as error:
            damaged = damaged or str(error)
            say(f"passed over: {error}")
            continue
        return path
    if damaged:
        raise ValueError(f"{save}: no whole checkpoint: {damaged}\n  fix: bring a whole copy back, or begin without it")
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


def prepare_directory(save: Path) -> None:
    """Make the directory and remove what an interrupted save or removal left in it.

    Raises:
        ValueError: it cannot be written; better now than after hours of training.
    """
    probe = save / ".writable"
    try:
        save.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
        for path in save.glob("global_step*.*"):
            shutil.rmtree(path)
    except OSError as error:
        raise ValueError(f"save: {save} cannot be written: {error.strerror}\n  fix: write another directory") from error


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
