"""The list of this user's runs, so that a run can be called by its name or its job id from any directory.

Changes when how runs are remembered or found does.  The list is a convenience: the run directories are the record.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from neox_hpc.errors import Problem, UserError
from neox_hpc.rundir import RunDir, open_run


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run that was submitted."""

    path: str
    job_id: str
    site: str
    submitted_at: str

    @property
    def name(self) -> str:
        """What the user calls it."""
        return Path(self.path).name

    def is_called(self, text: str) -> bool:
        """By its name or its job id, which users write without the server's name (PBS) and with another f (Flux)."""
        return text in (self.name, self.job_id, self.job_id.partition(".")[0]) or text.replace("ƒ", "f", 1) == self.job_id


def registry_file(environ: Mapping[str, str]) -> Path:
    """``~/.local/state/neox-hpc/runs.jsonl``, by the XDG rules."""
    state = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME") or Path.home()) / ".local" / "state")
    return Path(state) / "neox-hpc" / "runs.jsonl"


def remember(entry: Entry, file: Path) -> bool:
    """Append a run; False where the home directory cannot be written (its path still finds it)."""
    line = (json.dumps(asdict(entry)) + "\n").encode()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, line)  # one write: two submits at the same time do not mix
        finally:
            os.close(descriptor)
    except OSError:
        return False
    return True


def read_registry(file: Path) -> tuple[Entry, ...]:
    """The runs, newest first; lines that cannot be read are passed over."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    found = []
    for line in reversed(lines):
        try:
            values = json.loads(line)
            found.append(Entry(**{name: str(values[name]) for name in ("path", "job_id", "site", "submitted_at")}))
        except (ValueError, KeyError, TypeError):
            continue
    return tuple(found)


def find_run(text: str | None, *, file: Path, cwd: Path) -> RunDir:
    """The run that a user means: a path, ``runs/NAME`` here, a name, or a job id; nothing: the newest one.

    Raises:
        UserError: there is none.
    """
    entries = read_registry(file)
    present = [entry for entry in entries if (Path(entry.path) / "plan.json").is_file()]
    if text is None:
        if not present:
            raise UserError(Problem("RUN", "no run is known yet", "neox-hpc submit --site local configs/quickstart.yml"))
        return open_run(Path(present[0].path))
    for path in (cwd / Path(text).expanduser(), cwd / "runs" / text):
        if path.exists() and ("/" in text or (path / "plan.json").is_file()):
            return open_run(path)
    named = [entry for entry in present if entry.is_called(text)]
    if named:
        return open_run(Path(named[0].path))
    raise UserError(_not_found(text, entries, present))


def _not_found(text: str, entries: tuple[Entry, ...], present: list[Entry]) -> Problem:
    gone = next((entry for entry in entries if entry.job_id and entry.is_called(text)), None)
    if gone is not None:
        return Problem(
            text, f"its run directory {gone.path} is gone", "restore the directory; the scheduler's own commands know the job"
        )
    near = difflib.get_close_matches(text, dict.fromkeys(entry.name for entry in present), n=1, cutoff=0.5)
    fix = f"did you mean {near[0]}?" if near else "`neox-hpc list` shows the runs; a path works from anywhere"
    return Problem(text, "no run of this path, name or job id", fix)
