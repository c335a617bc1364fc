"""LSF's words: directives, commands, states; as IBM ships it, and in the easy mode of CSM machines.

Sources: bsub(1), bjobs(1), bkill(1) of LSF 10.1 (https://www.ibm.com/docs/en/spectrum-lsf/10.1.0); for CSM the guide of a machine
that ran it (olcf/olcf-user-docs 2745903, section "Running Jobs", 2026-07-22).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from neox_hpc.schedulers.interface import (
    JOB_NUMBER,
    LOGIN,
    NOTHING,
    RUN_NAME,
    HostSource,
    JobState,
    JobStatus,
    Pattern,
    first_document,
    of_tasks,
    source_in,
    unique_words,
    without,
    words_of,
)

if TYPE_CHECKING:
    from neox_hpc.plan import Plan

STATES = {
    "PEND": JobState.PENDING,
    "PSUSP": JobState.PENDING,
    "WAIT": JobState.PENDING,
    "PROV": JobState.PENDING,
    "RUN": JobState.RUNNING,
    "USUSP": JobState.RUNNING,
    "SSUSP": JobState.RUNNING,
    "DONE": JobState.DONE,
    "EXIT": JobState.FAILED,
}
"""bjobs(1), JOB STATUS.  UNKWN and ZOMBI: the node does not answer."""
REASONS = {
    "TERM_RUNLIMIT": JobState.TIMEOUT,
    "TERM_DEADLINE": JobState.TIMEOUT,
    "TERM_WINDOW": JobState.TIMEOUT,
    "TERM_OWNER": JobState.CANCELLED,
    "TERM_FORCE_OWNER": JobState.CANCELLED,
    "TERM_ADMIN": JobState.CANCELLED,
    "TERM_FORCE_ADMIN": JobState.CANCELLED,
}
"""Why a job has EXITed, where LSF tells it: the table of termination reasons of bacct(1)."""

_ACCOUNT = Pattern(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,58}", "letters, digits and _.@+- (at most 59)")
_PATH = Pattern(r"/[A-Za-z0-9_./+=@,:~-]*", "letters, digits and _./+=@,:~- (in -o a % begins a pattern)")
_NODES = Pattern(r"[A-Za-z0-9][A-Za-z0-9._-]*(,[A-Za-z0-9][A-Za-z0-9._-]*)*", "names of nodes with commas between them")
_OWNED = {
    "-J": "--name, --array",
    "-P": "--account",
    "-q": "--queue",
    **dict.fromkeys(("-n", "-nnodes", "-R span"), "--nodes"),
    "-gpu": "--site-set gpu_directive",
    "-W": "--time",
    **dict.fromkeys(("-o", "-oo", "-e", "-eo"), "--output-dir: all output goes to logs/job.out there"),
    **dict.fromkeys(("-r", "-rn"), "--requeue"),
    **dict.fromkeys(("-env", "-L"), "env: in the site file"),
    "-w": "--after",
    "-R select hname": "--exclude",
    **dict.fromkeys(("-wa", "-wt"), "--signal"),
    **dict.fromkeys(("-I", "-Is", "-Ip", "-K", "-pack"), "nothing: it is for a submit by hand"),
}
_ENDED = {"ok": "done", "any": "ended", "notok": "exit"}
_ID = re.compile(r"^Job <(\d+)> is submitted", re.MULTILINE)


@dataclass(frozen=True)
class Lsf:
    """bsub, bjobs, bkill."""

    template: str = "lsf.sh.j2"
    takes: frozenset[str] = frozenset({"account", "queue", "walltime"})
    starts_job: bool = True
    reads_script: bool = True  # bsub reads directives in its standard input; in a file only where LSB_BSUB_PARSE_SCRIPT is set
    doubtful: str = ""
    runs_on_first_node: bool = True
    name: Pattern = RUN_NAME
    account: Pattern = _ACCOUNT
    account_variables: tuple[str, ...] = ("LSB_DEFAULTPROJECT",)
    comment: Pattern = NOTHING
    path: Pattern = _PATH
    job_id: Pattern = JOB_NUMBER
    nodes: Pattern = _NODES
    cannot: ClassVar[Mapping[str, str]] = {}
    owned: ClassVar[Mapping[str, str]] = _OWNED
    once: frozenset[str] = frozenset()
    all_memory: str = ""

    def options_of(self, directive: str) -> list[str]:
        """Options are whole words, and -R may be written several times: what stands in it counts."""
        found, words = [], words_of(directive)
        for word, following in zip(words, [*words[1:], ""], strict=True):
            if word == "-R":
                found += ["-R span"] if "span[" in following else []
                found += ["-R select hname"] if "hname" in following else []
            elif re.match(r"-[A-Za-z]", word):
                found.append(word)
        return found

    def directives(self, plan: Plan) -> tuple[str, ...]:
        """A slot is a core, so a node's ranks take their cores in slots.

        `-env none` would take PATH too, and with it jsrun and mpirun; LSF sets HOME on the node by itself (bsub -env).  The
        script's shell is a login shell, for `module`.
        """
        asked = [
            f'-J "{plan.job_name}[{plan.array.first}-{plan.array.last}]%1"' if plan.array else f"-J {plan.job_name}",
            plan.account and f"-P {plan.account}",
            plan.queue and f"-q {plan.queue}",
            *self.resources(plan),
            plan.walltime_s and f"-W {_hours_minutes(plan.walltime_s)}",
            plan.after and f'-w "{" && ".join(f"{_ENDED[after.condition]}({after.job_id})" for after in plan.after)}"',
            plan.exclude and f'-R "select[{" && ".join(f"hname!={name}" for name in plan.exclude.split(","))}]"',
            plan.early_signal and f"-wa {plan.early_signal.signal}",
            plan.early_signal and f"-wt {_hours_minutes(plan.early_signal.seconds)}",
            *plan.directives,
            f"-o {plan.run_dir}/logs/job.out",  # appended to; standard error goes there too
            # A queue may run the script again after a node failure; whether that is worth its hours is not ours to guess.
            "-r" if plan.requeue else "-rn",
            f'-env "{", ".join(LOGIN)}"',
        ]
        return tuple(text for text in asked if text)

    def resources(self, plan: Plan) -> tuple[str, ...]:
        """Nodes and what of them."""
        slots = plan.ranks_per_node * (plan.cores_per_rank or 1)
        given = plan.site.gpu_directive
        gpus = '-gpu "num={gpus}"' if given is None else given  # of each host
        asked = [f"-n {plan.nodes * slots}", f'-R "span[ptile={slots}]"', gpus.format(gpus=plan.gpus_per_node)]
        return tuple(text for text in (asked if plan.gpus_per_node else asked[:2]) if text)

    def submit_argv(self, script: Path) -> list[str]:
        return ["bsub"]

    def submit_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """LSB_* sets defaults of bsub and leaks out of an enclosing job, as LS_* does; LSF_* finds programs and server."""
        return without(environ, ("LSB_", "BSUB_", "LS_", "JSM_", "JSRUN_"), frozenset())

    def parse_job_id(self, stdout: str) -> str:
        found = _ID.findall(stdout)
        if not found:
            raise ValueError(f"bsub printed no job id: {stdout.strip()!r}")
        return str(found[-1])

    def key(self, job_id: str) -> str:
        return job_id

    def status_argvs(self, job_ids: Sequence[str]) -> list[list[str]]:
        return [["bjobs", "-o", "jobid jobindex stat exit_code exit_reason pend_reason", "-json", *job_ids]]

    def parse_status(self, stdout: str) -> dict[str, JobStatus]:
        if not stdout.strip():
            return {}
        records = json.loads(first_document(stdout), strict=False).get("RECORDS", [])
        jobs: dict[str, dict[int, JobStatus]] = {}
        for record in records:
            if "JOBID" in record and "ERROR" not in record:
                index = str(record.get("JOBINDEX", ""))
                jobs.setdefault(str(record["JOBID"]), {})[int(index) if index.isdecimal() else 0] = _status(record)
        return {job_id: of_tasks([tasks[number] for number in sorted(tasks)]) for job_id, tasks in jobs.items()}

    def is_unknown_job(self, stderr: str) -> bool:
        said = [line for line in stderr.splitlines() if line.strip()]
        return all(re.match(r"Job <\S+> is not found", line) for line in said)  # with -json it stands in the answer

    def cancel_argv(self, job_id: str) -> list[str]:
        return ["bkill", job_id]

    def signal_argv(self, job_id: str, signal: str) -> list[str]:
        return ["bkill", "-s", signal, job_id]

    def test_argv(self) -> list[str]:
        return []

    def parse_test(self, stderr: str) -> str:
        return ""

    def parse_start(self, verdict: str) -> str:
        return ""

    def hosts_source(self, environ: Mapping[str, str]) -> HostSource | None:
        return source_in(environ, "LSB_DJOB_HOSTFILE")

    def parse_hosts(self, text: str) -> list[str]:
        return unique_words(text)


@dataclass(frozen=True)
class LsfCsm(Lsf):
    """LSF in the easy mode of CSM: whole nodes are counted, and the script runs on a launch node beside them."""

    template: str = "lsf-csm.sh.j2"
    reads_script: bool = False
    runs_on_first_node: bool = False
    cannot: ClassVar[Mapping[str, str]] = {"--exclude": "easy mode takes no -R"}
    once: frozenset[str] = frozenset({"-alloc_flags"})

    def resources(self, plan: Plan) -> tuple[str, ...]:
        """Easy mode refuses -n, -R and -gpu: a node is whole."""
        return (f"-nnodes {plan.nodes}",)

    def submit_argv(self, script: Path) -> list[str]:
        return ["bsub", str(script)]

    def parse_hosts(self, text: str) -> list[str]:
        """Without the launch node, told by its name; sorted: rank 0 runs on the first name."""
        return sorted(name for name in unique_words(text) if not name.startswith(("batch", "login")))


def _status(record: Mapping[str, Any]) -> JobStatus:
    word = str(record.get("STAT", ""))
    state = STATES.get(word, JobState.UNKNOWN)
    code = str(record.get("EXIT_CODE", ""))
    reason = re.match(r"TERM_\w+", str(record.get("EXIT_REASON", "")))
    if state is JobState.FAILED and reason is not None:
        state, word = REASONS.get(reason[0], state), f"{word}, {reason[0]}"
    waits = str(record.get("PEND_REASON", "")).strip() if state is JobState.PENDING else ""
    return JobStatus(state, word, int(code) if code.isdecimal() else 0 if state is JobState.DONE else None, waits)


def _hours_minutes(seconds: int) -> str:
    """``H:MM``, rounded up: LSF knows no seconds, and ``30:00`` is 30 hours."""
    minutes = -(-seconds // 60)
    return f"{minutes // 60}:{minutes % 60:02d}"
