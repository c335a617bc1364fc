"""Talks to a scheduler about jobs: submit, ask, cancel, signal.

Changes when how a scheduler's commands are run does; their words are in ``schedulers/``.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from neox_hpc import proc
from neox_hpc.errors import Failure, NeoxHpcError, Problem, UserError
from neox_hpc.rundir import Far, Receipt, RunDir
from neox_hpc.schedulers import SCHEDULERS, JobState, JobStatus, Scheduler

SUBMIT_TIMEOUT_S = 120.0
ASK_TIMEOUT_S = 20.0
CANCEL_GRACE_S = 30.0
"""Local site: from TERM to KILL; job.sh forwards the TERM and writes the outcome."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A job that a scheduler took."""

    job_id: str
    command: tuple[str, ...]
    process_started: int | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a scheduler says about a job: a status; nothing (it knows the job no more); or it is silent, and why."""

    status: JobStatus | None = None
    silence: str = ""


class Unclear(Failure):
    """A submission of which nobody knows whether it happened."""


class Host(Protocol):
    """A machine whose scheduler is spoken to."""

    def ask(
        self,
        argv: Sequence[str],
        *,
        clean: Callable[[Mapping[str, str]], Mapping[str, str]],
        timeout_s: float,
        stdin: str | None = None,
        again: bool = True,
    ) -> proc.Answer:
        """Run a program to its end, in an environment that ``clean`` has seen to.

        Args:
            again: it may be run once more when the way there breaks.

        Raises:
            UserError: there is no such program.
            NoAnswer: it did not end within ``timeout_s``.
        """
        ...


@dataclass(frozen=True)
class Here:
    """This machine."""

    environ: Mapping[str, str]

    def ask(
        self,
        argv: Sequence[str],
        *,
        clean: Callable[[Mapping[str, str]], Mapping[str, str]],
        timeout_s: float,
        stdin: str | None = None,
        again: bool = True,
    ) -> proc.Answer:
        return proc.ask(argv, timeout_s=timeout_s, environ=clean(self.environ), stdin=stdin)


class FarHost(Host, Protocol):
    """Another machine, with the runs that are there."""

    def reach(self) -> None:
        """Log in there, if that is not done.

        Raises:
            UserError: it does not let the user in.
            Failure: it does not answer.
        """
        ...

    def refresh(self, run: RunDir, wanted: Mapping[str, int | str]) -> None:
        """Bring the copy of a run up to date.

        Args:
            wanted: file -> what of it must be known: from this byte on, or as far.py's scripts read it.
        """
        ...

    def put(self, path: str, content: bytes) -> None:
        """Write a file there."""
        ...


@dataclass(frozen=True)
class Hosts:
    """The machines that runs are on: this one, and those that ssh leads to, each reached once."""

    environ: Mapping[str, str]
    reach: Callable[[Far], FarHost]
    _reached: dict[tuple[str, str], FarHost] = field(default_factory=dict)

    def of(self, run: RunDir) -> Host:
        """Where a run's scheduler is."""
        far = run.far
        return Here(self.environ) if far is None else self.far(far)

    def far(self, far: Far) -> FarHost:
        """The machine of a far run."""
        key = far.host, far.ssh
        if key not in self._reached:
            self._reached[key] = self.reach(far)
        return self._reached[key]

    def refresh(self, run: RunDir, wanted: Mapping[str, int | str] | None = None) -> None:
        """Bring the copy of a far run up to date; a run of this machine needs nothing."""
        far = run.far
        if far is not None:
            self.far(far).refresh(run, {"metrics.jsonl": METRICS_TAIL, "logs/job.out": LOG_TAIL, **(wanted or {})})


METRICS_TAIL = "-65536"
"""What status reads of the metrics, and more."""
LOG_TAIL = "-16384"


def submit_job(scheduler: Scheduler, run: RunDir, environ: Mapping[str, str]) -> Taken:
    """Hand a run's script to its scheduler.

    Raises:
        UserError: the program is absent or refuses; the job does not exist.
        Unclear: it gave no answer, or one that holds no id; the job may exist.
    """
    argv = scheduler.submit_argv(run.script)
    clean = scheduler.submit_environment(environ)
    if not scheduler.starts_job:
        process = proc.start_detached(argv, log=run.log, cwd=run.path, environ=clean)
        return Taken(job_id=str(process.pid), command=tuple(argv), process_started=process.started)
    try:
        stdin = run.script.read_text(encoding="utf-8") if scheduler.reads_script else None
        stdout = proc.run(argv, timeout_s=SUBMIT_TIMEOUT_S, environ=clean, cwd=run.path, stdin=stdin)
        return Taken(job_id=scheduler.parse_job_id(stdout), command=tuple(argv))
    except UserError as refused:
        if scheduler.doubtful and re.search(scheduler.doubtful, str(refused)):
            raise _unclear(run, refused) from None
        fix = "mend what it names, and submit again: nothing is queued and no file was kept"
        raise UserError(dataclasses.replace(problem, fix=problem.fix or fix) for problem in refused.problems) from None
    except (proc.NoAnswer, ValueError) as error:
        raise _unclear(run, error) from None


def _unclear(run: RunDir, error: Exception) -> Unclear:
    advice = f"the job may be queued or not: look for {run.name} in the queue before you submit again; its files are {run.path}"
    return Unclear(f"{error}\n  {advice}")


def ask_jobs(scheduler: Scheduler, job_ids: Sequence[str], host: Host) -> dict[str, Answer]:
    """Ask a scheduler how jobs stand, once for all of them; never fails: silence is an answer."""
    known: dict[str, JobStatus] = {}
    answered, silence = False, ""
    for step in range(len(scheduler.status_argvs(job_ids))):
        left = [job_id for job_id in job_ids if job_id not in known]
        if not left:
            break
        said, trouble = _ask(scheduler, scheduler.status_argvs(left)[step], host)
        known |= {job_id: said[scheduler.key(job_id)] for job_id in left if scheduler.key(job_id) in said}
        answered, silence = answered or not trouble, silence or trouble
    unknown = Answer(silence="" if answered else silence)
    return {job_id: Answer(status=known[job_id]) if job_id in known else unknown for job_id in job_ids}


def _ask(scheduler: Scheduler, argv: list[str], host: Host) -> tuple[dict[str, JobStatus], str]:
    """What one command knows of the jobs; and why it does not speak for those that it leaves out."""
    try:
        said = host.ask(argv, timeout_s=ASK_TIMEOUT_S, clean=scheduler.submit_environment)
    except NeoxHpcError as error:
        return {}, str(error).partition("\n")[0]
    trouble = ""
    if said.status != 0 and not scheduler.is_unknown_job(said.stderr):
        trouble = f"{argv[0]}: {_last_line(said.stderr) or f'exit status {said.status}'}"
    try:
        return scheduler.parse_status(said.stdout), trouble  # some fail for one job of many, and answer for the others
    except ValueError as error:
        return {}, trouble or f"{argv[0]}: its answer cannot be read: {error}"


def signal_job(scheduler: Scheduler, receipt: Receipt, signal: str, host: Host) -> None:
    """Send a signal to a job's script, which passes it on to the ranks.

    Raises:
        UserError, NoAnswer: the scheduler refuses, or does not answer.
    """
    _check_host(scheduler, receipt)
    argv = scheduler.signal_argv(receipt.job_id, signal)
    proc.stdout_of(host.ask(argv, timeout_s=ASK_TIMEOUT_S, clean=scheduler.submit_environment, again=False))


def try_script(scheduler: Scheduler, script: str, host: Host) -> str:
    """A scheduler's own verdict on a script that it is not given to run.

    Raises:
        UserError: it refuses the script, or has no such test.
        NoAnswer: it does not answer.
    """
    argv = scheduler.test_argv()
    if not argv:
        raise UserError(Problem("--test-only", "this scheduler has no command that tests a script", "--dry-run shows the script"))
    said = host.ask(argv, timeout_s=SUBMIT_TIMEOUT_S, clean=scheduler.submit_environment, stdin=script)
    if said.status != 0:
        words = (said.stderr.strip() or said.stdout.strip() or f"exit status {said.status}").replace("\n", "\n  ")
        raise UserError(Problem(shlex.join(argv), words, "mend what it names: it would refuse the job"))
    return scheduler.parse_test(said.stderr)


def read_hosts(scheduler: Scheduler, environ: Mapping[str, str]) -> list[str] | None:
    """The hosts of the job that this process runs in; ``None`` outside one.

    Raises:
        UserError, NoAnswer, Failure: the scheduler's command fails, or its file cannot be read.
    """
    source = scheduler.hosts_source(environ)
    if source is None:
        return None
    if source.argv:
        return scheduler.parse_hosts(proc.run(source.argv, timeout_s=ASK_TIMEOUT_S, environ=environ))
    try:
        return scheduler.parse_hosts(Path(source.file).read_text(encoding="utf-8"))
    except OSError as error:
        raise Failure(f"{source.file}: cannot be read: {error.strerror}") from None


def cancel_job(scheduler: Scheduler, receipt: Receipt, host: Host) -> None:
    """Stop a job; returns when it has been told (local site: when it has ended).

    Raises:
        UserError, NoAnswer: the scheduler refuses, or does not answer.
    """
    if scheduler.starts_job:
        argv = scheduler.cancel_argv(receipt.job_id)
        proc.stdout_of(host.ask(argv, timeout_s=ASK_TIMEOUT_S, clean=scheduler.submit_environment))
        return
    _check_host(scheduler, receipt)
    proc.end_session(_process_of(receipt), grace_s=CANCEL_GRACE_S)


def asker(run: RunDir, hosts: Hosts, wanted: Mapping[str, int | str] | None = None) -> Callable[[], Answer]:
    """A question about one run's job, to be put again and again."""
    return lambda: ask_runs([run], hosts, wanted)[run.path]


def ask_runs(runs: Sequence[RunDir], hosts: Hosts, wanted: Mapping[str, int | str] | None = None) -> dict[Path, Answer]:
    """How the jobs of runs stand, by the run's directory.  Every scheduler is asked once for all of its jobs; then the copies of
    far runs are brought up to date.  A silent scheduler, or a machine that cannot be reached, is an answer.

    Args:
        wanted: what must be known of a far run's files, beside what a status needs.

    Raises:
        UserError: a machine does not let the user in.
    """
    answers: dict[Path, Answer] = {}
    jobs: dict[tuple[Scheduler, tuple[str, str] | None], list[tuple[str, RunDir]]] = {}
    lost = _unreachable(runs, hosts)
    for run in runs:
        if (machine := _machine(run)) in lost:
            answers[run.path] = Answer(silence=lost[machine])
            continue
        receipt, scheduler = run.receipt, scheduler_of(run)
        if receipt is None:
            answers[run.path] = Answer(silence="never submitted")
        elif scheduler.starts_job:
            jobs.setdefault((scheduler, machine), []).append((receipt.job_id, run))
        else:
            answers[run.path] = _ask_process(run, receipt)
    for (scheduler, _), asked in jobs.items():
        said = ask_jobs(scheduler, list(dict.fromkeys(job_id for job_id, _ in asked)), hosts.of(asked[0][1]))
        answers |= {run.path: said[job_id] for job_id, run in asked}
    for run in runs:
        if (machine := _machine(run)) is not None and machine not in lost:
            answers[run.path] = _refresh(run, answers[run.path], hosts, wanted)
    return answers


def _machine(run: RunDir) -> tuple[str, str] | None:
    """Which other machine a run is on, and the way to it."""
    far = run.far
    return None if far is None else (far.host, far.ssh)


def _unreachable(runs: Iterable[RunDir], hosts: Hosts) -> dict[tuple[str, str] | None, str]:
    """The other machines that do not answer, and why."""
    lost: dict[tuple[str, str] | None, str] = {}
    for machine, far in {_machine(run): far for run in runs if (far := run.far) is not None}.items():
        try:
            hosts.far(far).reach()
        except Failure as error:
            lost[machine] = str(error).partition("\n")[0]
    return lost


def _refresh(run: RunDir, answer: Answer, hosts: Hosts, wanted: Mapping[str, int | str] | None) -> Answer:
    """The answer, once the copy is up to date; the job of a submission that broke may be known only then."""
    before = run.receipt
    try:
        hosts.refresh(run, wanted)
    except Failure as error:
        return Answer(status=answer.status, silence=answer.silence or str(error).partition("\n")[0])
    receipt = run.receipt
    if before is not None or receipt is None:
        return answer
    return ask_jobs(scheduler_of(run), [receipt.job_id], hosts.of(run))[receipt.job_id]


def scheduler_of(run: RunDir) -> Scheduler:
    """The scheduler that the run was planned for.

    Raises:
        Failure: this version has no such scheduler.
    """
    name = run.plan.get("scheduler")
    if name not in SCHEDULERS:
        raise Failure(f"{run.path}/plan.json: scheduler {name!r} is not known to this version; known: {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name]


def _check_host(scheduler: Scheduler, receipt: Receipt) -> None:
    """A process number means something on its own host only."""
    if not scheduler.starts_job and receipt.host != os.uname().nodename:
        raise Failure(f"process {receipt.job_id} runs on {receipt.host}, this is {os.uname().nodename}: do it there")


def _ask_process(run: RunDir, receipt: Receipt) -> Answer:
    if receipt.host != os.uname().nodename:
        return Answer(silence=f"process {receipt.job_id} is of {receipt.host}, this is {os.uname().nodename}")
    process = _process_of(receipt)
    if proc.is_alive(process):
        return Answer(status=JobStatus(JobState.RUNNING, "process"))
    attempts = run.attempts
    if attempts and attempts[-1].exit_status is None and proc.has_survivors(process):
        return Answer(
            status=JobStatus(JobState.RUNNING, "orphans", reason="job.sh was killed, its ranks run on: cancel stops them")
        )
    return Answer()


def _process_of(receipt: Receipt) -> proc.ProcessId:
    return proc.ProcessId(pid=int(receipt.job_id), started=receipt.process_started or 0)


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "").strip()
