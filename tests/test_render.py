"""The files of a job: whole scripts are compared with tests/golden; the same plan gives the same bytes.

To accept a change of a template: NEOX_HPC_UPDATE_GOLDEN=1 pytest tests/test_render.py, then read the difference in git.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from model.config import read_run
from neox_hpc.plan import Plan
from neox_hpc.probe import Facts, Machine
from neox_hpc.render import quote, render, render_script, wrap
from neox_hpc.site import EnvValue
from tests.planning import GOLDEN, plan, plan_shipped, site, slurm

FOUR_GPUS = Facts(machine=Machine(accelerator="cuda", gpu_ids=("0", "1", "2", "3"), cores=32, python="/usr/bin/python3"))


def jobs() -> dict[str, Plan]:
    """Jobs of another shape than those of tests/test_every_site.py, each with its golden script."""
    frontier = site("frontier", "software.python=/sw/env/bin/python")
    return {
        "local-cpu": plan(site("local")),
        "local-gpu": plan(site("local"), facts=FOUR_GPUS),
        "slurm-cpu-2": plan(site("slurm", "node.gpus=0", "node.cpu_ranks=2", "software.python=/usr/bin/python3"), nodes=2),
        "slurm-512": plan(slurm(), nodes=512, walltime_s=5400, account="lab42", queue="gpu", keys={"model_parallel_size": 2}),
        "frontier-20B": plan_shipped(site("frontier"), "20B"),  # without an account and software
        "frontier-20B-344": plan_shipped(frontier, "20B", nodes=344, account="lab42"),
        "frontier-debug": plan(frontier, account="lab42", queue="debug", keys={"comment": "a first try"}),
    }


NAMES = tuple(jobs())


@pytest.mark.parametrize("name", NAMES)
def test_job_script_is_the_golden_one(name: str) -> None:
    script, golden = render_script(jobs()[name]), GOLDEN / f"{name}.sh"
    if os.environ.get("NEOX_HPC_UPDATE_GOLDEN"):
        golden.write_text(script)
    assert script == golden.read_text()


def test_every_golden_script_has_a_job() -> None:
    assert {path.stem for path in GOLDEN.glob("*.sh")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_bash_and_dash_parse_the_script(name: str) -> None:
    for shell in ("bash", "dash"):
        if shell == "dash" and shutil.which(shell) is None:
            pytest.skip("no dash here: apt-get install dash")
        done = subprocess.run([shell, "-n"], input=render_script(jobs()[name]), text=True, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("dialect", ["bash", "sh"])
def test_shellcheck_finds_nothing(dialect: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here: apt-get install shellcheck")
    files = [str(GOLDEN / f"{name}.sh") for name in NAMES]
    command = ["shellcheck", f"--shell={dialect}", *files]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    # the file of the site's modules is on the site
    assert re.findall(r"SC(?!1091)\d+ .*", done.stdout) == []


def test_script_stays_the_same_from_1_to_9472_nodes_but_for_digits() -> None:
    scripts = [render_script(plan(slurm(), nodes=nodes)) for nodes in (1, 2, 31, 512, 9472)]
    shapes = {re.sub(r"\d+", "0", script).replace(" \\\n ", "") for script in scripts}
    assert len(shapes) == 1
    assert max(map(len, scripts)) <= 6000


@pytest.mark.parametrize("name", NAMES)
def test_script_is_at_most_6_kB_and_its_lines_can_be_read(name: str) -> None:
    script = render_script(jobs()[name])
    assert len(script.encode()) <= 6000
    assert max(map(len, script.splitlines())) <= 132


@pytest.mark.parametrize("name", NAMES)
def test_same_plan_gives_the_same_bytes(name: str) -> None:
    assert dict(render(jobs()[name])) == dict(render(jobs()[name]))


def test_script_names_no_path_but_those_of_the_request_and_the_site() -> None:
    paths = set(re.findall(r"""(?:^|[\s=":])(/[\w./-]+)""", render_script(plan(slurm())).removeprefix("#!/bin/bash")))
    assert paths == {"/scratch/runs/small", "/scratch/runs/small/logs/job.out", "/opt/env/bin/python"} | {"/dev/null"}


def test_run_json_is_read_back_with_absolute_paths(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(render(plan(slurm(), keys={"load": "other"}))["run.json"])
    run = read_run(tmp_path / "run.json")
    keys = run.config.keys()
    assert (run.world_size, run.device) == (4, "gpu")
    assert (keys["data_path"], keys["vocab_file"], keys["load"]) == (
        "/home/user/data/text",
        "/home/user/data/tokenizer.json",
        "/home/user/other",
    )
    assert keys["save"] == "/scratch/runs/small/checkpoints"


def test_load_written_as_save_stays_the_same_directory() -> None:
    run = plan(slurm(), keys={"load": "checkpoints"}).run
    assert run.config.checkpoints.load == run.config.checkpoints.save == "/scratch/runs/small/checkpoints"


def test_plan_json_says_what_status_needs() -> None:
    summary = json.loads(render(plan(slurm(), nodes=3, walltime_s=3600))["plan.json"])
    assert summary == {
        "name": "small",
        "site": "slurm",
        "scheduler": "slurm",
        "launcher": "srun",
        "software": "Python /opt/env/bin/python",
        "nodes": 3,
        "ranks_per_node": 4,
        "world_size": 12,
        "device": "gpu",
        "layout": {"tensor": 1, "pipe": 1, "data": 12},
        "batch": {"train": 48, "micro": 4, "accumulation": 1},
        "train_iters": 20,
        "account": None,
        "queue": None,
        "walltime_s": 3600,
        "poll_s": None,
    }


EVIL = ["", " a  b ", "it's", 'say "x"', "$HOME", "`id`", "a,b", "64(x2)", "back\\slash", "two\nlines", "*", "~", "ünï", "#x", "-n"]


@pytest.mark.parametrize("text", EVIL)
def test_a_quoted_value_arrives_as_it_was(text: str) -> None:
    for value, written in ((text, quote(text)), (text, quote(EnvValue(value=text, expand=True)))):
        done = subprocess.run(["sh", "-c", f"printf %s {written}"], capture_output=True, check=True)
        assert done.stdout.decode() == value


LIKE_DIRECTIVES = ["a\nflux: -N9", "a\n# FLUX: -N9", "flux: x", "a\n#PBS -l select=9", "a\n#BSUB -n 9", "a\n#SBATCH -N9\n#flux:"]


@pytest.mark.parametrize("text", LIKE_DIRECTIVES)
def test_a_line_of_a_value_is_never_taken_for_a_directive(text: str) -> None:
    """RFC 36's pattern, and the words of the others at the beginning of a line."""
    for value in (text, EnvValue(value=text), EnvValue(value=text, expand=True)):
        lines = f"export A={quote(value)}\nrun \\\n  {quote(value)}".splitlines()
        assert not [line for line in lines if re.match(r"[^\w]*(flux|FLUX):|#(SBATCH|PBS|BSUB)", line)]
        done = subprocess.run(["sh", "-c", f"printf %s {quote(value)}"], capture_output=True, check=True)
        assert done.stdout.decode() == text


def test_an_expanding_value_takes_the_jobs_variable_and_nothing_else() -> None:
    written = quote(EnvValue(value="${LEFT}:${NOT_SET}:$LEFT:`id`", expand=True))
    done = subprocess.run(["sh", "-uc", f"printf %s {written}"], capture_output=True, check=True, env={"LEFT": "a b"})
    assert done.stdout == b"a b::$LEFT:`id`"


def test_wrapping_keeps_every_word() -> None:
    words = [f"--word-{n}={'x' * (n % 40)}" for n in range(30)] + EVIL
    done = subprocess.run(["sh", "-c", f"printf '%s\\0' {wrap(words)}"], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == words
