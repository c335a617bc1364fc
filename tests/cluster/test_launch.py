"""``neox-hpc launch`` with real launchers: over sshd on two hosts, and inside a job of the real Slurm."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts
from tests.cluster.test_launchers import Pods, left_over, losses, pods, reference, wait_until
from tests.cluster.user import User
from tests.desk import Said

pytestmark = pytest.mark.cluster
__all__ = ["pods", "reference"]
CHECKOUT = str(Path(__file__).parents[2])


def words(pods: Pods, name: str, *more: str) -> list[str]:
    """The command line that deepy.py would be given, on the hosts of a file; the MPIs of Debian ask who runs them as root."""
    own = [sys.executable, "-m", "neox_hpc", "launch", "train", "-d", ".", "tiny", "--name", name, "--site", "local"]
    return [*own, "--launcher", pods.launcher, "-H", "hosts", "--site-set", "network.interface=eth0", *more]


def start(pods: Pods, name: str, *more: str, timeout_s: float = 400) -> Said:
    return pods(*words(pods, name, *more), environ=dict(pods.real.env), timeout_s=timeout_s)


@pytest.mark.full
def test_four_ranks_on_two_hosts_train_what_one_host_trains(pods: Pods, reference: list[float]) -> None:
    (pods.cwd / ".deepspeed_env").write_text("# for every host\n\nNCCL_DEBUG=a 'value' of $words\n")
    lines = f'echo "$NCCL_DEBUG" >"$seen/$(hostname).$$"\nexec {shlex.quote(sys.executable)} "$@"'
    said = start(pods, "launched", "--site-set", f"software.python={pods.stand_in('launched', lines)}")
    (pods.cwd / ".deepspeed_env").unlink()
    assert said.code == 0, said
    assert losses(pods.cwd / "runs/launched") == pytest.approx(reference, rel=1e-6)
    seen = [(path.name.partition(".")[0], path.read_text()) for path in sorted((pods.cwd / "launched.seen").iterdir())]
    a_host = 1 if pods.real.per_node else 2
    value = "a 'value' of $words\n"
    assert seen == [("node1", value)] * a_host + [("node2", value)] * a_host


@pytest.mark.full
def test_one_of_the_hosts_goes_through_the_launcher_too(pods: Pods) -> None:
    python = pods.stand_in("alone", 'echo "$*" >"$seen/$(hostname).$$"')
    said = start(pods, "alone", "--include", "node2", "--site-set", f"software.python={python}")
    assert said.code == 0, said
    hosts = [path.name.partition(".")[0] for path in (pods.cwd / "alone.seen").iterdir()]
    assert hosts == ["node2"] * (1 if pods.real.per_node else 2)


@pytest.mark.full
def test_a_rank_that_fails_gives_its_exit_status(pods: Pods) -> None:
    python = pods.stand_in("refusing", 'echo $$ >"$seen/$rank"\n[ "$rank" = 1 ] || exec sleep 300\nexit 7')
    said = start(pods, "refusing", "--site-set", f"software.python={python}")
    assert said.code == 7, said
    assert left_over(pods, "refusing.seen") == []


def test_sigterm_leaves_no_process_behind_on_any_host(pods: Pods) -> None:
    python = pods.stand_in("waiting", 'echo $$ >"$seen/$rank"\nexec sleep 300')
    command = " ".join(map(shlex.quote, words(pods, "waiting", "--site-set", f"software.python={python}")))
    pid = pods.cwd / "waiting.pid"
    environ = {"PATH": f"{pods.cwd / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": CHECKOUT, **dict(pods.real.env)}
    process = pods.hosts.start("node1", ["sh", "-c", f"echo $$ >{pid}; exec {command}"], cwd=pods.cwd, environ=environ)
    wait_until(lambda: len(list((pods.cwd / "waiting.seen").iterdir())) == (2 if pods.real.per_node else 4), "all ranks run", 120)
    assert pods("kill", "-TERM", pid.read_text().strip()).code == 0
    process.communicate(timeout=60)
    assert process.returncode > 0
    wait_until(lambda: left_over(pods, "waiting.seen") == [], "all ranks have ended")


def test_a_host_that_cannot_be_reached_is_named_before_anything_starts(pods: Pods) -> None:
    (pods.cwd / "gone").write_text("node9 slots=2\nnode1 slots=2\n")
    said = start(pods, "gone", "-H", "gone")
    assert said.code == 2 and "node9: cannot be reached by ssh" in said.err
    assert not (pods.cwd / "runs/gone").exists()


@pytest.mark.full
def test_inside_a_job_of_slurm_its_nodes_train(user: User, hosts: Hosts, reference: list[float]) -> None:
    sets = ("node.gpus=0", "node.cpu_ranks=2", "node.cores=1", "network.interface=eth0")
    facts = " ".join(f"--site-set {text}" for text in sets)
    keys = "--set train_iters=3 --set zero_optimization.stage=0 --set save=null --set checkpoint_factor=null"
    line = f"{shlex.quote(sys.executable)} -m neox_hpc launch train -s slurm {facts} {keys} --name launched -d . tiny"
    asked = ["sbatch", "--wait", "--nodes=2", "--overcommit", "--ntasks-per-node=1", "--output=launch.out", "--wrap", line]
    environ = {"HOME": str(user.slurm.user_home), "PYTHONPATH": CHECKOUT, "OMP_NUM_THREADS": "1"}
    done = user.slurm.on_login_node(asked, timeout_s=400, cwd=user.cwd, environ=environ)
    out = user.cwd / "launch.out"
    assert done.returncode == 0, (done.stderr, out.exists() and out.read_text())
    assert losses(user.cwd / "runs/launched") == pytest.approx(reference, rel=1e-5)
    assert (user.cwd / "runs/launched/hosts").read_text().count("slots=2") == 2


@pytest.mark.full
@pytest.mark.parametrize("pods", ["pdsh"], indirect=True)  # it is not used: DeepSpeed's launcher of one node runs on both
def test_nodes_that_are_started_one_by_one_train_what_one_host_trains(pods: Pods, reference: list[float]) -> None:
    (pods.cwd / "bin" / "ssh").write_text("#!/bin/sh\nexit 255\n")
    (pods.cwd / "bin" / "ssh").chmod(0o755)
    alone = (*words(pods, "byhand"), "--no_ssh", "--set", "save=checkpoints", "--set", "checkpoint_factor=3")
    environ = {"PATH": f"{pods.cwd / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": CHECKOUT, "OMP_NUM_THREADS": "1"}
    started = [
        pods.hosts.start(host, [*alone, "--node_rank", str(node)], cwd=pods.cwd, environ=environ)
        for node, host in enumerate(("node1", "node2"))
    ]
    said = [process.communicate(timeout=400) for process in started]
    (pods.cwd / "bin" / "ssh").unlink()
    assert [process.returncode for process in started] == [0, 0], said
    assert losses(pods.cwd / "runs/byhand") == pytest.approx(reference, rel=1e-6)
    assert (pods.cwd / "runs/byhand/checkpoints/latest").exists()
