"""What every scheduler answers: questions about text.  Someone else runs the commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from neox_hpc.plan import Plan


class JobState(str, Enum):
    """Where a job is, in one vocabulary for all schedulers."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    UNKNOWN = "unknown"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (JobState.PENDING, JobState.RUNNING, JobState.UNKNOWN)


@dataclass(frozen=True)
class JobStatus:
    """What a scheduler says about a job."""

    state: JobState
    word: str
    """The scheduler's own word."""
    exit_code: int | None = None
    """128 + the signal for a job that a signal ended."""
    reason: str = ""
    """Why a pending job waits, and its expected start where that is told with it."""


@dataclass(frozen=True)
class Pattern:
    """What a value of a directive may look like (directives are not shell: no quoting would be right everywhere)."""

    regex: str
    words: str
    """The same for a reader: "letters, digits, …"."""

    def allows(self, text: str) -> bool:
        """Whether the whole text fits."""
        return re.fullmatch(self.regex, text) is not None

    def stranger(self, text: str) -> str:
        """The first character that no allowed text holds, in any of its places; empty where only length or order is wrong."""
        around = ("{}", "{}0", "0{}0", "0{}", "/{}")
        return next((c for c in text if not any(self.allows(frame.format(c)) for frame in around)), "")


RUN_NAME = Pattern(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}", "letters, digits and _.+- (at most 64, the first a letter or digit)")
"""A job's name is also its directory's name."""
NOTHING = Pattern(r"", "nothing")
JOB_NUMBER = Pattern(r"\d+", "digits")
NODE_NAMES = Pattern(r"[A-Za-z0-9][A-Za-z0-9._,\[\]-]*", "letters, digits and ._,[]-")


Condition = Literal["ok", "any", "notok"]


@dataclass(frozen=True, kw_only=True)
class After:
    """Start once another job has ended: well, anyhow, or badly."""

    job_id: str
    condition: Condition = "ok"


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A job array whose tasks run one after another; each goes on from the newest checkpoint."""

    first: int
    last: int
    """The numbers of the first and the last task."""


@dataclass(frozen=True, kw_only=True)
class EarlySignal:
    """A signal to the job's script a while before its time is over."""

    signal: str
    """Without SIG: USR1."""
    seconds: int


@dataclass(frozen=True, kw_only=True)
class HostSource:
    """Where a running job finds the names of its hosts: what a command prints, or a file holds.  The other one is empty."""

    argv: tuple[str, ...] = ()
    file: str = ""


class Scheduler(Protocol):
    """A scheduler; ``schedulers.SCHEDULERS`` holds one object each."""

    @property
    def template(self) -> str:
        """The template of its job script, in ``neox_hpc/templates``."""
        ...

    @property
    def takes(self) -> frozenset[str]:
        """Which of account, comment, queue, walltime it understands."""
        ...

    @property
    def starts_job(self) -> bool:
        """True: a scheduler starts the job; ``submit_argv`` prints its id.  False: ``submit_argv`` *is* the job, to be started in a
        session of its own with its output in logs/job.out; its process id is the job's id."""
        ...

    @property
    def reads_script(self) -> bool:
        """Whether ``submit_argv`` takes the script from its standard input."""
        ...

    @property
    def doubtful(self) -> str:
        """What ``submit_argv`` says where it fails and the job may be queued all the same; an extended regular expression."""
        ...

    @property
    def runs_on_first_node(self) -> bool:
        """Whether the job's script runs on its first node; else on one that the job's ranks do not run on."""
        ...

    @property
    def name(self) -> Pattern: ...

    @property
    def account(self) -> Pattern:
        """Of queues too."""
        ...

    @property
    def account_variables(self) -> tuple[str, ...]:
        """The variables from which its own commands take an account, first one first."""
        ...

    @property
    def comment(self) -> Pattern: ...

    @property
    def path(self) -> Pattern: ...

    @property
    def nodes(self) -> Pattern:
        """What names of several nodes look like."""
        ...

    @property
    def job_id(self) -> Pattern:
        """What an id looks like."""
        ...

    @property
    def cannot(self) -> Mapping[str, str]:
        """Options of ours that it knows nothing like, and why."""
        ...

    @property
    def owned(self) -> Mapping[str, str]:
        """Its options that the plan writes, or that contradict those; and what says the same to neox-hpc."""
        ...

    @property
    def once(self) -> frozenset[str]:
        """Options of which only one is honoured, though several may be written."""
        ...

    @property
    def all_memory(self) -> str:
        """The directive that asks for all memory of a node, where less may be given; empty: a node's memory is the job's."""
        ...

    def options_of(self, directive: str) -> list[str]:
        """The options in a directive, by their names in :attr:`owned`."""
        ...

    def directives(self, plan: Plan) -> tuple[str, ...]:
        """The arguments that ask for the job, in the order in which a reader asks: who, how much, how long, output where."""
        ...

    def submit_argv(self, script: Path) -> list[str]: ...

    def submit_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment of the submitting process: nothing in it may change the job."""
        ...

    def parse_job_id(self, stdout: str) -> str:
        """Raises ValueError when there is no id in the text."""
        ...

    def key(self, job_id: str) -> str:
        """What stands for the job in :meth:`parse_status`: the scheduler may write an id in several ways."""
        ...

    def status_argvs(self, job_ids: Sequence[str]) -> list[list[str]]:
        """Commands to ask in turn, each for all jobs that the ones before it do not know."""
        ...

    def parse_status(self, stdout: str) -> dict[str, JobStatus]:
        """The jobs that an answer holds, by their :meth:`key`.

        Raises:
            ValueError: it is not an answer.
        """
        ...

    def is_unknown_job(self, stderr: str) -> bool:
        """Whether a status command failed because the scheduler holds a job no more (and not because it is down)."""
        ...

    def cancel_argv(self, job_id: str) -> list[str]: ...

    def test_argv(self) -> list[str]:
        """Judge a script from standard input without taking it as a job; empty: there is no such command."""
        ...

    def parse_test(self, stderr: str) -> str:
        """What the test says of a script that it does not refuse."""
        ...

    def parse_start(self, verdict: str) -> str:
        """When the job would start, out of what the test says: ``2026-11-22T03:10:00``, the server's time; empty: it does not."""
        ...

    def hosts_source(self, environ: Mapping[str, str]) -> HostSource | None:
        """Inside a job: where its hosts stand; ``None`` elsewhere.  The job script asks the same."""
        ...

    def parse_hosts(self, text: str) -> list[str]:
        """The job's nodes, each once, the one with rank 0 first."""
        ...

    def signal_argv(self, job_id: str, signal: str) -> list[str]:
        """Send a signal ("USR1") to the job's script, which passes it on to the ranks."""
        ...


LOGIN = ("LANG", "LOGNAME", "PATH", "SHELL", "USER")
"""Variables of the submitting shell that a job may have: what a login would have given it, and where programs are.  HOME, which
LSF sets itself, is each scheduler's own matter."""


def asked(scheduler: Scheduler, plan: Plan) -> tuple[str, ...]:
    """The directives of a job, without those that the site's filter does not take; what site and user wrote themselves stays."""
    skipped = set(plan.site.skip_directives)
    return tuple(
        text
        for text in scheduler.directives(plan)
        if text in plan.directives or not skipped.intersection(scheduler.options_of(text))
    )


def of_tasks(tasks: Sequence[JobStatus]) -> JobStatus:
    """How an array stands whose tasks, in their order, stand so: it runs or waits while one does; in the end as its last task."""
    for state in (JobState.RUNNING, JobState.PENDING, JobState.UNKNOWN):
        for task in tasks:
            if task.state is state:
                return task
    return tasks[-1]


def words_of(directive: str) -> list[str]:
    """The words of a directive, as a shell would part them; an unbalanced quote is a character."""
    try:
        return shlex.split(directive)
    except ValueError:
        return directive.split()


def long_options(directive: str) -> list[str]:
    """``--nodes=2 -t10`` -> ``--nodes``, ``-t``: options as getopt_long(3) reads them."""
    words = (word for word in words_of(directive) if word.startswith("-"))
    return [word.partition("=")[0] if word.startswith("--") else word[:2] for word in words]


def unique_words(text: str) -> list[str]:
    """Words in the order in which they first come."""
    return list(dict.fromkeys(text.split()))


def source_in(environ: Mapping[str, str], variable: str) -> HostSource | None:
    """The file that a variable names."""
    return HostSource(file=environ[variable]) if environ.get(variable) else None


def first_document(stdout: str) -> str:
    """The JSON document in an answer before which a site prints a banner.

    Raises:
        ValueError: there is none.
    """
    start = re.search(r"^\s*\{", stdout, re.MULTILINE)
    if start is None:
        raise ValueError(f"no JSON: {stdout.strip()[:200]!r}")
    return stdout[start.start() :]


def without(environ: Mapping[str, str], prefixes: tuple[str, ...], kept: frozenset[str]) -> dict[str, str]:
    """An environment without the variables of an enclosing job."""
    return {name: value for name, value in environ.items() if name in kept or not name.startswith(prefixes)}
