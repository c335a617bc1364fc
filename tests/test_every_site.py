"""Every site with a configuration of each shape, with and without a container, on one node and on many.

To accept a change: NEOX_HPC_UPDATE_GOLDEN=1 pytest tests/test_every_site.py, then read the difference in git.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from neox_hpc.plan import Plan, Planned, make_plan
from neox_hpc.render import render_script
from neox_hpc.schedulers import SCHEDULERS
from neox_hpc.settings import Loaded, load_config
from neox_hpc.share import share
from neox_hpc.site import Site
from neox_hpc.site_files import list_sites
from neox_hpc.software import has_software
from neox_hpc.vocabulary import write_run
from tests.planning import GOLDEN, TWO_CORES, loaded, request, site
from tests.test_shipped import SHIPPED
from tests.test_shipped import whole as beside_its_model

SITES = tuple(list_sites(GOLDEN / "nobody"))
CONFIGS = ("125M", "20B", "local_setup", "pythia/160M", "quickstart")
"""One of each shape of job; `make test-full` has them all."""
SOFTWARE = ("none", "container")
IMAGE = "/images/neox.sif"
GIVEN = {"node.gpus": 4, "node.accelerator": "cuda", "node.cores": 64}
"""What a user gives where a generic site leaves it open."""


@cache
def config(name: str) -> Loaded:
    """A shipped configuration; that of a machine's paths has its model beside it."""
    beside = ["125M.yml"] if name == "local_setup" else []
    return load_config([*beside, f"{name}.yml"], cwd=share("configs"))


@cache
def whole(name: str, how: str) -> Site:
    """A shipped site with its open facts given."""
    return site(name, *open_facts(name, how))


def open_facts(name: str, how: str) -> list[str]:
    """What a user gives of a shipped site, as --site-set takes it."""
    found = site(name)
    values = {fact: getattr(found.node, fact.partition(".")[2]) for fact in GIVEN}
    sets = [f"{fact}={GIVEN[fact]}" for fact, value in values.items() if value is None and not found.here]
    if how == "container":
        sets += ["container.runtime=apptainer"] if found.container.runtime is None else []
    elif not has_software(found) and not found.here:
        sets += ["software.python=/opt/env/bin/python"]
    return sets


def job(where: str, what: Loaded, how: str, **asked: Any) -> Planned:
    """A job of a site, in a container or not."""
    given = {"container": IMAGE if how == "container" else "none", "account": account(where)}
    return make_plan(what, whole(where, how), request(**(given | asked)), TWO_CORES)


def account(name: str) -> str | None:
    """One that looks as the site's accounts do."""
    found = site(name)
    if "account" not in SCHEDULERS[found.scheduler].takes:
        return None
    form = found.account_form
    return next(text for text in ("lab42", "project_42", "m42_g") if form is None or re.fullmatch(form.regex, text))


@cache
def rendered(name: str) -> dict[tuple[str, str], str]:
    """The scripts of a site, by configuration and software; none of what its machine cannot hold."""
    jobs = product(CONFIGS, SOFTWARE)
    found = {(each, how): job(name, config(each), how, name=each.replace("/", "-")) for each, how in jobs}
    return {key: render_script(job.plan) for key, job in found.items() if job.plan is not None}


# Whatever a site is asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SITES)
def test_every_configuration_renders_or_its_own_line_is_named(name: str) -> None:
    """A machine may be too small for a model, or lack its number format; nothing of a site's own file stands in the way."""
    for each, how in product(CONFIGS, SOFTWARE):
        check_planned(job(name, config(each), how), whole(name, how))


@pytest.mark.full
@pytest.mark.parametrize("name", SITES)
def test_every_shipped_configuration_renders_on_every_site(name: str, tmp_path: Path) -> None:
    """GPT-NeoX's 66 files and ours."""
    scripts = []
    for each, how in product(SHIPPED, SOFTWARE):
        short = each.removesuffix(".yml").replace("/", "-")
        found = job(name, beside_its_model(each), how, name=short, name_is_given=False)
        check_planned(found, whole(name, how))
        scripts += [render_script(found.plan)] if found.plan is not None else []
    assert scripts and parsed(scripts, tmp_path) == ""


def check_planned(found: Planned, where: Site) -> None:
    """There is a plan, or lines of the configuration are named."""
    wrong = [problem for problem in found.problems if problem.kind == "anywhere"]
    assert (found.plan is None) == bool(wrong)
    for problem in wrong:
        assert re.match(r"\S+\.yml(:\d+)?  \w+", problem.where), str(problem)
        assert not problem.where.startswith(where.file), str(problem)


def parsed(scripts: Sequence[str], folder: Path) -> str:
    """What bash says of scripts that it only reads."""
    for number, text in enumerate(scripts):
        (folder / f"{number}.sh").write_text(text)
    command = 'for file; do bash -n "$file" 2>&1 || echo "$file"; done'
    done = subprocess.run(["bash", "-c", command, "bash", *map(str, folder.iterdir())], text=True, capture_output=True, check=True)
    return done.stdout


def test_bash_parses_every_script(tmp_path: Path) -> None:
    scripts = [text for name in SITES for text in rendered(name).values()]
    assert len(scripts) > 1.5 * len(SITES) * len(CONFIGS)  # most jobs fit most machines
    assert parsed(scripts, tmp_path) == ""


@pytest.mark.parametrize("how", SOFTWARE)
@pytest.mark.parametrize("name", SITES)
def test_scripts_of_a_site_differ_in_directives_and_values_only(name: str, how: str) -> None:
    conditional = {variable for variable, values in site(name).env.items() if any(value.min_nodes > 1 for value in values)}
    shapes = {shape(text, conditional) for (_, software), text in rendered(name).items() if software == how}
    assert len(shapes) == 1


def shape(script: str, conditional: set[str]) -> str:
    """A script without its directives, values, numbers, launch line, and variables that only several nodes get."""
    kept, launch = [], False
    for line in script.splitlines():
        launch = (
            launch
            or re.match(r"(srun|jsrun|flux run|mpirun|mpiexec|pdsh|\S*python|apptainer|singularity|docker) ", line) is not None
        )
        exported = line.removeprefix("export ").partition("=")[0]
        if not launch and exported not in conditional and not re.match(r"#(SBATCH|PBS|BSUB|flux:) |# .* ranks, ", line):
            kept.append(re.sub(r"\d+", "0", re.sub(r"^(export )?(\w+)=.*", r"\2=", line)))
        launch = launch and line.endswith("\\")
    return "\n".join(kept)


# Whole scripts --------------------------------------------------------------------------------------------------------------


def golden_jobs() -> Iterator[tuple[str, Plan]]:
    """A small model on the fewest nodes, and on as many as the site's own queue takes, at most 64."""
    for name, how in product(SITES, SOFTWARE):
        for size, nodes in (("few", None), ("many", most_nodes(name))):
            found = job(name, loaded(), how, nodes=nodes)
            if found.plan is not None and (size == "few" or most_nodes(name) > 1):
                yield f"{name}-{how}-{size}", found.plan


def most_nodes(name: str) -> int:
    """At most 64."""
    found = site(name)
    queues = [(found.queues or {})[queue] for queue in found.default_queue]
    limits = [max((node_bin.max_nodes for node_bin in queue.bins), default=64) for queue in queues]
    return min(64, max(limits, default=64), found.max_nodes or 64)


GOLDENS = GOLDEN / "sites"
JOBS = dict(golden_jobs())


@pytest.mark.parametrize("name", JOBS)
def test_job_script_of_a_site_is_the_golden_one(name: str) -> None:
    script, golden = render_script(JOBS[name]), GOLDENS / f"{name}.sh"
    if os.environ.get("NEOX_HPC_UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(script)
    assert script == golden.read_text()


def test_every_golden_script_of_a_site_has_a_job() -> None:
    assert {path.stem for path in GOLDENS.glob("*.sh")} == set(JOBS)


def test_every_site_has_a_script_without_a_container_and_with_one() -> None:
    assert {name.rpartition("-")[0] for name in JOBS} == {f"{name}-{how}" for name, how in product(SITES, SOFTWARE)}


@pytest.mark.parametrize("dialect", ["bash", "sh"])
def test_shellcheck_finds_nothing_in_any_site(dialect: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here: apt-get install shellcheck")
    command = ["shellcheck", f"--shell={dialect}", *map(str, sorted(GOLDENS.glob("*.sh")))]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    # 1091: the file of the site's modules is on the site; 2016: words in single quotes are for another shell, inside of an image
    assert re.findall(r"SC(?!1091|2016)\d+ .*", done.stdout) == []


@pytest.mark.parametrize("name", JOBS)
def test_script_of_a_site_can_be_read(name: str) -> None:
    script = render_script(JOBS[name])
    assert len(script.encode()) <= 8000
    long = [line.removesuffix(" \\").strip() for line in script.splitlines() if len(line) > 132]
    assert not [line for line in long if " " in line]  # a word is never cut


@pytest.mark.parametrize("name", CONFIGS)
def test_run_json_of_a_configuration_is_the_golden_one(name: str) -> None:
    found = job("slurm", config(name), "none", name=name.replace("/", "-"))
    assert found.plan is not None
    text = write_run(found.plan.run).replace(str(share("configs")), "CONFIGS")
    golden = GOLDEN / f"run-{name.replace('/', '-')}.json"
    if os.environ.get("NEOX_HPC_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()
