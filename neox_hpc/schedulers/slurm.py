"""Slurm's words: directives, commands, states.  Sources: sbatch(1), squeue(1), sacct(1) of 22.05 to 25.11."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from neox_hpc.schedulers.interface import (
    JOB_NUMBER,
    NODE_NAMES,
    RUN_NAME,
    HostSource,
    JobState,
    JobStatus,
    Pattern,
    long_options,
    of_tasks,
    unique_words,
    without,
)

if TYPE_CHECKING:
    from neox_hpc.plan import Plan

STATES = {
    "PENDING": JobState.PENDING,
    "CONFIGURING": JobState.PENDING,
    "REQUEUED": JobState.PENDING,
    "REQUEUE_HOLD": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "SPECIAL_EXIT": JobState.PENDING,
    "RESV_DEL_HOLD": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "COMPLETING": JobState.RUNNING,
    "SUSPENDED": JobState.RUNNING,
    "STOPPED": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "STAGE_OUT": JobState.RUNNING,
    "RESIZING": JobState.RUNNING,
    "COMPLETED": JobState.DONE,
    "CANCELLED": JobState.CANCELLED,
    "REVOKED": JobState.CANCELLED,
    "TIMEOUT": JobState.TIMEOUT,
    "DEADLINE": JobState.TIMEOUT,
    "FAILED": JobState.FAILED,
    "NODE_FAIL": JobState.FAILED,
    "BOOT_FAIL": JobState.FAILED,
    "LAUNCH_FAILED": JobState.FAILED,
    "RECONFIG_FAIL": JobState.FAILED,
    "OUT_OF_MEMORY": JobState.FAILED,
    "PREEMPTED": JobState.FAILED,
}
"""https://slurm.schedmd.com/job_state_codes.html"""

_ACCOUNT = Pattern(r"[A-Za-z0-9][A-Za-z0-9_.,@+-]{0,63}", "letters, digits and _.,@+-")
_COMMENT = Pattern(r"[A-Za-z0-9_.,:;@+=/ -]{1,200}", "letters, digits, blanks and _.,:;@+=/- (at most 200)")
_PATH = Pattern(
    r"/[A-Za-z0-9_./+=@,:~-]*", "letters, digits and _./+=@,:~- (in --output a % begins a pattern, and a \\ ends patterns)"
)
_ID = re.compile(r"^(?:Submitted batch job )?(\d+)(?:;\S+)?\s*$", re.MULTILINE)
_TASK = re.compile(r"_\[?(\d+)")
"""``7_2``, and ``7_[3-5%1]`` for those that wait."""
_EXIT_CODE = re.compile(r"(\d+):(\d+)")
_OWNED = {
    **dict.fromkeys(("--job-name", "-J"), "--name"),
    **dict.fromkeys(("--account", "-A"), "--account"),
    **dict.fromkeys(("--partition", "-p"), "--queue"),
    "--comment": "comment: in the configuration",
    **dict.fromkeys(("--nodes", "-N"), "--nodes"),
    **dict.fromkeys(
        ("--ntasks", "-n", "--ntasks-per-node", "--ntasks-per-gpu", "--ntasks-per-socket"),
        "--nodes, and --site-set node.gpus or node.cpu_ranks",
    ),
    **dict.fromkeys(("--cpus-per-task", "-c"), "--site-set node.cores"),
    **dict.fromkeys(
        ("--gpus", "-G", "--gpus-per-node", "--gpus-per-task", "--gpus-per-socket", "--gres gpu", "--tres-per-task"),
        "--site-set gpu_directive",
    ),
    "--gpu-bind": "--site-set gpus_visible",
    **dict.fromkeys(("--time", "-t"), "--time"),
    **dict.fromkeys(("--output", "-o", "--error", "-e", "--open-mode"), "--output-dir: all output goes to logs/job.out there"),
    **dict.fromkeys(("--requeue", "--no-requeue"), "--requeue"),
    "--export": "env: in the site file",
    **dict.fromkeys(("--dependency", "-d"), "--after"),
    **dict.fromkeys(("--exclude", "-x"), "--exclude"),
    "--signal": "--signal",
    **dict.fromkeys(("--array", "-a"), "--array"),
    **dict.fromkeys(("--wrap", "--parsable", "--test-only", "--wait", "-W"), "nothing: it is for a submit by hand"),
}
_OVERRIDES = ("SBATCH_", "SLURM_", "SRUN_", "SALLOC_", "SQUEUE_", "SACCT_", "SCANCEL_")


@dataclass(frozen=True)
class Slurm:
    """sbatch, squeue, sacct, scancel."""

    template: str = "slurm.sh.j2"
    takes: frozenset[str] = frozenset({"account", "comment", "queue", "walltime"})
    starts_job: bool = True
    reads_script: bool = False
    doubtful: str = "Socket timed out|Zero Bytes were transmitted"
    """The server was sent the job and is late; https://github.com/sdsc/sdsc-summer-institute-2019/issues/55"""
    runs_on_first_node: bool = True
    name: Pattern = RUN_NAME
    account: Pattern = _ACCOUNT
    account_variables: tuple[str, ...] = ("SBATCH_ACCOUNT", "SLURM_ACCOUNT")
    comment: Pattern = _COMMENT
    path: Pattern = _PATH
    job_id: Pattern = JOB_NUMBER
    nodes: Pattern = NODE_NAMES
    cannot: ClassVar[Mapping[str, str]] = {}
    owned: ClassVar[Mapping[str, str]] = _OWNED
    once: frozenset[str] = frozenset()
    all_memory: str = "--mem=0"

    def options_of(self, directive: str) -> list[str]:
        """Of --gres (or a beginning of it) what it says counts: GPUs, or something that the plan knows nothing of."""
        found = long_options(directive)
        gpus = re.search(r"--gres?[= ](\S*,)?(gres[:/])?gpu\b", directive)
        return ["--gres gpu" if name in ("--gre", "--gres") and gpus else name for name in found]

    def directives(self, plan: Plan) -> tuple[str, ...]:
        """--export=NONE: the job has what a login would have given it, exported functions too (sbatch(1): as by --get-user-env), so
        the script's shell need not be a login shell."""
        gpus = plan.gpus_per_node
        gpu_directive = plan.site.gpu_directive if plan.site.gpu_directive is not None else "--gpus-per-node={gpus}"
        asked = [
            f"--job-name={plan.job_name}",
            plan.account and f"--account={plan.account}",
            plan.queue and f"--partition={plan.queue}",
            plan.comment and f'--comment="{plan.comment}"',  # sbatch takes the quotes away
            f"--nodes={plan.nodes}",
            f"--ntasks-per-node={plan.ranks_per_node}",
            plan.cpus_per_rank and f"--cpus-per-task={plan.cpus_per_rank}",
            gpus and gpu_directive.format(gpus=gpus),
            plan.walltime_s and f"--time={_clock(plan.walltime_s)}",
            plan.after and f"--dependency={','.join(f'after{after.condition}:{after.job_id}' for after in plan.after)}",
            plan.array and f"--array={plan.array.first}-{plan.array.last}%1",
            plan.exclude and f"--exclude={plan.exclude}",
            # B: to the script alone, which passes it on
            plan.early_signal and f"--signal=B:{plan.early_signal.signal}@{plan.early_signal.seconds}",
            *plan.directives,
            f"--output={plan.run_dir}/logs/job.out",
            "--open-mode=append",
            # Slurm's default is to run the script again after a node failure; whether that is worth its hours is not ours to guess.
            "--requeue" if plan.requeue else "--no-requeue",
            "--export=NONE",
        ]
        return tuple(text for text in asked if text)

    def submit_argv(self, script: Path) -> list[str]:
        return ["sbatch", "--parsable", str(script)]

    def submit_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """SBATCH_* overrides directives, and an enclosing job's SLURM_* leaks into the new one; SLURM_CONF finds the server."""
        return without(environ, _OVERRIDES, frozenset({"SLURM_CONF"}))

    def parse_job_id(self, stdout: str) -> str:
        # --parsable prints "id" or "id;cluster"; site banners may come before it
        found = _ID.findall(stdout)
        if not found:
            raise ValueError(f"sbatch printed no job id: {stdout.strip()!r}")
        return str(found[-1])

    def key(self, job_id: str) -> str:
        return job_id

    def status_argvs(self, job_ids: Sequence[str]) -> list[list[str]]:
        """squeue first: it knows the present, and runs where accounting is off; it forgets a job MinJobAge (300 s by default) after
        its end.  sacct asks a database, which lags and can hang, so only for those."""
        jobs = f"--jobs={','.join(job_ids)}"
        return [
            ["squeue", "--noheader", "--states=all", jobs, "--format=%i|%T|%r|%S"],
            ["sacct", "--allocations", "--noheader", "--parsable2", jobs, "--format=JobID,State,ExitCode"],
        ]

    def parse_status(self, stdout: str) -> dict[str, JobStatus]:
        found = (line.strip().split("|") for line in stdout.splitlines() if line.count("|") >= 2)
        jobs: dict[str, dict[int, JobStatus]] = {}
        for job_id, word, detail, *start in found:  # a requeued job: a line per attempt, newest last
            task = _TASK.search(job_id)
            jobs.setdefault(job_id.partition("_")[0], {})[int(task[1]) if task else 0] = _status(word, detail, *start)
        return {job_id: of_tasks([tasks[number] for number in sorted(tasks)]) for job_id, tasks in jobs.items()}

    def is_unknown_job(self, stderr: str) -> bool:
        return "Invalid job id" in stderr  # ESLURM_INVALID_JOB_ID: squeue for a single job that is purged

    def cancel_argv(self, job_id: str) -> list[str]:
        return ["scancel", job_id]

    def signal_argv(self, job_id: str, signal: str) -> list[str]:
        """--batch: to the script alone, which passes it on; otherwise the steps get it twice, or the script not at all."""
        return ["scancel", "--batch", f"--signal={signal}", job_id]

    def test_argv(self) -> list[str]:
        return ["sbatch", "--test-only"]

    def parse_test(self, stderr: str) -> str:
        """``sbatch: Job 7 to start at …``, without the number of a job that is none."""
        lines = [line for line in stderr.splitlines() if line.strip()]
        return re.sub(r"^sbatch: (Job \d+ )?", "", lines[-1]) if lines else ""

    def parse_start(self, verdict: str) -> str:
        found = re.search(r"\bto start at (\d{4}-\d\d-\d\dT[\d:]+)", verdict)
        return found[1] if found else ""

    def hosts_source(self, environ: Mapping[str, str]) -> HostSource | None:
        names = environ.get("SLURM_JOB_NODELIST")
        return HostSource(argv=("scontrol", "show", "hostnames", names)) if names else None

    def parse_hosts(self, text: str) -> list[str]:
        return unique_words(text)


def _status(word: str, detail: str, start: str = "N/A", *_: str) -> JobStatus:
    """Of squeue's state, reason and expected start (what `squeue --start` shows), or of sacct's state and exit code."""
    state = STATES.get(word.split(" ")[0].rstrip("+"), JobState.UNKNOWN)  # "CANCELLED by 1000"
    if code := _EXIT_CODE.fullmatch(detail):
        status, signal = int(code[1]), int(code[2])
        return JobStatus(state, word, 128 + signal if signal else status)
    if state is not JobState.PENDING:
        return JobStatus(state, word)
    waits = [detail] if detail != "None" else []
    waits += [f"starts about {start.replace('T', ' ')}"] if start != "N/A" else []
    return JobStatus(state, word, reason=", ".join(waits))


def _clock(seconds: int) -> str:
    """``D-HH:MM:SS`` or ``HH:MM:SS``: the two forms that no reader and no Slurm can mistake; whole minutes, rounded up."""
    minutes = -(-seconds // 60)
    days, minutes = divmod(minutes, 24 * 60)
    clock = f"{minutes // 60:02d}:{minutes % 60:02d}:00"
    return f"{days}-{clock}" if days else clock
