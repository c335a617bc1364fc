"""Reads ``metrics.jsonl``: a line of JSON a step, written by the training; torn last lines are left for the next look.

Changes when that file's format does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TAIL_BYTES = 64 * 1024
"""Enough for some hundred lines: the last step and, usually, the last validation."""

MEAN_STEPS = 20
"""Steps over which speeds are averaged."""

Line = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The newest of what a training has written."""

    step: int | None = None
    loss: float | None = None
    lr: float | None = None
    tokens_per_s: float | None = None
    step_time_s: float | None = None
    validation_step: int | None = None
    validation_loss: float | None = None


def parse_lines(text: str) -> list[Line]:
    """The lines that are whole objects with a step."""
    found: list[Line] = []
    for text_line in text.splitlines():
        try:
            line = json.loads(text_line)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            found.append(line)
    return found


def progress_of(lines: Sequence[Line]) -> Progress:
    """The newest values of a sequence of lines; speeds are means over the last steps, because single steps vary."""
    steps = [line for line in lines if "loss" in line]
    validations = [line for line in lines if "validation_loss" in line]
    newest = steps[-1] if steps else {}
    validation = validations[-1] if validations else {}
    return Progress(
        step=newest.get("step"),
        loss=newest.get("loss"),
        lr=newest.get("lr"),
        tokens_per_s=_mean(steps, "tokens_per_s"),
        step_time_s=_mean(steps, "step_time_s"),
        validation_step=validation.get("step"),
        validation_loss=validation.get("validation_loss"),
    )


def _mean(steps: Sequence[Line], name: str) -> float | None:
    values = [line[name] for line in steps[-MEAN_STEPS:] if isinstance(line.get(name), (int, float))]
    return sum(values) / len(values) if values else None


def read_progress(path: Path) -> Progress:
    """The newest values, from the end of the file; all None when there is none yet."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return Progress()
    return progress_of(parse_lines(text))


def read_metrics(path: Path) -> list[Line]:
    """Every line of a file; empty when there is none."""
    try:
        return parse_lines(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return []


@dataclass
class Follower:
    """Gives the lines of a growing file as they come; a file that shrinks (a resumed run) is read again from its start."""

    path: Path
    _offset: int = field(default=0, init=False)

    def new_lines(self) -> list[Line]:
        """The whole lines written since the last call."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                content = file.read()
        except OSError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return parse_lines(whole.decode(errors="replace"))
