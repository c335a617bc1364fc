"""``neox-hpc explain``: the place of every line, beside the files themselves; the values that made it; what a run remembers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import click
import pytest

import neox_hpc
from neox_hpc.cli.submit import submit
from neox_hpc.explain import ACCOUNTS, SILENT, Given, Part, explain, option_of
from neox_hpc.inputs import Inputs, read_inputs, write_inputs
from neox_hpc.launch import FLAGS
from neox_hpc.launchers import Shell
from neox_hpc.pieces import render_pieces
from neox_hpc.plan import Plan
from neox_hpc.probe import Facts, Machine
from neox_hpc.render import Launch, render, render_script
from neox_hpc.request import Request
from neox_hpc.site_files import load_placed_site
from tests import test_render
from tests.desk import TRAINS, Desk, desk
from tests.planning import GOLDEN, SLURM_FACTS, TWO_CORES, loaded, request
from tests.test_every_site import IMAGE, JOBS, SITES, account, most_nodes, open_facts

__all__ = ["desk"]
TEMPLATES = Path(neox_hpc.__file__).parent / "templates"
GOLDENS = {**JOBS, **test_render.jobs()}


def inputs(where: str, *sets: str, facts: Facts = TWO_CORES, keys: dict[str, object] | None = None, **asked: object) -> Inputs:
    site, places = load_placed_site(where, sets, home=GOLDEN / "nobody")
    return Inputs(loaded=loaded(**(keys or {})), site=site, places=places, request=request(**asked), facts=facts)


def golden(name: str, how: str, nodes: int | None) -> Inputs:
    """What a golden script of tests/test_every_site.py is made from."""
    image = IMAGE if how == "container" else "none"
    return inputs(name, *open_facts(name, how), container=image, account=account(name), nodes=nodes)


def slurm(*sets: str, **asked: object) -> Inputs:
    return inputs("slurm", *SLURM_FACTS, *sets, **asked)  # type: ignore[arg-type]


def parts_of(found: Inputs) -> tuple[Part, ...]:
    parts = explain(found, found.planned())
    assert parts
    return parts


def made(parts: Iterable[Part], text: str) -> Sequence[Given]:
    """What made the first part that holds a text."""
    return next(part.given for part in parts if text in part.piece.text)


def keys(given: Iterable[Given]) -> list[str]:
    return [each.key for each in given]


# Lines of templates -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDENS)
def test_every_piece_of_a_golden_script_stands_in_the_line_of_the_template_that_is_named(name: str) -> None:
    plan: Plan = GOLDENS[name]
    pieces = render_pieces(plan)
    assert "".join(piece.text for piece in pieces) == render_script(plan)
    for piece in pieces:
        line = (TEMPLATES / piece.template).read_text().splitlines()[piece.line - 1]
        assert ("{{" in line) if piece.is_value else (piece.text.rstrip("\n") in line), piece


# Values -------------------------------------------------------------------------------------------------------------------------

SHAPES = [
    ("none", False),
    *(pytest.param(how, many, marks=pytest.mark.full) for how, many in (("container", True), ("none", True))),
]


@pytest.mark.parametrize(("how", "many"), SHAPES)
@pytest.mark.parametrize("name", SITES)
def test_lines_of_a_golden_script_are_made_by_keys_that_stand_where_it_is_said(name: str, how: str, many: bool) -> None:
    found = golden(name, how, most_nodes(name) if many else None)
    before = ""
    for part in golden_parts(name) if (how, many) == ("none", False) else parts_of(found):
        for given in part.given:
            check_place(given)
        check_wording(part)
        if not part.piece.is_value:
            continue
        text, line = part.piece.text, template_line(part)
        if "{{ directive }}" in line:
            assert "scheduler" in keys(part.given), text
        if "module load" in line:
            assert text in [given.value for given in part.given if given.key.startswith(("modules.load.", "container.modules."))]
        if before in found.site.env:
            assert any(given.key.startswith(f"env.{before}") for given in part.given), before
        before = text if line.startswith("export {{ name }}=") and before == "" else ""


UNMADE = {
    "export {{ name }}={{": r"\w+",  # of a name and its value the other one is made
    "{{ plan.layout.": "1",  # a size that nobody asks for is 1
    "{{ plan.nodes }}": "1",  # so is the only number of nodes of a machine that is one node
    "{{ launch | wrap }}": r'-[um]|"\$run/run\.json"',  # how Python is called, whatever is asked for
}
"""Of a line of a template -> its values that nothing makes, and why."""


ONE_NODE = '[ "$nodes" -eq 1 ] ||'
"""Begins the only line that is made by values of which none is: nobody chooses the nodes of a machine that is one."""


@pytest.mark.parametrize("name", SITES)
def test_each_value_in_a_golden_script_has_what_made_it_or_a_reason_to_have_nothing(name: str) -> None:
    bare = [part for part in golden_parts(name) if part.piece.is_value and part.piece.text.strip(" \\\n") and not made_by(part)]
    for part in bare:
        allowed = [pattern for text, pattern in UNMADE.items() if text in template_line(part)]
        assert any(re.fullmatch(pattern, part.piece.text.strip()) for pattern in allowed), (part.line, part.piece)


@pytest.mark.parametrize("name", SITES)
def test_each_line_of_a_golden_script_has_what_made_it_or_is_a_line_of_a_template(name: str) -> None:
    written = {line for path in TEMPLATES.rglob("*.j2") for line in path.read_text().splitlines()}
    lines = golden_lines(name)
    assert "".join(text for text, _ in lines) == "".join(part.piece.text for part in golden_parts(name))
    for text, parts in lines:
        is_template = set(text.splitlines()) <= written
        assert not text.strip() or any(map(made_by, parts)) or is_template or text.startswith(ONE_NODE), text


@cache
def golden_parts(name: str) -> tuple[Part, ...]:
    return parts_of(golden(name, "none", None))


def golden_lines(name: str) -> list[tuple[str, list[Part]]]:
    """The lines of a script, each with those that continue it."""
    lines: list[tuple[str, list[Part]]] = [("", [])]
    for part in golden_parts(name):
        for text in part.piece.text.splitlines(keepends=True):
            before, parts = lines[-1]
            if before.endswith("\n") and not before.endswith("\\\n"):
                lines.append((text, [part]))
            else:
                lines[-1] = (before + text, [*parts, part])
    return lines


def made_by(part: Part) -> bool:
    return bool(part.given) or part.wording is not None


def template_line(part: Part) -> str:
    return (TEMPLATES / part.piece.template).read_text().splitlines()[part.piece.line - 1]


def check_place(given: Given) -> None:
    """A file's line holds the key's last name, or the value."""
    named = re.fullmatch(r"(/.*\.yml):(\d+)", given.place)
    if named is None:
        assert given.place.startswith(("command line", "seen on", "decided by", "--site-set ", "small.yml", "/")), given
        return
    line = Path(named[1]).read_text().splitlines()[int(named[2]) - 1]
    names = [part for part in given.key.split(".") if not part.isdecimal()]
    assert names[-1] in line or given.value in line, (given, line)


def check_wording(part: Part) -> None:
    """The text of ours that a word begins with stands in the line of our code."""
    if part.wording is not None:
        file, _, number = part.wording.place.rpartition(":")
        line = (TEMPLATES.parent.parent / file).read_text().splitlines()[int(number) - 1]
        assert part.wording.text in line and part.piece.text.startswith(part.wording.text), part


def test_what_no_file_asks_for_has_the_reason_that_stands_in_our_code() -> None:
    parts = parts_of(slurm())
    wordings = {part.piece.text: part.wording for part in parts if part.wording is not None}
    assert wordings["--no-requeue"].place.startswith("neox_hpc/schedulers/slurm.py:")
    assert wordings["--no-requeue"].comment.startswith("Slurm's default is to run the script again after a node failure")
    assert wordings["--distribution=block"].comment.startswith("neighbouring ranks on one node")
    assert wordings["OMP_NUM_THREADS"].place.startswith("neox_hpc/plan.py:")


def test_what_made_a_line_most_alone_comes_first_and_what_the_plan_decided_last() -> None:
    parts = parts_of(inputs("frontier", "software.python=/sw/bin/python", account="lab42"))
    cores = made(parts, "--cpus-per-task=7")
    assert keys(cores) == ["node.cores", "node.gpus", "scheduler"]
    assert cores[0].value == "56" and cores[0].place.endswith("/sites/families/mi250x.yml:14") and cores[0].source.startswith("FUG")
    time = made(parts, "--time=02:00:00")
    assert keys(time) == ["queues.batch.bins.0.walltime", "default_queue", "scheduler", "walltime"]
    assert (time[0].value, time[-1].place) == ("02:00:00", "decided by the plan")
    assert "the fewest whose 8 ranks" in made(parts, "--nodes=1")[-1].value


def test_words_of_the_start_have_their_own_keys_and_a_map_of_cores_is_one() -> None:
    parts = parts_of(
        inputs("frontier", "software.python=/sw/bin/python", 'launcher_args=["--mpi=none"]', account="lab42", nodes=64)
    )
    assert keys(made(parts, "--cpu-bind=mask_cpu")) == ["node.cpu_masks", "launcher"]
    assert keys(made(parts, "--ntasks=512")) == ["--nodes", "node.gpus", "launcher"]
    assert keys(made(parts, "--mpi=none")) == ["launcher_args"]
    assert keys(made(parts, "/sw/bin/python")) == ["software.python"]
    assert keys(made(parts, "model.train")) == []


ASKED = {
    "account": ("lab42", "--account=lab42"),
    "queue": ("gpu", "--partition=gpu"),
    "nodes": (3, "--nodes=3"),
    "walltime_s": (7200, "--time=02:00:00"),
    "exclude": ("n1,n2", "--exclude=n1,n2"),
    "directives": (("--mem=0",), "--mem=0"),
    "launcher_args": (("--mpi=none",), "--mpi=none"),
    "requeue": (True, "--requeue"),
    "name": ("tiny", "--job-name=tiny"),
    "run_dir": ("/scratch/here", "--output=/scratch/here/logs/job.out"),
    "container": ("/image.sif", "/image.sif"),
    "master_addr": ("n1", "n1"),
}


@pytest.mark.parametrize("field", ASKED)
def test_a_word_of_the_command_line_is_named_by_its_option(field: str) -> None:
    value, text = ASKED[field]
    sets = ("container.runtime=apptainer",) if field == "container" else ()
    given = made(parts_of(inputs("slurm", *SLURM_FACTS[: 3 if field == "container" else 4], *sets, **{field: value})), str(text))
    assert option_of(field) in keys(given)
    assert [each.place for each in given if each.key == option_of(field)] == ["command line"]


def test_parts_of_a_request_are_called_by_options_that_exist() -> None:
    named = {option_of(field.name) for field in dataclasses.fields(Request) if field.name not in {*SILENT, *ACCOUNTS}}
    submitted = {name for param in submit.params for name in param.opts}
    launched = {name for flag in FLAGS for name in flag.names}
    assert {name for name in named if name.startswith("--")} <= submitted | launched


def test_an_account_of_the_users_own_file_has_its_line() -> None:
    given = made(parts_of(slurm(user_account=("~/.config/neox-hpc/config.yml:2", "lab42"))), "--account=lab42")
    assert (given[0].key, given[0].value, given[0].place) == ("account", "lab42", "~/.config/neox-hpc/config.yml:2")


def test_what_was_seen_on_this_machine_is_told_so() -> None:
    gpus = Facts(machine=Machine(accelerator="cuda", gpu_ids=("0", "1"), cores=8, python="/usr/bin/python3"))
    parts = parts_of(inputs("local", facts=gpus))
    threads = next(part.given for part in parts if part.piece.text == "4" and template_line(part).startswith("export"))
    assert [(given.key, given.place) for given in threads if given.key == "machine.cores"] == [
        ("machine.cores", "seen on this machine")
    ]


def test_keys_of_the_configuration_are_named_with_file_and_line() -> None:
    found = inputs("slurm", *SLURM_FACTS, keys={"model_parallel_size": 2, "comment": "a try"}, nodes=2)
    parts = parts_of(found)
    assert [given.place for given in made(parts, "--comment") if given.key == "comment"] == [found.loaded.places["comment"]]
    tensor = [part for part in parts if part.line == 2 and part.piece.text == "2" and "model_parallel_size" in keys(part.given)]
    assert tensor


# What a run remembers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SITES)
def test_a_plan_made_again_from_a_runs_files_is_the_same(name: str) -> None:
    found = golden(name, "none", None)
    plan = found.planned().plan
    assert plan is not None
    files = render(plan)
    again = read_inputs(write_inputs(found), files["run.json"])
    assert again.planned().plan is not None
    assert render(again.planned().plan or plan)["job.sh"] == files["job.sh"]
    assert (again.places, again.request, again.facts, again.site) == (dict(found.places), found.request, found.facts, found.site)


def test_words_that_the_shell_expands_are_remembered_as_such() -> None:
    launch = Launch(argv=("mpirun", Shell("$hostfile"), "$HOME"), world_info="e30=")
    found = dataclasses.replace(slurm(), launch=launch)
    plan = found.planned().plan
    assert plan is not None
    again = read_inputs(write_inputs(found), render(plan)["run.json"])
    assert again.launch == launch and [type(word) for word in again.launch.argv] == [str, Shell, str]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"config": 1, "launch": null}'])
def test_a_damaged_record_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        read_inputs(text, "{}")


# The command ------------------------------------------------------------------------------------------------------------------


def test_a_run_is_explained_whatever_became_of_its_files(desk: Desk) -> None:
    (desk.cwd / "lab.yml").write_text("extends: local\nenv: {LAB: here}\n")
    python = desk.ranks(TRAINS)
    assert desk("render", "-s", "./lab.yml", "--site-set", python, "my.yml").code == 0
    (desk.cwd / "lab.yml").unlink()
    (desk.cwd / "my.yml").unlink()
    said = desk("explain", "runs/my", "/LAB")
    assert said.code == 0, said.err
    assert "export LAB=here" in said.out and "env.LAB" in said.out and "lab.yml:2" in said.out
    whole = desk("explain", "runs/my")
    lines = (desk.cwd / "runs/my/job.sh").read_text().splitlines()
    assert whole.code == 0 and whole.out.splitlines()[-1].split()[0].endswith(f"-{len(lines)}")


def test_json_has_every_line_with_its_template(desk: Desk) -> None:
    rows = desk("explain", "-s", "slurm", "--site-set", "node.gpus=4", "--json", "my.yml").facts
    script = desk("submit", "-s", "slurm", "--site-set", "node.gpus=4", "--dry-run", "my.yml").out
    assert "\n".join(row["text"] for row in rows) == script.rstrip("\n")
    assert [row["first_line"] for row in rows][1:] == [row["last_line"] + 1 for row in rows][:-1]
    assert all(row["parts"] for row in rows if row["text"].strip())
    one = desk("explain", "-s", "slurm", "--site-set", "node.gpus=4", "--json", "my.yml", "1").facts
    assert [row["text"] for row in one] == ["#!/bin/bash"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("explain", "my.yml"), "--site: is not given"),
        (("explain", "absent"), "absent: no run"),
        (("explain", "-s", "slurm", "--site-set", "node.gpus=4", "my.yml", "9999"), "LINE 9999: the script has no such line"),
        (("explain", "-s", "slurm", "my.yml"), "node.gpus"),
    ],
)
def test_what_cannot_be_explained_is_told(desk: Desk, argv: tuple[str, ...], words: str) -> None:
    said = desk(*argv)
    assert said.code == 2 and words in said.err


def test_a_run_of_an_older_version_is_told_what_to_ask(desk: Desk) -> None:
    desk("render", "-s", "slurm", "--site-set", "node.gpus=4", "my.yml")
    (desk.cwd / "runs/my/inputs.json").unlink()
    said = desk("explain", "runs/my")
    assert said.code == 2 and "--site NAME CONFIG.yml" in said.err


def test_a_script_that_this_version_writes_otherwise_is_told(desk: Desk) -> None:
    desk("render", "-s", "slurm", "--site-set", "node.gpus=4", "my.yml")
    script = desk.cwd / "runs/my/job.sh"
    script.write_text(script.read_text().replace("die() {", "stop() {"))
    assert "writes another script than the run has" in desk("explain", "runs/my").err


def test_a_narrow_terminal_has_all_that_made_a_line_and_no_line_that_it_would_fold(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ("explain", "-s", "frontier", "-A", "lab42", "my.yml")
    table, lines = desk(*argv).out, desk(*argv, "2-10").out
    on_a_terminal(monkeypatch, 80)
    shown, whole = click.unstyle(desk(*argv).out), click.unstyle(desk(*argv, "2-10").out)
    assert max(map(len, shown.splitlines())) <= 80 and {line.split()[-1] for line in table.splitlines()} <= set(shown.split())
    assert max(map(len, table.splitlines())) > 80 and max(map(len, lines.splitlines())) > 80
    assert whole.split() == lines.split()
    assert all(len(line) <= 80 for line in whole.splitlines() if line.startswith(" "))


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
