"""The code that a run trains with: a copy of the ``model`` package, taken at submit.

Changes when what belongs to that copy does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A package's files."""

    files: Mapping[str, bytes]
    """``model/train.py`` -> its content."""

    @property
    def sha256(self) -> str:
        """One hash over all names and contents."""
        digest = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
        return digest.hexdigest()


def take_snapshot(package: Path | None = None) -> Snapshot:
    """Read the ``model`` package that stands beside ``neox_hpc`` (or another one).

    Raises:
        UserError: the ``model`` on the import path is not ours.
    """
    if package is None:
        from neox_hpc.vocabulary import check_own_model  # its module imports the whole vocabulary: not for status and logs

        check_own_model()
        package = Path(__file__).resolve().parent.parent / "model"
    paths = (path for path in package.rglob("*") if path.is_file() and _belongs(path.relative_to(package)))
    return Snapshot(files={f"{package.name}/{path.relative_to(package).as_posix()}": path.read_bytes() for path in sorted(paths)})


def _belongs(path: Path) -> bool:
    return path.suffix != ".pyc" and not any(part == "__pycache__" or part.startswith(".") for part in path.parts)
