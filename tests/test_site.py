"""Site files: names and paths, extends, --site-set, and every problem with its file and line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from neox_hpc.checks import check_arguments
from neox_hpc.containers import CONTAINERS
from neox_hpc.errors import UserError
from neox_hpc.launchers import LAUNCHERS
from neox_hpc.launchers.srun import core_mask
from neox_hpc.schedulers import SCHEDULERS
from neox_hpc.share import share
from neox_hpc.site import EnvValue, NodeBin, read_walltime, show_walltime
from neox_hpc.site_facts import check_site, check_sources
from neox_hpc.site_files import file_schema, list_sites, load_site
from neox_hpc.site_table import PAGE_COMMAND, VERIFIED, page
from tests.cluster import test_launchers as real
from tests.desk import Desk, desk
from tests.fakes import program as pretended
from tests.planning import SLURM_FACTS
from tests.test_architecture import GENERIC_SITES as GENERIC

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
    site = load_site(name)
    assert [str(problem) for problem in (*check_site(site), *check_sources(site))] == []


@pytest.mark.parametrize("name", SHIPPED)
def test_arguments_of_a_shipped_site_are_those_that_its_jobs_may_give(name: str) -> None:
    assert [str(problem) for problem in check_arguments(load_site(name))] == []


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - GENERIC))
def test_facts_of_a_real_machine_are_dated(name: str) -> None:
    undated = {fact for fact, source in load_site(name).sources.items() if not re.search(r"20\d\d-\d\d", source)}
    assert undated == set()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_profile_says_how_it_came_to_be(name: str) -> None:
    assert load_site(name).status is not None


@pytest.mark.parametrize("name", sorted(GENERIC & set(SHIPPED) - {"local"}))
def test_a_generic_site_guesses_nothing(name: str) -> None:
    site = load_site(name)
    node = site.node
    assert (node.gpus, node.accelerator, node.cores, node.memory_gib, node.dtypes, node.arch) == (None,) * 6
    assert (site.software.python, site.queues, site.max_nodes, site.network.interface, site.network.internet) == (None,) * 5
    assert (site.directives, site.launcher_args, site.env, site.default_queue) == ((), (), {}, ())


@pytest.mark.parametrize("name", SHIPPED)
def test_commands_that_tell_a_fact_stand_apart_from_their_remarks(name: str) -> None:
    for fact, text in load_site(name).find.items():
        command, _, remark = text.partition("  # ")
        assert "`" not in command and not re.search(r", (on|in) ", command), fact
        assert remark or "#" not in text, fact


MASKS = {
    # the hexadecimal masks of LUMI-AI-Guide, 05-multi-gpu-and-node/README.md, in the order of the GPUs
    "lumi": "0xfe000000000000 0xfe00000000000000 0xfe0000 0xfe000000 0xfe 0xfe00 0xfe00000000 0xfe0000000000",
    "frontier": "0xfe000000000000 0xfe00000000000000 0xfe0000 0xfe000000 0xfe 0xfe00 0xfe00000000 0xfe0000000000",
    # the lists that ALCF's pages give to mpiexec --cpu-bind list:
    "polaris": "24-31:16-23:8-15:0-7",
    "aurora": "1-8:9-16:17-24:25-32:33-40:41-48:53-60:61-68:69-76:77-84:85-92:93-100",
}


@pytest.mark.parametrize("name", sorted(set(MASKS) & set(SHIPPED)))
def test_ranks_are_bound_as_the_machines_own_pages_bind_them(name: str) -> None:
    masks = load_site(name).node.cpu_masks
    assert masks is not None
    written = " ".join(map(core_mask, masks)) if MASKS[name].startswith("0x") else ":".join(masks)
    assert written == MASKS[name]


def test_every_file_fits_the_json_schema(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="pip install -e '.[test]'")
    check = jsonschema.Draft202012Validator(file_schema())
    for path in sorted(share("sites").rglob("*.yml")):
        assert [error.message for error in check.iter_errors(yaml.safe_load(path.read_text()))] == [], path


def test_the_json_schema_refuses_what_the_loader_refuses() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="pip install -e '.[test]'")
    check = jsonschema.Draft202012Validator(file_schema())
    for wrong in (
        "gpuz: 4",
        "node: {gpus: four}",
        "name: x",
        "status: tried",
        "env: {A: 1}",
        "queues: {a: {bins: [{walltime: 2h}]}}",
    ):
        assert not check.is_valid(yaml.safe_load(wrong)), wrong


def test_the_page_of_sites_is_up_to_date() -> None:
    written = page([load_site(path) for path in SHIPPED.values()])
    assert (Path(__file__).parents[1] / "docs" / "sites.md").read_text() == written, f"stale: run  {PAGE_COMMAND}"


def test_the_page_has_a_line_for_every_machine_and_says_what_is_not_known() -> None:
    text = page([load_site(path) for path in SHIPPED.values()])
    assert re.findall(r"^\| `([^`]+)`", text, flags=re.MULTILINE) == [*SHIPPED, *SHIPPED]  # what it is, and what was verified
    assert "- `slurm`: max_nodes, node.gpus, node.cores" in text


def test_the_page_says_of_every_program_how_far_its_tests_go() -> None:
    assert set(VERIFIED) == {*SCHEDULERS, *LAUNCHERS, *CONTAINERS}


def test_what_is_called_run_is_a_real_program_of_the_tests_and_what_is_called_pretended_has_a_stand_in() -> None:
    said = {how: {name for name in LAUNCHERS if VERIFIED[name] == how} for how in VERIFIED.values()}
    assert said == {"run": {*real.LAUNCHERS, "srun", "local"}, "pretended": set(pretended.LAUNCHERS) - {"srun"}, "rendered": set()}


def test_what_a_profile_lacks_is_named(tmp_path: Path) -> None:
    text = "scheduler: slurm\nlauncher: srun\nnode: {gpus: 4, cores: 8}\nsources: {scheduler: x, launcher: x, node.cores: x}\n"
    (tmp_path / "x.yml").write_text(text + "find: {node.cores: ask}\n")
    found = [
        f"{p.where.split('  ')[1]}: {p.wrong}"
        for p in (*check_site(load_site("x.yml", cwd=tmp_path)), *check_sources(load_site("x.yml", cwd=tmp_path)))
    ]
    assert found == [
        "software.python: is not known, and nothing says how to find it",
        "find.node.cores: node.cores is known",
        "node.gpus: has no source",
    ]


def test_sites_check_says_what_it_found(desk: Desk) -> None:
    said = desk("sites", "check")
    assert said.code == 0 and len(said.out.splitlines()) == len(SHIPPED)
    assert desk("sites", "check", "frontier").out.startswith("frontier: ")
    (desk.cwd / "x.yml").write_text("extends: slurm\nnode: {gpus: 4, gpuz: 4}\n")
    said = desk("sites", "check", "x.yml", "frontier")
    assert said.code == 2 and "did you mean gpus?" in said.err and "x.yml: 1 problem\n" in said.out
    assert set(desk("sites", "check", "--json").facts) == set(SHIPPED)


def test_sites_check_finds_a_launcher_that_belongs_to_another_scheduler(desk: Desk) -> None:
    (desk.cwd / "mine.yml").write_text("extends: pbs\nlauncher: srun\n")
    said = desk("sites", "check", "./mine.yml")
    assert said.code == 2 and "launcher: srun starts ranks in a job of slurm only" in said.err


def test_sites_check_finds_the_arguments_that_a_job_would_be_refused_for(desk: Desk) -> None:
    (desk.cwd / "x.yml").write_text(
        "extends: slurm\ndirectives: [--nodes=2]\nlauncher_args: [--ntasks=4]\nqueues: {a: {directives: [--time=1]}}\n"
    )
    said = desk("sites", "check", "x.yml")
    assert (said.code, said.out) == (2, "x.yml: 3 problems\n")
    assert [word for word in ("--nodes=2", "--ntasks=4", "--time=1") if word in said.err] == ["--nodes=2", "--ntasks=4", "--time=1"]


def test_sources_that_an_own_file_does_not_give_are_a_note(desk: Desk) -> None:
    (desk.cwd / "x.yml").write_text("extends: slurm\nnode: {gpus: 4, cores: 8}\nsoftware: {python: /p}\nsources: {software: me}\n")
    said = desk("sites", "check", "x.yml")
    assert (said.code, said.err) == (0, "note: x.yml gives no source of node.gpus, node.cores\n")
    assert said.out.startswith("x.yml: 5 facts, 3 of them with their source")
    assert {entry["kind"] for entry in desk("sites", "check", "x.yml", "--json").facts["x.yml"]} == {"note"}


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
    assert (site.name, site.file, site.scheduler, site.node.gpus, site.default_queue) == ("lab", str(path), "slurm", 4, ("gpu",))
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
        ("node: {gpus: 4, cpu_masks: [0-7]}", "1  node: cpu_masks has 1 entries for 4 ranks a node / name the cores of each rank"),
        (
            "node: {gpus: 2, cpu_masks: [0-3, 4-7], reserved_cores: '0,4'}",
            "1  node: cpu_masks names 0, 4 of reserved_cores / leave them to the system",
        ),
        ("node: {gpus: 2, nics: [mlx5_0]}", "1  node: nics has 1 entries for 2 GPUs / name the card of each"),
        ("node: {dtypes: [fp8]}", "1  node.dtypes.0: input should be 'fp32', 'fp16' or 'bf16', got 'fp8'"),
        ("detect: [{env: A, host: b}]", "1  detect.0: a sign is one of env, file (each with or without matches) and host / "),
        ("detect: [{host: a, matches: b}]", "1  detect.0: a sign is one of env"),
        ("detect: [{host: '('}]", "1  detect.0.host: '(' is no regular expression"),
        ("detect: [{hots: a}]", "1  detect.0.hots: unknown key / did you mean host?"),
        ("queues: {a: {bins: [{max_nodes: 1}]}}", "1  queues.a.bins.0: a bin without a limit / write walltime or node_hours"),
        ("status: tried", "1  status: input should be 'run for real', 'from documentation' or 'community', got 'tried'"),
        ("node: {cpu_masks: [all]}", "1  node.cpu_masks: 'all' is no list of cores / write e.g. '49-55' or '0-3,8-11'"),
        ("software: {python: python3}", "1  software.python: 'python3' is not an absolute path / write the result of"),
        ("env: {A B: c}", "1  env: 'A B' is no name of an environment variable / write letters, digits and _, no digit first"),
        ("env: {A: yes}", "1  env.A: expected text, got True / write it in quotes"),
        ("env: {A: {value: 1.5}}", '1  env.A.0.value: expected text, got 1.5 / write "1.5" in quotes'),
        ("container: {env: {A: 1}}", '1  container.env.A: expected text, got 1 / write "1" in quotes'),
        ("node: {gpu_mem: 40}", "1  node.gpu_mem: unknown key / did you mean gpu_memory_gib?"),
        ("given: x", "1  given: is taken from the file's own name / remove it"),
        ("node: {scheduler_cpus: threads}", "1  node: scheduler_cpus counts threads, and how many a core has is not known / write"),
        ("env: {PORT: 1}", '1  env.PORT: expected text, got 1 / write "1" in quotes'),
        ("directives: [nvme]", "1  directives: 'nvme' is no argument / write e.g. '-C nvme'"),
        ("queues: {a: {directives: [debug]}}", "1  queues.a.directives: 'debug' is no argument / write e.g. '-C nvme'"),
        ("container: {directives: [x]}", "1  container.directives: 'x' is no argument / write e.g. '-C nvme'"),
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


def test_what_a_file_knows_need_not_be_found_any_more(home: Path) -> None:
    own(home, "lab", "extends: slurm\nnode: {gpus: 4}\nmax_nodes: null\nfind: {node.gpus: still}\n")
    assert {"node.gpus", "max_nodes", "node.cores"} <= set(load_site("lab", home=home).find)
    own(home, "lab", "extends: slurm\nnode: {gpus: 4}\nmax_nodes: 9\n")
    assert not {"node.gpus", "max_nodes"} & set(load_site("lab", home=home).find)


@pytest.mark.parametrize(("value", "wrong"), [("OFI", True), ("Socket", False), ("{value: OFI, min_nodes: 2}", False)])
def test_a_plug_in_that_is_forced_on_one_node_is_a_problem(tmp_path: Path, value: str, wrong: bool) -> None:
    (tmp_path / "x.yml").write_text(f"extends: slurm\nenv: {{NCCL_NET: {value}}}\nsources: {{env: x}}\n")
    found = [str(problem) for problem in check_site(load_site("x.yml", cwd=tmp_path))]
    assert any("NCCL_NET: {value: OFI, min_nodes: 2}" in problem for problem in found) == wrong


@pytest.mark.parametrize(("nodes", "limit_s"), [(1, 5400), (2, 2700), (3, 1800), (4, 1350)])
def test_a_limit_in_node_hours_falls_as_the_nodes_grow(nodes: int, limit_s: int) -> None:
    assert NodeBin(max_nodes=4, node_hours=1.5).limit_s(nodes) == limit_s
    assert NodeBin.model_validate({"max_nodes": 4, "node_hours": 1.5, "walltime": "30m"}).limit_s(nodes) == min(1800, limit_s)
