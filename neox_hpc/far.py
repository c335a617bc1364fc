"""Another machine, by way of ssh: what is on it, runs that are made and submitted there, what they have written.

Changes when something else is asked of another machine, or a script in ``templates/far`` answers in another way.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os.path
import posixpath
import re
import secrets
import tarfile
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from neox_hpc import proc
from neox_hpc.errors import Failure, Problem, UserError
from neox_hpc.rundir import Far, RunDir, keep_piece, known_part, make_receipt, write_receipt
from neox_hpc.schedulers import SCHEDULERS
from neox_hpc.transport import Connection, Lost, Said, TimedOut, Unreachable

LOOK_TIMEOUT_S = 60.0
SUBMIT_TIMEOUT_S = 240.0
"""Longer than a scheduler's command may take, and than a second call waits for the first."""
FETCH_TIMEOUT_S = 600.0
PAUSES_S = (0.5, 2.0, 5.0, 10.0)
"""Between a connection that broke and the next one, where what was asked may be asked again."""
PIECE_BYTES = 16 * 2**20
"""The most that comes of a file at once."""
Clean = Callable[[Mapping[str, str]], Mapping[str, str]]
"""A scheduler's ``submit_environment``."""


@dataclass(frozen=True, kw_only=True)
class Hello:
    """Who and where we are over there."""

    folder: str
    """What relative paths count from; absolute."""
    home: str
    node: str
    user: str
    checksum: str
    """The program that makes one."""
    ahead_s: float
    """How much that clock is ahead of ours."""
    variables: tuple[str, ...]
    """Names in the environment of a command."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One thing to look up: ``exists``, ``real``, ``names``, ``text``, ``image``, ``sum`` or ``program``, of a path."""

    what: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Image:
    """What is known of an image's file."""

    size: int
    mtime: float | None
    header: bytes
    """32 bytes, from byte 32 on."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a submission ended: taken, failed, written, unclear, refused or answered."""

    kind: str
    words: str = ""
    """Why it failed, or the exit status of the scheduler's command."""
    out: str = ""
    err: str = ""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Bytes of a file of a run."""

    name: str
    mtime: float
    start: int
    content: bytes


@dataclass(frozen=True, kw_only=True)
class News:
    """What a run has written."""

    pieces: tuple[Piece, ...]
    has_receipt: bool
    submit_status: str = ""
    """Exit status of the scheduler's command, where a submission left one."""


@dataclass
class FarMachine:
    """A machine that is reached when it is first asked something."""

    host: str
    connect: Callable[[], Connection]
    folder: str = ""
    """Where relative paths count from, as it was asked for."""
    sleep: Callable[[float], None] = time.sleep
    _connection: Connection | None = field(default=None, init=False)
    _hello: Hello | None = field(default=None, init=False)

    @property
    def hello(self) -> Hello:
        """Its first words; asked for once.

        Raises:
            UserError: there is no such folder.
        """
        if self._hello is None:
            said = self._run("hello", [self.folder], timeout_s=LOOK_TIMEOUT_S)
            if said.status == 3:
                raise UserError(
                    Problem(f"{self.host}:{self.folder}", "there is no such directory", "make it there, or give another")
                )
            self._hello = read_hello(said.out)
        return self._hello

    def ask(
        self, argv: Sequence[str], *, clean: Clean, timeout_s: float, stdin: str | None = None, again: bool = True
    ) -> proc.Answer:
        """Run a program there to its end, whatever its exit status, in an environment that is cleaned as the scheduler wants it.

        Raises:
            UserError: there is no such program.
            NoAnswer: it did not end within ``timeout_s``.
        """
        args = [self._environment(clean), *argv]
        try:
            said = self._run("ask", args, stdin=(stdin or "").encode(), timeout_s=timeout_s, again=again)
        except TimedOut:
            raise proc.NoAnswer(
                f"{argv[0]} on {self.host}: gave no answer within {timeout_s:g} s\n  fix: try again later"
            ) from None
        if said.status == 127:
            raise UserError(self._absent(argv[0]))
        return proc.Answer(argv=tuple(argv), status=said.status, stdout=said.out.decode(errors="replace"), stderr=said.err)

    def look(self, questions: Sequence[Question]) -> list[bytes]:
        """What is there, in one go; an answer for each question."""
        mark = secrets.token_hex(8)
        said = self._run("look", [mark, *(f"{one.what}:{one.path}" for one in questions)], timeout_s=LOOK_TIMEOUT_S)
        _, *answers = said.out.split(f"\n{mark}\n".encode())
        if len(answers) != len(questions):
            raise Failure(f"{self.host}: {len(questions)} questions, {len(answers)} answers: {said.err.strip()[:300]}")
        return answers

    def make(self, path: str, token: str, archive: bytes) -> Outcome:
        """Make a run directory of an archive, whole or not at all; may be called again."""
        return self._submit(path, token, archive, "", "/dev/null", "", ())

    def submit(
        self,
        path: str,
        token: str,
        archive: bytes,
        argv: Sequence[str],
        clean: Clean,
        *,
        reads_script: bool,
        doubtful: str = "",
    ) -> Outcome:
        """The same, and submit its job: once, however often this is called for the same token.

        Args:
            doubtful: words of a refusal that is none for sure; an extended regular expression.
        """
        stdin = f"{path}/job.sh" if reads_script else "/dev/null"
        return self._submit(path, token, archive, self._environment(clean), stdin, doubtful, argv)

    def fetch(self, path: str, wanted: Mapping[str, str]) -> News | None:
        """What a run has written; nothing where its directory is not.

        Args:
            wanted: file -> the byte to begin at, ``E-N`` for what follows byte E in its last N bytes, ``~N`` for its last lines.
        """
        said = self._run(
            "fetch", [path, str(PIECE_BYTES), *(f"{name}:{start}" for name, start in wanted.items())], timeout_s=FETCH_TIMEOUT_S
        )
        if said.out.startswith(b"gone"):
            return None
        try:
            return read_news(said.out, self.hello.ahead_s)
        except ValueError:
            raise Lost(f"{self.host}: files of {path} changed while they were read; try again") from None

    def reach(self) -> None:
        """Log in, if that is not done."""
        assert self.hello

    def refresh(self, run: RunDir, wanted: Mapping[str, int | str]) -> None:
        """Bring the copy of a run up to date, and mend what a broken connection has left: a receipt that is on one side only.

        Args:
            wanted: file -> the first byte that must be known, or ``-N``, ``~N``.
        """
        far = run.far
        assert far is not None
        while True:
            news = self.fetch(far.path, {name: _from(run, name, start) for name, start in wanted.items()})
            if news is None and run.receipt is None:
                return  # its submission broke before it had arrived
            if news is None:
                wrong = "the run directory is not there any more: it was moved or removed"
                fix = f"move it back; what was last seen of it is in {run.path}, and the scheduler's own commands know the job"
                raise UserError(Problem(run.place, wrong, fix))
            for piece in news.pieces:
                keep_piece(run, piece.name, start=piece.start, content=piece.content, mtime_s=piece.mtime)
            if not any(len(piece.content) >= PIECE_BYTES for piece in news.pieces):
                break
        self._mend(run, far, news)

    def _mend(self, run: RunDir, far: Far, news: News) -> None:
        receipt = run.receipt
        if receipt is None and news.submit_status == "0":
            said = next((piece.content for piece in news.pieces if piece.name == "submitted.lock/out"), b"")
            with contextlib.suppress(ValueError):
                job_id = SCHEDULERS[str(run.plan.get("scheduler"))].parse_job_id(said.decode(errors="replace"))
                self.put(f"{far.path}/receipt.json", write_receipt(run, make_receipt({**far.draft, "job_id": job_id})))
        elif receipt is not None and not news.has_receipt:
            self.put(f"{far.path}/receipt.json", write_receipt(run, receipt))

    def put(self, path: str, content: bytes) -> None:
        """Write a small file, whole or not at all.

        Raises:
            Failure: it cannot be written.
        """
        said = self._run("put", [path], stdin=content, timeout_s=LOOK_TIMEOUT_S)
        if said.status != 0:
            raise Failure(f"{self.host}:{path}: cannot be written: {said.err.strip()}")

    def close(self) -> None:
        """End the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _submit(
        self, path: str, token: str, archive: bytes, environment: str, stdin: str, doubtful: str, argv: Sequence[str]
    ) -> Outcome:
        how = self.hello.checksum
        args = [path, token, how, checksum(how, archive), environment, stdin, doubtful, *argv]
        for _ in range(2):  # it was killed, or another call has cleared a refusal away: the same again tells what has become of it
            said = self._run("submit", args, stdin=archive, timeout_s=SUBMIT_TIMEOUT_S, slow=True)
            if said.status == 0 and not said.out.startswith(b"refused"):
                break
        outcome = read_outcome(said)
        if outcome.kind == "answered" and outcome.words == "127":
            raise UserError(self._absent(argv[0]))
        return outcome

    def _absent(self, program: str) -> Problem:
        fix = "load its module in the shell's start-up files there, or choose another --site"
        return Problem(program, f"there is no such program on PATH of {self.host}", fix)

    def _environment(self, clean: Clean) -> str:
        """What must go from the environment of a command, and what must come: as templates/far/common.sh reads it."""
        there = dict.fromkeys(self.hello.variables, "there")
        kept = clean(there)
        gone = [name for name in there if name not in kept]
        return " ".join([*gone, *(f"{name}={value}" for name, value in kept.items() if there.get(name) != value)])

    def _run(
        self, name: str, args: Sequence[str], *, stdin: bytes = b"", timeout_s: float, again: bool = True, slow: bool = False
    ) -> Said:
        """Run one of the scripts; where it may be, again after the connection broke (``slow``: or was silent)."""
        for pause_s in (*PAUSES_S, None):
            try:
                if self._connection is None:
                    self._connection = self._log_in()
                return self._connection.run(script(name), args, stdin=stdin, timeout_s=timeout_s)
            except (Lost, Unreachable) as error:
                first = self._hello is None and isinstance(error, Unreachable)  # it never answered: its user is told at once
                self.close()
                if pause_s is None or first or not again or (isinstance(error, TimedOut) and not slow):
                    raise
                self.sleep(pause_s)
        raise AssertionError

    def _log_in(self) -> Connection:
        """Once something was asked, who is not let in again does not know what has become of it."""
        try:
            return self.connect()
        except UserError as error:
            if self._hello is None:
                raise
            told = "; ".join(f"{problem.where}: {problem.wrong}" for problem in error.problems)  # their fixes are for a beginning
            raise Failure(f"the connection broke, and another cannot be made: {told}") from None


def _from(run: RunDir, name: str, wanted: int | str) -> str:
    """Where fetch.sh has to begin, so that what is known need not come again."""
    first, end = known_part(run, name)
    if isinstance(wanted, int):
        return str(end if first <= wanted <= end else wanted)
    return f"{end}{wanted}" if wanted.startswith("-") else wanted


@cache
def script(name: str) -> str:
    """A script of ``templates/far``, with what all of them use."""
    folder = Path(__file__).parent / "templates" / "far"
    return "\n".join((folder / f"{part}.sh").read_text(encoding="utf-8") for part in ("common", name))


# What the scripts say ------------------------------------------------------------------------------------------------------------


def read_hello(out: bytes) -> Hello:
    """Of hello.sh.

    Raises:
        Failure: it says something else.
    """
    folder, home, node, user, summing, now, *variables = [*out.decode(errors="replace").splitlines(), *[""] * 6]
    if not (folder.startswith("/") and now.isdigit()):
        raise Failure(f"the far side does not tell where it is: {out[:300]!r}")
    names = tuple(name for name in variables if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII))
    return Hello(
        folder=folder,
        home=home or folder,
        node=node,
        user=user,
        checksum=summing,
        ahead_s=float(now) - time.time(),
        variables=names,
    )


def read_outcome(said: Said) -> Outcome:
    """Of submit.sh.

    Raises:
        Failure: it says something else.
    """
    first, _, out = said.out.decode(errors="replace").partition("\n")
    kind, _, words = first.partition(" ")
    if kind not in ("taken", "failed", "written", "unclear", "refused", "answered"):
        raise Failure(f"the far side answers {first!r}: {said.err.strip()[:300]}")
    return Outcome(kind=kind, words=words, out=out, err=said.err)


def read_news(out: bytes, ahead_s: float) -> News:
    """Of fetch.sh; times become ours.

    Raises:
        ValueError: a file is not as long as its line says.
    """
    line, _, rest = out.partition(b"\n")
    _, _, receipt, *status = line.decode().split(" ")
    pieces = []
    while rest:
        line, _, rest = rest.partition(b"\n")
        mtime, start, length, name = line.decode().split(" ", 3)
        content, rest = rest[: int(length)], rest[int(length) :]
        if len(content) != int(length) or not is_of_run(name):
            raise ValueError(name)
        pieces.append(Piece(name=name, mtime=float(mtime or time.time() + ahead_s) - ahead_s, start=int(start), content=content))
    return News(pieces=tuple(pieces), has_receipt=receipt == "yes", submit_status="".join(status))


def is_of_run(name: str) -> bool:
    """Whether a name stays within the run's directory."""
    return not name.startswith("/") and ".." not in name.split("/") and bool(re.fullmatch(r"[\w./-]+", name, re.ASCII))


def read_image(answer: bytes) -> Image | None:
    """Of look.sh's ``image``; nothing where there is no such file."""
    lines = answer.decode(errors="replace").splitlines()
    if len(lines) < 2:
        return None
    header = bytes.fromhex(lines[2]) if len(lines) > 2 and re.fullmatch(r"([0-9a-f]{2})*", lines[2]) else b""
    return Image(size=int(lines[0]), mtime=float(lines[1]) if lines[1] else None, header=header)


# What goes over ------------------------------------------------------------------------------------------------------------------


def pack(files: Mapping[str, str], code: Mapping[str, bytes]) -> bytes:
    """The archive of a run directory: the same files, the same bytes."""
    content = {name: (text.encode(), 0o755 if name.endswith(".sh") else 0o644) for name, text in files.items()}
    content |= {f"code/{name}": (text, 0o444) for name, text in code.items()}
    folders = {"logs", *(parent for name in content for parent in _parents(name))}
    stream = io.BytesIO()
    with tarfile.TarFile(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for folder in sorted(folders):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(_now(entry))
        for name, (text, mode) in sorted(content.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), mode
            archive.addfile(_now(entry), io.BytesIO(text))
    return stream.getvalue()


def _now(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mtime = int(time.time())
    return entry


def _parents(name: str) -> Iterable[str]:
    parts = name.split("/")[:-1]
    return ("/".join(parts[: depth + 1]) for depth in range(len(parts)))


def checksum(how: str, content: bytes) -> str:
    """What a program over there will make of the same bytes.

    ``cksum`` is the CRC of POSIX (cksum, "Description"): not reflected, begun with 0, the length at its end, inverted.
    """
    if how != "cksum":
        return hashlib.sha256(content).hexdigest()
    length = len(content)
    whole = content + length.to_bytes((length.bit_length() + 7) // 8, "little")
    mirrored = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    register = zlib.crc32(whole.translate(mirrored), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return f"{int(f'{register:032b}'[::-1], 2) ^ 0xFFFFFFFF} {length}"


def join(folder: str, home: str, path: str) -> str:
    """A path over there: absolute; ``~`` is the home there."""
    whole = home + path[1:] if path == "~" or path.startswith("~/") else path
    return posixpath.normpath(os.path.join(folder, whole))


def facts_of(image: Image | None, lock: bytes) -> Mapping[str, Any]:
    """For the receipt, as identity.py tells it of this machine."""
    facts: dict[str, Any] = {}
    if image is not None:
        facts["image_bytes"] = image.size
        facts |= {"image_mtime": image.mtime} if image.mtime is not None else {}
        facts |= {"image_id": image.header[16:32].hex()} if image.header.startswith(b"SIF_MAGIC") else {}
    if number := lock.decode(errors="replace").split(" ")[0].strip():
        facts["lock_sha256"] = number
    return facts
