"""A run's whole curve: its own steps, after those of the run that it was loaded from.

Changes when how runs follow one another does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neox_hpc.metrics import Line, read_metrics
from neox_hpc.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What is drawn of a run."""

    name: str
    training: tuple[tuple[int, float], ...]
    """Step, loss."""
    validation: tuple[tuple[int, float], ...]
    joins: tuple[int, ...] = ()
    """Steps at which a run took over from the one that it was loaded from."""


def read_curve(run: RunDir) -> Curve:
    """The run's curve, joined with those of its predecessors."""
    lines: list[Line] = []
    joins = []
    for path in reversed(_chain(run.path)):
        own = read_metrics(path / "metrics.jsonl")
        first = min((line["step"] for line in own if "loss" in line), default=None)
        if lines and first is not None:
            lines = [line for line in lines if line["step"] < first]
            joins.append(first)
        lines += own
    return Curve(name=run.name, training=_points(lines, "loss"), validation=_points(lines, "validation_loss"), joins=tuple(joins))


def _points(lines: list[Line], name: str) -> tuple[tuple[int, float], ...]:
    return tuple((line["step"], line[name]) for line in lines if isinstance(line.get(name), (int, float)))


def _chain(path: Path) -> list[Path]:
    """A run and the runs before it, newest first."""
    chain = [path]
    while (before := _loaded_from(chain[-1])) is not None and before not in chain:
        chain.append(before)
    return chain


def _loaded_from(path: Path) -> Path | None:
    """The run directory whose checkpoints a run began from; None when it began afresh, or counts its steps from 0 (finetune)."""
    checkpoints = _checkpoints(path / "run.json")
    load = checkpoints.get("load")
    if load is None or load == checkpoints.get("save") or checkpoints.get("finetune"):
        return None
    folders = (Path(load), *Path(load).parents[:2])
    return next((folder.resolve() for folder in folders if (folder / "metrics.jsonl").is_file()), None)


def _checkpoints(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["config"]["checkpoints"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}
