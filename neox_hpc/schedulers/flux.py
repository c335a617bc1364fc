"""Flux' words: directives, commands, states.

Sources: flux-batch(1), flux-jobs(1), flux-job(1), flux-environment(7) of flux-core; its RFCs 19 and 36.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from neox_hpc.schedulers.interface import (
    LOGIN,
    NODE_NAMES,
    NOTHING,
    RUN_NAME,
    HostSource,
    JobState,
    JobStatus,
    Pattern,
    first_document,
    long_options,
    unique_words,
    without,
)

if TYPE_CHECKING:
    from neox_hpc.plan import Plan

STATES = {
    "NEW": JobState.PENDING,
    "DEPEND": JobState.PENDING,
    "PRIORITY": JobState.PENDING,
    "SCHED": JobState.PENDING,
    "RUN": JobState.RUNNING,
    "CLEANUP": JobState.RUNNING,
    "COMPLETED": JobState.DONE,
    "FAILED": JobState.FAILED,
    "CANCELED": JobState.CANCELLED,
    "TIMEOUT": JobState.TIMEOUT,
}
"""States of active jobs and results of inactive ones: flux-jobs(1), JOB STATUS."""

_ACCOUNT = Pattern(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}", "letters, digits and _.+-")
_PATH = Pattern(r"/[A-Za-z0-9_./+=@,:~-]*", "letters, digits and _./+=@,:~- (in --output braces are a pattern)")
_JOB_ID = Pattern(r"[fƒ][1-9A-HJ-NP-Za-km-z]+", "f and letters or digits")
_ID = re.compile(r"^([fƒ][1-9A-HJ-NP-Za-km-z]+)\s*$", re.MULTILINE)
_OWNED = {
    "--job-name": "--name",
    **dict.fromkeys(("--bank", "-B", "--setattr bank"), "--account"),
    **dict.fromkeys(("--queue", "-q"), "--queue"),
    **dict.fromkeys(("--nodes", "-N", "--exclusive", "-x", "--nslots", "-n"), "--nodes"),
    **dict.fromkeys(("--cores-per-slot", "-c", "--gpus-per-slot", "-g"), "--nodes: nodes are taken whole"),
    **dict.fromkeys(("--time-limit", "-t"), "--time"),
    **dict.fromkeys(("--output", "--error"), "--output-dir: all output goes to logs/job.out there"),
    **dict.fromkeys(("--env", "--env-remove", "--env-file"), "env: in the site file"),
    "--dependency": "--after",
    "--requires -host": "--exclude",
    "--signal": "--signal",
    **dict.fromkeys(("--wrap", "--dry-run", "--wait"), "nothing: it is for a submit by hand"),
}
_DIGITS = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_SERVER = frozenset({"FLUX_URI", "FLUX_EXEC_PATH", "FLUX_CONNECTOR_PATH", "FLUX_MODULE_PATH", "FLUX_PMI_LIBRARY_PATH"})


@dataclass(frozen=True)
class Flux:
    """flux batch, flux jobs, flux cancel."""

    template: str = "flux.sh.j2"
    takes: frozenset[str] = frozenset({"account", "queue", "walltime"})
    starts_job: bool = True
    reads_script: bool = False
    doubtful: str = ""
    runs_on_first_node: bool = True
    name: Pattern = RUN_NAME
    account: Pattern = _ACCOUNT
    account_variables: tuple[str, ...] = ()
    comment: Pattern = NOTHING
    path: Pattern = _PATH
    job_id: Pattern = _JOB_ID
    nodes: Pattern = NODE_NAMES
    cannot: ClassVar[Mapping[str, str]] = {
        "--requeue": "Flux does not start a job again",
        "--array": "flux batch has no arrays",
    }
    owned: ClassVar[Mapping[str, str]] = _OWNED
    once: frozenset[str] = frozenset()
    all_memory: str = ""

    def options_of(self, directive: str) -> list[str]:
        """Of --setattr and --requires, what they say counts."""
        found = long_options(directive)
        said = {"--setattr": r"--setattr[= ](system\.)?bank=", "--requires": r"--requires[= ]\S*-host:"}
        full = {"--setattr": "--setattr bank", "--requires": "--requires -host"}
        return [full[name] if name in said and re.search(said[name], directive) else name for name in found]

    def directives(self, plan: Plan) -> tuple[str, ...]:
        """Whole nodes; long options in full, as Flux wants them.  The script's shell is a login shell: `module` is a function, and
        no function comes along."""
        asked = [
            f"--job-name={plan.job_name}",
            plan.account and f"--setattr=bank={plan.account}",
            plan.queue and f"--queue={plan.queue}",
            f"--nodes={plan.nodes}",
            "--exclusive",
            plan.walltime_s and f"--time-limit={plan.walltime_s}s",
            *(f"--dependency=after{after.condition}:{after.job_id}" for after in plan.after),
            plan.exclude and f"--requires=-host:{plan.exclude}",
            plan.early_signal and f"--signal=SIG{plan.early_signal.signal}@{plan.early_signal.seconds}s",
            *plan.directives,
            f"--output={plan.run_dir}/logs/job.out",  # standard error goes there too
            "--env-remove=*",
            *(f"--env={name}" for name in ("HOME", *LOGIN)),
        ]
        return tuple(text for text in asked if text)

    def submit_argv(self, script: Path) -> list[str]:
        return ["flux", "batch", str(script)]

    def submit_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """FLUX_URI names the instance that the user works in, the only way to one inside another scheduler's job; all else of an
        enclosing job goes.  Ids are asked for in ASCII: f2ab, not ƒ2ab."""
        return without(environ, ("FLUX_",), _SERVER) | {"FLUX_F58_FORCE_ASCII": "1"}

    def parse_job_id(self, stdout: str) -> str:
        found = _ID.findall(stdout)
        if not found:
            raise ValueError(f"flux batch printed no job id: {stdout.strip()!r}")
        return f"f{found[-1][1:]}"

    def key(self, job_id: str) -> str:
        """The id as a number, as ``flux jobs --json`` writes it (RFC 19: base 58)."""
        number = 0
        for digit in job_id[1:]:
            number = number * 58 + _DIGITS.index(digit)
        return str(number)

    def status_argvs(self, job_ids: Sequence[str]) -> list[list[str]]:
        return [["flux", "jobs", "--json", *job_ids]]  # in whatever state; beside ids, -a is a warning

    def parse_status(self, stdout: str) -> dict[str, JobStatus]:
        if not stdout.strip():
            return {}
        document = json.loads(first_document(stdout))
        jobs = document.get("jobs", [document])  # one id is answered by its object alone
        return {str(job["id"]): _status(job) for job in jobs if "id" in job}

    def is_unknown_job(self, stderr: str) -> bool:
        said = [line for line in stderr.splitlines() if line.strip()]
        return bool(said) and all(re.search(r"unknown|not found|[Ii]nvalid job ?id", line) for line in said)

    def cancel_argv(self, job_id: str) -> list[str]:
        return ["flux", "cancel", job_id]

    def signal_argv(self, job_id: str, signal: str) -> list[str]:
        """The broker gives it to the script and to the script's own jobs; an older one to those alone (flux-core issue 6729)."""
        return ["flux", "job", "kill", f"--signal=SIG{signal}", job_id]

    def test_argv(self) -> list[str]:
        return ["flux", "batch", "--dry-run"]

    def parse_test(self, stderr: str) -> str:
        return "the directives are right; no queue was asked"

    def parse_start(self, verdict: str) -> str:
        return ""

    def hosts_source(self, environ: Mapping[str, str]) -> HostSource | None:
        return HostSource(argv=("flux", "hostlist", "--expand", "local")) if environ.get("FLUX_URI") else None

    def parse_hosts(self, text: str) -> list[str]:
        return unique_words(text)


def _status(job: Mapping[str, Any]) -> JobStatus:
    word = str(job.get("result") or job.get("state") or "")
    state = STATES.get(word, JobState.UNKNOWN)
    code = job.get("returncode")
    if not isinstance(code, int) or code == -128 or not state.ended:  # -128: cancelled before it started
        sched = (job.get("annotations") or {}).get("sched") or {}
        return JobStatus(state, word, reason=str(sched.get("reason_pending", "")) if state is JobState.PENDING else "")
    return JobStatus(state, word, code if code >= 0 else 128 - code)
