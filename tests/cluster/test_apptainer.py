"""Images in a real Apptainer: whole jobs of this machine, their ranks a shell script that tells what it sees.

Its Debian is made in two minutes; NEOX_HPC_APPTAINER names a directory that keeps it.
"""

from __future__ import annotations

import json
import os
import platform
import pwd
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from neox_hpc.containers import CONTAINERS, Bind, Container
from neox_hpc.probe import read_image_arch
from tests.cluster.apptainer import Apptainer, make_apptainer, obstacle
from tests.cluster.slurm import REQUIRED, Slurm
from tests.cluster.user import User
from tests.desk import Desk, desk

__all__ = ["desk"]

pytestmark = [pytest.mark.cluster, pytest.mark.full]

EVIL = 'a,b "c" $HOME `id` \\ $(id) it\'s\n#second line (x2)* ünï'
RANK = """#!/bin/sh
run=$1
env -0 >"$run/env"
env -0 >"$run/env.${SLURM_PROCID:-}"
pwd >"$run/cwd"
printf '%s\\0' "$@" >"$run/argv"
cat ${PROBE:-/dev/null} >"$run/probed"
if touch here 2>/dev/null; then echo writable; else echo read-only; fi >"$run/code_is"
if touch /here 2>/dev/null; then echo writable; else echo read-only; fi >"$run/image_is"
if [ -n "${SLURM_PROCID:-}" ]; then # srun ends a rank when the other has ended
  touch "$run/told.$SLURM_PROCID"
  tries=0
  until [ -e "$run/told.0" ] && [ -e "$run/told.1" ] || [ $tries = 300 ]; do sleep 0.1; tries=$((tries + 1)); done
fi
exit 42
"""
PYTHON = """#!/bin/sh
for last; do :; done
exec /bin/rank "$(cd "$(dirname "$last")" && pwd)" "$@"
"""


@pytest.fixture(scope="module")
def apptainer(tmp_path_factory: pytest.TempPathFactory) -> Apptainer:
    if reason := obstacle():
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{REQUIRED}=1, and {reason}")
        pytest.skip(reason)
    kept = os.environ.get("NEOX_HPC_APPTAINER")
    return make_apptainer(Path(kept) if kept else tmp_path_factory.mktemp("apptainer"))


@pytest.fixture(scope="module")
def sandbox(apptainer: Apptainer) -> Iterator[Path]:
    """In /tmp by its name: a user without rights does not get into pytest's directories."""
    with tempfile.TemporaryDirectory(prefix="neox-hpc-image-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        programs = {"bin/rank": RANK, "bin/python3": PYTHON, "bin/bash": '#!/bin/sh\nexec sh "$@"\n'}
        yield apptainer.sandbox(Path(folder) / "tiny", programs, directories=("host",))


@pytest.fixture(scope="module")
def sif(apptainer: Apptainer, sandbox: Path) -> Path:
    image = sandbox.parent / "tiny image.sif"
    built = apptainer.run("build", str(image), str(sandbox))
    assert built.returncode == 0, built.stderr
    return image


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a rank in the container has seen."""

    facts: Any
    run: Path

    def text(self, name: str) -> str:
        return (self.run / name).read_text()

    @property
    def env(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for pair in self.text("env").split("\0") if "=" in pair)


def job(desk: Desk, image: Path, *more: str, name: str = "run") -> Seen:
    sets = ("--site-set", "container.runtime=apptainer")
    site = () if "-s" in more else ("-s", "local")
    said = desk("submit", *site, *sets, "--container", str(image), "--run-id", name, *more, "--json", "my.yml")
    assert said.code == 0, said.err
    run = Path(said.facts["run_dir"])
    desk.wait_for("failed", str(run))
    return Seen(facts=desk("status", str(run), "--json").facts, run=run)


def test_a_job_runs_in_an_image_and_its_exit_status_comes_back(desk: Desk, apptainer: Apptainer, sif: Path) -> None:
    apptainer.program(desk.programs)
    seen = job(desk, sif)
    assert seen.facts["exit_status"] == 42
    assert seen.text("cwd") == f"{seen.run}/code\n"
    assert (seen.text("code_is"), seen.text("image_is")) == ("read-only\n", "read-only\n")
    assert seen.text("argv").split("\0")[:4] == [str(seen.run), "-u", "-m", "deepspeed.launcher.launch"]
    assert seen.env["NEOX_HPC_ATTEMPT_DIR"] == f"{seen.run}/logs/1" and seen.env["MASTER_ADDR"] == "127.0.0.1"
    assert (seen.env["PYTHONNOUSERSITE"], seen.env["PYTHONPATH"]) == ("1", "")


def test_what_a_real_image_is_built_for_is_read_of_its_file(sif: Path) -> None:
    assert read_image_arch(str(sif)) == platform.machine()


def test_the_receipt_names_the_image_as_apptainer_does(desk: Desk, apptainer: Apptainer, sif: Path) -> None:
    apptainer.program(desk.programs)
    software = job(desk, sif).facts["software"]
    assert software["is"] == f"image {sif} in apptainer"
    assert (software["image_bytes"], software["image_mtime"]) == (sif.stat().st_size, sif.stat().st_mtime)
    header = apptainer.run("sif", "header", str(sif)).stdout
    assert software["image_id"] in header.replace("-", ""), header


@pytest.mark.parametrize("name", ["it's $HOME `id`", "a:b,c\\d", 'say "x" (x2)*', "ünï"])
def test_evil_run_directories_arrive(desk: Desk, apptainer: Apptainer, sandbox: Path, name: str) -> None:
    apptainer.program(desk.programs)
    seen = job(desk, sandbox, name=name)
    assert (seen.facts["exit_status"], seen.text("cwd")) == (42, f"{seen.run}/code\n")


def test_evil_values_arrive_and_nothing_in_them_runs(desk: Desk, apptainer: Apptainer, sandbox: Path) -> None:
    apptainer.program(desk.programs)
    site = desk.cwd / "here.yml"
    site.write_text(
        f"extends: local\nenv: {{OUTER: {_yaml(EVIL)}}}\ncontainer:\n  env: {{INNER: {_yaml(EVIL)}, LD_LIBRARY_PATH: /a b:/c}}\n"
    )
    seen = job(desk, sandbox, "-s", str(site))
    assert (seen.env["OUTER"], seen.env["INNER"]) == (EVIL, EVIL)
    assert seen.env["LD_LIBRARY_PATH"].startswith("/a b:/c")


def test_data_behind_links_and_a_sites_binds_are_there(desk: Desk, apptainer: Apptainer, sandbox: Path) -> None:
    """/tmp comes in by itself, and a link in it leads to where nothing has come in from."""
    apptainer.program(desk.programs)
    with tempfile.TemporaryDirectory(dir="/run") as real:
        (desk.cwd / "data").rename(desk.cwd / "moved")
        (desk.cwd / "data").symlink_to(real)
        (Path(real) / "train.bin").write_text("behind a link\n")
        (Path(real) / "train.idx").touch()
        site = desk.cwd / "here.yml"
        site.write_text(
            f"extends: local\ncontainer: {{binds: ['{desk.cwd}/moved:/host:ro']}}\n"
            f"env: {{PROBE: {desk.cwd}/data/train.bin {real}/train.bin /host/note}}\n"
        )
        (desk.cwd / "moved" / "note").write_text("a bind\n")
        seen = job(desk, sandbox, "-s", str(site))
        assert seen.text("probed") == "behind a link\nbehind a link\na bind\n"


def test_a_file_of_the_container_section_is_sourced_inside(desk: Desk, apptainer: Apptainer, sandbox: Path) -> None:
    apptainer.program(desk.programs)
    (desk.cwd / "adapt.sh").write_text("export OUTER=adapted\n")
    sets = ("--site-set", f"container.init={desk.cwd}/adapt.sh", "--site-set", f'container.binds=["{desk.cwd}"]')
    assert job(desk, sandbox, *sets).env["OUTER"] == "adapted"


def test_an_ordinary_user_needs_no_rights(apptainer: Apptainer, sandbox: Path) -> None:
    container = Container(image=str(sandbox), binds=(Bind(path="/usr", inside="/host", read_only=True),), workdir="/host")
    argv = apptainer.argv("env", "HOME=/tmp", *CONTAINERS["apptainer"](container), "sh", "-c", "id -u; pwd; exit 7", user="nobody")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (7, f"{pwd.getpwnam('nobody').pw_uid}\n/host\n"), done.stderr


def test_an_image_that_is_not_there_ends_the_job_with_apptainers_words(desk: Desk, apptainer: Apptainer, tmp_path: Path) -> None:
    apptainer.program(desk.programs)
    (tmp_path / "broken.sif").write_text("not an image")
    seen = job(desk, tmp_path / "broken.sif")
    assert seen.facts["exit_status"] == 255 and "FATAL" in Path(seen.facts["log"]).read_text()


@pytest.mark.parametrize("stage", [(), ("image", "code")], ids=["shared", "on the nodes' disks"])
def test_srun_starts_a_container_for_every_rank(
    user: User, slurm: Slurm, apptainer: Apptainer, sif: Path, stage: tuple[str, ...]
) -> None:
    """Two nodes of a real Slurm; its jobs' login shell finds Apptainer."""
    programs = slurm.user_home / "apptainer-bin"
    programs.mkdir(exist_ok=True)
    apptainer.program(programs)
    (slurm.user_home / ".profile").write_text(f"PATH={programs}:$PATH\n")
    sets = [word for kind in stage for word in ("--site-set", f"stage.{kind}=node_local")]
    sets += ["--site-set", "container.runtime=apptainer", "--site-set", f"node.local_disk={slurm.disk}", "--container", str(sif)]
    try:
        said = user.submit("--name", f"contained-{len(stage)}", "--json", *sets)
        assert said.code == 0, said.err
        facts = user.wait_for(said.facts["run_dir"], "failed")
    finally:
        (slurm.user_home / ".profile").unlink()
    run = Path(facts["run_dir"])
    ranks = [dict(pair.split("=", 1) for pair in (run / f"env.{n}").read_text().split("\0") if "=" in pair) for n in (0, 1)]
    assert [rank["SLURMD_NODENAME"] for rank in ranks] == ["node1", "node2"]
    assert {rank["MASTER_ADDR"] for rank in ranks} == {"node1"}
    assert facts["exit_status"] in (42, 143)  # srun gives the highest, and the second rank may have been ended after the first
    place = f"{slurm.disk}/neox-hpc-{facts['job_id']}.1" if stage else str(run)
    assert (run / "cwd").read_text() == f"{place}/code\n"
    assert {Path(rank["APPTAINER_CONTAINER"]) for rank in ranks} == {Path(f"{place}.image") if stage else sif}
    assert [list(folder.iterdir()) for folder in sorted(slurm.disk.with_name("disks").iterdir())] == [[], []]


def _yaml(text: str) -> str:
    return json.dumps(text)
