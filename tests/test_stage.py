"""``stage:``: what every node copies to its own disk before the ranks start.  Job scripts are run, their programs are faked.

The same on the nodes of a real Slurm is in cluster/test_stage.py.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from neox_hpc.errors import UserError
from neox_hpc.launchers import LAUNCHERS, NEEDS_JOB_OF
from neox_hpc.plan import Plan
from neox_hpc.probe import Facts
from neox_hpc.render import render_script
from neox_hpc.site import Site
from tests.planning import TWO_CORES, plan, planned, site, wrongs

ALL = ("node.local_disk=/disk/${USER}", "stage.image=node_local", "stage.code=node_local", "stage.env=node_local")
SLURM = ("slurm", "node.gpus=4", "node.accelerator=cuda", "container.runtime=apptainer")


def script(where: Site, **asked: Any) -> str:
    return render_script(plan(where, **asked)).replace(" \\\n ", "")


def test_a_job_without_stage_copies_nothing() -> None:
    assert "stage" not in script(site(*SLURM), container="/x.sif")


def test_an_image_is_run_from_the_copy_and_the_code_from_its_own() -> None:
    text = script(site(*SLURM, *ALL), container="/x.sif", nodes=2)
    assert '--bind "$staged/code:$staged/code:ro" --pwd "$staged/code" "$staged.image" python3 -u -m model.train' in text
    assert 'export staged="/disk/${USER:-}/neox-hpc-$job.$attempt"' in text
    assert text.index('--bind "/disk/${USER:-}"') < text.index('--bind "$staged/code')


def test_an_environment_is_called_where_its_copy_is() -> None:
    text = script(site(*SLURM, *ALL, "software.venv=/envs/e"))
    assert """sh -c 'cd "$0" && exec "$@"' "$staged/code" "$staged/env/bin/python" -u -m model.train""" in text
    assert "env_sum=$(cksum </envs/e.tar)" in text and 'export PATH="$staged/env/bin:$PATH"' in text


def test_slurm_broadcasts_and_the_others_copy_on_every_node() -> None:
    assert '\n  sbcast --force "$1" "$2"\n' in script(site(*SLURM, *ALL), container="/x.sif")
    local = script(site("local", "container.runtime=apptainer", *ALL), container="/x.sif")
    assert "sbcast" not in local and "\n  : # every node takes its own copy\n" in local


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_copies_once_a_node_and_knows_the_words_there(launcher: str) -> None:
    scheduler = NEEDS_JOB_OF.get(launcher, ("slurm",))[0]
    where = site(*SLURM, *ALL, f"scheduler={scheduler}", f"launcher={launcher}")
    where = where if launcher != "local" else site("local", "container.runtime=apptainer", *ALL)
    job = plan(where, container="/x.sif", nodes=1 if launcher == "local" else 3)
    text = render_script(job).replace(" \\\n ", "")
    [line] = [line.replace("\\", "") for line in text.splitlines() if "stage.sh" in line and line.endswith("|| {")]
    line = line.replace('"\'"', '"')  # of pdsh, for the shells of the nodes
    assert '"$staged" image /x.sif "$image_sum" code "$NEOX_HPC_ATTEMPT_DIR/code.tar" "$code_sum"' in line
    assert {"staged", "image_sum", "code_sum", "NEOX_HPC_ATTEMPT_DIR"} <= set(job.step.env)
    for wrong in ("--ntasks-per-node=4", "--tasks-per-node=4", "ppr:4:", "-ppn 4", "--ppn 4", "--tasks_per_rs=4"):
        assert wrong not in line


@pytest.mark.parametrize(
    ("more", "asked", "note"),
    [
        ((), {"container": "neox:1"}, None),
        (
            ("software.conda=/c",),
            {},
            "stage: conda environment /c stays where it is, it is no virtual environment (stage.env of slurm)",
        ),
        (("software.module=m",), {}, "stage: module m stays where it is, it is no virtual environment (stage.env of slurm)"),
    ],
)
def test_what_cannot_be_copied_is_told(more: tuple[str, ...], asked: dict[str, Any], note: str | None) -> None:
    runtime = ("container.runtime=docker",) if asked else ()
    found = planned(site(*SLURM[:3], *runtime, *ALL, *more), asked=asked)
    expected = note or "stage: image neox:1 in docker stays where it is, it is no image in a file (stage.image of slurm)"
    assert expected in found.notes


def test_stage_needs_a_disk() -> None:
    with pytest.raises(UserError, match="stage copies to the node's own disk, which is not known"):
        site(*SLURM, "stage.code=node_local")


def test_an_environment_without_its_archive_is_wrong_here() -> None:
    facts = Facts(exists={"/e/bin/python": True, "/e.tar": False})
    [problem] = wrongs(planned(site(*SLURM, *ALL, "software.venv=/e"), facts=facts), "here")
    assert problem.endswith("stage.env copies /e.tar to the nodes, and there is none here / tar -cf /e.tar -C /e .")


# Run -------------------------------------------------------------------------------------------------------------------

PYTHON = """#!/bin/sh
{ pwd; echo "$0"; ls; } >"$RECORD/seen"
exit 3
"""


@pytest.fixture(params=["bash", "dash"])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Plan, list[str]]:
    """A run on this machine from a copied code and environment, and the command that starts it."""
    if shutil.which(request.param) is None:
        pytest.skip(f"no {request.param} here: apt-get install {request.param}")
    for folder in ("run's/code/model", "run's/logs", "disk", "env/bin", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "run's/code/model/train.py").write_text("x = 1\n")
    (tmp_path / "env/bin/python").write_text(PYTHON)
    (tmp_path / "env/bin/python").chmod(0o755)
    subprocess.run(["tar", "-cf", tmp_path / "env.tar", "-C", tmp_path / "env", "."], check=True)
    sets = (f"software.venv={tmp_path / 'env'}", "node.local_disk=${DISK}", "stage.env=node_local", "stage.code=node_local")
    made = plan(site("local", *sets), facts=TWO_CORES, run_dir=str(tmp_path / "run's"))
    (tmp_path / "job.sh").write_text(render_script(made))
    return made, [request.param, str(tmp_path / "job.sh")]


def finish(command: list[str], tmp_path: Path) -> tuple[int, str]:
    environ = {"PATH": f"{tmp_path / 'bin'}:{os.defpath}", "RECORD": str(tmp_path), "DISK": str(tmp_path / "disk")}
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20)
    return done.returncode, done.stdout


def test_ranks_run_the_copied_python_in_the_copied_code_and_the_copies_go(job: tuple[Plan, list[str]], tmp_path: Path) -> None:
    status, output = finish(job[1], tmp_path)
    assert status == 3, output
    where, python, *listed = (tmp_path / "seen").read_text().splitlines()
    assert re.fullmatch(rf"{tmp_path}/disk/neox-hpc-\d+\.1/code", where)
    assert (python, listed) == (where.replace("/code", "/env/bin/python"), ["model"])
    assert list((tmp_path / "disk").iterdir()) == []


@pytest.mark.parametrize("archive", ["code.tar", "env.tar"])
def test_a_copy_that_differs_ends_the_job_with_the_nodes_name(job: tuple[Plan, list[str]], tmp_path: Path, archive: str) -> None:
    cp = tmp_path / "bin" / "cp"
    cp.write_text(f'#!/bin/sh\n/bin/cp "$@"\ncase $1 in */{archive}) echo >>"$2" ;; esac\n')
    cp.chmod(0o755)
    status, output = finish(job[1], tmp_path)
    assert status == 1 and not (tmp_path / "seen").exists()
    assert re.search(rf"neox-hpc: {os.uname().nodename}: \S+ is no true copy of .*/{archive}: their checksums differ", output), (
        output
    )
    assert "neox-hpc: not every node has its copies" in output
    assert list((tmp_path / "disk").iterdir()) == []


def test_an_absent_archive_ends_the_job(job: tuple[Plan, list[str]], tmp_path: Path) -> None:
    (tmp_path / "env.tar").unlink()
    status, output = finish(job[1], tmp_path)
    assert status == 1 and f"neox-hpc: there is no file {tmp_path}/env.tar" in output


def test_a_full_disk_ends_the_job_with_the_nodes_name(job: tuple[Plan, list[str]], tmp_path: Path) -> None:
    (tmp_path / "bin" / "cp").write_text("#!/bin/sh\necho 'No space left on device' >&2\nexit 1\n")
    (tmp_path / "bin" / "cp").chmod(0o755)
    status, output = finish(job[1], tmp_path)
    assert status == 1 and f"neox-hpc: {os.uname().nodename}: " in output and "cannot be copied to" in output


@pytest.mark.parametrize("dialect", ["bash", "sh"])
def test_shellcheck_finds_nothing(dialect: str, tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here: apt-get install shellcheck")
    jobs = {"a": plan(site(*SLURM, *ALL), container="/x.sif"), "b": plan(site(*SLURM, *ALL, "software.venv=/e"))}
    jobs["c"] = dataclasses.replace(jobs["b"], software=dataclasses.replace(jobs["b"].software, conda="/c d", folders=("/f f",)))
    for name, made in jobs.items():
        (tmp_path / f"{name}.sh").write_text(render_script(made))
    found = subprocess.run(["shellcheck", f"--shell={dialect}", *tmp_path.glob("*.sh")], capture_output=True, text=True)
    # SC2016: the words in single quotes are for another shell
    assert re.findall(r"SC(?!1091|2016)\d+ .*", found.stdout) == []
