"""metrics.jsonl: one JSON object a line, one line a step."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path


class MetricsFile:
    """Appends to metrics.jsonl, after dropping what an interrupted attempt wrote beyond the step that this one begins from."""

    def __init__(self, path: Path, *, begin_step: int) -> None:
        _drop_after(path, begin_step)
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (lives as long as the run)

    def write(self, values: Mapping[str, float | int]) -> None:
        """Append one line; a value that is no number is written as null."""
        plain = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()}
        self._file.write(json.dumps(plain) + "\n")

    def close(self) -> None:
        """Write out the rest."""
        self._file.close()


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if int(json.loads(line)["step"]) <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # a line cut short by a kill
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, path)
