"""PBS' words: directives, commands, states.  Sources: qsub(1B), qstat(1B), qdel(1B), qsig(1B), job.h of OpenPBS."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from neox_hpc.schedulers.interface import (
    NOTHING,
    HostSource,
    JobState,
    JobStatus,
    Pattern,
    first_document,
    source_in,
    unique_words,
    without,
    words_of,
)

if TYPE_CHECKING:
    from neox_hpc.plan import Plan

STATES = {
    "Q": JobState.PENDING,
    "H": JobState.PENDING,
    "W": JobState.PENDING,
    "T": JobState.PENDING,
    "R": JobState.RUNNING,
    "E": JobState.RUNNING,
    "B": JobState.RUNNING,
    "S": JobState.RUNNING,
    "U": JobState.RUNNING,
}
"""qstat(1B).  F and X have ended: Exit_status says how; M went to a server that is not asked."""
WALLTIME_EXCEEDED = -29
"""Exit_status JOB_EXEC_KILL_WALLTIME; all negative ones are PBS' own."""

_NAME = Pattern(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,14}", "letters, digits and _.+- (at most 15, the first a letter or digit)")
_ACCOUNT = Pattern(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}", "letters, digits and _.+-")
_PATH = Pattern(r"/[A-Za-z0-9_./+=@~-]*", "letters, digits and _./+=@~- (in -o a : ends a host's name)")
_JOB_ID = Pattern(r"\d+(\[\])?(\.[A-Za-z0-9.-]+)?", "a number ([] for an array) and, after a dot, the server's name")
_ID = re.compile(r"^(\d+(?:\[\d*\])?\.\S+)\s*$", re.MULTILINE)
_OWNED = {
    "-N": "--name",
    "-A": "--account",
    "-q": "--queue",
    **dict.fromkeys(("-l select", "-l nodes", "-l ncpus", "-l mpiprocs", "-l ngpus"), "--nodes, and --site-set gpu_directive"),
    "-l walltime": "--time",
    **dict.fromkeys(("-o", "-e", "-j", "-k", "-R"), "--output-dir: all output goes to logs/job.out there"),
    "-S": "nothing: the script is bash's",
    "-r": "--requeue",
    **dict.fromkeys(("-V", "-v"), "env: in the site file"),
    "-W depend": "--after",
    **dict.fromkeys(("-J", "-W max_run_subjobs"), "--array"),
    **dict.fromkeys(("-C", "-I", "-X", "-z", "-W block"), "nothing: it is for a submit by hand"),
}
_CANNOT = {
    "--exclude": "qsub cannot leave nodes out by name",
    "--signal": "PBS sends no signal ahead of the limit",
}
_SERVER = frozenset({"PBS_CONF_FILE", "PBS_DEFAULT", "PBS_EXEC", "PBS_HOME", "PBS_PRIMARY", "PBS_SECONDARY", "PBS_SERVER"})
_UNKNOWN = re.compile(r"qstat: (Unknown Job Id|\S+ Job has finished|\S+ Unknown Job Id)")


@dataclass(frozen=True)
class Pbs:
    """qsub, qstat, qdel, qsig."""

    template: str = "pbs.sh.j2"
    takes: frozenset[str] = frozenset({"account", "queue", "walltime"})
    starts_job: bool = True
    reads_script: bool = False
    doubtful: str = ""
    runs_on_first_node: bool = True
    name: Pattern = _NAME
    account: Pattern = _ACCOUNT
    account_variables: tuple[str, ...] = ()
    comment: Pattern = NOTHING
    path: Pattern = _PATH
    job_id: Pattern = _JOB_ID
    nodes: Pattern = NOTHING
    cannot: ClassVar[Mapping[str, str]] = _CANNOT
    owned: ClassVar[Mapping[str, str]] = _OWNED
    once: frozenset[str] = frozenset()
    all_memory: str = ""

    def options_of(self, directive: str) -> list[str]:
        """``-l select=2,walltime=1:00`` -> ``-l select``, ``-l walltime``; so for -W."""
        found, words = [], words_of(directive)
        for word, following in zip(words, [*words[1:], ""], strict=True):
            if word[:2] in ("-l", "-W"):
                parts = re.split(r",(?=\w+=)", word[2:] or following)
                found += [f"{word[:2]} {part.partition('=')[0]}" for part in parts]
            elif word.startswith("-"):
                found.append(word[:2])
        return found

    def directives(self, plan: Plan) -> tuple[str, ...]:
        """No -V: the job inherits nothing; PBS starts it in the home directory, in a login shell of -S.  That one runs the script
        as a program, which its functions do not reach: for `module` the script's shell is a login shell too."""
        placed = any(re.match(r"-l\s*place=", text) for text in plan.directives)
        asked = [
            f"-N {plan.job_name}",
            plan.account and f"-A {plan.account}",
            plan.queue and f"-q {plan.queue}",
            f"-l select={_select(plan)}",
            not placed and plan.counts == "nodes" and "-l place=scatter",  # else PBS may put several chunks on one node
            plan.walltime_s and f"-l walltime={_clock(plan.walltime_s)}",
            plan.after and f"-W depend={','.join(f'after{after.condition}:{after.job_id}' for after in plan.after)}",
            plan.array and f"-J {plan.array.first}-{plan.array.last}",
            plan.array and "-W max_run_subjobs=1",  # `-J 1-5%1` only in newer ones
            *plan.directives,
            "-S /bin/bash",
            # of a task, whose path may get its number: the script itself writes on in job.out
            f"-o {plan.run_dir}/logs/task^array_index^.out" if plan.array else f"-o {plan.run_dir}/logs/job.out",
            "-j oe",
            "-k doe",  # written in place while the job runs; PBS' default is a copy after its end
            # PBS' default is to run the script again after a node failure; whether that is worth its hours is not ours to guess.
            "-r y" if plan.requeue or plan.array else "-r n",  # qsub takes no array that is not rerunnable
        ]
        return tuple(text for text in asked if text)

    def submit_argv(self, script: Path) -> list[str]:
        return ["qsub", str(script)]

    def submit_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """An enclosing job's PBS_* leak into the new one, and PBS_DPREFIX hides its directives; some find the server."""
        return without(environ, ("PBS_",), _SERVER)

    def parse_job_id(self, stdout: str) -> str:
        found = _ID.findall(stdout)
        if not found:
            raise ValueError(f"qsub printed no job id: {stdout.strip()!r}")
        return str(found[-1])

    def key(self, job_id: str) -> str:
        """Its number: qsub and qstat may write the server's name in different lengths."""
        return job_id.partition(".")[0]

    def status_argvs(self, job_ids: Sequence[str]) -> list[list[str]]:
        """-x: jobs that have ended too, where the server keeps them."""
        return [["qstat", "-x", "-f", "-F", "json", *job_ids]]

    def parse_status(self, stdout: str) -> dict[str, JobStatus]:
        if not stdout.strip():  # no job of the list is known
            return {}
        document = first_document(stdout)
        try:
            found = json.loads(document, strict=False).get("Jobs", {})
        except ValueError:
            found = _scan(document)
        return {self.key(job_id): _status(facts) for job_id, facts in found.items()}

    def is_unknown_job(self, stderr: str) -> bool:
        said = [line for line in stderr.splitlines() if line.strip()]
        return bool(said) and all(_UNKNOWN.match(line) for line in said)

    def cancel_argv(self, job_id: str) -> list[str]:
        return ["qdel", job_id]

    def signal_argv(self, job_id: str, signal: str) -> list[str]:
        return ["qsig", "-s", f"SIG{signal}", job_id]

    def test_argv(self) -> list[str]:
        return []

    def parse_test(self, stderr: str) -> str:
        return ""

    def parse_start(self, verdict: str) -> str:
        return ""

    def hosts_source(self, environ: Mapping[str, str]) -> HostSource | None:
        return source_in(environ, "PBS_NODEFILE")

    def parse_hosts(self, text: str) -> list[str]:
        return unique_words(text)


def _select(plan: Plan) -> str:
    """Chunks: a node each, or a GPU each where the queue counts those (its server knows what goes with one)."""
    return str(plan.nodes * plan.gpus_per_node) if plan.counts == "gpus" else f"{plan.nodes}{_chunk(plan)}"


def _chunk(plan: Plan) -> str:
    """What a chunk of the selection holds: a node's part.  Nothing is asked for that is not known."""
    cores = plan.cpus_per_rank and plan.cpus_per_rank * plan.ranks_per_node
    given = plan.site.gpu_directive
    gpus = "ngpus={gpus}" if given is None else given
    parts = (
        cores and f"ncpus={cores}",
        f"mpiprocs={plan.ranks_per_node}",
        plan.gpus_per_node and gpus.format(gpus=plan.gpus_per_node),
    )
    return "".join(f":{part}" for part in parts if part)


def _scan(document: str) -> dict[str, dict[str, str]]:
    """The few attributes of each job that are needed, out of what is nearly JSON: qstat writes variables of the submitting shell
    with wrong escapes and numbers like 005 (openpbs issues 1255 and 2541).

    Raises:
        ValueError: there is no job in it.
    """
    starts = [*re.finditer(r'"(\d+(?:\[\d*\])?\.[^"\s]+)"\s*:\s*\{', document)]
    ends = [*(start.start() for start in starts[1:]), len(document)]
    found = {start[1]: document[start.end() : end] for start, end in zip(starts, ends, strict=True)}
    if not any('"job_state"' in text for text in found.values()):
        raise ValueError(f"no jobs: {document[:200]!r}")
    wanted = re.compile(r'"(job_state|Exit_status|comment)"\s*:\s*"?([^"\n]*?)"?\s*[,}\n]')
    return {job_id: dict(wanted.findall(text)[::-1]) for job_id, text in found.items()}  # the first of each counts


def _status(facts: Mapping[str, Any]) -> JobStatus:
    word = str(facts.get("job_state", ""))
    if word not in ("F", "X"):
        state = STATES.get(word, JobState.UNKNOWN)
        return JobStatus(state, word, reason=str(facts.get("comment", "")) if state is JobState.PENDING else "")
    written = str(facts.get("Exit_status", ""))
    if not re.fullmatch(r"-?\d+", written):
        return JobStatus(JobState.CANCELLED, f"{word}, never ran")
    code, word = int(written), f"{word}, Exit_status {written}"
    if code < 0:
        return JobStatus(JobState.TIMEOUT if code == WALLTIME_EXCEEDED else JobState.FAILED, word)
    if code >= 256:  # 256 + the signal that ended the shell: TERM comes from qdel, or from the limit of older servers
        return JobStatus(JobState.CANCELLED if code == 256 + 15 else JobState.FAILED, word, code - 128)
    return JobStatus(JobState.FAILED if code else JobState.DONE, word, code)


def _clock(seconds: int) -> str:
    """``HH:MM:SS``; hours may exceed 24."""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
