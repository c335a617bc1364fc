"""Starts the ranks of a pretended launcher: real processes, each on its host, and waits for them as a launcher does.

Changes when what all launchers do with their processes does; where each rank goes is theirs to say.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes.engine import Refused
from tests.fakes.machine import Machine

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
GRACE_S = 5.0
"""From TERM to KILL, when a rank has failed."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """One rank: where it runs and what the launcher tells it."""

    rank: int
    host: str
    local: int
    """Its number on its host."""
    cores: tuple[int, ...] | None = None
    """What it is bound to; None: to nothing."""
    env: Mapping[str, str] = field(default_factory=dict)
    """The variables that the launcher sets for it."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a launcher makes of its command line."""

    ranks: tuple[Placed, ...]
    command: tuple[str, ...]
    environment: Callable[[Placed], Mapping[str, str]]
    """What a rank inherits, before its own variables."""
    label: Callable[[int], str] | None = None
    """What stands before every line of a rank's output."""
    cwd: str | None = None
    ends_all: bool = True
    """Whether the other ranks are ended when one fails."""


def start(machine: Machine, launch: Launch) -> int:
    """Run the ranks to their end; the highest exit status, 128 + signal for a rank that died of one."""
    if not launch.command:
        raise Refused("no command to run")
    _note(machine, launch)
    processes = [_start(machine, launch, rank) for rank in launch.ranks]
    for number in FORWARDED:
        signal.signal(number, lambda sent, _: _send(processes, sent))
    signal.signal(signal.SIGALRM, lambda *_: _send(processes, signal.SIGTERM))  # Flux' word that a job's time is over
    started = zip(processes, launch.ranks, strict=True)
    threads = [_copy(process, launch.label(rank.rank)) for process, rank in started if launch.label]
    _wait(processes, launch.ends_all)
    for thread in threads:
        thread.join()
    return max(status if status >= 0 else 128 - status for status in (process.returncode for process in processes))


def _start(machine: Machine, launch: Launch, rank: Placed) -> subprocess.Popen[bytes]:
    output = subprocess.PIPE if launch.label else None
    return subprocess.Popen(
        [*machine.host(rank.host).enter, *launch.command],
        env={**launch.environment(rank), **rank.env},
        cwd=launch.cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if launch.label else None,
        start_new_session=True,  # a signal to the job's processes on this host reaches ranks by their launcher alone
    )


def _wait(processes: Sequence[subprocess.Popen[bytes]], ends_all: bool) -> None:
    """Until all have ended; a failure ends the others."""
    running = list(processes)
    while running:
        pid, status = os.wait()
        for process in [process for process in running if process.pid == pid]:
            process.returncode = os.waitstatus_to_exitcode(status)
            running.remove(process)
            if process.returncode != 0 and ends_all:
                _send(running, signal.SIGTERM)
                timer = threading.Timer(GRACE_S, _send, (running, signal.SIGKILL))
                timer.daemon = True
                timer.start()


def _send(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    """A signal to ranks and all that they have started, as launchers do (Hydra's proxy: killpg)."""
    for process in processes:
        if process.returncode is None:
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                continue


def _copy(process: subprocess.Popen[bytes], label: str) -> threading.Thread:
    """Write a rank's lines to our stdout, each behind its label."""

    def copy() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.buffer.write(label.encode() + line)
            sys.stdout.buffer.flush()

    thread = threading.Thread(target=copy)
    thread.start()
    return thread


def _note(machine: Machine, launch: Launch) -> None:
    """What was launched where, for the tests to read: ``launches/N.json``."""
    folder = machine.home / "launches"
    folder.mkdir(exist_ok=True)
    facts = [{**vars(rank), "env": dict(rank.env)} for rank in launch.ranks]
    text = json.dumps({"command": launch.command, "ranks": facts})
    (folder / f"{os.getpid()}.json").write_text(text)


def block(hosts: Sequence[str], per_host: int, total: int) -> list[tuple[int, str, int]]:
    """Rank, host and number on the host, host after host; the hosts begin anew when there are more ranks than places."""
    places = len(hosts) * per_host
    where = [(number % places // per_host, number % per_host + number // places * per_host) for number in range(total)]
    return [(rank, hosts[host], local) for rank, (host, local) in enumerate(where)]


def locals_of(placed: Sequence[tuple[int, str, int]], host: str) -> int:
    """Ranks on a host."""
    return sum(1 for _, name, _ in placed if name == host)


def read_names(path: Path, program: str) -> list[str]:
    """The lines of a file of hosts.

    Raises:
        Refused: it cannot be read.
    """
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    except OSError as error:
        raise Refused(f"{program}: {path}: {error.strerror}") from None
