"""What every scheduler answers: questions about text.  Someone else runs the commands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

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
    """Why a pending job waits."""


@dataclass(frozen=True)
class Pattern:
    """What a value of a directive may look like (directives are not shell: no quoting would be right everywhere)."""

    regex: str
    words: str
    """The same for a reader: "letters, digits, …"."""

    def allows(self, text: str) -> bool:
        """Whether the whole text fits."""
        return re.fullmatch(self.regex, text) is not None


RUN_NAME = Pattern(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}", "letters, digits and _.+- (at most 64, the first a letter or digit)")
"""A job's name is also its directory's name."""


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

    def directives(self, plan: Plan) -> tuple[str, ...]:
        """The arguments that ask for the job."""
        ...

    def submit_argv(self, script: Path) -> list[str]: ...

    def submit_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment of the submitting process: nothing in it may change the job."""
        ...

    def parse_job_id(self, stdout: str) -> str:
        """Raises ValueError when there is no id in the text."""
        ...

    def status_argvs(self, job_id: str) -> list[list[str]]:
        """Commands to ask in turn; an error or a ``None`` from :meth:`parse_status` means: ask the next."""
        ...

    def parse_status(self, stdout: str) -> JobStatus | None:
        """``None``: the answer does not hold the job (any more)."""
        ...

    def is_unknown_job(self, stderr: str) -> bool:
        """Whether a failed status command failed because the scheduler holds the job no more (and not because it is down)."""
        ...

    def cancel_argv(self, job_id: str) -> list[str]: ...
