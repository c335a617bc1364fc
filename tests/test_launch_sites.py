"""The script of a job and DeepSpeed's runner start the same: argv of get_cmd against what a recording launcher is given."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

pytest.importorskip("deepspeed", reason="the runners stand on DeepSpeed: pip install -e '.[train]'")

from neox_hpc.launchers import Shell
from neox_hpc.launchers.deepspeed import make_runner, read_args
from neox_hpc.plan import Plan, make_plan
from neox_hpc.render import render_script
from tests.planning import TWO_CORES, loaded, request
from tests.test_every_site import IMAGE, SITES, SOFTWARE, account, whole

RECORDS = '#!/bin/sh\nprintf \'%s\\0\' "${0##*/}" "$@" >"$RECORD/argv"\nenv -0 >"$RECORD/env"\n'
PROGRAMS = ("srun", "jsrun", "mpirun", "mpiexec", "pdsh", "python3")
ANSWERS = {
    "scontrol": "printf 'n1\\nn2\\n'",
    "hostname": "echo 10.1.2.3",
    "module": ":",
    "flux": 'case "$1" in getattr) echo f2ab ;; hostlist) echo n1 n2 ;; *) exec flux-run "$@" ;; esac',
}


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A run directory, and programs that answer or record."""
    for folder in ("run/logs", "run/code", "bin", "home"):
        (tmp_path / folder).mkdir(parents=True)
    answers = {name: f"#!/bin/sh\n{lines}\n" for name, lines in ANSWERS.items()}
    for name, text in (answers | dict.fromkeys((*PROGRAMS, "flux-run"), RECORDS)).items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "slots").write_text("batch1\nn1\nn1\nn2\nn2\n")
    (tmp_path / "hosts").write_text("n1\nn2\n")
    return tmp_path


def plan_of(where: str, how: str, stage: Path) -> Plan:
    """A small job on two nodes, or on the one that there is."""
    site = whole(where, how)
    hostfile = None if site.hostfile is None else str(stage / "pods")
    (stage / "pods").write_text("n1 slots=8\nn2 slots=8\n")
    update = {"hostfile": hostfile, "modules": site.modules.model_copy(update={"init": None}), "stage": type(site.stage)()}
    if site.here and how == "none":
        update["software"] = site.software.model_copy(update={"python": str(stage / "bin/python3")})
    given = {"container": IMAGE if how == "container" else "none", "account": account(where)}
    asked = request(run_dir=str(stage / "run"), nodes=1 if site.max_nodes == 1 else 2, **given)
    planned = make_plan(loaded(), site.model_copy(update=update), asked, TWO_CORES)
    assert planned.plan is not None, "\n".join(map(str, planned.problems))
    return planned.plan


def arrived(plan: Plan, stage: Path) -> tuple[list[str], dict[str, str]]:
    """What the launcher is given, and its environment."""
    (stage / "run/job.sh").write_text(render_script(plan))
    environ = {
        "PATH": f"{stage / 'bin'}:/usr/bin:/bin",
        "HOME": str(stage / "home"),
        "USER": "ada",
        "RECORD": str(stage),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "PBS_JOBID": "7.pbs",
        "PBS_NODEFILE": str(stage / "hosts"),
        "LSB_JOBID": "7",
        "LSB_DJOB_HOSTFILE": str(stage / ("slots" if plan.site.scheduler == "lsf-csm" else "hosts")),
    }
    done = subprocess.run(["bash", "run/job.sh"], cwd=stage, env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    argv = (stage / "argv").read_text().split("\0")[:-1]
    env = dict(pair.split("=", 1) for pair in (stage / "env").read_text().split("\0")[:-1])
    return ["flux", *argv[1:]] if argv[0] == "flux-run" else argv, env


def expanded(word: str, variables: Mapping[str, str]) -> str:
    """A word that the job's shell expands: names, and its escapes in double quotes."""
    if not isinstance(word, Shell):
        return word
    names = r"\\([\\$`\"])|\$(?:\{(\w+)(?::-)?\}|(\w+))"
    return re.sub(names, lambda found: found[1] or variables.get(found[2] or found[3], ""), word)


@pytest.mark.parametrize("how", SOFTWARE)
@pytest.mark.parametrize("where", SITES)
def test_the_job_starts_what_the_runner_gives(where: str, how: str, stage: Path) -> None:
    plan = plan_of(where, how, stage)
    if plan.site.launcher == "local" and how == "container":
        (stage / "bin/apptainer").write_text(RECORDS)
        (stage / "bin/apptainer").chmod(0o755)
    argv, env = arrived(plan, stage)
    logs = stage / "run/logs/1"
    names = (logs / "nodefile").read_text().split()
    variables = env | {"run": str(stage / "run"), "node_sh": f"'{logs / 'node.sh'}'"}
    files = {name: str(logs / name) for name in ("hostfile", "nodefile", "rankfile")}
    far = plan.site.launcher == "pdsh"  # node.sh knows the rest
    here = {} if far else {"master_port": env["MASTER_PORT"]}
    step = dataclasses.replace(plan.step, **files, **here, launcher_args=())
    args = read_args([], plan.step.module, plan.step.module_args)
    args.launcher_args = shlex.join(plan.step.launcher_args)
    args.master_addr = "" if far else env["MASTER_ADDR"]
    active = {name: list(range(plan.ranks_per_node)) for name in names}
    got = make_runner(plan.site.launcher, step, args, active, dict.fromkeys(active, 0)).get_cmd({}, active)
    expected = [expanded(word, variables) for word in got]
    assert [os.path.basename(argv[0]), *argv[1:]] == [os.path.basename(expected[0]), *expected[1:]]


def test_the_test_sees_every_launcher_but_those_of_no_shipped_site() -> None:
    assert shutil.which("bash")
    assert {whole(name, "none").launcher for name in SITES} >= {"srun", "jsrun", "pals", "flux", "openmpi", "local"}
