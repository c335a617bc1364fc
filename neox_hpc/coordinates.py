"""Reads ``coordinates.json``, which a run with ``coord_check`` writes: how far activations moved, over widths.

Changes when that file's format does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from neox_hpc.errors import Failure


@dataclass(frozen=True, kw_only=True)
class Coordinate:
    """One measurement (model/mup_check.py)."""

    parametrization: str
    activation: str
    width: int
    step: int
    moved: float


def read_coordinates(run: Path) -> tuple[Coordinate, ...]:
    """The measurements of a run; none of a run that trains.

    Raises:
        Failure: the file holds something else.
    """
    path = run / "coordinates.json"
    if not path.is_file():
        return ()
    try:
        return tuple(Coordinate(**point) for point in json.loads(path.read_text(encoding="utf-8"))["coordinates"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failure(f"{path} holds no coordinates: {error}") from error
