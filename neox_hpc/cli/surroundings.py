"""What step 1 reads of the user's surroundings: time, user, host, git, signs of a machine.  What follows is given these as values.

Changes when a run records something else about where it came from.
"""

from __future__ import annotations

import getpass
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from neox_hpc import proc
from neox_hpc.errors import NeoxHpcError

if TYPE_CHECKING:
    from neox_hpc.site_detect import Surroundings

GIT_TIMEOUT_S = 5.0


def now_utc() -> str:
    """``2026-11-20T21:40:05+00:00``."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def user_name() -> str:
    """The login name; the number where the machine has no name for it (containers)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def host_name() -> str:
    """This machine."""
    return os.uname().nodename


def look_around() -> Surroundings:
    """What tells one machine from another."""
    from neox_hpc.site_detect import Surroundings

    name = host_name()
    return Surroundings(variables=os.environ, hosts=tuple(dict.fromkeys((name.partition(".")[0], name))), read=_read_sign)


def _read_sign(path: str) -> str | None:
    try:
        return "" if os.path.isdir(path) else Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def git_commit(cwd: Path) -> str:
    """Commit of a directory, with ``+dirty`` when tracked files differ; empty outside git, or when git is slow or absent."""
    commit = _git(cwd, "rev-parse", "--verify", "--quiet", "HEAD")
    if not commit:
        return ""
    return commit + ("+dirty" if _git(cwd, "status", "--porcelain", "--untracked-files=no") else "")


def _git(cwd: Path, *words: str) -> str:
    try:
        answer = proc.ask(["git", *words], timeout_s=GIT_TIMEOUT_S, cwd=cwd, environ=os.environ | {"GIT_OPTIONAL_LOCKS": "0"})
    except NeoxHpcError:
        return ""
    return answer.stdout.strip() if answer.status == 0 else ""
