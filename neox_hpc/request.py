"""What was asked for: the command line, and what step 1 read of the user's surroundings.

Changes when a command line can say more.
"""

from __future__ import annotations

import os.path
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for on the command line, and what step 1 read of the user's surroundings."""

    name: str
    run_dir: str
    """Absolute; chosen before planning, so that a dry run and the submit after it give the same bytes."""
    cwd: str
    """Directory of the submit command."""
    user: str = ""
    git_commit: str = ""
    neox_hpc: str = ""
    """Version."""
    nodes: int | None = None
    walltime_s: int | None = None
    account: str | None = None
    user_account: tuple[str, str] | None = None
    """Place and account in the user's own configuration."""
    environment_account: tuple[str, str] | None = None
    """Variable and account, where the scheduler reads one."""
    queue: str | None = None
    container: str | None = None
    """Image, or `none`."""
    software_place: str | None = None
    """Where the user's own configuration says what the ranks run in, if it does."""


def run_name(name: str | None, config_files: tuple[str, ...]) -> str:
    """``--name``, else the first configuration file's name without its ending."""
    return name or (os.path.splitext(os.path.basename(config_files[0]))[0] if config_files else "run")
