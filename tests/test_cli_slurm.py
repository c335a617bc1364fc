"""The verbs against Slurm's commands, replaced by programs that answer as the real ones do."""

from __future__ import annotations

from pathlib import Path

import pytest

from neox_hpc import jobs
from tests.desk import Desk, Said, desk

__all__ = ["desk"]

SITE = ("-s", "slurm", "--site-set", "node.gpus=4", "--site-set", "software.python=/bin/sh")
INVALID = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
NO_ACCOUNTING = "echo 'Slurm accounting storage is disabled' >&2; exit 1"
DOWN = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"


def submit(desk: Desk, sbatch: str = "echo 4711", *more: str) -> Said:
    desk.program("sbatch", sbatch)
    return desk("submit", *SITE, *more, "my.yml")


def has_run(desk: Desk, outcome: str | None) -> None:
    """What a job leaves behind."""
    attempt = desk.cwd / "runs" / "my" / "logs" / "1"
    attempt.mkdir()
    (attempt / "hostfile").write_text("n1 slots=4\n")
    if outcome is not None:
        (attempt / "outcome").write_text(outcome)


def state(desk: Desk, squeue: str, sacct: str = NO_ACCOUNTING) -> tuple[str, str]:
    desk.program("squeue", squeue)
    desk.program("sacct", sacct)
    facts = desk("status", "my", "--json").facts
    return facts["state"], facts["why"]


def test_submit_hands_the_dry_runs_bytes_to_sbatch(desk: Desk) -> None:
    dry = desk("submit", *SITE, "--dry-run", "my.yml")
    assert desk.calls == []
    said = submit(desk, f'cat "$2" >{desk.cwd}/taken; echo 4711')
    assert said.code == 0
    assert "job 4711 on slurm" in said.out
    assert (desk.cwd / "taken").read_text() == dry.out
    assert desk.calls == [f"sbatch --parsable {desk.cwd}/runs/my/job.sh"]


def test_a_refusal_is_shown_in_slurms_words_and_leaves_no_directory(desk: Desk) -> None:
    said = submit(desk, "echo 'sbatch: error: Invalid account or account/partition combination specified' >&2; exit 1")
    assert said.code == 2
    assert "Invalid account or account/partition combination specified" in said.err
    assert "sbatch --parsable" in said.err and "fix: mend what it names, and submit again: nothing is queued" in said.err
    assert list((desk.cwd / "runs").iterdir()) == []
    assert desk("list", "--json").facts == []


def test_an_absent_scheduler_is_named_with_what_to_do(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    said = desk("submit", *SITE, "my.yml")
    assert said.code == 2
    assert "sbatch: there is no such program on PATH" in said.err and "login node" in said.err
    assert list((desk.cwd / "runs").iterdir()) == []


def test_a_hanging_sbatch_keeps_the_directory_because_the_job_may_exist(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SUBMIT_TIMEOUT_S", 0.3)
    said = submit(desk, "sleep 60")
    assert said.code == 1
    assert "no answer within 0.3 s" in said.err and "look for my in the queue" in said.err
    assert (desk.cwd / "runs" / "my" / "job.sh").exists()


def test_an_sbatch_that_prints_no_id_is_not_believed(desk: Desk) -> None:
    said = submit(desk, "echo Welcome to the machine")
    assert said.code == 1
    assert "no job id" in said.err


def test_the_submitting_process_is_clean(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_JOB_NAME", "evil")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/our.conf")
    submit(desk, f"env >{desk.cwd}/env; echo 4711")
    environ = (desk.cwd / "env").read_text()
    assert "SBATCH_JOB_NAME" not in environ and "SLURM_JOB_ID" not in environ
    assert "SLURM_CONF=/etc/slurm/our.conf" in environ


def test_a_waiting_job_tells_why(desk: Desk) -> None:
    submit(desk)
    assert state(desk, "echo '4711|PENDING|Resources'") == ("pending", "Resources")
    said = desk("logs", "my")
    assert said.code == 0 and "it waits in the queue (Resources)" in said.err


@pytest.mark.parametrize(
    ("squeue", "sacct", "outcome", "expected"),
    [
        ("echo '4711|RUNNING|None'", NO_ACCOUNTING, None, ("running", "")),
        ("echo '4711|COMPLETED|None'", NO_ACCOUNTING, "exit_status=0\n", ("done", "")),
        ("echo '4711|FAILED|NonZeroExitCode'", NO_ACCOUNTING, "exit_status=1\n", ("failed", "")),
        ("echo '4711|NODE_FAIL|None'", NO_ACCOUNTING, None, ("failed", "NODE_FAIL")),
        ("echo '4711|OUT_OF_MEMORY|None'", NO_ACCOUNTING, None, ("failed", "OUT_OF_MEMORY")),
        ("echo '4711|TIMEOUT|TimeLimit'", NO_ACCOUNTING, None, ("timeout", "")),
        (INVALID, "echo '4711|FAILED|3:0'", None, ("failed", "")),
        (INVALID, NO_ACCOUNTING, "exit_status=0\n", ("done", "")),
        (INVALID, NO_ACCOUNTING, "exit_status=1\n", ("failed", "")),
        (
            INVALID,
            "true",
            None,
            ("lost", "the job is gone and left no outcome: killed from outside (kill -9, out of memory, a dead node)"),
        ),
        (DOWN, NO_ACCOUNTING, "exit_status=0\n", ("done", "")),
    ],
)
def test_state_is_judged_from_slurm_and_the_run_directory(
    desk: Desk, squeue: str, sacct: str, outcome: str | None, expected: tuple[str, str]
) -> None:
    submit(desk)
    has_run(desk, outcome)
    assert state(desk, squeue, sacct) == expected


def test_a_silent_scheduler_is_unknown_not_lost(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "ASK_TIMEOUT_S", 0.3)
    submit(desk)
    has_run(desk, None)
    found, why = state(desk, DOWN, DOWN)
    assert found == "unknown" and "Unable to contact slurm controller" in why
    found, why = state(desk, "sleep 60", DOWN)
    assert found == "unknown" and "no answer within 0.3 s" in why


def test_a_job_that_never_started_is_lost_with_that_reason(desk: Desk) -> None:
    submit(desk)
    assert state(desk, INVALID) == ("lost", "the scheduler knows the job no more, and it never started")


def test_list_waits_once_for_a_silent_scheduler_and_not_at_all_for_ended_runs(desk: Desk) -> None:
    for _ in range(4):
        submit(desk)
    desk.program("squeue", DOWN)
    desk.program("sacct", NO_ACCOUNTING)
    has_run(desk, "exit_status=0\n")
    states = {run["name"]: run["state"] for run in desk("list", "--json").facts}
    assert states == {"my": "done", "my.2": "unknown", "my.3": "unknown", "my.4": "unknown"}
    assert len([call for call in desk.calls if call.startswith("squeue")]) == 1


def test_a_receipt_that_cannot_be_written_does_not_hide_the_job(desk: Desk) -> None:
    said = submit(desk, f"mkdir {desk.cwd}/runs/my/receipt.json; echo 4711")
    assert said.code == 1 and "it is 4711 on slurm" in said.err


def test_cancel_calls_scancel_and_the_run_remembers(desk: Desk) -> None:
    submit(desk)
    desk.program("squeue", "echo '4711|PENDING|Priority'")
    desk.program("scancel", "true")
    assert desk("cancel", "4711").code == 0
    assert "scancel 4711" in desk.calls
    assert state(desk, INVALID) == ("cancelled", "")


def test_a_refused_cancel_is_no_success(desk: Desk) -> None:
    submit(desk)
    desk.program("squeue", "echo '4711|RUNNING|None'")
    desk.program("scancel", "echo 'scancel: error: Kill job error on job id 4711: Access/permission denied' >&2; exit 1")
    said = desk("cancel", "my")
    assert said.code == 2 and "permission denied" in said.err
    assert state(desk, "echo '4711|RUNNING|None'") == ("running", "")


def test_watch_follows_a_job_through_the_queue_to_its_end_and_asks_rarely(desk: Desk) -> None:
    desk.program("sacct", NO_ACCOUNTING)
    run = desk.cwd / "runs" / "my"
    desk.program("sbatch", "echo 4711")
    body = f"""
    n=$(grep -c squeue {desk.programs}/calls.log)
    if [ "$n" -eq 1 ]; then echo '4711|PENDING|Priority'; exit; fi
    echo '4711|COMPLETED|None'"""
    desk.program("squeue", body)
    job = (
        f'sleep 0.7; mkdir {run}/logs/1; echo n1 >{run}/logs/1/hostfile; echo \'{{"step": 20, "loss": 1.5}}\' >{run}/metrics.jsonl'
    )
    desk.program("sbatch", f"({job}; echo exit_status=0 >{run}/logs/1/outcome) >/dev/null 2>&1 & echo 4711")
    said = desk("submit", *SITE, "--watch", "my.yml")
    assert said.code == 0, said
    assert "my waits in the queue (Priority)" in said.out and "my  DONE" in said.out
    assert len([call for call in desk.calls if call.startswith("squeue")]) <= 3


@pytest.mark.parametrize("evil", ["a;rm -rf /", "$(id)", "a b", "--wrap=x", "a\nb"])
@pytest.mark.parametrize("option", ["--account", "--name", "--queue"])
def test_shell_characters_in_names_are_refused(desk: Desk, option: str, evil: str) -> None:
    said = submit(desk, "echo 4711", f"{option}={evil}")
    assert said.code == 2 and option in said.err
    assert not Path(desk.cwd / "runs").exists() or list((desk.cwd / "runs").iterdir()) == []
    assert desk.calls == []


def test_status_of_several_runs_is_one_question(desk: Desk) -> None:
    for number in (11, 12):
        submit(desk, f"echo {number}")
    desk.program("squeue", "printf '11|RUNNING|None\n12|PENDING|Priority\n'")
    assert [run["state"] for run in desk("status", "12", "11", "--json").facts] == ["pending", "running"]
    assert [call for call in desk.calls if call.startswith("squeue")] == [
        "squeue --noheader --states=all --jobs=12,11 --format=%i|%T|%r|%S"
    ]
    shown = desk("status", "my", "my.2").out.split("\n\n")
    assert [text.split()[1] for text in shown] == ["RUNNING", "PENDING"]


def test_one_question_serves_every_run(desk: Desk) -> None:
    for number in (11, 12, 13):
        submit(desk, f"echo {number}")
    desk.program("squeue", "printf '11|RUNNING|None\\n12|PENDING|Priority\\n'")
    desk.program("sacct", "echo '13|TIMEOUT|0:0'")
    assert [run["state"] for run in desk("list", "--json").facts] == ["timeout", "pending", "running"]
    asked = [call for call in desk.calls if call.split()[0] in ("squeue", "sacct")]
    assert len(asked) == 2 and "--jobs=13,12,11" in asked[0] and "--jobs=13 " in asked[1]


def test_the_scheduler_may_judge_a_script_without_taking_it(desk: Desk) -> None:
    desk.program("sbatch", f"cat >{desk.cwd}/judged; echo 'sbatch: Job 9 to start at 2026-11-21T15:00:00 on nodes n1' >&2")
    said = desk("submit", *SITE, "--test-only", "my.yml")
    assert (said.code, said.out) == (0, "to start at 2026-11-21T15:00:00 on nodes n1\n")
    assert desk.calls == ["sbatch --test-only"]
    assert (desk.cwd / "judged").read_text() == desk("submit", *SITE, "--dry-run", "my.yml").out
    assert not (desk.cwd / "runs").exists() and desk("list", "--json").facts == []


def test_a_verdict_against_the_script_is_shown_in_slurms_words(desk: Desk) -> None:
    desk.program("sbatch", "echo 'allocation failure: Requested time limit is invalid' >&2; exit 1")
    said = desk("submit", *SITE, "--test-only", "my.yml")
    assert said.code == 2 and "Requested time limit is invalid" in said.err
    said = desk(
        "submit", "-s", "slurm", "--site-set", "scheduler=pbs", "--site-set", "launcher=mpich", *SITE[2:], "--test-only", "my.yml"
    )
    assert said.code == 2 and "--test-only: this scheduler has no command that tests a script" in said.err


def test_a_signal_reaches_the_script_and_leaves_the_job_alone(desk: Desk) -> None:
    submit(desk)
    desk.program("squeue", "echo '4711|RUNNING|None'")
    desk.program("scancel", "true")
    assert desk("cancel", "--signal", "USR1", "my").code == 0
    assert desk.calls[-1] == "scancel --batch --signal=USR1 4711"
    assert state(desk, "echo '4711|RUNNING|None'") == ("running", "")
    assert desk("cancel", "--signal", "KILL", "my").code == 2


OTHERS = {
    "pbs": ("qsub", "echo 7.pbs", "qstat", '{"Jobs":{"7.pbs":{"job_state":"R"}}}', "qsub RUN/job.sh"),
    "lsf": (
        "bsub",
        "cat >taken; echo 'Job <7> is submitted to queue <q>.'",
        "bjobs",
        '{"RECORDS":[{"JOBID":"7","STAT":"RUN"}]}',
        "bsub ",
    ),
    "lsf-csm": (
        "bsub",
        "echo 'Job <7> is submitted to queue <q>.'",
        "bjobs",
        '{"RECORDS":[{"JOBID":"7","STAT":"RUN"}]}',
        "bsub RUN/job.sh",
    ),
    "flux": ("flux", "[ $1 = jobs ] || echo f8", "flux", '{"id":7,"state":"RUN"}', "flux batch RUN/job.sh"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_scheduler_takes_the_job_and_tells_how_it_stands(desk: Desk, name: str) -> None:
    submits, takes, asks, answer, call = OTHERS[name]
    desk.program(asks, f"echo '{answer}'")
    desk.program(submits, takes + (f"\n[ $1 != jobs ] || echo '{answer}'" if submits == asks else ""))
    said = desk("submit", "-s", "slurm", "--site-set", f"scheduler={name}", "--site-set", "launcher=mpich", *SITE[2:], "my.yml")
    assert said.code == 0, said.err
    assert desk.calls[0] == call.replace("RUN", f"{desk.cwd}/runs/my")
    if name == "lsf":
        assert (desk.cwd / "runs/my/taken").read_text() == (desk.cwd / "runs/my/job.sh").read_text()
    assert desk("status", "--json").facts["state"] == "running"
    assert desk("status", {"flux": "ƒ8"}.get(name, "7"), "--json").facts["name"] == "my"
