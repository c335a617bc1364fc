"""Site files: names and paths, extends, --site-set, and every problem with its file and line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from neox_hpc.errors import UserError
from neox_hpc.site import EnvValue, Site, check_site, list_sites, load_site, read_walltime, show_walltime
from tests.desk import Desk, desk
from tests.planning import SLURM_FACTS

__all__ = ["desk"]

SHIPPED = list_sites(Path("/nonexistent"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".config/neox-hpc/sites").mkdir(parents=True)
    return tmp_path


def own(home: Path, name: str, text: str) -> Path:
    path = home / ".config/neox-hpc/sites" / f"{name}.yml"
    path.write_text(text)
    return path


def problems(*args: object, **options: object) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_site(*args, **options)  # type: ignore[arg-type]
    return [f"{p.where}: {p.wrong} / {p.fix}" for p in caught.value.problems]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_site_loads_under_its_own_name(name: str) -> None:
    assert load_site(name).name == name


@pytest.mark.parametrize("name", SHIPPED)
def test_every_fact_of_a_shipped_site_has_a_source_and_every_open_one_a_way_to_find_it(name: str) -> None:
    assert [str(problem) for problem in check_site(load_site(name))] == []


def test_facts_of_a_real_machine_are_dated() -> None:
    undated = {fact for fact, source in load_site("frontier").sources.items() if not re.search(r"20\d\d-\d\d-\d\d", source)}
    assert undated == set()


def test_what_a_profile_lacks_is_named(tmp_path: Path) -> None:
    text = "scheduler: slurm\nlauncher: srun\nnode: {gpus: 4, cores: 8}\nsources: {scheduler: x, launcher: x, node.cores: x}\n"
    (tmp_path / "x.yml").write_text(text + "find: {node.cores: ask}\n")
    found = [f"{p.where.split('  ')[1]}: {p.wrong}" for p in check_site(load_site("x.yml", cwd=tmp_path))]
    assert found == [
        "node.gpus: has no source",
        "software.python: is not known, and nothing says how to find it",
        "find.node.cores: node.cores is known",
    ]


def test_sites_check_says_what_it_found(desk: Desk) -> None:
    said = desk("sites", "check")
    assert said.code == 0 and len(said.out.splitlines()) == len(SHIPPED)
    assert desk("sites", "check", "frontier").out.startswith("frontier: ")
    (desk.cwd / "x.yml").write_text("extends: slurm\nnode: {gpus: 4, gpuz: 4}\n")
    said = desk("sites", "check", "x.yml", "frontier")
    assert said.code == 2 and "did you mean gpus?" in said.err and "x.yml: 1 problems" in said.out
    assert set(desk("sites", "check", "--json").facts) == set(SHIPPED)


def test_generic_slurm_guesses_nothing() -> None:
    site = load_site("slurm")
    assert (site.node.gpus, site.node.cores, site.software.python, site.queues, site.max_nodes) == (None,) * 5


def test_a_large_machine_can_be_said() -> None:
    site = load_site("frontier")
    assert site.node.cpu_masks is not None and len(site.node.cpu_masks) == 8
    assert site.queues is not None
    assert [bin.walltime for bin in site.queues["batch"].bins] == [7200, 21600, 43200, 43200, 43200]
    assert site.env["NCCL_NET"] == (EnvValue(value="Socket", max_nodes=1), EnvValue(value="OFI", min_nodes=2))
    assert site.env["FI_MR_CACHE_MONITOR"] == (EnvValue(value="kdreg2"),)


def test_a_site_is_frozen() -> None:
    site: Any = load_site("slurm")
    with pytest.raises(ValueError, match="frozen"):
        site.name = "other"


def test_site_set_gives_open_facts() -> None:
    site = load_site("slurm", SLURM_FACTS)
    assert (site.node.gpus, site.node.accelerator, site.software.python) == (4, "cuda", "/opt/env/bin/python")


def test_own_site_extends_a_shipped_one_and_keeps_its_other_facts(home: Path) -> None:
    path = own(home, "lab", "extends: slurm\nnode: {gpus: 4, accelerator: cuda}\nqueues: {gpu: {}}\ndefault_queue: gpu\n")
    site = load_site("lab", home=home)
    assert (site.name, site.file, site.scheduler, site.node.gpus, site.default_queue) == ("lab", str(path), "slurm", 4, "gpu")
    assert list_sites(home)["lab"] == path


def test_own_site_comes_before_a_shipped_one_of_the_same_name(home: Path) -> None:
    own(home, "slurm", "extends: " + str(SHIPPED["slurm"]) + "\nnode: {gpus: 2}\n")
    assert load_site("slurm", home=home).node.gpus == 2


def test_own_site_extends_the_shipped_one_of_its_own_name(home: Path) -> None:
    own(home, "frontier", "extends: frontier\nsoftware: {python: /my/python}\n")
    site = load_site("frontier", home=home)
    assert (site.software.python, site.node.gpus) == ("/my/python", 8)


def test_extending_in_a_circle_is_refused(home: Path) -> None:
    own(home, "a", "extends: b")
    path = own(home, "b", "extends: a")
    assert problems("a", home=home) == [
        f"{path.with_name('a.yml')}:1  extends: extends itself, by way of others / break the circle"
    ]


def test_a_path_is_taken_from_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "here.yml").write_text("extends: local\n")
    assert load_site("here.yml", cwd=tmp_path).name == "here"


def test_unknown_names_and_absent_paths_say_what_there_is(tmp_path: Path) -> None:
    assert problems("slrum") == ["--site slrum: no such site / did you mean slurm?"]
    assert problems("x/y.yml", cwd=tmp_path)[0].startswith(f"--site x/y.yml: no such file: {tmp_path}/x/y.yml")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: z", "1  name: is taken from the file's own name / remove it"),
        ("gpu: 4", "1  gpu: unknown key / remove it"),
        ("node:\n  gpuz: 4", "2  node.gpuz: unknown key / did you mean gpus?"),
        (
            "queues:\n  batch:\n    bins:\n    - {max_node: 3, walltime: 2h}",
            "4  queues.batch.bins.0.max_node: unknown key / did you mean max_nodes?",
        ),
        ("node:\n  gpus: four", "2  node.gpus: expected a whole number, got 'four' / "),
        ("scheduler: slrum", "1  scheduler: unknown scheduler 'slrum' / write one of slurm, "),
        ("launcher: torchrun", "1  launcher: unknown launcher 'torchrun' / write one of srun, "),
        ("node: {gpus: 0, accelerator: cuda}", "1  node: accelerator cuda on a node without GPUs / write accelerator: cpu"),
        ("node: {gpus: 2, cpu_masks: [0-7, 7-9]}", "1  node: cpu_masks names a core twice / give every rank cores of its own"),
        ("node: {gpus: 2, cores: 3, cpu_masks: [0-1, 2-3]}", "1  node: cpu_masks names 4 cores and a job may use 3 / correct one"),
        (
            "queues: {a: {bins: [{max_nodes: 4, walltime: 2h}, {min_nodes: 4, max_nodes: 9, walltime: 3h}]}}",
            "1  queues.a.bins: the bins meet at 4 nodes / write them in order",
        ),
        (
            "queues: {a: {bins: [{min_nodes: 4, max_nodes: 3, walltime: 2h}]}}",
            "1  queues.a.bins.0: a bin from 4 to 3 nodes is empty /",
        ),
        ("node: {gpus: 4, cpu_masks: [0-7]}", "1  node: cpu_masks has 1 entries for 4 ranks a node / "),
        ("node: {cpu_masks: [all]}", "1  node.cpu_masks: 'all' is no list of cores / write e.g. '49-55' or '0-3,8-11'"),
        ("software: {python: python3}", "1  software.python: 'python3' is not an absolute path / write the result of"),
        ("env: {A B: c}", "1  env: 'A B' is no name of an environment variable / "),
        ("env: {PORT: 1}", "1  env.PORT: expected a list, got 1 / "),
        ("directives: [nvme]", "1  directives: 'nvme' is no argument / write e.g. '-C nvme'"),
        ("network: {host_suffix: $x}", "1  network.host_suffix: string should match pattern"),
        (
            "queues: {a: {bins: [{max_nodes: 1, walltime: '30:00'}]}}",
            "1  queues.a.bins.0.walltime: '30:00' is no duration / write 90m",
        ),
        (
            "queues: {a: {bins: [{max_nodes: 1, walltime: 12:00:00}]}}",
            "1  queues.a.bins.0.walltime: YAML 1.1 reads 12:00:00 as a number",
        ),
        ("queues: {a: {}}\ndefault_queue: b", "default_queue 'b' is not among queues / write one of a"),
    ],
)
def test_wrong_facts_are_named_with_their_line(tmp_path: Path, text: str, problem: str) -> None:
    extra = "" if "scheduler" in text else "\nscheduler: slurm"
    extra += "" if "launcher" in text else "\nlauncher: srun"
    (tmp_path / "x.yml").write_text(text + extra)
    found = problems("x.yml", cwd=tmp_path)
    shown = f"{tmp_path}/x.yml: " if problem.startswith("default") else f"{tmp_path}/x.yml:"
    assert any(line.startswith(shown + problem) for line in found), found


def test_a_site_without_scheduler_or_launcher_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yml").write_text("title: nothing")
    assert problems("x.yml", cwd=tmp_path) == [
        f"{tmp_path}/x.yml  {fact}: is required and absent / add {fact}: …" for fact in ("scheduler", "launcher")
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400), ("2h", 7200), ("1d12h", 129600), ("45s", 45), ("00:30:00", 1800), ("36:00:00", 129600), ("1-02:03:04", 93784)],
)
def test_walltimes_are_read(text: str, seconds: int) -> None:
    assert read_walltime(text) == seconds
    assert read_walltime(show_walltime(seconds)) == seconds


@pytest.mark.parametrize("text", ["30", "30:00", "", "2 h", "1:2:3", "h", "-1h", "0m", "12:60:00"])
def test_ambiguous_or_wrong_walltimes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        read_walltime(text)


def test_a_value_for_some_node_counts_applies_to_those_only() -> None:
    value = EnvValue(value="x", min_nodes=2, max_nodes=4)
    assert [nodes for nodes in range(1, 7) if value.applies(nodes)] == [2, 3, 4]


def test_the_site_type_documents_itself_as_json_schema() -> None:
    assert "cpu_masks" in str(Site.model_json_schema())
