"""A real Apptainer for tests, in a Debian of its own that is made when it is first asked for.

Changes when the way in which it is made or entered does.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent
_DONE = "apptainer.ready"
COMMANDS = ("sh", "env", "cat", "ls", "touch", "printf", "id", "pwd", "dirname", "sleep")


def obstacle() -> str:
    """Why it cannot run here, and the command that changes it; empty: it can."""
    if os.geteuid() != 0:
        return "a real Apptainer needs root to make its Debian: sudo .ci/run"
    if shutil.which("debootstrap") is None:
        return "a real Apptainer needs debootstrap: apt-get install --no-install-recommends debootstrap (Debian), or .ci/run"
    tried = subprocess.run(["unshare", "--mount", "--propagation", "private", "true"], capture_output=True, text=True)
    return f"a real Apptainer needs namespaces: docker run --privileged … ({tried.stderr.strip()})" if tried.returncode else ""


@dataclass(frozen=True, kw_only=True)
class Apptainer:
    """An Apptainer that can be called."""

    root: Path

    def argv(self, *words: str, user: str = "root") -> list[str]:
        """A command of the Debian that has it."""
        return [str(_FOLDER / "apptainer-in"), str(self.root), user, *words]

    def run(self, *words: str, user: str = "root") -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.argv("apptainer", *words, user=user), capture_output=True, text=True, timeout=120)

    def program(self, folder: Path, user: str = "root") -> None:
        """A program ``apptainer`` in a folder of PATH."""
        path = folder / "apptainer"
        path.write_text(f'#!/bin/sh\nexec {shlex.join(self.argv("apptainer", user=user))} "$@"\n')
        path.chmod(0o755)

    def sandbox(self, folder: Path, files: dict[str, str], directories: Sequence[str] = ()) -> Path:
        """An image of a shell, its commands and some programs: a directory."""
        for name in ("bin", "dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "var/tmp", *directories):
            (folder / name).mkdir(parents=True)
        shutil.copy(self.root / "bin" / "busybox", folder / "bin")
        for name in COMMANDS:
            (folder / "bin" / name).symlink_to("busybox")
        for name, text in files.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        return folder


def make_apptainer(root: Path) -> Apptainer:
    """The Debian in ``root``; one that was made before is used again."""
    if not (root / _DONE).exists():
        shutil.rmtree(root, ignore_errors=True)
        made = subprocess.run([_FOLDER / "apptainer-up", root], capture_output=True, text=True, timeout=900)
        if made.returncode != 0:
            raise RuntimeError(f"debootstrap failed:\n{made.stdout[-2000:]}{made.stderr}")
        (root / _DONE).touch()
    return Apptainer(root=root)
