"""Schedulers are text in, text out; the texts here are what the programs print (Slurm 22.05 on Debian 12, and the manuals)."""

from __future__ import annotations

from pathlib import Path

import pytest

from neox_hpc.schedulers import SCHEDULERS, JobState, JobStatus
from neox_hpc.schedulers.slurm import STATES
from tests.planning import plan, site, slurm

SLURM, LOCAL = SCHEDULERS["slurm"], SCHEDULERS["local"]
TEMPLATES = Path(__file__).parent.parent / "neox_hpc" / "templates"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_has_its_template(name: str) -> None:
    assert (TEMPLATES / SCHEDULERS[name].template).is_file()


def test_slurm_directives_of_a_plan() -> None:
    assert SLURM.directives(plan(site("frontier"), nodes=100, account="lab42", walltime_s=5400)) == (
        "--job-name=small",
        "--account=lab42",
        "--partition=batch",
        "--nodes=100",
        "--ntasks-per-node=8",
        "--cpus-per-task=7",
        "--gpus-per-node=8",
        "--time=01:30:00",
        "-C nvme",
        "--network=disable_rdzv_get",
        "--output=/scratch/runs/small/logs/job.out",
        "--open-mode=append",
        "--no-requeue",
        "--export=NONE",
    )


def test_a_comment_may_hold_blanks() -> None:
    assert '--comment="a b"' in SLURM.directives(plan(slurm(), keys={"comment": "a b"}))


def test_slurm_asks_for_nothing_that_is_not_known() -> None:
    directives = SLURM.directives(plan(site("slurm", "node.gpus=0", "software.python=/p")))
    assert [word.partition("=")[0] for word in directives] == [
        *("--job-name", "--nodes", "--ntasks-per-node", "--output", "--open-mode", "--no-requeue", "--export"),
    ]


@pytest.mark.parametrize(("fact", "asked"), [("--gres=gpu:{gpus}", ["--gres=gpu:4"]), ("", [])])
def test_a_site_says_how_gpus_are_asked_for(fact: str, asked: list[str]) -> None:
    directives = SLURM.directives(plan(slurm(f"gpu_directive={fact}")))
    assert [word for word in directives if "gpu" in word] == asked


@pytest.mark.parametrize(
    ("seconds", "written"), [(60, "00:01:00"), (61, "00:02:00"), (5400, "01:30:00"), (86400, "1-00:00:00"), (129600, "1-12:00:00")]
)
def test_slurm_walltime_is_in_its_unmistakable_form(seconds: int, written: str) -> None:
    assert f"--time={written}" in SLURM.directives(plan(slurm(), walltime_s=seconds))


@pytest.mark.parametrize(
    "text",
    [
        "4242\n",
        "4242;cluster\n",
        "Submitted batch job 4242\n",
        "Welcome to X\n*** 12 days left ***\n\n4242\n",
        "Submitted batch job 4242\r\n",
    ],
)
def test_slurm_job_id_is_found_behind_banners(text: str) -> None:
    assert SLURM.parse_job_id(text) == "4242"


@pytest.mark.parametrize("text", ["", "sbatch: error: Batch job submission failed\n", "job 4242 maybe\n"])
def test_slurm_without_a_job_id_says_what_it_printed(text: str) -> None:
    with pytest.raises(ValueError, match="no job id"):
        SLURM.parse_job_id(text)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("PENDING|Resources\n", JobStatus(JobState.PENDING, "PENDING", reason="Resources")),
        ("PENDING|None\n", JobStatus(JobState.PENDING, "PENDING")),
        ("RUNNING|None\n", JobStatus(JobState.RUNNING, "RUNNING")),
        ("COMPLETED|0:0\n", JobStatus(JobState.DONE, "COMPLETED", 0)),
        ("FAILED|2:0\n", JobStatus(JobState.FAILED, "FAILED", 2)),
        ("FAILED|0:9\n", JobStatus(JobState.FAILED, "FAILED", 137)),
        ("FAILED|NonZeroExitCode\n", JobStatus(JobState.FAILED, "FAILED")),
        ("CANCELLED by 1000|0:15\n", JobStatus(JobState.CANCELLED, "CANCELLED by 1000", 143)),
        ("CANCELLED+|0:15\n", JobStatus(JobState.CANCELLED, "CANCELLED+", 143)),
        ("TIMEOUT|0:0\n", JobStatus(JobState.TIMEOUT, "TIMEOUT", 0)),
        ("NODE_FAIL|1:0\nCOMPLETED|0:0\n", JobStatus(JobState.DONE, "COMPLETED", 0)),
        ("a banner\nRUNNING|None\n", JobStatus(JobState.RUNNING, "RUNNING")),
        ("EVAPORATED|0:0\n", JobStatus(JobState.UNKNOWN, "EVAPORATED", 0)),
        ("\n", None),
    ],
)
def test_slurm_status_is_read(text: str, status: JobStatus | None) -> None:
    assert SLURM.parse_status(text) == status


def test_slurm_states_that_have_ended_do_not_wait_for_ever() -> None:
    ended = {word for word, state in STATES.items() if state.ended}
    assert {"COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "CANCELLED"} <= ended
    assert not ended & {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED"}


def test_slurm_tells_an_unknown_job_from_a_silent_server() -> None:
    assert SLURM.is_unknown_job("slurm_load_jobs error: Invalid job id specified\n")
    assert not SLURM.is_unknown_job("slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n")


def test_slurm_commands() -> None:
    assert SLURM.submit_argv(Path("/r/job.sh")) == ["sbatch", "--parsable", "/r/job.sh"]
    assert SLURM.cancel_argv("4242") == ["scancel", "4242"]
    assert [argv[0] for argv in SLURM.status_argvs("4242")] == ["squeue", "sacct"]
    assert all("--jobs=4242" in argv for argv in SLURM.status_argvs("4242"))


def test_slurm_submits_without_what_would_override_directives() -> None:
    hostile = {"SBATCH_JOB_NAME": "x", "SLURM_JOB_ID": "1", "SRUN_CPUS_PER_TASK": "9", "SLURM_CLUSTERS": "other"}
    kept = {"PATH": "/bin", "SLURM_CONF": "/etc/slurm.conf", "HOME": "/home/a", "FOO": "1"}
    assert SLURM.submit_environment(hostile | kept) == kept


def test_local_job_does_not_inherit_the_shell() -> None:
    hostile = {"FOO": "1", "RANK": "3", "MASTER_PORT": "1", "PYTHONPATH": "/x", "SLURM_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": "1"}
    kept = {"PATH": "/bin", "HOME": "/home/a", "LANG": "C", "LC_ALL": "C", "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64"}
    assert LOCAL.submit_environment(hostile | kept) == kept


def test_local_job_is_the_script_itself() -> None:
    assert LOCAL.starts_job is False
    assert LOCAL.submit_argv(Path("/r/job.sh")) == ["bash", "/r/job.sh"]
    assert LOCAL.parse_job_id("77\n") == "77"
    assert LOCAL.cancel_argv("77") == ["kill", "-s", "TERM", "--", "-77"]


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(
    "text", ["a b", "$(id)", "a;b", "a`b`", 'a"b', "a'b", "a\nb", "a\\b", "../a", "-x", "", "a/b", "a#b", "%j", "ünï", "x" * 65]
)
def test_no_scheduler_takes_a_name_with_shell_characters(name: str, text: str) -> None:
    assert not SCHEDULERS[name].name.allows(text)
    assert text == "a/b" or name == "local" or not SCHEDULERS[name].account.allows(text)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_usual_names_are_taken(name: str) -> None:
    assert all(SCHEDULERS[name].name.allows(text) for text in ("20B", "pythia-160M", "run_1.2", "a+b"))


@pytest.mark.parametrize("text", ["/a b", "/a%j", "/a\\b", "/a'b", "relative", "/a\nb", "/a#b"])
def test_slurm_takes_no_path_that_its_output_directive_would_read_otherwise(text: str) -> None:
    assert not SLURM.path.allows(text)
