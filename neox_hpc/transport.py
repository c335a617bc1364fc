"""Ways to run a shell script on another machine: ``Ssh`` (paramiko), ``OpenSsh`` (the user's own ssh), ``Local`` (this one's sh).

Changes when a connection is made, kept or ended in another way.  What the scripts say is in ``far.py``.

The login shell over there may be csh, fish, or a bash that is restricted, and may print before it does what it is asked.  It is
given one command that all of them read alike; that command's sh reads the script from its standard input, whose length it knows.  A
script that does not arrive whole is an unfinished command, so nothing of it runs.  What it prints stands between two marks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from neox_hpc.errors import Failure, Problem, UserError

CONNECT_TIMEOUT_S = 30.0
"""Until a host answers as ssh does; ``ConnectTimeout`` of ~/.ssh/config takes its place."""
LOGIN_TIMEOUT_S = 300.0
"""Until a code is typed."""
KEEPALIVE_S = 15
TRIES = 3
"""Codes or passwords that are asked for before a log-in is given up, as ssh does."""
PERSIST_S = 24 * 3600
"""How long OpenSSH keeps the connection that later commands go through."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """``user@login:/folder``: where to log in, and where relative paths count from."""

    host: str
    """As ssh takes it: ``login``, ``user@login``, a name of ~/.ssh/config."""
    folder: str = ""
    """Empty: the directory that a log-in begins in."""


def read_address(text: str) -> Address:
    """An address from its text.

    Raises:
        ValueError: it is none; a port, or an IPv6 address, stands in ~/.ssh/config.
    """
    host, _, folder = text.partition(":")
    if not re.fullmatch(r"([A-Za-z0-9_][\w.+-]*@)?[A-Za-z0-9_][\w.-]*", host, re.ASCII):
        raise ValueError(f"{text!r} is no host: write user@login, user@login:/folder, or a name of ~/.ssh/config")
    if re.search(r"[\x00-\x1f\x7f]", folder):
        raise ValueError(f"{text!r} holds a control character: write user@login:/folder")
    return Address(host=host, folder=folder)


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a script said."""

    status: int
    out: bytes
    err: str
    """Without what a terminal would obey."""


class Unreachable(Failure):
    """No connection: nothing was asked."""


class Lost(Failure):
    """A connection that broke: what was asked may have happened or not."""


class Terminal(Protocol):
    """Where a person is asked."""

    def secret(self, prompt: str) -> str:
        """A password or a code, typed without echo; it is kept nowhere.

        Raises:
            UserError: there is no terminal.
        """
        ...

    def confirm(self, question: str) -> bool:
        """Yes or no; no where there is no terminal."""
        ...


class TimedOut(Lost):
    """It is silent: the script goes on, or the line is dead."""


class Connection(Protocol):
    """A machine on which scripts can be run, one after the other."""

    def run(self, script: str, args: Sequence[str] = (), *, stdin: bytes = b"", timeout_s: float) -> Said:
        """Run a script of POSIX sh, its arguments in ``$1`` …, to its end.

        Raises:
            Lost: the connection broke, or the script did not end in time.
            Failure: the machine answers something else.
        """
        ...

    def close(self) -> None: ...


# What goes over the line ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """A script made ready for a login shell that nothing is known of."""

    mark: str
    script: bytes

    @property
    def command(self) -> str:
        """One line without ``!``: csh reads those in single quotes too.  dd reads byte by byte, so that what follows is left."""
        return f"sh -c 'eval \"$(dd bs=1 count={len(self.script)} 2>/dev/null)\"'"

    def open(self, where: str, out: bytes, err: str) -> Said:
        """What the script itself has printed.

        Raises:
            Lost: the end is missing.
            Failure: the beginning is.
        """
        mark = self.mark.encode()
        _, begun, rest = out.partition(b"\n" + mark + b"\n")
        content, ended, status = rest.rpartition(b"\n" + mark + b" ")
        if not begun and (words := _last_words(out.decode(errors="replace") + "\n" + err)):
            raise Failure(f"{where}: does not run what it is given; it says: {words}")
        if not ended or not status.strip().isdigit():
            raise Lost(f"{where}: the connection broke before the answer was there")
        words = err.rpartition(f"\n{self.mark}\n")[2]
        return Said(status=int(status), out=content, err="\n".join(map(printable, words.split("\n"))))


def seal(script: str, args: Sequence[str]) -> Envelope:
    """A script as one command: half of it is no command at all."""
    mark = f"neox-hpc-{secrets.token_hex(8)}"
    begin = f"printf '\\n%s\\n' {mark}; printf '\\n%s\\n' {mark} >&2"
    whole = f"{{ {begin}\n(\nset -- {shlex.join(args)}\n{script}\n)\nprintf '\\n%s %s\\n' {mark} $?\n}}"
    return Envelope(mark=mark, script=whole.encode())


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(" / ".join(lines[-3:])[:300])


@dataclass(frozen=True)
class Local:
    """This machine: for scripts that are tried without a network.  ``shell`` is what takes a log-in's place."""

    shell: tuple[str, ...] = ("sh", "-c")
    environ: Mapping[str, str] | None = None

    def run(self, script: str, args: Sequence[str] = (), *, stdin: bytes = b"", timeout_s: float) -> Said:
        envelope = seal(script, args)
        out, err = _communicate([*self.shell, envelope.command], envelope.script + stdin, timeout_s, "here", self.environ)
        return envelope.open("here", out, err)

    def close(self) -> None:
        """There is nothing to end."""


def _communicate(
    argv: Sequence[str], stdin: bytes, timeout_s: float, where: str, environ: Mapping[str, str] | None = None
) -> tuple[bytes, str]:
    """Run a program to its end, whatever its status."""
    env = None if environ is None else dict(environ)
    pipe = subprocess.PIPE
    process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, env=env, start_new_session=True)
    try:
        out, err = process.communicate(stdin, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise TimedOut(f"{where}: no answer within {timeout_s:g} s") from None
    except BaseException:  # Ctrl-C: it is in a session of its own
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return out, err.decode(errors="replace")


# OpenSSH -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OpenSsh:
    """The user's own ssh: one connection is opened on the terminal, and kept; the commands of later verbs go through it, too."""

    host: str
    socket: str
    """ControlPath."""

    def run(self, script: str, args: Sequence[str] = (), *, stdin: bytes = b"", timeout_s: float) -> Said:
        envelope = seal(script, args)
        out, err = _communicate([*self._ssh, "-T", self.host, envelope.command], envelope.script + stdin, timeout_s, self.host)
        if envelope.mark.encode() not in out and not self.is_open:
            raise Lost(f"{self.host}: the connection broke: {_last_words(err)}")
        return envelope.open(self.host, out, err)

    @property
    def is_open(self) -> bool:
        """Whether the kept connection is there."""
        return _quietly([*self._ssh, "-O", "check", self.host])

    def close(self) -> None:
        """It is kept, for the next verb."""

    @property
    def _ssh(self) -> tuple[str, ...]:
        return ("ssh", "-o", f"ControlPath={self.socket}", "-o", "ControlMaster=no", "-o", "BatchMode=yes")


def connect_openssh(host: str, _terminal: Terminal, home: Path) -> OpenSsh:
    """By ssh itself, which asks on the terminal what it wants to know; nothing is asked while a connection is kept.

    Raises:
        UserError: there is no ssh.
        Unreachable: it does not get in; its own words stand on the terminal.
    """
    if shutil.which("ssh") is None:
        raise UserError(Problem("--ssh openssh", "there is no ssh on PATH", "install OpenSSH's client, or write --ssh paramiko"))
    told = _config_of_ssh(host)
    path = told.get("controlpath", "none")
    if path == "none":
        folder = home / ".ssh"
        with contextlib.suppress(OSError):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        path = f"{folder}/neox-hpc-%C"  # short: a socket's path has 108 characters
    connection = OpenSsh(host=host, socket=path)
    if connection.is_open:
        return connection
    keep = ("-o", f"ControlPath={path}", "-o", "ControlMaster=yes", "-o", f"ControlPersist={PERSIST_S}")
    alive = ("-o", f"ServerAliveInterval={KEEPALIVE_S}", "-o", "ExitOnForwardFailure=no", "-o", "ClearAllForwardings=yes")
    limit = () if told.get("connecttimeout", "none") != "none" else ("-o", f"ConnectTimeout={CONNECT_TIMEOUT_S:.0f}")
    command = ["ssh", "-fNT", *keep, *alive, *limit, host]
    status = subprocess.run(command, stdin=subprocess.DEVNULL, preexec_fn=_outlive_terminal, check=False).returncode
    if status != 0 or not connection.is_open:
        raise Unreachable(f"{host}: ssh could not log in (exit status {status}); its own words stand above\n  fix: ssh {host}")
    return connection


def _outlive_terminal() -> None:
    """The ssh of a host on the way stays in the terminal's session, whose end would end it, and with it the kept connection."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _config_of_ssh(host: str) -> dict[str, str]:
    """What ssh has read of its files for a host."""
    said = subprocess.run(["ssh", "-G", host], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    lines = (line.partition(" ") for line in said.stdout.splitlines())
    return {key: value for key, _, value in lines}


def _quietly(argv: Sequence[str]) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=CONNECT_TIMEOUT_S, check=False)
        return done.returncode == 0
    return False


# paramiko ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Hop:
    """What ~/.ssh/config says of a host."""

    name: str
    """As it was asked for."""
    address: str
    port: int
    user: str
    key_name: str
    """What known_hosts calls it."""
    known_hosts: tuple[Path, ...]
    unknown: str
    """StrictHostKeyChecking: ask, yes, accept-new, no."""
    identities: tuple[Path, ...]
    identities_only: bool
    timeout_s: float
    jumps: tuple[str, ...] = ()
    proxy_command: str | None = None


@dataclass
class Ssh:
    """A connection of paramiko's, and those of the hosts that it goes through."""

    host: str
    transport: Any
    through: tuple[Any, ...] = ()
    """Transports of the hosts on the way, nearest first."""

    def run(self, script: str, args: Sequence[str] = (), *, stdin: bytes = b"", timeout_s: float) -> Said:
        import paramiko

        envelope = seal(script, args)
        deadline = time.monotonic() + timeout_s
        try:
            channel = self.transport.open_session(timeout=timeout_s)
            try:
                channel.settimeout(timeout_s)
                channel.exec_command(envelope.command)
                out, err = _exchange(channel, envelope.script + stdin, deadline)
            finally:
                channel.close()
        except TimeoutError:
            raise TimedOut(f"{self.host}: no answer within {timeout_s:g} s") from None
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise Lost(f"{self.host}: the connection broke: {error or type(error).__name__}") from None
        return envelope.open(self.host, out, err)

    def close(self) -> None:
        """End it, and those that it goes through."""
        for transport in (self.transport, *reversed(self.through)):
            transport.close()


def _exchange(channel: Any, stdin: bytes, deadline: float) -> tuple[bytes, str]:
    """Send all, then read to the end: no script of ours says more than a channel holds before it has read what it is given."""
    with contextlib.suppress(OSError):  # it reads no more: what it says tells why
        channel.sendall(stdin)
        channel.shutdown_write()
    out, err = bytearray(), bytearray()
    channel.settimeout(0.25)
    while time.monotonic() < deadline:
        try:
            block = channel.recv(65536)
        except TimeoutError:
            continue
        finally:
            while channel.recv_stderr_ready():
                err += channel.recv_stderr(65536)
        out += block
        if not block:
            return bytes(out), err.decode(errors="replace")
    raise TimeoutError


def connect_paramiko(host: str, terminal: Terminal, home: Path) -> Ssh:
    """By paramiko: keys of the agent and of ~/.ssh, and codes or passwords that are typed.

    Raises:
        UserError: the host's key is another than the known one, or unknown and not confirmed; it does not let the user in.
        Unreachable: it does not answer.
    """
    logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)  # it would print tracebacks of its own
    config = read_config(home)
    *jumps, last = way_to(host, config, home)
    through: list[Any] = []
    try:
        for jump in jumps:
            through.append(_open(jump, through, terminal))
        return Ssh(host=host, transport=_open(last, through, terminal), through=tuple(through))
    except BaseException:
        for transport in reversed(through):
            transport.close()
        raise


@contextlib.contextmanager
def _reading_config() -> Iterator[None]:
    """What it holds is the user's, and ssh may know more of it than paramiko does."""
    import paramiko

    try:
        yield
    except (paramiko.SSHException, ValueError, ImportError) as error:  # ImportError: `Match exec` wants another package
        fix = "mend it, or write --ssh openssh, whose ssh reads it itself"
        raise UserError(Problem("~/.ssh/config", f"cannot be read: {error}", fix)) from None


@_reading_config()
def read_config(home: Path) -> Any:
    """What ~/.ssh/config and the machine's own file say, with what they include.

    Raises:
        UserError: they cannot be read.
    """
    import paramiko

    config = paramiko.SSHConfig()
    for path in (home / ".ssh" / "config", Path("/etc/ssh/ssh_config")):
        with contextlib.suppress(OSError):
            config.parse(iter(_included(path, home, 0)))
    return config


def _included(path: Path, home: Path, depth: int) -> list[str]:
    """A file's lines, those that it includes in their place: paramiko does not know ``Include``."""
    lines: list[str] = []
    header = "Host *\n"
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        key, _, value = line.strip().replace("=", " ", 1).partition(" ")
        if key.lower() in ("host", "match"):
            header = line
        if key.lower() != "include":
            lines.append(line)
        elif depth < 8:
            base = home / ".ssh" if path.is_relative_to(home) else Path("/etc/ssh")
            for pattern in shlex.split(value):
                wanted = os.path.join(base, os.path.expanduser(pattern))
                for found in sorted(Path("/").glob(wanted.lstrip("/"))):
                    lines += [*_included(found, home, depth + 1), "\n", header]
    return lines


@_reading_config()
def read_hop(config: Any, text: str, home: Path) -> Hop:
    """What ``user@host`` or ``user@host:port`` means.

    Raises:
        UserError: the configuration says of it what cannot be.
    """
    import getpass

    user, at, place = text.rpartition("@")
    name, _, port = place.partition(":")
    told = config.lookup(name)
    files = [str(path) for path in told.get("identityfile", ())]
    usual = [f"{home}/.ssh/id_{kind}" for kind in ("ed25519", "ecdsa", "rsa")]
    known = shlex.split(told.get("userknownhostsfile", "")) or [f"{home}/.ssh/known_hosts", f"{home}/.ssh/known_hosts2"]
    known += shlex.split(told.get("globalknownhostsfile", "")) or ["/etc/ssh/ssh_known_hosts"]
    proxy = told.get("proxycommand")
    number = int(port or told.get("port", 22))
    alias = told.get("hostkeyalias") or told["hostname"]
    jumps = told.get("proxyjump", "none")
    limit = told.get("connecttimeout", "")
    return Hop(
        name=text,
        address=told["hostname"],
        port=number,
        user=user if at else told.get("user") or getpass.getuser(),
        key_name=alias if number == 22 or told.get("hostkeyalias") else f"[{alias}]:{number}",
        known_hosts=tuple(_at_home(path, home) for path in known if path != "none"),
        unknown=told.get("stricthostkeychecking", "ask").lower(),
        identities=tuple(_at_home(path, home) for path in files or usual),
        identities_only=told.get("identitiesonly", "no").lower() == "yes",
        timeout_s=float(limit) if limit.isdigit() else CONNECT_TIMEOUT_S,
        jumps=tuple(jump.strip() for jump in jumps.split(",")) if jumps.lower() != "none" else (),
        proxy_command=proxy if proxy is not None and proxy.lower() != "none" else None,
    )


def way_to(host: str, config: Any, home: Path, beyond: tuple[str, ...] = ()) -> list[Hop]:
    """The hosts that one goes through, nearest first, and the host; to the first of ``ProxyJump``'s hosts as its own entry says."""
    hop, beyond = read_hop(config, host, home), (*beyond, host)
    if not hop.jumps or hop.jumps[0] in beyond:  # `Host *` means the host on the way too
        return [hop]
    first = way_to(hop.jumps[0], config, home, beyond)
    return [*first, *(read_hop(config, jump, home) for jump in hop.jumps[1:]), hop]


def _at_home(path: str, home: Path) -> Path:
    return home / path[2:] if path.startswith("~/") else Path(path)


def _open(hop: Hop, through: Sequence[Any], terminal: Terminal) -> Any:
    """A transport that is logged in."""
    import paramiko

    transport = paramiko.Transport(_socket(hop, through[-1] if through else None))
    transport.banner_timeout = transport.handshake_timeout = hop.timeout_s
    transport.auth_timeout = LOGIN_TIMEOUT_S
    try:
        known, revoked = known_keys(hop)
        if known:  # those first: a host has several, and any other one would look like a change
            options = transport.get_security_options()
            names = dict.fromkeys(key.get_name() for key in known)
            wanted = [kind for name in names for kind in (("rsa-sha2-512", "rsa-sha2-256") if name == "ssh-rsa" else (name,))]
            kinds = list(options.key_types)
            options.key_types = [kind for kind in wanted if kind in kinds] + [kind for kind in kinds if kind not in wanted]
        transport.start_client(timeout=hop.timeout_s)
        check_key(hop, known, revoked, transport.get_remote_server_key(), terminal)
        transport.set_keepalive(KEEPALIVE_S)
        _log_in(hop, transport, terminal)
    except (paramiko.SSHException, EOFError, OSError) as error:
        transport.close()
        raise Unreachable(f"{hop.name}: no ssh connection to {hop.address} port {hop.port}: {_why(error)}") from None
    except BaseException:
        transport.close()
        raise
    return transport


def _why(error: BaseException) -> str:
    text = re.sub(r"^\[Errno -?\d+\] |\[Errno .*", "", str(error), flags=re.DOTALL)
    return "it does not answer in time" if isinstance(error, TimeoutError) else text or type(error).__name__


def _socket(hop: Hop, before: Any) -> Any:
    import paramiko

    try:
        if before is not None:
            return before.open_channel("direct-tcpip", (hop.address, hop.port), ("127.0.0.1", 0), timeout=hop.timeout_s)
        if hop.proxy_command is not None:
            return paramiko.ProxyCommand(hop.proxy_command)
        return socket.create_connection((hop.address, hop.port), timeout=hop.timeout_s)
    except (paramiko.SSHException, OSError, ValueError, OverflowError) as error:  # no name that there can be, no port
        fix = f"see whether `ssh {hop.name}` works; its address and port can stand in ~/.ssh/config"
        raise Unreachable(f"{hop.name}: {hop.address} port {hop.port}: {_why(error)}\n  fix: {fix}") from None


def known_keys(hop: Hop) -> tuple[list[Any], list[Any]]:
    """The host's keys, as they were seen before, and those that are revoked; of what cannot be read here (authorities), none.

    Several of one kind are right: those of the login nodes that share a name.
    """
    import paramiko
    from paramiko.hostkeys import HostKeyEntry, InvalidHostKey

    known: list[Any] = []
    revoked: list[Any] = []
    for path in hop.known_hosts:
        with contextlib.suppress(OSError):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                marker, _, rest = line.strip().partition(" ") if line.lstrip().startswith("@") else ("", "", line.strip())
                if marker not in ("", "@revoked"):
                    continue
                with contextlib.suppress(paramiko.SSHException, InvalidHostKey, ValueError):
                    entry = HostKeyEntry.from_line(rest.strip())
                    if entry is not None and _is_of(hop, entry):
                        (revoked if marker else known).append(entry.key)
    return known, revoked


def _is_of(hop: Hop, entry: Any) -> bool:
    """Whether a line of known_hosts names the host; names may be hashed."""
    import paramiko

    names = paramiko.HostKeys()
    for name in entry.hostnames:
        names.add(name, entry.key.get_name(), entry.key)
    return names.lookup(hop.key_name) is not None


def check_key(hop: Hop, known: Sequence[Any], revoked: Sequence[Any], key: Any, terminal: Terminal) -> None:
    """Whether it is the host that it was; a new one is confirmed by who knows its fingerprint, and then kept.

    Raises:
        UserError: it is not, or was not.
    """
    kind, print_ = key.get_name(), _fingerprint(key)
    if key in revoked:
        fix = "ask the site for its new key; the line with @revoked in known_hosts stays"
        raise UserError(Problem(hop.name, f"its host key is revoked: {kind} {print_}. Somebody may listen", fix))
    if known and key not in known:
        wrong = f"its host key is not the known one: it has now {kind} {print_}. Somebody listens, or it was set up anew"
        fix = f"ask the site; only if it confirms the new key: ssh-keygen -R {shlex.quote(hop.key_name)}, and log in again"
        raise UserError(Problem(hop.name, wrong, fix))
    if known:
        return
    question = f"{hop.name} ({hop.address}) is not known here. Its host key: {kind} {print_}. Is that what the site publishes?"
    accepted = hop.unknown in ("accept-new", "no", "off") or (hop.unknown == "ask" and terminal.confirm(question))
    if not accepted:
        wrong = f"its host key is not known here: {kind} {print_}"
        raise UserError(Problem(hop.name, wrong, f"compare it with the site's pages, and log in once by hand: ssh {hop.name}"))
    with contextlib.suppress(OSError):
        _remember_key(hop, kind, key)


def _remember_key(hop: Hop, kind: str, key: Any) -> None:
    path = hop.known_hosts[0] if hop.known_hosts else None
    if path is not None and path != Path(os.devnull):
        os.makedirs(path.parent, mode=0o700, exist_ok=True)
        with open(path, "a", encoding="ascii") as file:
            file.write(f"{hop.key_name} {kind} {key.get_base64()}\n")


def _fingerprint(key: Any) -> str:
    """As ssh shows it."""
    import base64
    import hashlib

    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def _log_in(hop: Hop, transport: Any, terminal: Terminal) -> None:
    """Whatever the host asks for, in turn: a key, a password, a code, or several of them.

    Raises:
        UserError: it does not let the user in.
    """
    import paramiko

    try:
        transport.auth_none(hop.user)
        return
    except paramiko.BadAuthenticationType as asked:
        allowed = list(asked.allowed_types)
    keys, tried, refused = keys_of(hop, terminal), 0, ""
    while allowed:
        method = next((name for name in ("publickey", "keyboard-interactive", "password") if name in allowed), None)
        if method is None:
            break
        try:
            if method == "publickey":
                key = next(keys, None)
                if key is None:
                    allowed.remove("publickey")
                    continue
                allowed = transport.auth_publickey(hop.user, key)
            elif tried == TRIES:
                break
            else:
                tried += 1
                allowed = _answer(hop, transport, method, terminal)
            if not allowed:
                return
        except paramiko.BadAuthenticationType as error:
            allowed = [name for name in error.allowed_types if name != method]
        except paramiko.AuthenticationException:
            refused = "the key" if method == "publickey" else "what was typed (wrong, expired, or used before)"
    wrong = f"does not let {hop.user} in: it has refused {refused}" if refused else f"does not let {hop.user} in: no key fits"
    raise UserError(
        Problem(hop.name, wrong, f"nothing was sent; see whether `ssh {hop.name}` works, and try again with a new code")
    )


def _answer(hop: Hop, transport: Any, method: str, terminal: Terminal) -> list[str]:
    """Log in by typing.  The host's questions arrive in another thread; they are put in this one, which the terminal belongs to."""
    if method == "password":
        return list(transport.auth_password(hop.user, terminal.secret(f"Password for {hop.name}: "), fallback=False))
    asked: queue.Queue[tuple[str, Future[str]]] = queue.Queue()

    def put(title: str, instructions: str, prompts: Sequence[tuple[str, bool]]) -> list[str]:
        heading = " ".join(text.strip() for text in (title, instructions) if text.strip())
        answers = []
        for prompt, _ in prompts:
            answer: Future[str] = Future()
            asked.put((f"{hop.name}: {heading + ' ' if heading else ''}{prompt}", answer))
            heading = ""
            answers.append(answer.result())
        return answers

    pool = ThreadPoolExecutor(1)
    try:
        login = pool.submit(transport.auth_interactive, hop.user, put)
        while not login.done():
            with contextlib.suppress(queue.Empty):
                prompt, answer = asked.get(timeout=0.05)
                try:
                    answer.set_result(terminal.secret(printable(prompt)))
                except BaseException as error:  # Ctrl-C, no terminal: the other thread ends too
                    answer.set_exception(error)
                    raise
        return list(login.result())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def printable(text: str) -> str:
    """A host's words, without what a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text)


def keys_of(hop: Hop, terminal: Terminal) -> Iterator[Any]:
    """Those of the agent, then those in files; with IdentitiesOnly, of the agent's only those that a file names."""
    import paramiko

    named = set(_public(hop.identities))
    seen: set[str] = set()
    agent = paramiko.Agent()
    try:
        for key in agent.get_keys():
            if not hop.identities_only or key.get_base64() in named:
                seen.add(key.get_base64())
                yield key
    finally:
        agent.close()
    locked: list[Path] = []
    for ask, paths in ((None, hop.identities), (terminal, locked)):  # a passphrase is asked for when no other key lets in
        for path in paths:
            try:
                key = _load_key(path, ask)
            except paramiko.PasswordRequiredException:
                locked.append(path)
                continue
            if key is not None and key.get_base64() not in seen:
                yield key


def _public(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        with contextlib.suppress(OSError, IndexError):
            yield Path(f"{path}.pub").read_text(encoding="utf-8").split()[1]


def _load_key(path: Path, terminal: Terminal | None) -> Any:
    """A private key with its certificate, if there is one; a passphrase is asked for once.

    Raises:
        paramiko.PasswordRequiredException: there is nobody to ask.
    """
    import paramiko

    if not path.is_file():
        return None
    password: str | None = None
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        with contextlib.suppress(paramiko.SSHException, ValueError, OSError):
            try:
                key = kind.from_private_key_file(str(path), password=password)
            except paramiko.PasswordRequiredException:
                if terminal is None:
                    break
                password = password if password is not None else terminal.secret(f"Passphrase of {path}: ")
                key = kind.from_private_key_file(str(path), password=password)
            if Path(f"{path}-cert.pub").is_file():
                key.load_certificate(f"{path}-cert.pub")
            return key
    else:
        return None
    raise paramiko.PasswordRequiredException(str(path))


CONNECT: dict[str, Callable[[str, Terminal, Path], Connection]] = {"paramiko": connect_paramiko, "openssh": connect_openssh}
"""``--ssh`` -> how a host is reached."""
