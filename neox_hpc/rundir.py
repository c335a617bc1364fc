"""The run directory: written once, whole or not at all; read back at any time.  The only writer of run directories here.

Changes when the layout of a run directory does::

    run.json  plan.json  job.sh  code/model/…      written by submit
    receipt.json                                   after submit: the job's id, when, by whom, hashes
    cancelled.json                                 after cancel
    far.json                                       where the run really is, in the copy that is kept of one on another machine
    logs/job.out  logs/<attempt>/{rank<R>.error,outcome}  metrics.jsonl  checkpoints/   written by the job
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neox_hpc.errors import Failure, Problem, UserError
from neox_hpc.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What is known once a scheduler has taken a job."""

    job_id: str
    submitted_at: str
    """ISO 8601, UTC."""
    host: str
    """Where the submit command ran; job ids of the local site mean nothing elsewhere."""
    user: str
    command: tuple[str, ...]
    """The scheduler's command."""
    neox_hpc: str
    """Version."""
    code_sha256: str
    script_sha256: str
    software: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the ranks run in, and its hash where there is one (identity.py)."""
    git_commit: str = ""
    process_started: int | None = None
    """Local site: when process ``job_id`` started (proc.ProcessId), so that a recycled number is not taken for the job."""


@dataclass(frozen=True, kw_only=True)
class Far:
    """Where a run really is whose directory here is a copy: of what was submitted, and of what was last seen."""

    host: str
    """As ssh takes it."""
    ssh: str
    """How it is reached: paramiko, openssh."""
    path: str
    """Of the run directory there."""
    token: str
    """What the far side knows this submission by, however often it is tried."""
    digest: str
    """Hash of all that is submitted."""
    draft: Mapping[str, Any]
    """The receipt, up to the job's id."""


@dataclass(frozen=True, order=True)
class RankError:
    """A rank's own report of its failure."""

    at_s: float
    """When it was written (file time): the earliest one is the cause."""
    rank: int
    text: str
    path: Path

    @property
    def message(self) -> str:
        """Its first line, and the fix where the second line is one."""
        first, *rest = self.text.splitlines()
        return "\n".join([first, *(line for line in rest[:1] if line.strip().startswith("fix:"))])


@dataclass(frozen=True)
class Attempt:
    """One start of the job."""

    number: int
    path: Path

    @property
    def exit_status(self) -> int | None:
        """From ``outcome``; None while the attempt runs, or when it was killed too hard to write one."""
        words = _text_or_empty(self.path / "outcome").split()
        values = [word.partition("=")[2] for word in words if word.startswith("exit_status=")]
        return int(values[0]) if values and values[0].isdecimal() else None

    @property
    def first_error(self) -> RankError | None:
        """The earliest report of a rank."""
        return min(self._errors(), default=None)

    @property
    def started_s(self) -> float | None:
        """When it began (file time)."""
        return _mtime(self.path / "hostfile")

    @property
    def ended_s(self) -> float | None:
        """When its outcome was written (file time)."""
        return _mtime(self.path / "outcome")

    def _errors(self) -> list[RankError]:
        found = []
        for path in self.path.glob("rank*.error"):
            number, at_s = path.stem.removeprefix("rank"), _mtime(path)
            text = _text_or_empty(path).strip()
            if number.isdecimal() and at_s is not None and text:
                found.append(RankError(at_s=at_s, rank=int(number), text=text, path=path))
        return found


@dataclass(frozen=True)
class RunDir:
    """A run directory that exists."""

    path: Path

    @property
    def name(self) -> str:
        """The directory's own name: what the user calls the run."""
        return self.path.name

    @property
    def far(self) -> Far | None:
        """Where it really is, if that is another machine."""
        path = self.path / "far.json"
        return Far(**_read_json(path)) if path.exists() else None

    @property
    def place(self) -> str:
        """Where its files are, for a reader: ``/scratch/me/runs/x``, ``me@login:/scratch/me/runs/x``."""
        return str(self.path) if (far := self.far) is None else f"{far.host}:{far.path}"

    @property
    def script(self) -> Path:
        """What is submitted."""
        return self.path / "job.sh"

    @property
    def log(self) -> Path:
        """All output of the job, over its attempts."""
        return self.path / "logs" / "job.out"

    @property
    def metrics(self) -> Path:
        """A line of JSON a step."""
        return self.path / "metrics.jsonl"

    @property
    def newest_step_s(self) -> float | None:
        """When the training wrote its newest step (file time)."""
        return _mtime(self.metrics)

    @property
    def plan(self) -> Mapping[str, Any]:
        """What status and watch need to know.

        Raises:
            Failure: the file is absent or damaged.
        """
        return _read_json(self.path / "plan.json")

    @property
    def receipt(self) -> Receipt | None:
        """None: never submitted (rendered only, or the submit was interrupted)."""
        path = self.path / "receipt.json"
        if not path.exists():
            return None
        known = {field.name for field in dataclasses.fields(Receipt)}
        values = {key: value for key, value in _read_json(path).items() if key in known}
        try:
            return make_receipt(values)
        except TypeError as error:
            raise Failure(f"{path}: not a receipt of this version: {error}") from None

    @property
    def is_cancelled(self) -> bool:
        """Whether ``neox-hpc cancel`` stopped it."""
        return (self.path / "cancelled.json").exists()

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """The starts of the job, first one first."""
        folder = self.path / "logs"
        found = [Attempt(int(path.name), path) for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
        return tuple(sorted(found, key=lambda attempt: attempt.number))


def make_receipt(values: Mapping[str, Any]) -> Receipt:
    """A receipt from what JSON has made of one.

    Raises:
        TypeError: something is missing.
    """
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Receipt(**fields)


def open_run(path: Path) -> RunDir:
    """The run directory at a path; the path of its run.json or job.sh will do.

    Raises:
        UserError: it is none.
    """
    folder = path.parent if path.name in ("run.json", "plan.json", "job.sh") else path
    if not (folder / "plan.json").is_file():
        fix = "give the directory that submit or render printed; `neox-hpc list` shows them"
        raise UserError(Problem(str(path), "is not a run directory: it holds no plan.json", fix))
    return RunDir(folder.resolve())


def choose_path(output_dir: Path, name: str, run_id: str | None) -> Path:
    """``<output-dir>/<name>``, or ``<name>.2``, … when taken; with a run id just that one.

    Raises:
        UserError: the run id is taken, or is no plain name.
    """
    if run_id is None:
        candidates = (output_dir / (name if number == 1 else f"{name}.{number}") for number in range(1, 1_000_000))
        return next(path for path in candidates if not os.path.lexists(path))
    if run_id != os.path.basename(run_id) or run_id in ("", ".", ".."):
        raise UserError(
            Problem(f"--run-id {run_id}", "is not a plain name", "write a name without '/'; --output-dir says where it goes")
        )
    path = output_dir / run_id
    if os.path.lexists(path):
        raise UserError(_taken(path))
    return path


def write_run_dir(path: Path, files: Mapping[str, str], snapshot: Snapshot) -> RunDir:
    """Create a run directory under a temporary name, then rename it: it is never seen half-written.

    Raises:
        UserError: it exists, or its parent cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if os.path.lexists(path):
        raise UserError(_taken(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        _fill(temporary, files, snapshot)
        os.rename(temporary, path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if os.path.lexists(path):  # another submit was faster
            raise UserError(_taken(path)) from None
        fix = "give a directory that you may write with --output-dir"
        raise UserError(Problem(str(path.parent), f"the run directory cannot be written: {error.strerror}", fix)) from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return RunDir(path)


def keep_far_run(path: Path, files: Mapping[str, str], far: Far) -> RunDir:
    """The copy of a run on another machine, made before anything is sent there.

    Raises:
        UserError: it exists, or cannot be written.
    """
    return write_run_dir(path, {**files, "far.json": json.dumps(dataclasses.asdict(far), indent=1) + "\n"}, Snapshot(files={}))


def keep_piece(run: RunDir, name: str, *, start: int, content: bytes, mtime_s: float) -> None:
    """Put bytes of a far run's file into its copy: at their place where they follow what is known, else in place of that.

    What comes before ``start`` and is not known is a hole (zeros), and ``NAME.from`` beside it tells where the known part begins.

    Raises:
        Failure: the copy cannot be written.
    """
    path = run.path / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        first, end = known_part(run, name)
        if start == 0 or not first <= start <= end:
            path.unlink(missing_ok=True)
            _from(path).unlink(missing_ok=True)
            if start:
                write_atomically(_from(path), str(start).encode())
        with path.open("r+b" if path.exists() else "wb") as file:
            file.seek(start)
            file.write(content)
        os.utime(path, (mtime_s, mtime_s))
    except OSError as error:
        raise Failure(f"{path}: cannot be written: {error.strerror}") from None


def known_part(run: RunDir, name: str) -> tuple[int, int]:
    """First byte and end of what a far run's copy holds of a file."""
    path = run.path / name
    first = _text_or_empty(_from(path))
    return (int(first or 0), path.stat().st_size) if path.exists() else (0, 0)


def _from(path: Path) -> Path:
    return path.with_name(f".{path.name}.from")


def remove_run_dir(run: RunDir) -> None:
    """Take back a run directory whose job no scheduler took."""
    shutil.rmtree(run.path, ignore_errors=True)


def write_receipt(run: RunDir, receipt: Receipt) -> bytes:
    """Record that a scheduler took the job; returns what was written."""
    content = _json_bytes(dataclasses.asdict(receipt))
    write_atomically(run.path / "receipt.json", content)
    return content


def write_cancelled(run: RunDir, *, at: str, user: str) -> bytes:
    """Record that the job was cancelled; a scheduler forgets it soon.  Returns what was written."""
    content = _json_bytes({"at": at, "user": user})
    write_atomically(run.path / "cancelled.json", content)
    return content


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one.

    Raises:
        UserError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(Problem(str(path), f"cannot be written: {error.strerror}", "give a place that you may write")) from None


def sha256_of(text: str) -> str:
    """Hash of a rendered file."""
    return hashlib.sha256(text.encode()).hexdigest()


def _fill(folder: Path, files: Mapping[str, str], snapshot: Snapshot) -> None:
    (folder / "logs").mkdir()
    for name, text in files.items():
        _write(folder / name, text.encode(), mode=0o755 if name.endswith(".sh") else 0o644)
    for name, content in snapshot.files.items():
        _write(folder / "code" / name, content, mode=0o444)


def _write(path: Path, content: bytes, *, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def _taken(path: Path) -> Problem:
    return Problem(
        str(path), "exists already; a run directory is never written twice", "choose another --run-id, or remove that directory"
    )


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Failure(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise Failure(f"{path}: damaged: {error}") from None
    if not isinstance(value, dict):
        raise Failure(f"{path}: damaged: not a JSON object")
    return value


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _text_or_empty(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _mtime(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
