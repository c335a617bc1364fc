"""The jobs of a pretended queue: a table in files, and a process for each job that starts its script and waits for it.

Changes when what all queues do with a job does; what a script is started with is each queue's own to say.  Jobs run one beside the
other, and each has the machine's first nodes: nothing here is about room.  A file ``hold`` keeps all of them waiting.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from tests.fakes.machine import Host, Machine

POLL_S = 0.05
QUEUED, RUNNING, ENDED = "queued", "running", "ended"
CANCELLED, TIMEOUT = "cancelled", "timeout"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job, with what its queue's commands tell of it."""

    number: int
    name: str
    queue: str
    account: str
    nodes: tuple[str, ...]
    argv: tuple[str, ...]
    """What is started on ``host``, with ``text`` on its standard input."""
    text: str = ""
    host: str
    env: Mapping[str, str]
    cwd: str
    output: str
    error: str = ""
    """Empty: with the output."""
    append: bool = False
    at_the_end: bool = False
    """Whether the output is copied to its place once the job has ended, and not written there."""
    owner: str = field(default_factory=getpass.getuser)
    after: tuple[int, ...] = ()
    """Jobs that have to end first."""
    limit_s: float = 0.0
    """How long it may run; 0: as long as it likes."""
    at_limit: tuple[tuple[float, int], ...] = ()
    """The signals that it gets then: after how many seconds, and which."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What only its queue understands."""
    state: str = QUEUED
    why: str = ""
    """Why it ended, other than by itself: CANCELLED, TIMEOUT."""
    returncode: int | None = None
    """As subprocess tells it: negative for a signal; None: it never started, or has not ended."""
    session: int = 0
    kills: tuple[tuple[float, int], ...] = ()
    """Signals that it will yet get: when, and which."""
    submitted: float = 0.0
    started: float = 0.0
    ended: float = 0.0


def job_directory(machine: Machine, number: int) -> Path:
    """For a job's script and other files."""
    path = machine.home / "jobs" / str(number)
    path.mkdir(parents=True, exist_ok=True)
    return path


def new_number(machine: Machine) -> int:
    """A number that no job had."""
    with _locked(machine):
        counter = machine.home / "counter"
        number = int(counter.read_text()) + 1 if counter.exists() else 41
        counter.write_text(str(number))
        return number


def submit(machine: Machine, job: Job) -> None:
    """Put a job into the table, and start the process that sees to it."""
    _write(machine, replace(job, submitted=time.time()))
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); from tests.fakes.batch import see_to; "
    subprocess.Popen(
        [sys.executable, "-I", "-c", f"{code}see_to({str(machine.home)!r}, {job.number})"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(job_directory(machine, job.number) / "trouble").open("w"),
        start_new_session=True,
        env={"PATH": os.defpath},
    )


def find(machine: Machine, number: int) -> Job | None:
    """A job of the table."""
    try:
        facts = json.loads((job_directory(machine, number) / "job.json").read_text())
    except OSError:
        return None
    tuples = {name: tuple(facts[name]) for name in ("nodes", "argv", "after")}
    pairs = {name: tuple((at, number) for at, number in facts[name]) for name in ("kills", "at_limit")}
    return Job(**{**facts, **tuples, **pairs})


def every(machine: Machine) -> list[Job]:
    """All jobs, the first one first."""
    numbers = sorted(int(path.parent.name) for path in machine.home.glob("jobs/*/job.json"))
    return [job for number in numbers if (job := find(machine, number))]


def stop(machine: Machine, number: int, why: str, signals: tuple[tuple[float, int], ...]) -> None:
    """End a job: at once where it waits, else by signals, each so many seconds from now."""
    with _locked(machine):
        job = find(machine, number)
        assert job is not None
        if job.state == QUEUED:
            _write(machine, replace(job, state=ENDED, why=why, ended=time.time()))
        elif job.state == RUNNING:
            now = time.time()
            _write(machine, replace(job, why=why, kills=tuple((now + after, sent) for after, sent in signals)))


def send(job: Job, number: int) -> None:
    """A signal to all processes of a job on its first host, its ranks left out: they are in sessions of their own."""
    if job.state == RUNNING:
        with suppress(ProcessLookupError):  # it has just ended
            os.killpg(job.session, number)


def see_to(home: str, number: int) -> None:
    """A job's life, in a process of its own."""
    from tests.fakes.machine import read_machine

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job ignores nothing that its submitter's shell ignored
    machine = read_machine(Path(home))
    while _waits(machine, _now(machine, number)):
        time.sleep(POLL_S)
    with _locked(machine):
        job = _now(machine, number)
        if job.state != QUEUED:
            return
        process = _start(machine, job)
        job = replace(job, state=RUNNING, session=process.pid, started=time.time())
        _write(machine, job)
    while (code := _wait(process)) is None:
        if job.limit_s and not job.why and time.time() > job.started + job.limit_s:
            stop(machine, number, TIMEOUT, job.at_limit)
        for at, sent in (job := _now(machine, number)).kills:
            if at <= time.time():
                send(job, sent)
                _change(machine, number, kills=tuple(kill for kill in job.kills if kill[0] > at))
                break
    if job.at_the_end:
        _collect(machine, job)
    _change(machine, number, state=ENDED, returncode=code, ended=time.time())


def clock(seconds: float) -> str:
    """HH:MM:SS."""
    return f"{int(seconds) // 3600:02}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def _waits(machine: Machine, job: Job) -> bool:
    """For the queue, for other jobs, or for nodes that there will never be."""
    others = (find(machine, number) for number in job.after)
    held = (machine.home / "hold").exists() or any(other and other.state != ENDED for other in others)
    return job.state == QUEUED and (held or not job.nodes)


def _start(machine: Machine, job: Job) -> subprocess.Popen[str]:
    host = next(host for host in _hosts(machine) if host.name == job.host)
    output, error = (Path(path) if path else None for path in (job.output, job.error))
    if job.at_the_end:
        output, error = (path and job_directory(machine, job.number) / kind for path, kind in ((output, "OU"), (error, "ER")))
    assert output is not None
    mode = "a" if job.append else "w"
    process = subprocess.Popen(
        [*host.enter, *job.argv],
        env=dict(job.env),
        cwd=job.cwd,
        stdin=subprocess.PIPE,
        stdout=output.open(mode),
        stderr=error.open(mode) if error else subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(job.text)
    process.stdin.close()
    return process


def _wait(process: subprocess.Popen[str]) -> int | None:
    try:
        return process.wait(timeout=POLL_S)
    except subprocess.TimeoutExpired:
        return None


def _collect(machine: Machine, job: Job) -> None:
    for path, kind in ((job.output, "OU"), (job.error, "ER")):
        if path:
            Path(path).write_bytes((job_directory(machine, job.number) / kind).read_bytes())


def _hosts(machine: Machine) -> Iterator[Host]:
    yield from machine.nodes
    if machine.launch_node:
        yield machine.launch_node


def _now(machine: Machine, number: int) -> Job:
    job = find(machine, number)
    assert job is not None
    return job


def _change(machine: Machine, number: int, **facts: object) -> None:
    with _locked(machine):
        _write(machine, replace(_now(machine, number), **facts))  # type: ignore[arg-type]


def _write(machine: Machine, job: Job) -> None:
    path = job_directory(machine, job.number) / "job.json"
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(asdict(job)))
    draft.rename(path)


@contextmanager
def _locked(machine: Machine) -> Iterator[None]:
    with (machine.home / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
