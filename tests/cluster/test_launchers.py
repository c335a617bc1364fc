"""Jobs on two hosts of their own, started by real launchers over a real sshd, as `neox-hpc render` wrote them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.ranks import read_ranks
from tests.cluster.evil import EVIL
from tests.cluster.hosts import Hosts
from tests.cluster.slurm import REQUIRED, SYSTEM_PATH
from tests.desk import Said

pytestmark = pytest.mark.cluster

CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Real:
    """A launcher that runs here."""

    package: str
    program: str
    """What Debian calls it, beside others of the same name."""
    name: str
    """What it is called where it is the only one."""
    per_node: bool = False
    env: tuple[tuple[str, str], ...] = ()


LAUNCHERS = {
    "openmpi": Real(
        package="openmpi-bin",
        program="mpirun.openmpi",
        name="mpirun",
        env=(("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")),
    ),
    "mpich": Real(package="mpich", program="mpiexec.hydra", name="mpiexec"),
    "pdsh": Real(package="pdsh", program="pdsh", name="pdsh", per_node=True),
}


_STAND_IN = """#!/bin/sh
seen={seen}
case $* in
*--node_rank=*) rank=${{*#*--node_rank=}} rank=${{rank%% *}} ;;
*) rank=${{OMPI_COMM_WORLD_RANK-$PMI_RANK}} ;;
esac
{lines}
"""


@dataclass(frozen=True, kw_only=True)
class Pods:
    """A user on the first of two hosts, whose names and slots stand in a file."""

    hosts: Hosts
    launcher: str
    cwd: Path

    @property
    def real(self) -> Real:
        return LAUNCHERS[self.launcher]

    def __call__(self, *argv: str, environ: dict[str, str] | None = None, timeout_s: float = 60.0) -> Said:
        own = {"PATH": f"{self.cwd / 'bin'}:{SYSTEM_PATH}", "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
        said = self.hosts.run("node1", argv, cwd=self.cwd, environ=own | (environ or {}), timeout_s=timeout_s)
        return Said(said.returncode, said.stdout, said.stderr)

    def render(self, name: str, *more: str, python: str = sys.executable) -> Path:
        """The run directory of the tiny model on two ranks a host."""
        site = {
            "extends": "pods" if self.real.per_node else "mpi",
            "launcher": self.launcher,
            "hostfile": str(self.cwd / "hosts"),
            "node": {"gpus": 0, "cpu_ranks": 2},
            "network": {"interface": "eth0"},
            "software": {"python": python},
            "env": {**EVIL, **dict(self.real.env)},
        }
        (self.cwd / f"{name}-site.yml").write_text(yaml.safe_dump(site))
        words = ("render", "--site", f"./{name}-site.yml", "--nodes", "2", "--name", name, *more, "tiny.yml")
        said = self(sys.executable, "-m", "neox_hpc", *words)
        assert said.code == 0, said
        return self.cwd / "runs" / name

    def stand_in(self, name: str, lines: str) -> str:
        """A Python whose ranks (of pdsh: nodes) run these lines of shell; ``$rank`` is theirs, ``$seen`` a folder."""
        path, seen = self.cwd / name, self.cwd / f"{name}.seen"
        seen.mkdir()
        path.write_text(_STAND_IN.format(seen=shlex.quote(str(seen)), lines=lines))
        path.chmod(0o755)
        return str(path)


IN_EVERY_RUN = [name if name != "mpich" else pytest.param(name, marks=pytest.mark.full) for name in LAUNCHERS]
"""Two are enough for that: one that starts ranks and one that starts nodes."""


@pytest.fixture(scope="module", params=IN_EVERY_RUN)
def pods(request: pytest.FixtureRequest, hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Pods:
    real = LAUNCHERS[request.param]
    program = shutil.which(real.program, path=SYSTEM_PATH)
    if program is None:
        reason = f"no {real.program} here: apt-get install --no-install-recommends {real.package} (Debian)"
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{REQUIRED}=1, and {reason}")
        pytest.skip(reason)
    cwd = tmp_path_factory.mktemp(request.param)
    (cwd / "bin").mkdir()
    (cwd / "bin" / real.name).write_text(f'#!/bin/sh\nexec {program} "$@"\n')  # no link: Hydra's proxy stands beside the real one
    (cwd / "bin" / real.name).chmod(0o755)
    (cwd / "hosts").write_text("node1 slots=2\nnode2 slots=2\n")
    write_tiny(cwd)
    return Pods(hosts=hosts, launcher=request.param, cwd=cwd)


def seen_environments(folder: Path) -> list[dict[str, str]]:
    """What each process saw, in the order of host names."""
    texts = [path.read_text() for path in sorted(folder.iterdir())]
    return [dict(pair.split("=", 1) for pair in text.split("\0") if "=" in pair) for text in texts]


def test_four_ranks_on_two_hosts_train_what_one_host_trains(pods: Pods, reference: list[float]) -> None:
    python = pods.stand_in("python", f'env -0 >"$seen/$(hostname).$$"\nexec {shlex.quote(sys.executable)} "$@"')
    run = pods.render("trained", python=python)
    said = pods("bash", str(run / "job.sh"), timeout_s=400)
    assert said.code == 0, said
    assert losses(run) == pytest.approx(reference, rel=1e-6)
    seen = seen_environments(pods.cwd / "python.seen")
    assert [{name: environ.get(name) for name in EVIL} for environ in seen] == [EVIL] * (2 if pods.real.per_node else 4)
    if not pods.real.per_node:
        assert sorted(read_ranks(environ).rank for environ in seen[:2]) == [0, 1]  # neighbours share a host
        assert sorted(read_ranks(environ).rank for environ in seen[2:]) == [2, 3]


def test_lines_tell_where_they_come_from(pods: Pods) -> None:
    python = pods.stand_in("talker", 'echo "I am $rank of $(hostname)"')
    said = pods("bash", str(pods.render("talk", python=python) / "job.sh"))
    lines = [line for line in said.out.splitlines() if "I am" in line]
    if pods.real.per_node:
        assert sorted(lines) == ["node1: I am 0 of node1", "node2: I am 1 of node2"]
    else:
        labels = {line.partition("I am ")[2][0]: line.partition("I am")[0] for line in lines}
        assert sorted(labels) == ["0", "1", "2", "3"]
        assert all(rank in label for rank, label in labels.items())


def test_a_rank_that_fails_ends_the_others_and_its_error_is_shown(pods: Pods) -> None:
    lines = """
echo $$ >"$seen/$rank"
[ "$rank" = 1 ] || exec sleep 300
until [ "$(ls "$seen" | wc -l)" = COUNT ]; do sleep 0.05; done
echo "the disk is full" >"$NEOX_HPC_ATTEMPT_DIR/rank1.error"
exit 7
"""
    python = pods.stand_in("failing", lines.replace("COUNT", "2" if pods.real.per_node else "4"))
    run = pods.render("failed", python=python)
    said = pods("bash", str(run / "job.sh"))
    assert said.code == 7, said
    assert (run / "logs/1/outcome").read_text() == "exit_status=7\n"
    assert "the disk is full" in said.out and "ended with exit status 7" in said.out
    assert left_over(pods, "failing.seen") == []


def test_a_signal_to_the_job_ends_the_ranks_on_all_hosts(pods: Pods) -> None:
    python = pods.stand_in("sleeper", 'echo $$ >"$seen/$rank"\nexec sleep 300')
    run = pods.render("stopped", python=python)
    process = start(pods, run)
    wait_until(lambda: len(list((pods.cwd / "sleeper.seen").iterdir())) == (2 if pods.real.per_node else 4), "all ranks run")
    assert pods("kill", "-TERM", (run / "pid").read_text().strip()).code == 0
    output, _ = process.communicate(timeout=30)
    assert process.returncode != 0 and "after a signal to stop" in output
    wait_until(lambda: left_over(pods, "sleeper.seen") == [], "all ranks have ended")


@pytest.mark.parametrize(
    "pods", ["openmpi", pytest.param("mpich", marks=pytest.mark.full)], indirect=True
)  # where ranks are started per node, the plan refuses it
def test_a_signal_before_the_end_reaches_every_rank(pods: Pods) -> None:
    lines = """
trap 'echo $rank has heard; exit 0' USR1
echo $$ >"$seen/$rank"
while :; do sleep 0.1; done
"""
    run = pods.render("warned", python=pods.stand_in("listener", lines))
    process = start(pods, run)
    wait_until(lambda: len(list((pods.cwd / "listener.seen").iterdir())) == 4, "all ranks run")
    assert pods("kill", "-USR1", (run / "pid").read_text().strip()).code == 0
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert sorted(line.split()[-3][-1] for line in output.splitlines() if line.endswith("has heard")) == list("0123")


def start(pods: Pods, run: Path) -> subprocess.Popen[str]:
    """The job; the number of its process is in the file ``pid``."""
    words = f"echo $$ >{shlex.quote(str(run / 'pid'))}; exec bash {shlex.quote(str(run / 'job.sh'))}"
    return pods.hosts.start("node1", ["sh", "-c", words], environ={"PATH": f"{pods.cwd / 'bin'}:{SYSTEM_PATH}"})


@pytest.mark.parametrize("pods", ["openmpi"], indirect=True)  # whose MPI mpi4py finds first
def test_mpi_tells_ranks_their_place_where_variables_do_not(pods: Pods) -> None:
    pytest.importorskip("mpi4py", reason="asks MPI itself: pip install mpi4py")
    program = "import os, model.mpi as m; p = m.find_place(os.environ, mpi=True); print('at', os.environ['MASTER_ADDR'], p)"
    python = pods.stand_in("asker", f"unset OMPI_COMM_WORLD_RANK\nexec {shlex.quote(sys.executable)} -c {shlex.quote(program)}")
    said = pods("bash", str(pods.render("asked", python=python) / "job.sh"))
    places = sorted(line.partition("at ")[2] for line in said.out.splitlines() if "Ranks(" in line)
    assert places == [f"node1 Ranks(rank={rank}, world_size=4, local_rank={rank % 2}, local_world_size=2)" for rank in range(4)], (
        said
    )


def left_over(pods: Pods, folder: str) -> list[str]:
    """Processes of ranks that still run, whichever host they are on."""
    pids = [path.read_text().strip() for path in (pods.cwd / folder).iterdir()]
    return [pid for pid in pids if pods("kill", "-0", pid).code == 0]


def wait_until(true: Any, what: str, limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.1)


def losses(run: Path) -> list[float]:
    from tests.model.tiny import curve

    return curve(run)


def write_tiny(cwd: Path) -> None:
    """``tiny.yml``, three steps of the tiny model, and its data."""
    from tests.model.tiny import KEYS, write_tokens

    write_tokens(cwd)
    keys = KEYS | {"data_path": "text", "split": "9,1,0", "train_iters": 3, "save": None, "checkpoint_factor": None}
    (cwd / "tiny.yml").write_text(yaml.safe_dump(keys))


@pytest.fixture(scope="module")
def reference(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The curve of four ranks on one host, started by DeepSpeed's own launcher."""
    cwd = tmp_path_factory.mktemp("local")
    write_tiny(cwd)
    own = {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    sets = ("--site-set", "node.gpus=0", "--site-set", "node.cpu_ranks=4")
    words = ("render", "--site", "local", *sets, "--name", "one", "tiny.yml")
    rendered = hosts.run("node1", [sys.executable, "-m", "neox_hpc", *words], cwd=cwd, environ=own)
    assert rendered.returncode == 0, rendered.stderr
    done = hosts.run("node1", ["bash", str(cwd / "runs/one/job.sh")], cwd=cwd, environ=own, timeout_s=400)
    assert done.returncode == 0, done.stdout
    return losses(cwd / "runs/one")
