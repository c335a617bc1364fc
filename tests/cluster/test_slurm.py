"""The way from a YAML file to a trained model on a real Slurm of two nodes, as its user goes it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.evil import EVIL
from tests.cluster.slurm import Slurm
from tests.cluster.user import User
from tests.desk import Said

pytestmark = pytest.mark.cluster

HOSTILE = {
    "FOO": "of the submitting shell",
    "SBATCH_JOB_NAME": "hostile",
    "SBATCH_TIMELIMIT": "1",
    "SBATCH_EXPORT": "ALL",
    "SBATCH_OUTPUT": "/tmp/hostile.out",
    "SBATCH_REQUEUE": "1",
    "SLURM_NTASKS": "7",
    "SLURM_NNODES": "1",
    "SLURM_JOB_ID": "99",
    "SLURM_EXPORT_ENV": "ALL",
    "SRUN_CPUS_PER_TASK": "3",
}
"""A shell inside another job, with settings of its user."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A training that was shown by a dry run, submitted from a hostile shell, and followed to its end."""

    path: Path
    job_id: str
    dry_run: Said
    taken: bytes
    """The script as Slurm has it."""
    shown: str
    """The job as Slurm describes it."""
    followed: Said
    environment: dict[str, str] = field(repr=False)
    """Of the third rank, on the second node."""


@pytest.fixture(scope="module")
def trained(user: User, slurm: Slurm) -> Trained:
    python = user.python("python-that-tells", f'env -0 >"{user.cwd}/environment.$SLURM_PROCID"')
    values = [word for name, value in EVIL.items() for word in ("--site-set", f"env.{name}={json.dumps(value)}")]
    options = ("--time", "30m", "--name", "tiny", *values)
    dry_run = user.submit("--dry-run", *options, python=python, ranks=2)
    submitted = user.submit("--json", *options, python=python, environ=HOSTILE, ranks=2)
    assert submitted.code == 0, submitted
    job_id, path = str(submitted.facts["job_id"]), Path(submitted.facts["run_dir"])
    slurm.ask("scontrol", "write", "batch_script", job_id, str(user.cwd / "taken.sh"))
    followed = user("logs", "-f", "tiny", timeout_s=120)
    variables = (user.cwd / "environment.2").read_text().split("\0")
    return Trained(
        path=path,
        job_id=job_id,
        dry_run=dry_run,
        taken=(user.cwd / "taken.sh").read_bytes(),
        shown=slurm.ask("scontrol", "show", "job", job_id),
        followed=followed,
        environment=dict(line.split("=", 1) for line in variables if "=" in line),
    )


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def processes_of(run: Path) -> list[str]:
    """Command lines that name a run's files: its ranks, wherever they are left."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            lines.append(path.read_text().replace("\0", " "))
    return [line for line in lines if f"{run}/" in line]


def test_two_nodes_train_one_model(trained: Trained) -> None:
    assert (trained.path / "logs" / "1" / "hostfile").read_text() == "node1 slots=2\nnode2 slots=2\n"
    losses = [line["loss"] for line in metrics(trained.path) if "loss" in line]
    assert [line["step"] for line in metrics(trained.path) if "loss" in line] == list(range(1, 21))
    assert losses[-1] < losses[0] - 1
    checkpoints = trained.path / "checkpoints"
    assert (checkpoints / "latest").read_text().strip() == "global_step20"
    assert sorted(path.name for path in (checkpoints / "global_step10").iterdir()) == [
        "manifest.json",
        *(f"rank{rank}.safetensors" for rank in range(4)),
    ]


def test_status_and_list_know_that_it_is_done(user: User, trained: Trained) -> None:
    facts = user("status", trained.job_id, "--json").facts
    assert facts["name"] == "tiny" and facts["state"] == "done" and facts["exit_status"] == 0
    assert facts["step"] == facts["train_iters"] == 20 and facts["first_error"] is None
    said = user("status", "tiny")
    assert said.code == 0 and said.out.startswith("tiny  DONE\n") and "20/20" in said.out
    row = next(line.split() for line in user("list").out.splitlines() if line.startswith("tiny "))
    assert row[1:3] == ["DONE", "20/20"] and trained.job_id in row and str(trained.path) in row


def test_the_log_is_followed_to_its_end(user: User, trained: Trained) -> None:
    assert trained.followed.code == 0 and trained.followed.err.endswith("tiny  DONE\n")
    assert "finished at step 20" in trained.followed.out
    assert user("logs", "tiny").out == trained.followed.out == (trained.path / "logs" / "job.out").read_text()


def test_what_the_dry_run_showed_is_what_slurm_runs(trained: Trained) -> None:
    assert trained.dry_run.code == 0
    assert trained.dry_run.out.encode() == (trained.path / "job.sh").read_bytes() == trained.taken


def test_a_hostile_shell_changes_nothing_of_the_job(trained: Trained) -> None:
    said = dict(word.split("=", 1) for word in trained.shown.split() if "=" in word)
    assert (said["JobName"], said["TimeLimit"], said["NumNodes"], said["NumTasks"]) == ("tiny", "00:30:00", "2", "4")
    assert (said["Requeue"], said["StdOut"]) == ("0", f"{trained.path}/logs/job.out")
    assert trained.environment.get("FOO") is None
    assert trained.environment["SLURM_JOB_NAME"] == "tiny" and trained.environment["SLURM_NTASKS"] == "4"
    assert trained.environment["SLURM_JOB_ID"] == trained.job_id
    assert trained.environment["GLOO_SOCKET_IFNAME"] == "eth0"


def test_values_of_the_environment_reach_a_rank_as_they_are(trained: Trained) -> None:
    assert {name: trained.environment[name] for name in EVIL} == EVIL


def test_lines_carry_the_rank_that_printed_them(trained: Trained) -> None:
    assert "0: finished at step 20" in trained.followed.out


def test_accounting_is_off_here(slurm: Slurm, trained: Trained) -> None:
    assert slurm.on_login_node(["sacct", "--jobs", trained.job_id], timeout_s=30).returncode != 0


def test_cancel_ends_a_running_job(user: User, slurm: Slurm) -> None:
    assert user.submit("--name", "endless", "--set", "train_iters=1000000").code == 0
    facts = user.wait_for("endless", "running", step=1)
    assert len(processes_of(Path(facts["run_dir"]))) >= 2
    assert user("cancel", "endless").code == 0
    facts = user.wait_for("endless", "cancelled")
    assert user("status", "endless").out.startswith("endless  CANCELLED")
    assert "cancelled" in user("cancel", facts["job_id"]).out  # once more: it has ended already
    assert slurm.ask("squeue", "--noheader", "--format=%i") == ""
    assert not processes_of(Path(facts["run_dir"]))


def test_a_rank_that_fails_fails_the_job_with_its_own_error(user: User) -> None:
    # a quota on the second node: its rank cannot write its part of the checkpoint, the first one waits for it
    python = user.python("python-with-quota", '[ "$SLURM_PROCID" != 1 ] || ulimit -f 64')
    watched = user.submit("--name", "broken", "--watch", python=python, timeout_s=120)
    assert watched.code == 1, watched
    facts = user("status", "broken", "--json").facts
    assert facts["state"] == "failed" and facts["exit_status"] == 1 and facts["step"] == 10
    assert facts["first_error"]["rank"] == 1 and "File too large" in facts["first_error"]["message"]
    for shown in (watched.out, user("status", "broken").out):
        assert f"rank 1: {facts['first_error']['message']}" in shown


def test_a_job_that_slurm_refuses_leaves_nothing(user: User) -> None:
    before = user("list").out
    said = user.submit("--name", "toolarge", "--nodes", "3", "--set", "train_batch_size=9")
    assert said.code == 2 and said.out == ""
    assert said.err.startswith("sbatch ") and "Node count specification invalid" in said.err and "Traceback" not in said.err
    assert not list((user.cwd / "runs").glob("*toolarge*"))
    assert user("list").out == before
