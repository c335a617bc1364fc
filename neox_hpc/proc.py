"""Starts and stops other programs; with ``transport.py`` the only module of the control plane that does.

Changes when the way in which a program is started, waited for or stopped does.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neox_hpc.errors import Failure, Problem, UserError


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a program said."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str


class NoAnswer(Failure):
    """A program that hangs.  What it was asked to do may have happened or not."""


def ask(
    argv: Sequence[str],
    *,
    timeout_s: float,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
) -> Answer:
    """Run a program to its end, whatever its exit status.  It reads ``stdin``, or nothing.

    Raises:
        UserError: there is no such program.
        NoAnswer: it did not end within ``timeout_s``; it and its children are killed.
    """
    process = _start(argv, environ=environ, cwd=cwd, stdin=stdin)
    try:
        stdout, stderr = process.communicate(stdin, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _kill(process)
        raise NoAnswer(f"{shlex.join(argv)}: gave no answer within {timeout_s:g} s\n  fix: try again later") from None
    except BaseException:  # Ctrl-C: the program is in a session of its own and would go on
        _kill(process)
        raise
    return Answer(argv=tuple(argv), status=process.returncode, stdout=stdout, stderr=stderr)


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
) -> str:
    """Run a program that must succeed, and return what it printed.

    Raises:
        UserError: there is no such program, or it refused: with its command and its own words.
        NoAnswer: it hangs.
    """
    return stdout_of(ask(argv, timeout_s=timeout_s, environ=environ, cwd=cwd, stdin=stdin))


def stdout_of(answer: Answer) -> str:
    """What a program printed that must have succeeded.

    Raises:
        UserError: it refused: with its command and its own words.
    """
    if answer.status != 0:
        words = (answer.stderr.strip() or answer.stdout.strip() or "it said nothing").replace("\n", "\n  ")
        raise UserError(Problem(where=shlex.join(answer.argv), wrong=f"{_ending(answer.status)}: {words}"))
    return answer.stdout


def show(argv: Sequence[str], *, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> int:
    """Run a program on the user's terminal and return its exit status (128 + signal, as shells count)."""
    process = _popen(argv, env=_copy(environ), cwd=cwd)
    while True:
        try:
            status = process.wait()
        except KeyboardInterrupt:  # the terminal has sent it to the program too, which decides
            continue
        return status if status >= 0 else 128 - status


FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def supervise(
    argv: Sequence[str],
    *,
    environ: Mapping[str, str],
    cwd: Path,
    log: Path,
    started: Callable[[ProcessId], None],
    grace_s: float,
) -> int:
    """Run a program to its end, in a session of its own: signals that end us go on to it, its output to ``log`` and to our own.

    What has not ended ``grace_s`` after INT, TERM or HUP is killed, and so is what the program leaves behind.  Returns its exit
    status, 128 + signal where a signal ended it.  For the main thread only.
    """
    process = _popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=_copy(environ),
        cwd=cwd,
        bufsize=0,
    )
    stat = _read_stat(process.pid)
    leader = ProcessId(pid=process.pid, started=stat.started if stat is not None else 0)
    deadline: list[float] = []

    def forward(number: int, _frame: object) -> None:
        if number != signal.SIGUSR1:
            deadline.append(time.monotonic() + grace_s)
        _signal(os.kill, process.pid, signal.SIGTERM if number == signal.SIGHUP else number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        started(leader)
        assert process.stdout is not None
        with log.open("ab", buffering=0) as file:
            _copy_output(process, process.stdout.fileno(), (file.fileno(), 1), deadline)
    finally:
        end_session(leader, grace_s=0.0)
        status = process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
        if process.stdout is not None:
            process.stdout.close()
    return status if status >= 0 else 128 - status


def _copy_output(process: subprocess.Popen[str], source: int, targets: Sequence[int], deadline: Sequence[float]) -> None:
    """Until the program has ended and nothing more comes, or its time is over."""
    sources = [source]
    while not deadline or time.monotonic() < deadline[0]:
        ended = process.poll() is not None
        ready = select.select(sources, [], [], 0.0 if ended else 0.2)[0]
        text = os.read(source, 65536) if ready else b""
        for target in targets:
            left = text
            while left:
                left = left[os.write(target, left) :]
        if ready and not text:
            sources = []  # closed; the program may go on
        if ended and not text:
            return


# Processes that outlive us: the "scheduler" of the local site ----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ProcessId:
    """A process of this machine: its number, and when it started, so that a recycled number is another process."""

    pid: int
    started: int
    """Clock ticks since boot (/proc/PID/stat, field 22); 0 where there is no /proc."""


def start_detached(argv: Sequence[str], *, log: Path, cwd: Path, environ: Mapping[str, str] | None = None) -> ProcessId:
    """Start a program in a session of its own, its output appended to ``log``; it lives on when we end."""
    with log.open("ab") as output:
        process = _popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=_copy(environ), cwd=cwd
        )
    stat = _read_stat(process.pid)
    process.returncode = 0  # it is not ours to wait for
    return ProcessId(pid=process.pid, started=stat.started if stat is not None else 0)


def is_alive(process: ProcessId) -> bool:
    """Whether this very process runs (a zombie does not)."""
    stat = _read_stat(process.pid)
    if stat is not None:
        return stat.started == process.started and stat.state not in "ZX"
    return not Path("/proc/self").exists() and _signal(os.kill, process.pid, 0)


def has_survivors(process: ProcessId) -> bool:
    """Whether a detached program has ended and its children run on.  Reads the whole /proc."""
    return not is_alive(process) and bool(_members(process))


def end_session(process: ProcessId, *, grace_s: float) -> bool:
    """Stop a detached program and everything it started: TERM, and KILL after ``grace_s``.  False when all had already ended."""
    if not is_alive(process) and not _members(process):
        return False
    _signal_all(process, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal_all(process, signal.SIGKILL)  # what ignores TERM, or outlived its leader
    return True


def _signal_all(process: ProcessId, number: int) -> None:
    """To the leader's group at once, then to members of the session that have a group of their own."""
    _signal(os.killpg, process.pid, number)
    for pid in _members(process):
        if number == signal.SIGKILL or _read_group(pid) != process.pid:
            _signal(os.kill, pid, number)


def _members(process: ProcessId) -> list[int]:
    """The living processes of the session that a detached program leads, itself too.

    The kernel gives a number to no other process while it is a session's; so beside a leader of another start no member is ours.
    """
    leader = _read_stat(process.pid)
    if leader is not None and leader.started != process.started:
        return []
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()] if Path("/proc/self").exists() else []
    stats = ((pid, _read_stat(pid)) for pid in pids)
    return [pid for pid, stat in stats if stat is not None and stat.session == process.pid and stat.state not in "ZX"]


def _read_group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


@dataclass(frozen=True)
class _Stat:
    state: str
    session: int
    started: int


def _read_stat(pid: int) -> _Stat | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name before ")" may hold spaces
    except OSError:
        return None
    return _Stat(state=fields[0], session=int(fields[3]), started=int(fields[19]))


def _signal(send: Callable[[int, int], None], target: int, number: int) -> bool:
    try:
        send(target, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _start(argv: Sequence[str], *, environ: Mapping[str, str] | None, cwd: Path | None, stdin: str | None) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    source = subprocess.DEVNULL if stdin is None else pipe
    return _popen(argv, stdin=source, stdout=pipe, stderr=pipe, start_new_session=True, env=_copy(environ), cwd=cwd)


def _popen(argv: Sequence[str], **options: object) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(list(argv), encoding="utf-8", errors="replace", **options)  # type: ignore[call-overload]
    except FileNotFoundError as error:
        raise UserError(_absent(argv[0], options.get("cwd"))) from error
    except PermissionError as error:
        raise UserError(Problem(where=argv[0], wrong="may not be executed here", fix=f"ls -l {shlex.quote(argv[0])}")) from error


def _absent(program: str, cwd: object) -> Problem:
    if cwd is not None and not Path(str(cwd)).is_dir():
        return Problem(where=str(cwd), wrong="there is no such directory")
    fix = "run this where it is (a login node), load its module, or choose another --site"
    return Problem(where=program, wrong="there is no such program on PATH", fix=fix)


def _kill(process: subprocess.Popen[str]) -> None:
    _signal(os.killpg, process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _copy(environ: Mapping[str, str] | None) -> dict[str, str] | None:
    return None if environ is None else dict(environ)


def _ending(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"killed by signal {-status}"
