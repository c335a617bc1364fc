"""A real Slurm for tests: started, spoken to from its login node, and ended with everything that runs in it.

Changes when the way in which the cluster is started or entered does; what it consists of is in ``slurm-up``.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REQUIRED = "NEOX_HPC_REQUIRE_CLUSTER"
"""Set to 1: a machine that cannot hold the cluster fails the tests instead of skipping them."""
START_S = 90.0
PROGRAMS = {
    "slurm-wlm": ("slurmctld", "slurmd", "sbatch", "srun"),
    "munge": ("munged", "munge"),
    "iproute2": ("ip",),
    "util-linux": ("unshare", "nsenter"),
}
"""Debian's packages, and what is used of them."""
_SCRIPT = Path(__file__).with_name("slurm-up")
SYSTEM_PATH = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
# Nothing of the cluster is outside these: the first program holds the login node's network, the second one's child is process 1
NAMESPACES = ("unshare", "--mount", "--net", "--uts", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def obstacle() -> str:
    """Why the cluster cannot run here, and the command that changes it; empty: it can."""
    return lacking("a real Slurm", PROGRAMS)


def lacking(what: str, packages: Mapping[str, Sequence[str]]) -> str:
    """Why something made of namespaces and of these packages' programs cannot run here; empty: it can."""
    if not sys.platform.startswith("linux"):
        return f"{what} needs Linux: docker run --privileged … debian:12, then .ci/run"
    if os.geteuid() != 0:
        return f"{what} needs root: sudo .ci/run"
    absent = [
        package for package, programs in packages.items() if not all(shutil.which(name, path=SYSTEM_PATH) for name in programs)
    ]
    if absent:
        return f"{what}: programs are missing: apt-get install --no-install-recommends {' '.join(absent)} (Debian), or .ci/run"
    tried = subprocess.run(
        [*NAMESPACES, "ip", "link", "add", "bridge0", "type", "bridge"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        env=os.environ | {"PATH": SYSTEM_PATH},
    )
    if tried.returncode != 0:
        return f"{what} needs namespaces and a bridge: docker run --privileged … ({tried.stderr.strip()})"
    return ""


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """A cluster that runs."""

    nodes: int
    conf: Path
    user_home: Path
    """The user's home directory, on all nodes."""
    disk: Path
    """The directory that is every node's own disk: ``disks/nodeN`` beside it, seen from here."""
    holder: int
    """The process whose network and host name are the login node's."""

    def on_login_node(
        self, argv: Sequence[str], *, timeout_s: float, cwd: Path | None = None, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the login node to its end; one that hangs is a failed test.

        Args:
            environ: variables beside those of the tests, which are freed of every variable of an enclosing Slurm.
        """
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return subprocess.run(
            ["nsenter", "--target", str(self.holder), "--net", "--uts", *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=cwd,
            env={**ours, "PATH": SYSTEM_PATH, "SLURM_CONF": str(self.conf), **(environ or {})},
        )

    def ask(self, *argv: str) -> str:
        """What one of Slurm's own commands prints."""
        said = self.on_login_node(argv, timeout_s=30)
        assert said.returncode == 0, f"{' '.join(argv)}: {said.stderr}"
        return said.stdout


@contextmanager
def running_slurm(nodes: int, shape: str | None = None) -> Iterator[Slurm]:
    """A cluster for the length of a ``with``; with a ``shape`` (lines of slurm.conf) its nodes are pretended, and ``nodes`` is 0.

    Its end needs no cooperation: process 1 of its process namespace ends when its stdin closes, be it that this process is killed,
    and the kernel then kills the daemons, the jobs and their ranks, and frees the network.
    """
    # in /tmp by its name: munged trusts only a path that no one else can write, and a socket's path has to be short
    home = Path(tempfile.mkdtemp(prefix="neox-hpc-slurm-", dir="/tmp"))
    words = [str(home), str(nodes)]
    if shape is not None:
        (home / "shape").write_text(shape)
        words.append(str(home / "shape"))
    process = subprocess.Popen(
        [*NAMESPACES, str(_SCRIPT), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PATH": SYSTEM_PATH},
        start_new_session=True,  # Ctrl-C is for the tests; the cluster ends after them
    )
    try:
        wait_until_up(process, "Slurm")
        yield Slurm(nodes=nodes, conf=home / "etc" / "slurm.conf", user_home=home / "user", disk=home / "disk", holder=process.pid)
    finally:
        end(process)
        shutil.rmtree(home, ignore_errors=True)


def wait_until_up(process: subprocess.Popen[str], what: str) -> None:
    """Until the script says so.

    Raises:
        RuntimeError: it ended instead, or took too long; the message has its last words.
    """
    assert process.stdout is not None and process.stderr is not None
    readable, _, _ = select.select([process.stdout], [], [], START_S)
    if readable and process.stdout.readline() == "up\n":
        return
    end(process)
    raise RuntimeError(f"{what} did not start:\n{process.stderr.read()}")


def end(process: subprocess.Popen[str]) -> None:
    """Close its stdin: with process 1 of a process namespace everything in it ends."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)  # --kill-child: process 1 goes with it
        process.wait()
