"""Where a run begins: at its own newest checkpoint, at another run's, or afresh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.agreement import from_all_ranks, from_first_rank
from model.checkpoint.directory import newest_checkpoint, prepare_directory, step_of
from model.checkpoint.load import load_checkpoint
from model.checkpoint.manifest import WEIGHT, DamagedCheckpoint
from model.config import RunConfig
from model.engine.fragments import MOMENTS, Progress, after_load, fragments_of
from model.engine.schedule import restore_schedule
from model.parallel.groups import Groups

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A directory of checkpoints to begin from."""

    directory: Path
    own: bool
    """It is the run's own: the run continues whatever ``finetune`` says."""


def begin_run(config: RunConfig, run_dir: Path, groups: Groups, engine: Any, say: Say) -> int:
    """Load into ``engine`` where the run begins; return the steps already taken.  Collective.

    A damaged checkpoint is passed over, with a message, for the next older one.

    Raises:
        ValueError: ``load`` holds no checkpoint, all are damaged, or they are of another model.
    """
    source = from_first_rank(lambda: _find_source(config, run_dir, say), groups)
    if source is None:
        return 0
    fresh = config.checkpoints.finetune and not source.own
    kinds = (WEIGHT,) if fresh or config.checkpoints.no_load_optim else (WEIGHT, *MOMENTS)
    below: int | None = None
    while True:
        path = from_first_rank(lambda: newest_checkpoint(source.directory, say, below=below), groups)  # noqa: B023 (called at once)
        assert path is not None, "newest_checkpoint refuses where there is none below a damaged one"
        damage = _load(path, groups, engine, kinds, fresh=fresh)
        if not damage:
            say(f"loaded {path} ({', '.join(kinds)})")
            return 0 if fresh else step_of(path)
        say(f"passed over: {damage}")
        below = step_of(path)


def _find_source(config: RunConfig, run_dir: Path, say: Say) -> _Source | None:
    keys = config.checkpoints
    if keys.save is not None:
        save = Path(keys.save)
        prepare_directory(save)
        ours = keys.save == keys.load or save.is_relative_to(run_dir)
        if ours and newest_checkpoint(save, say) is not None:
            return _Source(directory=save, own=True)
    if keys.load is None or keys.load == keys.save:
        return None
    if newest_checkpoint(Path(keys.load), say) is None:
        raise ValueError(f"load: {keys.load} holds no checkpoint\n  fix: name a directory that a run saved to, or remove load")
    return _Source(directory=Path(keys.load), own=False)


def _load(path: Path, groups: Groups, engine: Any, kinds: tuple[str, ...], *, fresh: bool) -> str:
    """Load on every rank; return the damage that one of them found, or nothing."""
    damage, manifest = "", None
    try:
        manifest = load_checkpoint(path, fragments_of(engine), kinds=kinds)
    except DamagedCheckpoint as error:
        damage = str(error)
    found = next(filter(None, from_all_ranks(damage, groups)), "")
    if not found:
        assert manifest is not None
        counted = Progress(optimizer_steps=manifest.optimizer_steps, loss_scaler=manifest.loss_scaler)
        after_load(engine, counted if len(kinds) > 1 else None)
        restore_schedule(engine, 0 if fresh else manifest.optimizer_steps)
    return found
