"""A login node for tests: a real sshd behind a cable that can be cut, and a laptop from which it is reached.

Changes when the way in which the sshd is started or spoken to does; what it consists of is in ``sshd-in``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.slurm import SYSTEM_PATH, lacking
from tests.desk import Said

PROGRAMS = {"openssh-server": ("sshd",), "openssh-client": ("ssh", "ssh-keygen"), "util-linux": ("unshare", "nsenter")}
"""Debian's packages, and what is used of them."""
_HERE = Path(__file__).parent


def obstacle(programs: Mapping[str, Sequence[str]] = {}) -> str:
    """Why a login node, and further programs on it, cannot run here, and the command that changes it; empty: it can."""
    return lacking("a login node with an sshd", {**PROGRAMS, **programs})


@dataclass
class Login:
    """A login node: every connection to its port is an sshd of its own.

    ``cuts`` says what becomes of the next connections: after how many bytes, of both sides together, each is cut.
    """

    home: Path
    port: int
    shell: str = "/bin/sh"
    inside: tuple[str, ...] = ()
    """The argv that enters the namespaces in which the sshd runs."""
    cuts: list[int] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    """Programs that are not there."""
    frozen: bool = False
    """Whether nothing more comes through: no byte, and no end."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """Of every command there."""
    carried: list[int] = field(default_factory=list)
    """Bytes, connection by connection."""
    alive: set[socket.socket] = field(default_factory=set)
    asleep: set[socket.socket] = field(default_factory=set)

    @property
    def user_home(self) -> Path:
        """Of the user over there."""
        return self.home / "user"

    @property
    def key(self) -> Path:
        """What opens it, where codes do not."""
        return self.home / "etc" / "key"

    @property
    def host_key(self) -> str:
        """Its line of known_hosts, without the name."""
        return " ".join((self.home / "etc" / "host_key.pub").read_text().split()[:2])

    def add_code(self, code: str) -> str:
        """A code that lets in once."""
        (self.home / "etc" / "codes" / code).touch()
        return code

    def configure(self, methods: str = "publickey", **more: str) -> None:
        """Write what sshd reads for the next connections."""
        lines = {
            "HostKey": self.home / "etc" / "host_key",
            "AuthorizedKeysFile": f"{self.key}.pub",
            "AuthenticationMethods": methods,
            "PermitRootLogin": "yes",
            "UsePAM": "yes" if "interactive" in methods else "no",
            "KbdInteractiveAuthentication": "yes",
            "PasswordAuthentication": "no",
            "StrictModes": "no",
            "UseDNS": "no",
            "PidFile": "none",
            "SetEnv": " ".join(f"{name}={value}" for name, value in self.environ.items()),
            **more,
        }
        (self.home / "etc" / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in lines.items()))

    def serve(self, client: socket.socket) -> None:
        """One connection, to its end or to its cut."""
        ours, theirs = socket.socketpair()
        conf = self.home / "etc" / "sshd_config"
        process = subprocess.Popen(
            [*self.inside, "unshare", "--mount", str(_HERE / "sshd-in"), str(self.home), self.shell, str(conf), *self.hidden],
            stdin=theirs,
            stdout=theirs,
            env={"PATH": SYSTEM_PATH},
            start_new_session=True,
        )
        theirs.close()
        self.alive.add(client)
        limit = self.cuts.pop(0) if self.cuts else None
        number = len(self.carried)
        self.carried.append(0)
        with client, ours, contextlib.suppress(OSError):
            while client in self.alive:
                ready, _, _ = select.select([client, ours], [], [], 0.1)
                if self.frozen or client in self.asleep:
                    time.sleep(0.05)
                    continue
                for source in ready:
                    block = source.recv(65536)
                    if not block:
                        return
                    self.carried[number] += len(block)
                    excess = 0 if limit is None else self.carried[number] - limit
                    (ours if source is client else client).sendall(block[:-excess] if excess > 0 else block)
                    if excess > 0 or client not in self.alive:
                        break
                else:
                    continue
                break
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no farewell
        self.alive.discard(client)
        process.poll()

    def cut(self) -> None:
        """Cut all connections, now."""
        self.alive.clear()

    def freeze(self) -> None:
        """Let nothing more through of the connections that there are: no byte, and no end."""
        self.asleep |= self.alive

    def hide(self, program: str) -> None:
        """A program that the next connections do not find."""
        self.hidden.append(program)


@contextmanager
def running_login(
    methods: str = "publickey", *, shell: str = "/bin/sh", inside: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> Iterator[Login]:
    """A login node for the length of a ``with``.

    Args:
        environ: of every command there.
    """
    home = Path(tempfile.mkdtemp(prefix="neox-hpc-login-", dir="/tmp"))
    listener = socket.create_server(("127.0.0.1", 0))
    login = Login(home=home, port=listener.getsockname()[1], shell=shell, inside=tuple(inside))
    for folder in ("etc/codes", "user", "bin"):
        (home / folder).mkdir(parents=True)
    home.chmod(0o755)
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / "etc" / name)], check=True)
    check = home / "etc" / "check-code"
    check.write_text(f'#!/bin/sh\n# a code is used up by its use\ncode=$(tr -cd 0-9)\nrm "{home}/etc/codes/$code"\n')
    check.chmod(0o755)
    login.environ = {"PATH": f"{home}/bin:{SYSTEM_PATH}", **(environ or {})}
    login.configure(methods)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=login.serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield login
    finally:
        login.frozen = False
        login.cut()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        shutil.rmtree(home, ignore_errors=True)


def write_ssh_config(home: Path, logins: Mapping[str, Login], more: str = "") -> None:
    """~/.ssh of a user who knows these login nodes by name."""
    folder = home / ".ssh"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = [more]
    known = []
    for name, login in logins.items():
        lines.append(f"Host {name}\n  HostName 127.0.0.1\n  Port {login.port}\n  User root\n  IdentityFile {login.key}\n")
        known.append(f"[127.0.0.1]:{login.port} {login.host_key}\n")
    (folder / "config").write_text("\n".join(lines))
    (folder / "known_hosts").write_text("".join(known))


@dataclass(frozen=True, kw_only=True)
class Laptop:
    """``laptop("status", …)`` runs a command line as a process on a machine that has not the other one's files."""

    home: Path
    cwd: Path
    hidden: Path
    checkout: Path

    def __call__(
        self, *argv: str, answers: Sequence[str] = (), timeout_s: float = 60.0, environ: Mapping[str, str] | None = None
    ) -> Typed:
        """Run a command line to its end; what a terminal asks for is answered in turn."""
        master, slave = pty.openpty()

        def attach() -> None:
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        own = {"PATH": SYSTEM_PATH, "HOME": str(self.home), "PYTHONPATH": str(self.checkout), "LANG": "C.UTF-8"}
        process = subprocess.Popen(
            [
                "unshare",
                "--mount",
                str(_HERE / "laptop-in"),
                str(self.home),
                str(self.hidden),
                sys.executable,
                "-m",
                "neox_hpc",
                *argv,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.cwd,
            env={**own, **(environ or {})},
            preexec_fn=attach,
            pass_fds=(slave,),
        )
        os.close(slave)
        shown = _Typist(master, list(answers))
        thread = threading.Thread(target=shown.run, daemon=True)
        thread.start()
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"{argv} did not end in {timeout_s} s: {out!r} {err!r} {shown.seen!r}") from None
        thread.join(timeout=2)
        os.close(master)
        return Typed(said=Said(process.returncode, out, err), terminal=shown.seen)


@dataclass(frozen=True, kw_only=True)
class Typed:
    """What a command printed, and what its terminal showed."""

    said: Said
    terminal: str


@dataclass
class _Typist:
    """Types an answer whenever a prompt stands on the terminal."""

    master: int
    answers: list[str]
    seen: str = ""

    def run(self) -> None:
        answered = 0
        with contextlib.suppress(OSError):
            while True:
                self.seen += os.read(self.master, 4096).decode(errors="replace")
                waiting = self.seen[answered:].rstrip(" ")
                if self.answers and waiting.endswith((":", "?", "]")):
                    answered = len(self.seen)
                    time.sleep(0.05)  # the echo is switched off before the prompt is written, by some after it
                    os.write(self.master, self.answers.pop(0).encode() + b"\n")
