"""Containers: what stands between the launcher and the ranks' command.  One row each; the images come with a later release."""

from __future__ import annotations

from collections.abc import Callable

CONTAINERS: dict[str, Callable[[], tuple[str, ...]]] = {"none": lambda: ()}
"""Name -> the argv that a command is put behind (``apptainer exec …``)."""
