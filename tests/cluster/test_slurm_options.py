"""What only a scheduler can do, done by a real Slurm: its verdict, waiting for jobs, leaving nodes out, signals, its list of nodes.

The ranks do not train here: a shell stands for their Python.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cluster.slurm import Slurm
from tests.cluster.user import User

pytestmark = pytest.mark.cluster


def stand_in(user: User, name: str, lines: str) -> str:
    """A Python whose ranks do this and end well."""
    return user.python(name, f"{lines}\nexit 0")


def test_slurms_own_verdict_is_shown_and_nothing_is_queued(user: User, slurm: Slurm) -> None:
    said = user.submit("--name", "judged", "--test-only")
    assert said.code == 0 and said.out.startswith("to start at 20") and "node[1-2]" in said.out, said
    refused = user.submit("--name", "judged", "--test-only", "--nodes", "3", "--set", "train_batch_size=9")
    assert refused.code == 2 and "Node count specification invalid" in refused.err
    assert not (user.cwd / "runs" / "judged").exists() and "judged" not in slurm.ask("squeue", "--noheader", "--format=%j")


def test_a_plan_tells_the_start_that_slurm_estimates(user: User, slurm: Slurm) -> None:
    before = slurm.ask("date", "+%Y-%m-%dT%H:%M:%S").strip()
    said = user.submit("--name", "asked", "--start", "--json", verb="plan")
    assert said.code == 0 and said.facts["start"]["at"] >= before, said
    assert "asked" not in slurm.ask("squeue", "--noheader", "--format=%j")


@pytest.mark.full
def test_a_job_waits_for_another_and_for_its_failure(user: User) -> None:
    go = user.cwd / "go"
    waits = stand_in(user, "python-waits", f"until [ -e {go} ]; do sleep 0.1; done")
    fails = user.python("python-fails", f"until [ -e {go} ]; do sleep 0.1; done; exit 3")
    first = user.submit("--name", "first", "--json", "--nodes", "1", python=waits).facts["job_id"]
    broken = user.submit("--name", "broken-first", "--json", "--nodes", "1", python=fails).facts["job_id"]
    assert user.submit("--name", "second", "--after", first, "--after", f"{broken}:any", python=waits).code == 0
    assert user.submit("--name", "mend", "--after", f"{broken}:notok", python=waits).code == 0
    for name in ("second", "mend"):
        facts = user("status", name, "--json").facts
        assert (facts["state"], facts["why"]) == ("pending", "Dependency")
    go.write_text("")
    for name in ("second", "mend"):
        user.wait_for(name, "done")
    assert [user("status", name, "--json").facts["state"] for name in ("first", "broken-first")] == ["done", "failed"]


@pytest.mark.full
def test_a_node_that_is_left_out_gets_no_rank(user: User) -> None:
    python = stand_in(user, "python-nowhere", "true")
    assert user.submit("--name", "elsewhere", "--nodes", "1", "--exclude", "node1", python=python).code == 0
    facts = user.wait_for("elsewhere", "done")
    assert (Path(facts["run_dir"]) / "logs" / "1" / "nodefile").read_text() == "node2\n"


def test_a_signal_reaches_every_rank_through_the_script(user: User) -> None:
    python = stand_in(user, "python-listens", "trap 'echo heard USR1; kill $!' USR1\necho listens\nsleep 60 & wait")
    assert user.submit("--name", "listens", python=python).code == 0
    facts = user.wait_for("listens", "running")
    log = Path(facts["run_dir"]) / "logs" / "job.out"
    user.wait_until(lambda: log.exists() and log.read_text().count("listens\n") == 2)
    assert user("cancel", "--signal", "USR1", "listens").code == 0
    user.wait_for("listens", "done")
    assert log.read_text().count("heard USR1") == 2


@pytest.mark.full
def test_directives_of_the_command_line_reach_slurm(user: User, slurm: Slurm) -> None:
    python = stand_in(user, "python-quick", "sleep 1")
    more = ("--directive=--nice=7", "--requeue", "--signal", "USR1@90")
    job_id = user.submit("--name", "asked", "--json", *more, python=python).facts["job_id"]
    shown = slurm.ask("scontrol", "show", "job", job_id)
    assert all(word in shown for word in ("Nice=7", "Requeue=1")), shown
    user.wait_for("asked", "done")


def test_inside_a_job_the_hostfile_is_printed(user: User) -> None:
    verb = f"PYTHONPATH={user.checkout} {sys.executable} -m neox_hpc hostfile --slots 2 >{user.cwd}/hosts 2>&1"
    verb = f'[ "$SLURM_PROCID" != 0 ] || {verb}'
    assert user.submit("--name", "inside", python=stand_in(user, "python-asks", verb)).code == 0
    user.wait_for("inside", "done")
    assert (user.cwd / "hosts").read_text() == "node1 slots=2\nnode2 slots=2\n"


@pytest.mark.full
def test_the_tasks_of_a_chain_run_one_after_another_and_the_last_one_counts(user: User, slurm: Slurm) -> None:
    """Both at once would find one another's mark."""
    mark = user.cwd / "training"
    alone = f"mkdir {mark} || exit 9; sleep 2; rmdir {mark}"
    fails_first = f"{alone}\n[ $SLURM_ARRAY_TASK_ID -ne 1 ] || exit 3"
    said = user.submit(
        "--name", "chain", "--nodes", "1", "--array", "1-2%1", "--json", python=stand_in(user, "python-chain", fails_first)
    )
    assert said.code == 0, said
    facts = user.wait_for("chain", "done")
    run = Path(facts["run_dir"])
    assert [(run / "logs" / name / "outcome").read_text() for name in ("1", "2")] == ["exit_status=3\n", "exit_status=0\n"]
    assert slurm.ask("squeue", "--noheader", "--format=%i") == ""
