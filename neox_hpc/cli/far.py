"""``--host``: another machine on the command line, its questions to the user, and runs that are submitted there.

Changes when what a user says about another machine does.
"""

from __future__ import annotations

import getpass
import itertools
import json
import os
import posixpath
import secrets
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neox_hpc.cli.surroundings import now_utc
from neox_hpc.env import LOCK
from neox_hpc.errors import Failure, Problem, UserError
from neox_hpc.far import FarMachine, Outcome, Question, facts_of, join, pack, read_image
from neox_hpc.hostfile import parse_hostfile
from neox_hpc.jobs import Unclear
from neox_hpc.probe import SIF_ARCHES, Facts, wanted_paths
from neox_hpc.registry import registry_file
from neox_hpc.rundir import Far, Receipt, RunDir, keep_far_run, make_receipt, remove_run_dir, sha256_of, write_receipt
from neox_hpc.schedulers import SCHEDULERS
from neox_hpc.snapshot import take_snapshot
from neox_hpc.transport import CONNECT, read_address

if TYPE_CHECKING:
    from neox_hpc.cli.prepare import Asked, Prepared
    from neox_hpc.render import JobFiles
    from neox_hpc.site import Site
    from neox_hpc.vocabulary import RunConfig


class OnTerminal:
    """The user, at /dev/tty; what is typed is handed on and kept nowhere."""

    def secret(self, prompt: str) -> str:
        """Without echo, and without this process's own streams: they may be pipes."""
        if not _has_terminal():
            fix = "call it on a terminal, put a key into an agent, or keep a connection open: --ssh openssh"
            raise UserError(Problem(prompt.strip().rstrip(":"), "is asked for, and there is no terminal to type it on", fix))
        return getpass.getpass(prompt)

    def confirm(self, question: str) -> bool:
        """Only a plain yes is one."""
        return _has_terminal() and click.confirm(question, err=True)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def machine(host: str, ssh: str, folder: str = "") -> FarMachine:
    """A machine that is reached when it is first asked something.

    Raises:
        UserError: this version knows no such way.
    """
    if ssh not in CONNECT:
        raise UserError(Problem(f"--ssh {ssh}", "no such way", f"write one of {', '.join(CONNECT)}"))
    return FarMachine(host=host, connect=partial(CONNECT[ssh], host, OnTerminal(), Path.home()), folder=folder)


@dataclass(frozen=True, kw_only=True)
class FarDesk:
    """Where a user of ``--host`` works: a directory on another machine, with what is remembered of the runs there on this one."""

    machine: FarMachine
    ssh: str
    output_dir: str
    """Absolute, there."""
    run_id: str | None
    records: Path
    """Copies of the runs there, by their paths."""

    @property
    def folder(self) -> str:
        """What relative paths count from."""
        return self.machine.hello.folder

    def choose(self, name: str, prepare: Callable[[str], Prepared]) -> Prepared:
        """The job in the first directory that it can have: that of a submission whose connection broke, if it is the same one, else
        one that is free there and here.

        Raises:
            UserError: the run id is taken, or is no plain name.
        """
        stem = self.run_id if self.run_id is not None else name
        if self.run_id is not None and (self.run_id != os.path.basename(self.run_id) or self.run_id in ("", ".", "..")):
            fix = "write a name without '/'; --output-dir says where it goes"
            raise UserError(Problem(f"--run-id {self.run_id}", "is not a plain name", fix))
        there = set(self.machine.look([Question(what="names", path=f"{self.output_dir}/{stem}")])[0].decode().splitlines())
        for number in itertools.count(1):
            path = f"{self.output_dir}/{stem}" + (f".{number}" if number > 1 else "")
            record = self.record(path)
            if record is None and posixpath.basename(path) not in there:
                return prepare(path)
            if record is not None and record.receipt is None:
                if _is_unfinished(record, prepared := prepare(path)):
                    return prepared
                name = shlex.quote(record.name)
                told = "was submitted otherwise, and has left no answer yet"
                click.echo(f"note: {record.place} {told}: neox-hpc status {name} tells what has become of it", err=True)
            if self.run_id is not None:
                fix = "choose another --run-id, or remove that directory"
                raise UserError(
                    Problem(f"{self.machine.host}:{path}", "exists already; a run directory is never written twice", fix)
                )
        raise AssertionError

    def probe(self, config: RunConfig, site: Site, *, image: str | None, bound: Iterable[str], hostfiles: Iterable[str]) -> Facts:
        """What the plan wants to know of that machine, in one go."""
        wanted = list(dict.fromkeys(wanted_paths(config, site, self.folder, image)))
        bound, hostfiles = list(bound), list(hostfiles)
        questions = [Question(what="exists", path=path) for path in wanted]
        questions += [Question(what="real", path=path) for path in bound]
        questions += [Question(what="text", path=path) for path in hostfiles]
        questions += [Question(what="image", path=image)] if image is not None else []
        answers = iter(self.machine.look(questions) if questions else [])
        exists = {path: next(answers).strip() for path in wanted}
        real = {path: next(answers).decode(errors="replace").rstrip("\n") for path in bound}
        texts = {path: next(answers).decode(errors="replace") for path in hostfiles}
        header = read_image(next(answers)) if image is not None else None
        return Facts(
            exists={path: said == b"yes" for path, said in exists.items() if said in (b"yes", b"no")},
            real={path: said for path, said in real.items() if said and said != path},
            hostfile=next((parse_hostfile(text, path) for path, text in texts.items() if text), None),
            image_arch=SIF_ARCHES.get(header.header[13:15]) if header and header.header.startswith(b"SIF_MAGIC") else None,
        )

    def make(self, prepared: Prepared) -> str:
        """Write the run directory there, and submit nothing; returns its place."""
        assert prepared.files is not None
        path, archive = str(prepared.path), pack(prepared.run_files, take_snapshot().files)
        self._check(path, self.machine.make(path, secrets.token_hex(8), archive), ())
        return f"{self.machine.host}:{path}"

    def keep(self, prepared: Prepared) -> RunDir:
        """The record of a submission that is about to be tried; that of one which broke, if it is the same.

        Raises:
            UserError: another submission from this machine was faster.
        """
        path = str(prepared.path)
        try:
            return self._keep(prepared)
        except UserError:
            record = self.record(path)
            if record is None:
                raise
        if not _is_unfinished(record, prepared):
            raise UserError(self._taken(path))
        return record

    def _taken(self, path: str) -> Problem:
        wrong = "has come to be in the meantime; it is never written twice"
        return Problem(f"{self.machine.host}:{path}", wrong, "submit again")

    def submit(self, prepared: Prepared, run: RunDir) -> Receipt:
        """Steps 6 to 8, over there.  A connection that breaks is made anew; a command that ends before it knows is called again.

        Raises:
            UserError: the scheduler refuses, the directory is taken or cannot be written: nothing is queued, no file is kept.
            Unclear: the job may exist.
            Failure: the connection cannot be made again.
        """
        assert prepared.files is not None and run.far is not None
        scheduler, far = SCHEDULERS[prepared.plan.site.scheduler], run.far
        argv, archive = far.draft["command"], pack(prepared.run_files, take_snapshot().files)
        try:
            outcome = self.machine.submit(
                far.path,
                far.token,
                archive,
                argv,
                scheduler.submit_environment,
                reads_script=scheduler.reads_script,
                doubtful=scheduler.doubtful,
            )
            said = self._check(far.path, outcome, argv)
        except UserError:
            remove_run_dir(run)
            raise
        except Unclear:
            raise
        except Failure as error:
            again = "the same command again goes on where this one ended, and submits no second job"
            raise type(error)(f"{error}\n  fix: {again}; neox-hpc status {shlex.quote(run.name)} tells how far it came") from None
        try:
            receipt = make_receipt({**far.draft, "job_id": scheduler.parse_job_id(said)})
        except ValueError as error:
            advice = f"look for {run.name} in the queue before you submit again; its files are {run.place}"
            raise Unclear(f"{error}\n  {advice}") from None
        content = write_receipt(run, receipt)
        try:
            self.machine.put(f"{far.path}/receipt.json", content)
        except Failure as error:
            click.echo(f"note: the job was taken; its receipt is here and not there yet: {error}", err=True)
        return receipt

    def record(self, path: str) -> RunDir | None:
        """What is remembered of a run there."""
        folder = self.records / path.lstrip("/")
        return RunDir(folder) if (folder / "far.json").exists() else None

    def _keep(self, prepared: Prepared) -> RunDir:
        assert prepared.files is not None
        hello, request = self.machine.hello, prepared.request
        draft = {
            "submitted_at": now_utc(),
            "host": hello.node,
            "user": hello.user,
            "command": SCHEDULERS[prepared.plan.site.scheduler].submit_argv(prepared.path / "job.sh"),
            "neox_hpc": request.neox_hpc,
            "code_sha256": take_snapshot().sha256,
            "script_sha256": sha256_of(prepared.files["job.sh"]),
            "software": {"is": prepared.plan.software.told, **self._software(prepared)},
            "git_commit": request.git_commit,
        }
        path = str(prepared.path)
        far = Far(
            host=self.machine.host,
            ssh=self.ssh,
            path=path,
            token=secrets.token_hex(8),
            digest=digest_of(prepared.files),
            draft=draft,
        )
        return keep_far_run(self.records / path.lstrip("/"), prepared.run_files, far)

    def _software(self, prepared: Prepared) -> Mapping[str, Any]:
        """What tells its content from another's, as far as the machine tells."""
        software = prepared.plan.software
        if software.image is not None and software.image.startswith("/"):
            return facts_of(read_image(self.machine.look([Question(what="image", path=software.image)])[0]), b"")
        if software.home is not None:
            return facts_of(None, self.machine.look([Question(what="sum", path=f"{software.home}/{LOCK}")])[0])
        return {}

    def _check(self, path: str, outcome: Outcome, argv: Sequence[str]) -> str:
        """What the scheduler's command printed, if all went well."""
        place = f"{self.machine.host}:{path}"
        if outcome.kind == "written" or (outcome.kind == "answered" and outcome.words == "0"):
            return outcome.out
        if outcome.kind == "answered":
            words = (outcome.err.strip() or outcome.out.strip() or "it said nothing").replace("\n", "\n  ")
            fix = "mend what it names, and submit again: nothing is queued and no file was kept"
            raise UserError(Problem(shlex.join(argv), f"exit status {outcome.words}: {words}", fix))
        if outcome.kind == "taken":
            raise UserError(self._taken(path))
        if outcome.kind == "failed":
            fix = "nothing is queued and no file was kept; give a directory that you may write with --output-dir"
            raise UserError(Problem(place, f"the run directory cannot be written: {outcome.words}", fix))
        words = f": {outcome.err.strip()}" if outcome.err.strip() else ""
        advice = f"a submission of {place} was begun and has left no answer{words}\n  look for it in the queue"
        raise Unclear(f"{advice}\n  fix: if there is no such job, remove {path}/submitted.lock there, and submit again")


def _is_unfinished(record: RunDir, prepared: Prepared) -> bool:
    """Whether it is the record of this very submission, which broke."""
    if record.receipt is not None or record.far is None or prepared.files is None:
        return False
    return record.far.digest == digest_of(prepared.files)


def digest_of(files: JobFiles) -> str:
    """Of all that is submitted, the code too; but for who submits it, and from where: the same command again is the same job."""
    run = {key: value for key, value in json.loads(files["run.json"]).items() if key != "origin"}
    told = {**files, "run.json": json.dumps(run)}
    parts = [*(f"{name}\0{text}" for name, text in sorted(told.items())), take_snapshot().sha256]
    return sha256_of("\0".join(parts))


def desk_at(text: str, asked: Asked, site: Site) -> FarDesk:
    """The desk that ``--host`` means.

    Raises:
        UserError: it is no host; the site has no scheduler that one could ask from elsewhere; the host does not let the user in.
        Unreachable: it does not answer.
    """
    try:
        address = read_address(text)
    except ValueError as error:
        wrong, _, fix = str(error).partition(": ")
        raise UserError(Problem("--host", wrong, fix)) from None
    if site.here or not SCHEDULERS[site.scheduler].starts_job:
        fix = "log in there and submit, or choose a site with a scheduler"
        raise UserError(Problem("--host", f"{site.name} starts jobs as processes of the machine that neox-hpc runs on", fix))
    far = machine(address.host, asked.ssh, address.folder)
    hello = far.hello
    return FarDesk(
        machine=far,
        ssh=asked.ssh,
        output_dir=join(hello.folder, hello.home, asked.output_dir),
        run_id=asked.run_id,
        records=registry_file(os.environ).parent / "far" / address.host,
    )
