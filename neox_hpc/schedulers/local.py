"""No scheduler: the job runs on this machine, at once, in a session of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from neox_hpc.schedulers.interface import NOTHING, RUN_NAME, HostSource, JobStatus, Pattern, unique_words

if TYPE_CHECKING:
    from neox_hpc.plan import Plan

_PATH = Pattern(r"/[^\x00-\x1f\x7f]*", "anything but control characters")
_CANNOT = dict.fromkeys(("--after", "--array", "--exclude", "--signal", "--requeue", "--directive"), "no scheduler starts the job")
_KEPT = {"HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH"}
"""What a login would have given the job as well.  LD_LIBRARY_PATH finds the GPU driver's library in some container images; which
devices a shell was allowed (CUDA_VISIBLE_DEVICES) stands in the launch command."""


@dataclass(frozen=True)
class Local:
    """bash and kill: the job's id is its process id."""

    template: str = "local.sh.j2"
    takes: frozenset[str] = frozenset()
    starts_job: bool = False
    reads_script: bool = False
    doubtful: str = ""
    runs_on_first_node: bool = True
    name: Pattern = RUN_NAME
    account: Pattern = NOTHING
    account_variables: tuple[str, ...] = ()
    comment: Pattern = NOTHING
    path: Pattern = _PATH
    job_id: Pattern = NOTHING
    nodes: Pattern = NOTHING
    cannot: ClassVar[Mapping[str, str]] = _CANNOT
    owned: ClassVar[Mapping[str, str]] = {}
    once: frozenset[str] = frozenset()
    all_memory: str = ""

    def options_of(self, directive: str) -> list[str]:
        return []

    def directives(self, plan: Plan) -> tuple[str, ...]:
        return ()

    def submit_argv(self, script: Path) -> list[str]:
        return ["bash", str(script)]

    def submit_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in environ.items() if name in _KEPT or name.startswith("LC_")}

    def parse_job_id(self, stdout: str) -> str:
        if not stdout.strip().isdecimal():
            raise ValueError(f"no process id: {stdout.strip()!r}")
        return stdout.strip()

    def key(self, job_id: str) -> str:
        return job_id

    def status_argvs(self, job_ids: Sequence[str]) -> list[list[str]]:
        """Nobody to ask: whether the process lives is seen in /proc, how it ended in the run's outcome file."""
        return []

    def parse_status(self, stdout: str) -> dict[str, JobStatus]:
        return {}

    def is_unknown_job(self, stderr: str) -> bool:
        return False

    def cancel_argv(self, job_id: str) -> list[str]:
        return ["kill", "-s", "TERM", "--", f"-{job_id}"]  # job.sh leads its process group

    def signal_argv(self, job_id: str, signal: str) -> list[str]:
        return ["kill", "-s", signal, "--", job_id]

    def test_argv(self) -> list[str]:
        return []

    def parse_test(self, stderr: str) -> str:
        return ""

    def parse_start(self, verdict: str) -> str:
        return ""

    def hosts_source(self, environ: Mapping[str, str]) -> HostSource | None:
        return None

    def parse_hosts(self, text: str) -> list[str]:
        return unique_words(text)
