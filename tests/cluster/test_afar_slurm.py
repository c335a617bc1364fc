"""From a laptop that has no Slurm and no run directory, over two sshds that ask for one-time codes, to a real Slurm."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from neox_hpc import far
from neox_hpc.transport import CONNECT
from tests.cluster.login import Laptop, Login, Typed, obstacle, running_login, write_ssh_config
from tests.cluster.slurm import REQUIRED, Slurm
from tests.cluster.slurm import obstacle as slurm_obstacle
from tests.cluster.slurm import running_slurm as start_slurm
from tests.desk import CONFIG, Desk, desk

__all__ = ["desk"]
pytestmark = pytest.mark.cluster

TRAINS = """\
#!/bin/sh
# ranks that need no torch: rank 0 writes a line a step until it is told to stop
for last; do :; done
run=$(dirname "$last")
[ "${SLURM_PROCID:-0}" = 0 ] || exit 0
printf %s "${WANDB_API_KEY-}" | sha256sum >"$run/proof"
step=1
while [ $step -le "$(cat "$0.steps")" ]; do
  echo "{\\"step\\": $step, \\"loss\\": 2.5, \\"step_time_s\\": 0.2}" >>"$run/metrics.jsonl"
  echo "step $step"
  step=$((step + 1))
  sleep 0.2
done
"""
SECRET = "s3cr3t-of-the-user-0123456789"


@dataclass(frozen=True, kw_only=True)
class Way:
    """A cluster behind a login node."""

    slurm: Slurm
    login: Login

    @property
    def site(self) -> tuple[str, ...]:
        """Two nodes with a rank each."""
        facts = {
            "node.gpus": "0",
            "node.cpu_ranks": "1",
            "node.cores": "1",
            "network.interface": "eth0",
            "software.python": str(self.login.user_home / "python"),
        }
        sets = [word for fact, value in facts.items() for word in ("--site-set", f"{fact}={value}")]
        return ("--site", "slurm", *sets, "--nodes", "2", "--host", "login")

    def steps(self, number: int) -> None:
        """How many steps a training takes."""
        (self.login.user_home / "python.steps").write_text(f"{number}\n")


@pytest.fixture(scope="module")
def way() -> Iterator[Way]:
    """The real ones."""
    if reason := slurm_obstacle() or obstacle():
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{REQUIRED}=1, and {reason}")
        pytest.skip(reason)
    with start_slurm(nodes=2) as slurm:
        inside = ("nsenter", "--target", str(slurm.holder), "--net", "--uts")
        with running_login(inside=inside, environ={"SLURM_CONF": str(slurm.conf)}) as login:
            home = login.user_home
            (home / "data").mkdir()
            for name in ("train.bin", "train.idx"):
                (home / "data" / name).write_bytes(b"")
            (home / "python").write_text(TRAINS)
            (home / "python").chmod(0o755)
            secrets = slurm.user_home / ".config" / "neox-hpc" / "secrets.env"
            secrets.parent.mkdir(parents=True)
            secrets.write_text(f"WANDB_API_KEY={SECRET}\n")
            secrets.chmod(0o600)
            yield Way(slurm=slurm, login=login)


@pytest.fixture(scope="module")
def bastion(way: Way) -> Iterator[Login]:
    """The host that one goes through."""
    with running_login("keyboard-interactive") as running:
        yield running


@contextlib.contextmanager
def at_a_laptop(way: Way, bastion: Login, name: str, cwd: Path) -> Iterator[Laptop]:
    """A machine that reaches the login node through the bastion; both ask for codes, the login node for a key too."""
    login = way.login
    login.configure("publickey,keyboard-interactive")
    home = Path(f"/tmp/neox-hpc-laptop-{os.getpid()}-{name}")
    key = cwd / "key"
    key.write_bytes(login.key.read_bytes())  # the login node's own files are not there
    key.chmod(0o600)
    write_ssh_config(home, {"login": login, "bastion": bastion})
    config = home / ".ssh" / "config"
    config.write_text(config.read_text().replace(str(login.key), f"{key}\n  ProxyJump bastion"))
    (cwd / "my.yml").write_text(CONFIG)
    try:
        yield Laptop(home=home, cwd=cwd, hidden=login.home, checkout=Path(__file__).parents[2])
    finally:
        login.cut()
        bastion.cut()
        login.configure()
        for path in sorted(home.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        home.rmdir()


@pytest.mark.parametrize("ssh", [name if name == "paramiko" else pytest.param(name, marks=pytest.mark.full) for name in CONNECT])
def test_a_laptop_submits_follows_and_cancels_with_one_time_codes_through_a_bastion(
    way: Way, bastion: Login, ssh: str, tmp_path: Path
) -> None:
    login = way.login
    typed: list[Typed] = []
    with at_a_laptop(way, bastion, ssh, tmp_path) as laptop:

        def call(*argv: str) -> Typed:
            """A command; with openssh only the first one is asked for codes."""
            asked = ssh == "paramiko" or not typed
            codes = [host.add_code(f"{number}{len(typed):03d}{os.getpid()}") for number, host in ((1, bastion), (2, login))]
            typed.append(laptop(*argv, answers=codes if asked else ()))
            assert typed[-1].said.code == 0, typed[-1]
            assert not any(code in typed[-1].terminal for code in codes), "a code was echoed"
            assert bool(typed[-1].terminal.strip()) == asked
            return typed[-1]

        way.steps(10)
        through = sum(bastion.carried)
        name = f"far-{ssh}"
        said = call("submit", *way.site, "--ssh", ssh, "--name", name, "my.yml").said
        assert sum(bastion.carried) > through
        assert f"login:{login.user_home}/runs/{name}" in said.out
        assert "finished" not in said.out
        followed = call("logs", "-f", name).said
        assert [line for line in followed.out.splitlines() if "step" in line][-1].endswith("step 10")
        assert followed.err.endswith(f"{name}  DONE\n")
        facts = call("status", name, "--json").said.facts
        assert (facts["state"], facts["step"], facts["exit_status"]) == ("done", 10, 0)
        way.steps(100_000)
        call("submit", *way.site, "--ssh", ssh, "--name", f"{name}-endless", "my.yml")
        call("cancel", f"{name}-endless")
        deadline = time.monotonic() + 20
        while "endless" in way.slurm.ask("squeue", "--noheader", "--format=%j"):
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.mark.full
def test_behind_codes_too_each_job_exists_once_whenever_the_connection_is_cut(way: Way, bastion: Login, tmp_path: Path) -> None:
    """A cut at a random moment, of one of the two connections; every log-in after it asks for new codes."""
    chance = random.Random(20261121)
    way.steps(1)
    with at_a_laptop(way, bastion, "cut", tmp_path) as laptop:
        made = 0

        def submit(name: str) -> Typed:
            nonlocal made
            codes = [f"{os.getpid()}{number:05d}" for number in range(made, made + 12)]
            made += len(codes)
            for code, host in product(codes, (bastion, way.login)):  # whichever asks
                host.add_code(code)
            return laptop("submit", *way.site, "--name", name, "my.yml", answers=codes)

        before, begun = len(way.login.carried), time.monotonic()
        assert submit("coded-whole").said.code == 0
        lasts_s, carries = time.monotonic() - begun, sum(way.login.carried[before:])
        for number in range(10):
            host = chance.choice((bastion, way.login))
            if number % 2:
                host.cuts.append(int(chance.random() * carries))
            else:
                threading.Timer(chance.random() * lasts_s, host.cut).start()
            for _ in range(4):  # its user calls it again until it tells of the job
                if (typed := submit(f"coded{number}")).said.code == 0:
                    break
            assert typed.said.code == 0, typed
            host.cuts.clear()
    jobs = way.slurm.ask("squeue", "--noheader", "--states=all", "--format=%j").split()
    assert sorted(job for job in jobs if job.startswith("coded")) == sorted(["coded-whole", *(f"coded{n}" for n in range(10))])


def test_with_the_connection_cut_at_ten_random_moments_each_job_exists_once(
    way: Way, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(far, "PAUSES_S", (0.1, 0.5))
    login, chance = way.login, random.Random(20261121)
    write_ssh_config(Path(os.environ["HOME"]), {"login": login})
    way.steps(1)
    begun, bytes_before = time.monotonic(), len(login.carried)
    assert desk("submit", *way.site, "--name", "whole", "my.yml").code == 0
    lasts_s, carries = time.monotonic() - begun, sum(login.carried[bytes_before:])
    for number in range(10):
        if number % 2:
            login.cuts.append(int(chance.random() * carries))
        else:
            threading.Timer(chance.random() * lasts_s, login.cut).start()
        for _ in range(3):  # its user calls it again until it tells of the job
            if (said := desk("submit", *way.site, "--name", f"cut{number}", "my.yml")).code == 0:
                break
        assert said.code == 0, said
        login.cuts.clear()
    jobs = way.slurm.ask("squeue", "--noheader", "--states=all", "--format=%j").split()
    assert sorted(job for job in jobs if job.startswith("cut")) == [f"cut{number}" for number in range(10)]
    assert {path.name for path in (login.user_home / "runs").glob("cut*")} == {f"cut{number}" for number in range(10)}


def test_a_secret_reaches_the_ranks_and_nothing_else(way: Way, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = {"the user's file there": SECRET, "the submitting shell": "a-secret-of-this-shell-42"}
    monkeypatch.setenv("WANDB_API_KEY", planted["the submitting shell"])
    write_ssh_config(Path(os.environ["HOME"]), {"login": way.login})
    way.steps(5)
    seen: set[str] = set()
    watching = threading.Event()

    def watch() -> None:
        while not watching.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(path.read_text(errors="replace"))
            time.sleep(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        said = [desk("submit", *way.site, "--name", "secretive", "my.yml"), desk("logs", "-f", "secretive")]
        said.append(desk("status", "secretive", "--json"))
    finally:
        watching.set()
        thread.join()
    assert said[-1].facts["state"] == "done"
    run = way.login.user_home / "runs" / "secretive"
    assert (run / "proof").read_text().split()[0] == hashlib.sha256(SECRET.encode()).hexdigest()
    assert any(line.startswith("srun") and "secretive" in line for line in seen)
    places = (way.login.home, way.slurm.conf.parent.parent, Path(os.environ["HOME"]), desk.cwd)
    files = {path: path.read_bytes() for place in places for path in place.rglob("*") if path.is_file() and not path.is_symlink()}
    assert any(path.name == "job.sh" for path in files) and any(path.name == "slurmctld.log" for path in files)
    for secret in planted.values():
        found = [path for path, content in files.items() if secret.encode() in content and path.name != "secrets.env"]
        assert found == [] and not any(secret in text for text in (*seen, *(f"{one.out}{one.err}" for one in said)))
