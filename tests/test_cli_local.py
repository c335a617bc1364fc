"""The whole local way: submit, watch, status, logs, cancel, with stand-ins for the ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.desk import FAILS, TRAINS, Desk, desk

__all__ = ["desk"]
SLEEPS = "echo begun; sleep 60"


def test_watch_shows_progress_and_returns_success(desk: Desk) -> None:
    said = desk.submit_local(TRAINS, "--watch")
    assert said.code == 0, said
    assert "step     20/20  loss 20.5000" in said.out
    assert "validation loss 19.2500" in said.out
    assert "my  DONE" in said.out


def test_the_run_directory_is_the_record(desk: Desk) -> None:
    desk.submit_local(TRAINS, "--watch")
    run = desk.cwd / "runs" / "my"
    assert {path.name for path in run.iterdir()} == {
        "run.json",
        "plan.json",
        "inputs.json",
        "job.sh",
        "code",
        "logs",
        "receipt.json",
        "metrics.jsonl",
    }
    copied, own = run / "code" / "model" / "config" / "run.py", Path(__file__).parent.parent / "model" / "config" / "run.py"
    assert copied.read_bytes() == own.read_bytes()
    assert copied.stat().st_mode & 0o222 == 0
    receipt = json.loads((run / "receipt.json").read_text())
    assert receipt["command"] == ["bash", str(run / "job.sh")]
    assert receipt["host"] == os.uname().nodename
    assert len(receipt["code_sha256"]) == 64


def test_dry_run_prints_what_submit_submits_and_writes_nothing(desk: Desk) -> None:
    dry = desk.submit_local(TRAINS, "--dry-run")
    assert dry.code == 0
    assert not (desk.cwd / "runs").exists()
    desk.submit_local(TRAINS, "--watch")
    assert (desk.cwd / "runs" / "my" / "job.sh").read_text() == dry.out


def test_failed_rank_fails_watch_and_its_error_comes_first(desk: Desk) -> None:
    said = desk.submit_local(FAILS, "--watch")
    assert said.code == 1
    after = said.out[said.out.index("FAILED") :].splitlines()
    assert after[0] == "FAILED  (exit status 1)"
    assert after[1].split(None, 1) == ["error", "rank 1: step 3: the loss is nan"]


def test_user_mistake_of_the_training_is_exit_2(desk: Desk) -> None:
    assert desk.submit_local("echo 'data/train.bin: truncated' >$NEOX_HPC_ATTEMPT_DIR/rank0.error; exit 2", "--watch").code == 2


def test_failure_without_an_error_file_shows_the_end_of_the_log(desk: Desk) -> None:
    desk.submit_local("echo 'bash: torch: not found'; exit 127", "--watch")
    said = desk("status")
    assert "FAILED  (exit status 127)" in said.out
    assert "bash: torch: not found" in said.out


def test_killed_job_is_lost_and_said_so(desk: Desk) -> None:
    desk.submit_local("kill -9 $PPID; sleep 0.1")
    facts = desk.wait_for("lost")
    assert "kill -9, out of memory, a dead node" in facts["why"]
    assert desk("status").code == 0


def test_ranks_that_outlive_their_script_are_shown_and_cancelled(desk: Desk) -> None:
    desk.submit_local("kill -9 $PPID; sleep 60")
    while not (facts := desk.wait_for("running"))["why"]:
        time.sleep(0.02)
    assert "its ranks run on" in facts["why"]
    assert desk("cancel", "my").code == 0
    desk.wait_for("cancelled")


def test_a_recycled_process_number_is_not_the_job(desk: Desk) -> None:
    desk.submit_local("kill -9 $PPID; sleep 0.1")
    desk.wait_for("lost")
    path = desk.cwd / "runs" / "my" / "receipt.json"
    receipt = json.loads(path.read_text())
    receipt["job_id"] = str(os.getpid())  # alive, and younger or older than the job was
    path.write_text(json.dumps(receipt))
    assert desk("status", "my", "--json").facts["state"] == "lost"


def test_a_job_of_another_machine_is_not_looked_for_here(desk: Desk) -> None:
    desk.submit_local("kill -9 $PPID; sleep 0.1")
    desk.wait_for("lost")
    path = desk.cwd / "runs" / "my" / "receipt.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "elsewhere"}))
    facts = desk("status", "my", "--json").facts
    assert facts["state"] == "unknown"
    assert "elsewhere" in facts["why"]
    assert desk("cancel", "my").code == 1


def test_cancel_stops_the_job_and_everything_in_it(desk: Desk) -> None:
    desk.submit_local("echo $$ >$run/rank.pid; " + SLEEPS)
    desk.wait_for("running")
    while not (desk.cwd / "runs/my/rank.pid").exists():
        time.sleep(0.02)
    said = desk("cancel", "my")
    assert said.code == 0, said
    assert desk("status", "my", "--json").facts["state"] == "cancelled"
    pid = (desk.cwd / "runs/my/rank.pid").read_text().strip()
    assert not Path(f"/proc/{pid}").exists() or ") Z" in Path(f"/proc/{pid}/stat").read_text()
    assert "ended already" in desk("cancel", "my").out


def test_ctrl_c_in_watch_leaves_the_job_and_says_how_to_return(desk: Desk) -> None:
    python = desk.ranks(SLEEPS)
    command = [sys.executable, "-m", "neox_hpc", "submit", "--watch", "-s", "local", "--site-set", python, "my.yml"]
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ, start_new_session=True) as watching:
        assert watching.stdout is not None
        seen = "".join(iter(watching.stdout.readline, "my starts (its output: " + str(desk.cwd / "runs/my/logs/job.out") + ")\n"))
        os.killpg(watching.pid, signal.SIGINT)  # as a terminal does
        seen += watching.stdout.read()
    assert watching.returncode == 130
    assert "neox-hpc status my" in seen
    assert desk("status", "my", "--json").facts["state"] == "running"
    desk("cancel", "my")


def test_logs_prints_the_output_and_follows_to_the_end(desk: Desk) -> None:
    desk.submit_local("for i in 1 2 3; do echo line $i; sleep 0.3; done")
    said = desk("logs", "-f", "my")
    assert [line for line in said.out.splitlines() if line.startswith("line")] == ["line 1", "line 2", "line 3"]
    assert said.err.splitlines()[-1] == "my  DONE"
    assert desk("logs", "-n", "1").out == "line 3\n"


def test_second_run_of_a_name_gets_a_number_and_the_newest_is_the_default(desk: Desk) -> None:
    for _ in range(2):
        desk.submit_local(TRAINS, "--watch")
    assert desk("status", "--json").facts["name"] == "my.2"
    listed = desk("list", "--json").facts
    assert [run["name"] for run in listed] == ["my.2", "my"]
    assert desk("list").out.splitlines()[1].split()[:4] == ["my.2", "DONE", "20/20", "20.5000"]


def test_list_tells_of_a_damaged_run_and_shows_the_others(desk: Desk) -> None:
    for _ in range(2):
        desk.submit_local(TRAINS, "--watch")
    (desk.cwd / "runs" / "my.2").rename(desk.cwd / "my.2")  # gone: not told, and not counted
    assert [run["name"] for run in desk("list", "-n", "1", "--json").facts] == ["my"]
    (desk.cwd / "my.2").rename(desk.cwd / "runs" / "my.2")
    (desk.cwd / "runs" / "my" / "plan.json").write_text("{")
    listed = desk("list", "--json")
    assert (listed.code, [run["name"] for run in listed.facts]) == (0, ["my.2"])
    assert listed.err.startswith("left out, job ") and "my/plan.json: damaged" in listed.err


@pytest.mark.parametrize("name", ["path", "name", "job_id"])
def test_a_run_is_found_by_path_name_and_job_id_from_anywhere(desk: Desk, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.submit_local(TRAINS, "--watch")
    facts = desk("status", "--json").facts
    monkeypatch.chdir(desk.programs)
    text = {"path": facts["run_dir"], "name": "my", "job_id": facts["job_id"]}[name]
    assert desk("status", text, "--json").facts == facts | {"elapsed_s": facts["elapsed_s"]}


def test_unknown_run_is_refused_with_the_nearest_name(desk: Desk) -> None:
    assert "neox-hpc submit" in desk("status").err
    desk.submit_local(TRAINS, "--watch")
    said = desk("status", "mx")
    assert said.code == 2
    assert "did you mean my?" in said.err


def test_existing_run_id_is_refused(desk: Desk) -> None:
    assert desk.submit_local(TRAINS, "--watch", "--run-id", "one").code == 0
    said = desk.submit_local(TRAINS, "--run-id", "one")
    assert said.code == 2
    assert "exists already" in said.err
    assert "not a plain name" in desk.submit_local(TRAINS, "--run-id", "../one").err


def test_unwritable_output_directory_is_refused_and_leaves_nothing(desk: Desk) -> None:
    (desk.cwd / "file").write_text("")
    said = desk.submit_local(TRAINS, "--output-dir", "file/runs")
    assert said.code == 2
    assert "cannot be written" in said.err and "--output-dir" in said.err


def test_problems_of_configuration_and_site_are_shown_together(desk: Desk) -> None:
    said = desk("submit", "-s", "nowhere", "absent.yml")
    assert said.code == 2
    assert "absent.yml: no such file" in said.err
    assert "--site nowhere: no such site" in said.err


def test_missing_data_is_refused_by_submit_and_shown_by_dry_run(desk: Desk) -> None:
    (desk.cwd / "data" / "train.bin").unlink()
    said = desk.submit_local(TRAINS)
    assert said.code == 2 and "train.bin" in said.err
    assert not (desk.cwd / "runs").exists()
    dry = desk.submit_local(TRAINS, "--dry-run")
    assert dry.code == 0 and "train.bin" in dry.err and dry.out.startswith("#!/bin/bash")


def test_render_writes_the_directory_and_prints_its_path_last(desk: Desk) -> None:
    said = desk("render", "-s", "local", "--site-set", desk.ranks(TRAINS), "my.yml")
    path = Path(said.out.splitlines()[-1])
    assert path == desk.cwd / "runs" / "my" and (path / "job.sh").exists() and not (path / "receipt.json").exists()
    assert desk("status", str(path), "--json").facts["state"] == "not submitted"


def test_the_job_does_not_inherit_the_submitting_shell(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOO", "leaked")
    monkeypatch.setenv("SLURM_NTASKS", "7")
    desk.submit_local("env", "--watch")
    log = desk("logs").out
    assert "FOO=" not in log and "SLURM_NTASKS" not in log
