"""Hosts for tests: namespaces with a network, a host name and an sshd of their own, on this one machine.

Changes when the way in which they are started or entered does; what they consist of is in ``hosts-up``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.slurm import NAMESPACES, SYSTEM_PATH, end, lacking, wait_until_up

PROGRAMS = {
    "openssh-server": ("sshd",),
    "openssh-client": ("ssh", "ssh-keygen"),
    "iproute2": ("ip",),
    "util-linux": ("unshare", "nsenter"),
}
"""Debian's packages, and what is used of them."""
_SCRIPT = Path(__file__).with_name("hosts-up")


def obstacle(programs: Mapping[str, Sequence[str]] = {}) -> str:
    """Why hosts, and further programs on them, cannot run here, and the command that changes it; empty: they can."""
    return lacking("hosts of their own", {**PROGRAMS, **programs})


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """Hosts that run: ``node1``, ``node2``, …"""

    names: tuple[str, ...]
    home: Path
    """Their files; ``home/enter NODE COMMAND`` runs a command on another host without ssh."""
    holder: int
    """The process whose namespaces theirs are parts of."""

    @property
    def user_home(self) -> Path:
        """The user's home directory, on all hosts."""
        return self.home / "user"

    def argv(self, host: str, argv: Sequence[str], *, cwd: Path) -> list[str]:
        """The argv that runs a program on a host, for a process outside.  What it leaves behind ends with the hosts."""
        inside = f"/proc/{self.holder}/root{self.home}/run/{host}"
        spaces = [f"--mount=/proc/{self.holder}/ns/mnt", f"--pid=/proc/{self.holder}/ns/pid_for_children"]
        return ["nsenter", *spaces, f"--net={inside}.net", f"--uts={inside}.uts", f"--wdns={cwd}", *argv]

    def start(
        self, host: str, argv: Sequence[str], *, cwd: Path | None = None, environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a program on a host, with nothing of this process's environment but a path of programs and what is given."""
        clean = {"PATH": SYSTEM_PATH, "HOME": str(self.user_home)}
        return subprocess.Popen(
            self.argv(host, argv, cwd=cwd or self.user_home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean | dict(environ or {}),
        )

    def run(
        self,
        host: str,
        argv: Sequence[str],
        *,
        timeout_s: float = 60.0,
        cwd: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on a host to its end; one that hangs is a failed test."""
        process = self.start(host, argv, cwd=cwd, environ=environ)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as late:
            process.kill()
            raise AssertionError(
                f"{' '.join(argv)} on {host} did not end in {timeout_s} s: {late.stdout!r} {late.stderr!r}"
            ) from None
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)


@contextmanager
def running_hosts(count: int) -> Iterator[Hosts]:
    """Hosts for the length of a ``with``; their end needs no cooperation, as that of :func:`tests.cluster.slurm.running_slurm`."""
    home = Path(tempfile.mkdtemp(prefix="neox-hpc-hosts-", dir="/tmp"))
    process = subprocess.Popen(
        [*NAMESPACES, str(_SCRIPT), str(home), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PATH": SYSTEM_PATH},
        start_new_session=True,
    )
    try:
        wait_until_up(process, "the hosts")
        yield Hosts(names=tuple(f"node{number}" for number in range(1, count + 1)), home=home, holder=process.pid)
    finally:
        end(process)
        shutil.rmtree(home, ignore_errors=True)
