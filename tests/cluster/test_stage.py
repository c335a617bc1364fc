"""Copies on the nodes' own disks, by the real sbcast of a Slurm of two nodes: a training that runs from them."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.cluster.slurm import Slurm
from tests.cluster.test_launchers import Pods, pods
from tests.cluster.user import User

__all__ = ["pods"]

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def venv(user: User) -> Path:
    """An environment that borrows the packages of the tests' own, and tells what it was called as."""
    folder = user.cwd / "an env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    told = "import os, sys; open(os.environ['NEOX_HPC_ATTEMPT_DIR'] + '/python.' + os.uname().nodename, 'w').write(sys.prefix)"
    (packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n{told}\n")
    subprocess.run(["tar", "-cf", f"{folder}.tar", "-C", folder, "."], check=True)
    return folder


def staged(user: User, slurm: Slurm, venv: Path, name: str) -> tuple[Path, str]:
    """A run on two nodes from copies of code and environment: its directory and how it ended."""
    lines = [
        "extends: slurm",
        f"node: {{gpus: 0, cpu_ranks: 1, cores: 1, local_disk: {slurm.disk}}}",
        "network: {interface: eth0}",
        f"software: {{venv: '{venv}'}}",
        "stage: {code: node_local, env: node_local}",
    ]
    (user.cwd / "staged.yml").write_text("\n".join(lines) + "\n")
    said = user("submit", "--site", "./staged.yml", "--nodes", "2", "--time", "10m", "--name", name, "--json", "tiny.yml")
    assert said.code == 0, said.err
    user("logs", "-f", name, timeout_s=120)
    return Path(said.facts["run_dir"]), user("status", name, "--json").facts["state"]


@pytest.mark.full
def test_a_training_runs_from_the_copies_of_both_nodes_and_leaves_none(user: User, slurm: Slurm, venv: Path) -> None:
    run, state = staged(user, slurm, venv, "copies")
    assert state == "done", (run / "logs" / "job.out").read_text()
    for node in ("node1", "node2"):
        prefix = (run / "logs" / "1" / f"python.{node}").read_text()
        assert prefix.startswith(f"{slurm.disk}/neox-hpc-") and prefix.endswith(".1/env")
        assert list((slurm.disk.with_name("disks") / node).iterdir()) == []


def test_a_node_whose_copy_was_damaged_ends_the_job_by_its_name(user: User, slurm: Slurm, venv: Path) -> None:
    """The jobs' login shell finds an sbcast that damages one node's copy after the real one has made it."""
    disk, programs = slurm.disk.with_name("disks") / "node2", slurm.user_home / "bin"
    programs.mkdir()
    (programs / "sbcast").write_text(f'#!/bin/sh\n/usr/bin/sbcast "$@" && echo >>"{disk}/$(basename "$3")"\n')
    (programs / "sbcast").chmod(0o755)
    profile = slurm.user_home / ".profile"
    profile.write_text(f"PATH={programs}:$PATH\n")
    try:
        run, state = staged(user, slurm, venv, "damaged")
    finally:
        profile.unlink()
    output = (run / "logs" / "job.out").read_text()
    assert state == "failed" and "neox-hpc: node2: " in output and "is no true copy of" in output, output
    assert "neox-hpc: node1: " not in output and list(disk.iterdir()) == []


def test_launchers_over_ssh_copy_on_the_far_host(pods: Pods) -> None:
    """The job's script runs on node1 and its ranks on node2; here both have the same disk, so the job is of one node."""
    disk = pods.cwd / "disk"
    disk.mkdir()
    (pods.cwd / "far").write_text("node2 slots=2\n")
    python = pods.stand_in("told", 'echo "$(hostname) $PWD $(ls)" >"$seen/$rank.$$"')
    facts = {"hostfile": str(pods.cwd / "far"), "node.local_disk": str(disk), "stage.code": "node_local"}
    sets = [word for fact, value in facts.items() for word in ("--site-set", f"{fact}={value}")]
    run = pods.render("far", "--nodes", "1", *sets, python=python)
    said = pods("bash", str(run / "job.sh"))
    assert said.code == 0, said
    told = [path.read_text().split() for path in (pods.cwd / "told.seen").iterdir()]
    assert [(host, listed) for host, _, listed in told] == [("node2", "model")] * (1 if pods.real.per_node else 2)
    assert all(place.startswith(f"{disk}/neox-hpc-") and place.endswith(".1/code") for _, place, _ in told)
    assert list(disk.iterdir()) == []
