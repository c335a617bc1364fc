"""Finds the folders that are data and no code (sites, configs, containers), in an installed wheel and in a checkout.

Changes when where they are installed does.
"""

from __future__ import annotations

from pathlib import Path


def share(name: str) -> Path:
    """The folder (or the file) of that name: ``neox_hpc/share/NAME`` in a wheel, ``NAME`` beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "share" / name
    return installed if installed.exists() else package.parent / name
