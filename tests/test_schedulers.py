"""Schedulers are text in, text out; the texts here are what the programs print (Slurm 22.05 on Debian 12, and the manuals)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from neox_hpc.plan import Plan
from neox_hpc.schedulers import SCHEDULERS, After, Chain, EarlySignal, JobState, JobStatus, flux, lsf, pbs, slurm
from tests.planning import plan, scheduled, site
from tests.planning import slurm as slurm_site

SLURM, PBS, LSF, CSM, FLUX, LOCAL = (SCHEDULERS[name] for name in ("slurm", "pbs", "lsf", "lsf-csm", "flux", "local"))
QUEUED = [name for name, scheduler in SCHEDULERS.items() if scheduler.starts_job]
TEMPLATES = Path(__file__).parent.parent / "neox_hpc" / "templates"


def job(scheduler: str, *sets: str, nodes: int = 3, walltime_s: int | None = 5400) -> Plan:
    """Three nodes of four GPUs and 64 cores for an hour and a half."""
    return plan(scheduled(scheduler, *sets), nodes=nodes, walltime_s=walltime_s, account="lab42", queue="gpu")


# What is asked for ------------------------------------------------------------------------------------------------------------


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


def test_pbs_directives_of_a_plan() -> None:
    assert PBS.directives(job("pbs", 'directives=["-l filesystems=home:eagle"]')) == (
        "-N small",
        "-A lab42",
        "-q gpu",
        "-l select=3:ncpus=64:mpiprocs=4:ngpus=4",
        "-l place=scatter",
        "-l walltime=01:30:00",
        "-l filesystems=home:eagle",
        "-S /bin/bash",
        "-o /scratch/runs/small/logs/job.out",
        "-j oe",
        "-k doe",
        "-r n",
    )


def test_lsf_directives_of_a_plan() -> None:
    assert LSF.directives(job("lsf")) == (
        "-J small",
        "-P lab42",
        "-q gpu",
        "-n 192",
        '-R "span[ptile=64]"',
        '-gpu "num=4"',
        "-W 1:30",
        "-o /scratch/runs/small/logs/job.out",
        "-rn",
        '-env "LANG, LOGNAME, PATH, SHELL, USER"',
    )


def test_easy_mode_of_lsf_counts_nodes_and_nothing_in_them() -> None:
    asked = CSM.directives(job("lsf-csm", 'directives=["-alloc_flags \\"gpumps smt1\\""]'))
    assert "-nnodes 3" in asked and '-alloc_flags "gpumps smt1"' in asked
    assert not [text for text in asked if text.split()[0] in ("-n", "-R", "-gpu")]


def test_flux_directives_of_a_plan() -> None:
    assert FLUX.directives(job("flux")) == (
        "--job-name=small",
        "--setattr=bank=lab42",
        "--queue=gpu",
        "--nodes=3",
        "--exclusive",
        "--time-limit=5400s",
        "--output=/scratch/runs/small/logs/job.out",
        "--env-remove=*",
        *(f"--env={name}" for name in ("HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER")),
    )


def test_a_comment_may_hold_blanks() -> None:
    assert '--comment="a b"' in SLURM.directives(plan(slurm_site(), keys={"comment": "a b"}))


def test_slurm_asks_for_nothing_that_is_not_known() -> None:
    directives = SLURM.directives(plan(site("slurm", "node.gpus=0", "software.python=/p")))
    assert [word.partition("=")[0] for word in directives] == [
        *("--job-name", "--nodes", "--ntasks-per-node", "--output", "--open-mode", "--no-requeue", "--export"),
    ]


def test_the_others_ask_for_nothing_that_is_not_known() -> None:
    def bare(name: str) -> tuple[str, ...]:
        where = site("slurm", f"scheduler={name}", "launcher=mpich", "node.gpus=0", "node.cpu_ranks=2", "software.python=/p")
        return SCHEDULERS[name].directives(plan(where, nodes=3))

    assert "-l select=3:mpiprocs=2" in bare("pbs")
    assert bare("lsf")[1:3] == ("-n 6", '-R "span[ptile=2]"')
    for name in QUEUED:
        asked = " ".join(bare(name))
        assert not [
            word
            for word in ("gpu", "-A ", "-P ", "-q ", "account", "bank", "--queue", "partition", "walltime", "-W", "time")
            if word in asked
        ]


@pytest.mark.parametrize(
    ("scheduler", "fact", "asked"),
    [
        ("slurm", "--gres=gpu:{gpus}", "--gres=gpu:4"),
        ("slurm", "", None),
        ("pbs", "gpus={gpus}", "-l select=3:ncpus=64:mpiprocs=4:gpus=4"),
        ("pbs", "", "-l select=3:ncpus=64:mpiprocs=4"),
        ("lsf", '-gpu "num={gpus}:mode=shared"', '-gpu "num=4:mode=shared"'),
        ("lsf", "", None),
    ],
)
def test_a_site_says_how_gpus_are_asked_for(scheduler: str, fact: str, asked: str | None) -> None:
    directives = SCHEDULERS[scheduler].directives(job(scheduler, f"gpu_directive={fact}"))
    assert asked in directives if asked else not [text for text in directives if "gpus" in text or "-gpu" in text]


@pytest.mark.parametrize(
    ("seconds", "slurm_clock", "pbs_clock", "lsf_clock", "flux_clock"),
    [
        (60, "00:01:00", "00:01:00", "0:01", "60s"),
        (61, "00:02:00", "00:01:01", "0:02", "61s"),
        (1800, "00:30:00", "00:30:00", "0:30", "1800s"),
        (5400, "01:30:00", "01:30:00", "1:30", "5400s"),
        (86400, "1-00:00:00", "24:00:00", "24:00", "86400s"),
        (129600, "1-12:00:00", "36:00:00", "36:00", "129600s"),
    ],
)
def test_walltime_is_in_the_form_that_its_scheduler_cannot_mistake(
    seconds: int, slurm_clock: str, pbs_clock: str, lsf_clock: str, flux_clock: str
) -> None:
    asked = {name: SCHEDULERS[name].directives(job(name, walltime_s=seconds)) for name in QUEUED}
    assert f"--time={slurm_clock}" in asked["slurm"]
    assert f"-l walltime={pbs_clock}" in asked["pbs"]
    assert f"-W {lsf_clock}" in asked["lsf"] and f"-W {lsf_clock}" in asked["lsf-csm"]
    assert f"--time-limit={flux_clock}" in asked["flux"]


def test_a_pbs_site_may_place_chunks_itself() -> None:
    asked = PBS.directives(job("pbs", 'directives=["-l place=scatter:excl"]'))
    assert [text for text in asked if "place" in text] == ["-l place=scatter:excl"]


# What is answered -------------------------------------------------------------------------------------------------------------

SUBMITTED = [
    ("slurm", "4242\n", "4242"),
    ("slurm", "4242;cluster\n", "4242"),
    ("slurm", "Submitted batch job 4242\n", "4242"),
    ("slurm", "Welcome to X\n*** 12 days left ***\n\n4242\n", "4242"),
    ("slurm", "Submitted batch job 4242\r\n", "4242"),
    ("pbs", "4242.pbs-server-01.example.gov\n", "4242.pbs-server-01.example.gov"),
    ("pbs", "Auth: OK\n\n4242.pbs\n", "4242.pbs"),
    ("lsf", "Job <4242> is submitted to queue <normal>.\n", "4242"),
    ("lsf", "MEMLIMIT: 2 GB\nJob <4242> is submitted to default queue <normal>.\n", "4242"),
    ("lsf-csm", "Job <4242> is submitted to default queue <batch>.\n", "4242"),
    ("flux", "f2ab\n", "f2ab"),
    ("flux", "ƒM7Zq9AKHno\n", "fM7Zq9AKHno"),
    ("flux", "hello from the site\nƒ2ab\n", "f2ab"),
]


@pytest.mark.parametrize(("name", "text", "job_id"), SUBMITTED)
def test_job_id_is_found_behind_banners(name: str, text: str, job_id: str) -> None:
    assert SCHEDULERS[name].parse_job_id(text) == job_id


@pytest.mark.parametrize("name", QUEUED)
@pytest.mark.parametrize("text", ["", "error: Batch job submission failed\n", "job 4242 maybe\n", "qsub: Job rejected by server\n"])
def test_without_a_job_id_it_is_said_what_was_printed(name: str, text: str) -> None:
    with pytest.raises(ValueError, match="no job id"):
        SCHEDULERS[name].parse_job_id(text)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("7|PENDING|Resources\n", JobStatus(JobState.PENDING, "PENDING", reason="Resources")),
        ("7|PENDING|None\n", JobStatus(JobState.PENDING, "PENDING")),
        (
            "7|PENDING|Priority|2026-11-22T03:10:00\n",
            JobStatus(JobState.PENDING, "PENDING", reason="Priority, starts about 2026-11-22 03:10:00"),
        ),
        ("7|PENDING|Dependency|N/A\n", JobStatus(JobState.PENDING, "PENDING", reason="Dependency")),
        ("7|RUNNING|None|2026-11-22T03:10:00\n", JobStatus(JobState.RUNNING, "RUNNING")),
        ("7|RUNNING|None\n", JobStatus(JobState.RUNNING, "RUNNING")),
        ("7|COMPLETED|0:0\n", JobStatus(JobState.DONE, "COMPLETED", 0)),
        ("7|FAILED|2:0\n", JobStatus(JobState.FAILED, "FAILED", 2)),
        ("7|FAILED|0:9\n", JobStatus(JobState.FAILED, "FAILED", 137)),
        ("7|FAILED|NonZeroExitCode\n", JobStatus(JobState.FAILED, "FAILED")),
        ("7|CANCELLED by 1000|0:15\n", JobStatus(JobState.CANCELLED, "CANCELLED by 1000", 143)),
        ("7|CANCELLED+|0:15\n", JobStatus(JobState.CANCELLED, "CANCELLED+", 143)),
        ("7|TIMEOUT|0:0\n", JobStatus(JobState.TIMEOUT, "TIMEOUT", 0)),
        ("7|NODE_FAIL|1:0\n7|COMPLETED|0:0\n", JobStatus(JobState.DONE, "COMPLETED", 0)),
        ("7_2|RUNNING|None\n7_[3-5%1]|PENDING|JobArrayTaskLimit\n7_1|FAILED|1:0\n", JobStatus(JobState.RUNNING, "RUNNING")),
        (
            "7_[2-5%1]|PENDING|JobArrayTaskLimit\n7_1|COMPLETED|0:0\n",
            JobStatus(JobState.PENDING, "PENDING", reason="JobArrayTaskLimit"),
        ),
        ("7_10|COMPLETED|0:0\n7_9|TIMEOUT|0:0\n7_1|TIMEOUT|0:0\n", JobStatus(JobState.DONE, "COMPLETED", 0)),
        ("a banner\n7|RUNNING|None\n", JobStatus(JobState.RUNNING, "RUNNING")),
        ("7|EVAPORATED|0:0\n", JobStatus(JobState.UNKNOWN, "EVAPORATED", 0)),
        ("\n", None),
    ],
)
def test_slurm_status_is_read(text: str, status: JobStatus | None) -> None:
    assert SLURM.parse_status(text).get("7") == status


def qstat(job_id: str, facts: str) -> str:
    """As OpenPBS 23 prints one job, a few of its attributes left out."""
    return f"""{{
    "timestamp":1700000000,
    "pbs_version":"23.06.06",
    "pbs_server":"pbs",
    "Jobs":{{
        "{job_id}":{{
            "Job_Name":"small",
            "Variable_List":{{"PBS_O_HOME":"/home/ada","PROMPT":"a\tb"}},
            {facts}
        }}
    }}
}}
"""


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        (
            '"job_state":"Q","comment":"Not Running: Insufficient amount of resource: ngpus"',
            JobStatus(JobState.PENDING, "Q", reason="Not Running: Insufficient amount of resource: ngpus"),
        ),
        ('"job_state":"H"', JobStatus(JobState.PENDING, "H")),
        ('"job_state":"R","comment":"Job run at Mon"', JobStatus(JobState.RUNNING, "R")),
        ('"job_state":"E"', JobStatus(JobState.RUNNING, "E")),
        ('"job_state":"F","Exit_status":0', JobStatus(JobState.DONE, "F, Exit_status 0", 0)),
        ('"job_state":"F","Exit_status":2', JobStatus(JobState.FAILED, "F, Exit_status 2", 2)),
        ('"job_state":"F","Exit_status":143', JobStatus(JobState.FAILED, "F, Exit_status 143", 143)),
        ('"job_state":"F","Exit_status":265', JobStatus(JobState.FAILED, "F, Exit_status 265", 137)),
        ('"job_state":"F","Exit_status":271', JobStatus(JobState.CANCELLED, "F, Exit_status 271", 143)),
        ('"job_state":"F","Exit_status":-29', JobStatus(JobState.TIMEOUT, "F, Exit_status -29")),
        ('"job_state":"F","Exit_status":-27', JobStatus(JobState.FAILED, "F, Exit_status -27")),
        ('"job_state":"F","comment":"terminated"', JobStatus(JobState.CANCELLED, "F, never ran")),
        ('"job_state":"M"', JobStatus(JobState.UNKNOWN, "M")),
        ('"job_state":"Y"', JobStatus(JobState.UNKNOWN, "Y")),
    ],
)
def test_pbs_status_is_read(facts: str, status: JobStatus) -> None:
    assert PBS.parse_status(qstat("7.pbs", facts)) == {"7": status}
    assert PBS.parse_status("a banner {1}\n" + qstat("7.pbs.example.gov", facts)) == {"7": status}


def test_pbs_status_is_read_where_its_json_is_none() -> None:
    """Variables of the submitting shell, as openpbs issues 1255 and 2541 show them."""
    broken = '"Variable_List":{"FOO":005,"BASH_FUNC_ml()":"() {  eval $($LMOD_DIR/ml_cmd \\"$@\\")\\n}","A":"\\,b"}'
    text = qstat("7.pbs", f'"job_state":"F",\n{broken},\n"Exit_status":-29')
    assert PBS.parse_status(text) == {"7": JobStatus(JobState.TIMEOUT, "F, Exit_status -29")}
    waits = qstat("8.pbs", f'{broken},\n"job_state":"Q",\n"comment":"Not Running: no nodes"')
    assert PBS.parse_status(waits) == {"8": JobStatus(JobState.PENDING, "Q", reason="Not Running: no nodes")}
    both = text.rstrip().removesuffix("}").rstrip().removesuffix("}") + "," + waits.partition('"Jobs":{')[2]
    assert {key: status.state for key, status in PBS.parse_status(both).items()} == {"7": JobState.TIMEOUT, "8": JobState.PENDING}


def bjobs(record: str) -> str:
    return f'{{\n  "COMMAND":"bjobs",\n  "JOBS":1,\n  "RECORDS":[\n    {{\n      "JOBID":"7",\n      {record}\n    }}\n  ]\n}}\n'


@pytest.mark.parametrize(
    ("record", "status"),
    [
        (
            '"STAT":"PEND","EXIT_CODE":"","EXIT_REASON":"","PEND_REASON":"Job dependency condition not satisfied;"',
            JobStatus(JobState.PENDING, "PEND", reason="Job dependency condition not satisfied;"),
        ),
        ('"STAT":"RUN","EXIT_CODE":"","EXIT_REASON":"","PEND_REASON":""', JobStatus(JobState.RUNNING, "RUN")),
        ('"STAT":"DONE","EXIT_CODE":"","EXIT_REASON":""', JobStatus(JobState.DONE, "DONE", 0)),
        ('"STAT":"EXIT","EXIT_CODE":"2","EXIT_REASON":""', JobStatus(JobState.FAILED, "EXIT", 2)),
        (
            '"STAT":"EXIT","EXIT_CODE":"140","EXIT_REASON":"TERM_RUNLIMIT: job killed after reaching LSF run time limit"',
            JobStatus(JobState.TIMEOUT, "EXIT, TERM_RUNLIMIT", 140),
        ),
        (
            '"STAT":"EXIT","EXIT_CODE":"130","EXIT_REASON":"TERM_OWNER: job killed by owner"',
            JobStatus(JobState.CANCELLED, "EXIT, TERM_OWNER", 130),
        ),
        (
            '"STAT":"EXIT","EXIT_CODE":"137","EXIT_REASON":"TERM_MEMLIMIT: job killed after reaching LSF memory usage limit"',
            JobStatus(JobState.FAILED, "EXIT, TERM_MEMLIMIT", 137),
        ),
        ('"STAT":"UNKWN"', JobStatus(JobState.UNKNOWN, "UNKWN")),
        ('"STAT":"ZOMBI","EXIT_CODE":""', JobStatus(JobState.UNKNOWN, "ZOMBI")),
        ('"STAT":"NEWWORD"', JobStatus(JobState.UNKNOWN, "NEWWORD")),
    ],
)
def test_lsf_status_is_read(record: str, status: JobStatus) -> None:
    assert LSF.parse_status(bjobs(record)) == {"7": status}


@pytest.mark.parametrize(
    ("tasks", "state"),
    [
        ('"JOBINDEX":"2","STAT":"PEND"},{"JOBID":"7","JOBINDEX":"1","STAT":"RUN"', JobState.RUNNING),
        ('"JOBINDEX":"1","STAT":"EXIT"},{"JOBID":"7","JOBINDEX":"2","STAT":"PEND"', JobState.PENDING),
        ('"JOBINDEX":"10","STAT":"DONE"},{"JOBID":"7","JOBINDEX":"9","STAT":"EXIT"', JobState.DONE),
        ('"JOBINDEX":"0","STAT":"RUN"', JobState.RUNNING),
    ],
)
def test_lsf_tells_of_every_task_of_an_array(tasks: str, state: JobState) -> None:
    assert LSF.parse_status(bjobs(tasks))["7"].state is state


def test_pbs_tells_of_an_array_as_of_one_job() -> None:
    assert PBS.parse_job_id("7[].pbs\n") == "7[].pbs" and PBS.job_id.allows("7[].pbs")
    found = PBS.parse_status(qstat("7[].pbs.example.gov", '"job_state":"B","array":"True"'))
    assert found[PBS.key("7[].pbs")].state is JobState.RUNNING


def test_lsf_tells_an_unknown_job_in_its_answer() -> None:
    assert LSF.parse_status(bjobs('"ERROR":"Job <7> is not found"')) == {}


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        ('"state": "SCHED"', JobStatus(JobState.PENDING, "SCHED")),
        (
            '"state": "SCHED", "annotations": {"sched": {"reason_pending": "insufficient resources"}}',
            JobStatus(JobState.PENDING, "SCHED", reason="insufficient resources"),
        ),
        ('"state": "DEPEND"', JobStatus(JobState.PENDING, "DEPEND")),
        ('"state": "RUN"', JobStatus(JobState.RUNNING, "RUN")),
        ('"state": "CLEANUP", "returncode": 0', JobStatus(JobState.RUNNING, "CLEANUP")),
        ('"state": "INACTIVE", "result": "COMPLETED", "returncode": 0', JobStatus(JobState.DONE, "COMPLETED", 0)),
        ('"state": "INACTIVE", "result": "FAILED", "returncode": 3', JobStatus(JobState.FAILED, "FAILED", 3)),
        ('"state": "INACTIVE", "result": "FAILED", "returncode": -9', JobStatus(JobState.FAILED, "FAILED", 137)),
        ('"state": "INACTIVE", "result": "TIMEOUT", "returncode": 142', JobStatus(JobState.TIMEOUT, "TIMEOUT", 142)),
        ('"state": "INACTIVE", "result": "CANCELED", "returncode": -128', JobStatus(JobState.CANCELLED, "CANCELED")),
        ('"state": "MELTED"', JobStatus(JobState.UNKNOWN, "MELTED")),
    ],
)
def test_flux_status_is_read(facts: str, status: JobStatus) -> None:
    job_id = FLUX.key("f2ab")
    alone = f'{{"id": {job_id}, "name": "small", {facts}}}'
    assert FLUX.parse_status(alone) == {job_id: status}
    assert FLUX.parse_status(f'{{"jobs": [{alone}, {{"id": 5, "state": "RUN"}}]}}')[job_id] == status


def test_flux_ids_are_numbers_in_base_58() -> None:
    """The pairs stand in RFC 19."""
    assert {FLUX.key(text) for text in ("f1", "ƒ1")} == {"0"}
    assert FLUX.key("f2") == "1" and FLUX.key("fz") == "57" and FLUX.key("f21") == "58"


MANY = {
    "slurm": ("7|RUNNING|None\n8|PENDING|Priority\n", ["7", "8", "9"]),
    "pbs": ('{"Jobs":{"7.pbs":{"job_state":"R"},"8.pbs":{"job_state":"Q"}}}', ["7.pbs", "8.pbs", "9.pbs"]),
    "lsf": ('{"RECORDS":[{"JOBID":"7","STAT":"RUN"},{"JOBID":"8","STAT":"PEND"},{"JOBID":"9","ERROR":"x"}]}', ["7", "8", "9"]),
    "flux": ('{"jobs":[{"id":1,"state":"RUN"},{"id":2,"state":"SCHED"}]}', ["f2", "f3", "f4"]),
}
MANY["lsf-csm"] = MANY["lsf"]


@pytest.mark.parametrize("name", QUEUED)
def test_one_answer_holds_many_jobs(name: str) -> None:
    scheduler, (text, job_ids) = SCHEDULERS[name], MANY[name]
    found = scheduler.parse_status(text)
    states = [found[scheduler.key(job_id)].state if scheduler.key(job_id) in found else None for job_id in job_ids]
    assert states == [JobState.RUNNING, JobState.PENDING, None]
    for argv in scheduler.status_argvs(job_ids):
        assert all(any(job_id in word for word in argv) for job_id in job_ids)


@pytest.mark.parametrize("name", QUEUED)
def test_no_answer_holds_no_job(name: str) -> None:
    assert SCHEDULERS[name].parse_status("\n") == {}


@pytest.mark.parametrize("name", ["pbs", "lsf", "lsf-csm", "flux"])
def test_an_answer_that_is_none_is_told(name: str) -> None:
    for text in ("Segmentation fault\n", '{"Jobs":{"7.pbs":{"job_s'):
        with pytest.raises(ValueError, match=r"."):
            SCHEDULERS[name].parse_status(text)


def test_words_of_jobs_that_have_ended_do_not_wait_for_ever() -> None:
    words = {word: state for table in (slurm.STATES, pbs.STATES, lsf.STATES, flux.STATES) for word, state in table.items()}
    ended = {word for word, state in words.items() if state.ended}
    assert {
        "COMPLETED",
        "FAILED",
        "TIMEOUT",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "CANCELLED",
        "DONE",
        "EXIT",
        "CANCELED",
    } <= ended
    assert not ended & {
        "PENDING",
        "CONFIGURING",
        "RUNNING",
        "COMPLETING",
        "REQUEUED",
        "SUSPENDED",
        "SSUSP",
        "Q",
        "S",
        "RUN",
        "SCHED",
    }


@pytest.mark.parametrize(
    ("name", "unknown", "silent"),
    [
        (
            "slurm",
            "slurm_load_jobs error: Invalid job id specified\n",
            "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n",
        ),
        ("pbs", "qstat: Unknown Job Id 7.pbs\n", "qstat: cannot connect to server pbs (errno=15010)\n"),
        ("pbs", "qstat: Unknown Job Id 7.pbs\nqstat: Unknown Job Id 8.pbs\n", "qstat: Unknown Job Id 7.pbs\nConnection refused\n"),
        ("lsf", "Job <7> is not found\n", "LSF is down. Please wait ...\n"),
        ("flux", "flux-jobs: ERROR: JobID f2ab unknown\n", "flux-jobs: ERROR: broker: Connection refused\n"),
    ],
)
def test_an_unknown_job_is_told_from_a_silent_server(name: str, unknown: str, silent: str) -> None:
    assert SCHEDULERS[name].is_unknown_job(unknown)
    assert not SCHEDULERS[name].is_unknown_job(silent)


# Commands ---------------------------------------------------------------------------------------------------------------------

COMMANDS = {
    "slurm": (["sbatch", "--parsable", "/r/job.sh"], ["scancel", "7"], ["scancel", "--batch", "--signal=USR1", "7"]),
    "pbs": (["qsub", "/r/job.sh"], ["qdel", "7"], ["qsig", "-s", "SIGUSR1", "7"]),
    "lsf": (["bsub"], ["bkill", "7"], ["bkill", "-s", "USR1", "7"]),
    "lsf-csm": (["bsub", "/r/job.sh"], ["bkill", "7"], ["bkill", "-s", "USR1", "7"]),
    "flux": (["flux", "batch", "/r/job.sh"], ["flux", "cancel", "7"], ["flux", "job", "kill", "--signal=SIGUSR1", "7"]),
    "local": (["bash", "/r/job.sh"], ["kill", "-s", "TERM", "--", "-7"], ["kill", "-s", "USR1", "--", "7"]),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_commands(name: str) -> None:
    scheduler = SCHEDULERS[name]
    found = (scheduler.submit_argv(Path("/r/job.sh")), scheduler.cancel_argv("7"), scheduler.signal_argv("7", "USR1"))
    assert found == COMMANDS[name]
    assert scheduler.reads_script == ("/r/job.sh" not in found[0])


def test_squeue_is_asked_before_sacct() -> None:
    assert [argv[0] for argv in SLURM.status_argvs(["4242"])] == ["squeue", "sacct"]
    assert all("--jobs=4242,4243" in argv for argv in SLURM.status_argvs(["4242", "4243"]))


HOSTILE = {
    "slurm": {"SBATCH_JOB_NAME": "x", "SLURM_JOB_ID": "1", "SRUN_CPUS_PER_TASK": "9", "SLURM_CLUSTERS": "other"},
    "pbs": {"PBS_JOBID": "1.pbs", "PBS_NODEFILE": "/x", "PBS_DPREFIX": "#X", "PBS_O_WORKDIR": "/x"},
    "lsf": {"LSB_JOBID": "1", "BSUB_BLOCK": "1", "LSB_DJOB_HOSTFILE": "/x", "LSB_DEFAULTQUEUE": "q", "LS_SUBCWD": "/x"},
    "flux": {"FLUX_JOB_ID": "f2", "FLUX_TASK_RANK": "0", "FLUX_KVS_NAMESPACE": "x", "FLUX_JOBS_FORMAT_DEFAULT": "x"},
}
FINDS_SERVER = {
    "slurm": {"SLURM_CONF": "/etc/slurm.conf"},
    "pbs": {"PBS_CONF_FILE": "/etc/pbs.conf", "PBS_SERVER": "pbs"},
    "lsf": {"LSF_ENVDIR": "/opt/lsf/conf", "LSF_SERVERDIR": "/opt/lsf/etc"},
    "flux": {"FLUX_URI": "local:///run/flux/local"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_submits_without_what_would_override_directives_and_with_what_finds_the_server(name: str) -> None:
    kept = {"PATH": "/bin", "HOME": "/home/a", "FOO": "1", **FINDS_SERVER[name]}
    ours = {"FLUX_F58_FORCE_ASCII": "1"} if name == "flux" else {}
    assert SCHEDULERS[name].submit_environment(HOSTILE[name] | kept) == kept | ours


def test_local_job_does_not_inherit_the_shell() -> None:
    hostile = {"FOO": "1", "RANK": "3", "MASTER_PORT": "1", "PYTHONPATH": "/x", "SLURM_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": "1"}
    kept = {"PATH": "/bin", "HOME": "/home/a", "LANG": "C", "LC_ALL": "C", "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64"}
    assert LOCAL.submit_environment(hostile | kept) == kept


def test_local_job_is_the_script_itself() -> None:
    assert LOCAL.starts_job is False
    assert LOCAL.parse_job_id("77\n") == "77"


# Values -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(
    "text",
    ["a b", "$(id)", "a;b", "a`b`", 'a"b', "a'b", "a\nb", "a\\b", "../a", "-x", "", "a/b", "a#b", "%j", "ünï", "x" * 65, "{{id}}"],
)
def test_no_scheduler_takes_a_name_with_shell_characters(name: str, text: str) -> None:
    assert not SCHEDULERS[name].name.allows(text)
    assert text == "a/b" or name == "local" or not SCHEDULERS[name].account.allows(text)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_usual_names_are_taken(name: str) -> None:
    assert all(SCHEDULERS[name].name.allows(text) for text in ("20B", "pythia-160M", "run_1.2", "a+b"))


def test_pbs_shows_15_characters_of_a_name_and_takes_no_more() -> None:
    assert PBS.name.allows("x" * 15) and not PBS.name.allows("x" * 16)


@pytest.mark.parametrize("name", QUEUED)
@pytest.mark.parametrize("text", ["/a b", "/a%j", "/a\\b", "/a'b", 'a"b', "relative", "/a\nb", "/a#b", "/a{{id}}", "/a^b", "/ä"])
def test_no_scheduler_takes_a_path_that_its_output_directive_would_read_otherwise(name: str, text: str) -> None:
    assert not SCHEDULERS[name].path.allows(text)


def test_pbs_takes_no_colon_in_a_path_because_it_ends_a_hosts_name() -> None:
    assert not PBS.path.allows("/a:b") and SLURM.path.allows("/a:b")


# The page that shows it ---------------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs" / "schedulers.md"
INTRODUCTION = """\
# What each scheduler is told

One job of 3 nodes with 4 GPUs and 64 cores each, as it is asked for; written from the code by
`NEOX_HPC_UPDATE_GOLDEN=1 pytest tests/test_schedulers.py -k page`, and kept true by that test.

An argument that is not here goes through `--directive TEXT`; one that a site's filter refuses is left out by the site's
`skip_directives`. A directive that contradicts an option is refused, with the option to use. Walltime is rounded up where a
scheduler counts minutes.

"""
CHAIN = Chain(first=1, last=5)
OPTIONS = ("--name", "--account", "--queue", "--nodes", "--time", "--after", "--array", "--exclude", "--signal", "--requeue")


def told(name: str) -> dict[str, str]:
    """Option of neox-hpc -> the directives that say it, or why there are none."""
    scheduler, first = SCHEDULERS[name], {"pbs": "7.pbs", "flux": "f2ab"}.get(name, "7")
    wanted = {"exclude": "n1,n2", "early_signal": EarlySignal(signal="USR1", seconds=300), "requeue": True}
    options = {"exclude": "--exclude", "early_signal": "--signal", "requeue": "--requeue"}
    asked = {key: value for key, value in wanted.items() if options[key] not in scheduler.cannot}
    more = {"account": "lab42", "queue": "gpu", "walltime_s": 5400, "after": (After(job_id=first),)}
    job = plan(scheduled(name), nodes=3, **more, **asked)
    said: dict[str, list[str]] = {}
    for text in scheduler.directives(job):
        owners = {scheduler.owned.get(option, "").partition(",")[0].partition(":")[0] for option in scheduler.options_of(text)}
        for owner in owners or {""}:
            said.setdefault(owner, []).append(f"`{text}`")
    refused = {option: f"refused: {why}" for option, why in scheduler.cannot.items()}
    if "--array" not in refused:
        chain = plan(scheduled(name), nodes=3, array=CHAIN, **more, **asked)
        said["--array"] = [f"`{text}`" for text in scheduler.directives(chain) if text not in scheduler.directives(job)]
    cells = {option: " ".join(said.pop(option, [])) or refused.get(option, "") for option in OPTIONS}
    return cells | {"always": " ".join(text for texts in said.values() for text in texts)}


def page() -> str:
    columns = {name: told(name) for name in QUEUED}
    lines = [f"| | {' | '.join(QUEUED)} |", "|---" * (len(QUEUED) + 1) + "|"]
    lines += [f"| {row} | {' | '.join(columns[name][row] for name in QUEUED)} |" for row in (*OPTIONS, "always")]
    return INTRODUCTION + "\n".join(lines).replace("/scratch/runs/small", "RUN") + "\n"


def test_the_page_of_directives_is_true() -> None:
    if os.environ.get("NEOX_HPC_UPDATE_GOLDEN"):
        PAGE.write_text(page())
    assert PAGE.read_text() == page()


# Inside a job, and before one ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUEUED)
def test_outside_a_job_there_are_no_hosts(name: str) -> None:
    assert SCHEDULERS[name].hosts_source({"PATH": "/bin"}) is None


def test_the_launch_node_is_told_by_its_name_wherever_it_stands() -> None:
    slots = "batch2\n" + "a33n06\n" * 42 + "h11n01\n" * 42
    assert CSM.parse_hosts(slots) == ["a33n06", "h11n01"]
    assert CSM.parse_hosts("\n".join(sorted(slots.split()))) == ["a33n06", "h11n01"]
    assert LSF.parse_hosts("n2\nn2\nn1\n") == ["n2", "n1"]


def test_slurms_verdict_is_shown_without_the_number_of_a_job_that_is_none() -> None:
    text = "sbatch: Job 7 to start at 2026-11-21T15:00:00 using 8 processors on nodes n[1-2] in partition batch\n"
    assert SLURM.parse_test(text) == "to start at 2026-11-21T15:00:00 using 8 processors on nodes n[1-2] in partition batch"
    assert SLURM.parse_test("a banner\n" + text) == SLURM.parse_test(text)
