"""Where a run begins: at its own newest checkpoint, at another run's, or afresh."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.agreement import from_all_ranks, from_first_rank
from model.checkpoint.directory import newest_checkpoint, prepare_directory, step_of
from model.checkpoint.load import load_checkpoint
from model.checkpoint.manifest import WEIGHT, DamagedCheckpoint, Manifest, read_manifest
from model.config import RunConfig
from model.config.schedule import Schedule
from model.engine.fragments import Progress, after_load, fragments_of
from model.engine.schedule import restore_schedule
from model.layers.positions import kept_frequencies
from model.parallel.groups import Groups

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A directory of checkpoints to begin from."""

    directory: Path
    own: bool
    """It is the run's own: the run continues whatever ``finetune`` says."""


def begin_run(config: RunConfig, run_dir: Path, groups: Groups, engine: Any, say: Say) -> tuple[int, Schedule]:
    """Load into ``engine`` where the run begins; return the steps already taken, and the curve to follow.  Collective.

    A damaged checkpoint is passed over, with a message, for the next older one.

    Raises:
        ValueError: ``load`` holds no checkpoint, all are damaged, or they are of another model, optimizer or learning-rate curve.
    """
    source = from_first_rank(lambda: _find_source(config, run_dir, say), groups)
    if source is None:
        return 0, config.schedule
    fresh = config.checkpoints.finetune and not source.own
    with_optimizer = not (fresh or config.checkpoints.no_load_optim)
    below: int | None = None
    while True:
        path = from_first_rank(lambda: newest_checkpoint(source.directory, say, below=below), groups)  # noqa: B023 (called at once)
        assert path is not None, "newest_checkpoint refuses where there is none below a damaged one"
        loaded = _load(path, config, groups, engine, with_optimizer=with_optimizer)
        if isinstance(loaded, Manifest):
            if not fresh:
                _check_frequencies(config, loaded, path)
            say(f"loaded {path} ({'weights and optimizer' if with_optimizer else 'weights'})")
            restore_schedule(engine, 0 if fresh else loaded.optimizer_steps)
            return 0 if fresh else step_of(path), _curve(config, loaded, path, say) if with_optimizer else config.schedule
        say(f"passed over: {loaded}")
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


def _load(path: Path, config: RunConfig, groups: Groups, engine: Any, *, with_optimizer: bool) -> Manifest | str:
    """Load on every rank; return the manifest, or the damage that one of them found."""
    damage, manifest = "", None
    kinds = (WEIGHT, *(config.optimizer_states if with_optimizer else ()))
    try:
        if with_optimizer:
            _check_optimizer(config, read_manifest(path), path)
        fragments = fragments_of(engine, config)
        manifest = load_checkpoint(path, fragments, kinds=kinds)
    except DamagedCheckpoint as error:
        damage = str(error)
    found = next(filter(None, from_all_ranks(damage, groups)), "")
    if found:
        return found
    assert manifest is not None
    counted = Progress(optimizer_steps=manifest.optimizer_steps, loss_scaler=manifest.loss_scaler)
    after_load(engine, fragments, counted if with_optimizer else None)
    return manifest


def _check_optimizer(config: RunConfig, manifest: Manifest, path: Path) -> None:
    """What an optimizer keeps is of no use to another.

    Raises:
        ValueError: the checkpoint is of another optimizer.
    """
    kept = {piece.kind for piece in manifest.slices} - {WEIGHT}
    if kept != set(config.optimizer_states):
        mine, theirs = config.optimization.optimizer.type, manifest.optimizer
        wrong = f"optimizer.type: {mine} keeps {_listed(config.optimizer_states)}, and {path} is of {theirs}, with {_listed(kept)}"
        raise ValueError(f"{wrong}\n  fix: write no_load_optim: true to begin with the weights alone, or type: {theirs}")


def _check_frequencies(config: RunConfig, manifest: Manifest, path: Path) -> None:
    """Heads that turn otherwise than they were trained to.

    Raises:
        ValueError: checkpoint and configuration keep rotary frequencies, and they differ.
    """
    mine, theirs = kept_frequencies(config), manifest.rotary_frequencies
    if mine is None or theirs is None or (len(mine) == len(theirs) and all(map(math.isclose, mine, theirs))):
        return
    raise ValueError(
        f"rotary_save_freqs_buffer: {path} keeps other rotary frequencies than those of rotary_pct, rotary_emb_base and "
        "rope_scaling here\n  fix: write what it was trained with, or finetune: true to go on with these"
    )


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted(names)) or "nothing"


def _curve(config: RunConfig, manifest: Manifest, path: Path, say: Say) -> Schedule:
    """The learning rate that the run follows: where the checkpoint remembers another one, the one that the configuration prefers.

    Raises:
        ValueError: it prefers none.
    """
    mine, theirs = config.schedule, manifest.schedule
    if theirs is None or mine == theirs or config.optimization.scheduler is not None:
        return mine
    names = type(mine).model_fields
    differ = [f"{name} {getattr(mine, name)} (the checkpoint: {getattr(theirs, name)})" for name in names]
    differ = [text for text, name in zip(differ, names, strict=True) if getattr(mine, name) != getattr(theirs, name)]
    if config.learning_rate.override_lr_scheduler or config.learning_rate.use_checkpoint_lr_scheduler:
        chosen = theirs if config.learning_rate.use_checkpoint_lr_scheduler else mine
        say(f"learning rate: {chosen}, {'the checkpoint' if chosen is theirs else 'this configuration'}'s")
        return chosen
    raise ValueError(
        f"learning rate: another curve than that of {path}: {', '.join(differ)}\n"
        "  fix: write override_lr_scheduler: true to follow this file's, "
        "or use_checkpoint_lr_scheduler: true to follow the checkpoint's"
    )
