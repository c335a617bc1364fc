"""Whole jobs on pretended machines: submitted, started on two hosts, trained by four ranks, followed and cancelled.

Sites, schedulers' scripts and launchers' lines are ours as they are shipped; what is made smaller is the node: two ranks that
compute on its cores.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.hosts import Hosts
from tests.cluster.slurm import SYSTEM_PATH
from tests.desk import Said
from tests.fakes.machine import Host, Machine, policy_of, shapes
from tests.fakes.program import install

pytestmark = pytest.mark.cluster

CHECKOUT = Path(__file__).parents[2]
PBS = ("qsub", "qstat", "qdel", "qsig")
LSF = ("bsub", "bjobs", "bkill")
SMALL = (
    *("node.gpus=0", "node.accelerator=cpu", "node.cpu_ranks=2", "network.interface=eth0", "env.OMP_NUM_THREADS='1'"),
    "modules.load=[nothing]",
)
"""Of every site: nodes without GPUs, two ranks each, on hosts whose network is called eth0; a module, which the files of a login
shell define, as they say where programs are."""


@dataclass(frozen=True, kw_only=True)
class Pretended:
    """A site of ours, and the programs that it has here."""

    site: str
    shape: str
    programs: tuple[str, ...]
    sets: tuple[str, ...] = ()
    options: tuple[str, ...] = ("--time", "10m", "--account", "abc123")


QUEUED = {
    "pals": Pretended(
        site="polaris",
        shape="polaris",
        programs=(*PBS, "pals"),
        sets=("node.cpu_masks=[24-31, 16-23]",),
        options=("--time", "10m", "--account", "abc123", "--queue", "debug"),
    ),
    "jsrun": Pretended(
        site="summit", shape="summit", programs=(*LSF, "jsrun"), sets=("node.cpu_masks=[0-6, 22-28]", "node.nics=[]")
    ),
    "flux": Pretended(site="tuolumne", shape="tuolumne", programs=("flux",)),
    "impi": Pretended(
        site="lsf", shape="cluster", programs=(*LSF, "impi"), sets=("launcher=impi", "node.cores=32"), options=("--time", "10m")
    ),
    "mvapich": Pretended(
        site="pbs",
        shape="cluster",
        programs=(*PBS, "mvapich"),
        sets=("launcher=mvapich", "node.cores=32"),
        options=("--time", "10m"),
    ),
}
"""Launchers, each under a scheduler: of its site, or of any."""
BY_HAND = Pretended(
    site="frontier", shape="frontier", programs=("srun", "scontrol show hostnames"), sets=("node.cpu_masks=[49-55, 57-63]",)
)
"""Slurm itself is real in tests/cluster; here its srun is a Cray's, and the job's script is started on the first host."""


@dataclass(frozen=True, kw_only=True)
class Desk:
    """A user at the login node of a pretended machine."""

    pretended: Pretended
    hosts: Hosts
    machine: Machine
    cwd: Path

    def __call__(self, *argv: str, timeout_s: float = 60.0) -> Said:
        """``neox-hpc …``."""
        words = [sys.executable, "-m", "neox_hpc", *argv]
        return self.on("node3", words, timeout_s=timeout_s, environ={"PYTHONPATH": str(CHECKOUT)})

    def on(self, host: str, argv: list[str], *, environ: Mapping[str, str], timeout_s: float = 60.0) -> Said:
        known = {
            "HOME": str(self.cwd / "home"),
            "PATH": f"{self.cwd / 'bin'}:{SYSTEM_PATH}",
            "LANG": "C.UTF-8",
            "LOGNAME": "user",
            "TMPDIR": "/tmp",  # of the login node: jsrun would refuse to start with it
        }
        said = self.hosts.run(host, argv, cwd=self.cwd, environ=known | dict(environ), timeout_s=timeout_s)
        return Said(said.returncode, said.stdout, said.stderr)

    def job(self, command: str, name: str, python: str = sys.executable) -> Said:
        """``neox-hpc submit`` or ``render`` of the tiny model."""
        sets = (*SMALL, *self.pretended.sets, f"software.python={python}")
        words = [word for text in sets for word in ("--site-set", text)]
        return self(
            command, "--site", self.pretended.site, *words, "--nodes", "2", "--name", name, *self.pretended.options, "tiny.yml"
        )

    def state(self, name: str) -> str:
        said = self("status", name, "--json")
        assert said.code == 0, said
        return str(said.facts["state"])

    def placed(self) -> list[dict[str, Any]]:
        """The ranks that the launcher started last."""
        notes = sorted((self.machine.home / "launches").iterdir(), key=lambda path: path.stat().st_mtime)
        return list(json.loads(notes[-1].read_text())["ranks"])


def desk(pretended: Pretended, hosts: Hosts, cwd: Path) -> Desk:
    """A machine of two nodes and a login node, which is a launch node where the site has one, with tiny.yml beside its data."""
    from tests.model.tiny import KEYS, write_tokens

    names = ("node1", "node2")
    enter = str(hosts.home / "enter")
    where = Machine(
        home=cwd / "machine",
        shape=shapes()[pretended.shape],
        nodes=tuple(Host(name=name, enter=(enter, name)) for name in names),
        launch_node=Host(name="batch1", enter=(enter, "node3")) if "jsrun" in pretended.programs else None,
        policy=policy_of(pretended.shape) | {"pmi": "pmix"},  # with which PALS does not tell a rank how many there are
    )
    install(cwd / "bin", where, *pretended.programs)
    with (hosts.home / "etc/hosts").open("a") as file:  # names with the domain that the queue writes
        file.writelines(
            f"10.77.0.{10 + number} {name}{where.policy.get('domain', '.none')}\n" for number, name in enumerate(names, 1)
        )
    (cwd / "home").mkdir()
    login = f'PATH={shlex.quote(str(cwd / "bin"))}:$PATH\nmodule() {{ echo "$*" >>{shlex.quote(str(cwd / "modules"))}; }}\n'
    (cwd / "home/.bash_profile").write_text(login)
    write_tokens(cwd)
    keys = KEYS | {"data_path": "text", "split": "9,1,0", "train_iters": 3, "save": None, "checkpoint_factor": None}
    (cwd / "tiny.yml").write_text(yaml.safe_dump(keys))
    return Desk(pretended=pretended, hosts=hosts, machine=where, cwd=cwd)


IN_EVERY_RUN = [name if name == "jsrun" else pytest.param(name, marks=pytest.mark.full) for name in QUEUED]
"""A queue each."""


@pytest.fixture(scope="module", params=IN_EVERY_RUN)
def queued(request: pytest.FixtureRequest, three_hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return desk(QUEUED[request.param], three_hosts, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def reference(three_hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The curve of one rank on one host, without a launcher of anyone's."""
    here = desk(Pretended(site="local", shape="cluster", programs=()), three_hosts, tmp_path_factory.mktemp("local"))
    words = [word for text in ("node.gpus=0", "node.cpu_ranks=1") for word in ("--site-set", text)]
    said = here("render", "--site", "local", *words, "--name", "one", "tiny.yml")
    assert said.code == 0, said
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29777"}
    words = ["sh", "-c", f'cd runs/one/code && exec "{sys.executable}" -m model.train ../run.json']
    done = here.on("node1", words, environ={"OMP_NUM_THREADS": "1", **alone}, timeout_s=180)
    assert done.code == 0, done
    return losses(here.cwd / "runs/one")


def losses(run: Path) -> list[float]:
    from tests.model.tiny import curve

    return curve(run)


def wait_until(true: Callable[[], bool], what: str, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.1)


def test_four_ranks_on_two_hosts_train_what_one_trains(queued: Desk, reference: list[float]) -> None:
    submitted = queued.job("submit", "tiny")
    assert submitted.code == 0, submitted
    followed = queued("logs", "-f", "tiny", timeout_s=180)
    assert queued.state("tiny") == "done", followed
    assert losses(queued.cwd / "runs/tiny") == pytest.approx(reference, rel=1e-5)
    assert (queued.cwd / "modules").read_text() == "load nothing\n"
    assert [(rank["rank"], rank["host"]) for rank in queued.placed()] == [(0, "node1"), (1, "node1"), (2, "node2"), (3, "node2")]


SLEEPS = """#!/bin/sh
trap 'echo >"$told/$$"' USR1
echo $$ >"$seen/$(hostname).$$"
while :; do sleep 0.2; done
"""


@pytest.mark.full
def test_a_job_waits_runs_hears_a_signal_and_leaves_no_rank_when_it_is_cancelled(queued: Desk) -> None:
    seen, told = queued.cwd / "seen", queued.cwd / "told"
    for folder in (seen, told):
        folder.mkdir()
    python = queued.cwd / "sleeper"
    python.write_text(SLEEPS.replace("$seen", str(seen)).replace("$told", str(told)))
    python.chmod(0o755)
    hold = queued.machine.home / "hold"
    hold.touch()
    submitted = queued.job("submit", "slow", str(python))
    assert submitted.code == 0, submitted
    assert queued.state("slow") == "pending"
    hold.unlink()
    log = queued.cwd / "runs/slow/logs/job.out"
    wait_until(lambda: len(list(seen.iterdir())) == 4, f"four ranks: {log.read_text() if log.exists() else submitted}")
    assert sorted(path.name.partition(".")[0] for path in seen.iterdir()) == ["node1", "node1", "node2", "node2"]
    assert queued.state("slow") == "running"
    if "qsig" not in queued.pretended.programs:  # which would end the login shell above the script, and the job
        assert queued("cancel", "--signal", "USR1", "slow").code == 0
        wait_until(lambda: len(list(told.iterdir())) == 4, "every rank has heard it")
    assert queued("cancel", "slow").code == 0
    wait_until(lambda: queued.state("slow") == "cancelled", "cancelled")
    pids = " ".join(path.read_text().strip() for path in seen.iterdir())
    wait_until(lambda: queued.on("node3", ["sh", "-c", f"kill -0 {pids}"], environ={}).code != 0, "the ranks are gone")


@pytest.mark.full
def test_a_script_started_by_hand_trains_the_same(three_hosts: Hosts, tmp_path: Path, reference: list[float]) -> None:
    here = desk(BY_HAND, three_hosts, tmp_path)
    rendered = here.job("render", "tiny")
    assert rendered.code == 0, rendered
    environ = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]"}
    done = here.on("node1", ["bash", "-l", "runs/tiny/job.sh"], environ=environ, timeout_s=180)  # Slurm gives what a login does
    assert done.code == 0, done
    assert losses(here.cwd / "runs/tiny") == pytest.approx(reference, rel=1e-5)
    assert [(rank["rank"], rank["host"]) for rank in here.placed()] == [(0, "node1"), (1, "node1"), (2, "node2"), (3, "node2")]
