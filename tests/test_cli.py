"""The command itself: verbs, help, completion, what is imported when, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from neox_hpc.cli import VERBS, cli
from neox_hpc.cli.show import print_table
from neox_hpc.site_facts import iter_facts, open_facts
from neox_hpc.site_files import list_sites, load_site
from tests.desk import TRAINS, Desk, desk

__all__ = ["desk"]
ROOT = Path(__file__).resolve().parent.parent


def imported_by(*argv: str, cwd: Path) -> set[str]:
    """The modules that a command line has imported at its end, in a process of its own."""
    program = (
        "import sys; from neox_hpc.cli import run_command_line as run; run(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    )
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True, env=environ, cwd=cwd, check=True)
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_of_its_own(desk: Desk, verb: str) -> None:
    said = desk(verb, "--help")
    assert said.code == 0
    assert said.out.startswith(f"Usage: neox-hpc {verb}")
    context = cli.make_context("neox-hpc", ["list"], resilient_parsing=True)
    command = cli.get_command(context, verb)
    assert command is not None and command.help
    if verb not in ("quickstart", "sites", "config", "env"):
        assert "Examples:" in command.help


def test_help_and_status_import_nothing_heavy(tmp_path: Path) -> None:
    heavy = {"pydantic", "jinja2", "yaml", "rich", "model", "torch", "numpy"}
    assert not imported_by("--help", cwd=tmp_path) & (heavy | {"neox_hpc.proc", "neox_hpc.plan"})
    assert not imported_by("status", cwd=tmp_path) & heavy


def test_a_dry_run_imports_nothing_that_reaches_a_scheduler(desk: Desk) -> None:
    argv = ("submit", "-s", "slurm", "--site-set", "node.gpus=4", "--dry-run", "my.yml")
    found = imported_by(*argv, cwd=desk.cwd)
    assert "neox_hpc.render" in found
    assert not found & {"neox_hpc.jobs", "neox_hpc.registry", "neox_hpc.follow", "rich", "torch", "numpy"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("submitt",), "did you mean submit?"),
        (("submit", "--nodes", "0", "-s", "local", "my.yml"), "--nodes"),
        (("submit", "--time", "30", "-s", "local", "my.yml"), "'30' is no duration"),
        (("submit", "my.yml"), "juwels-booster, leonardo, local"),
        (("submit", "-s", "local"), "CONFIG.yml"),
        (("submit", "-s", "local", "--watch", "--dry-run", "my.yml"), "--watch"),
        (("sites", "show", "locl"), "did you mean local?"),
        (("config", "show", "absent.yml"), "no such file"),
        (("config", "show", "my.yml", "--set", "num_layer=3"), "did you mean num_layers?"),
        (("cancel", "absent"), "no run of this path, name or job id"),
        (("completion", "csh"), "csh"),
    ],
)
def test_a_users_mistake_is_exit_2_with_what_to_write(desk: Desk, argv: tuple[str, ...], words: str) -> None:
    said = desk(*argv)
    assert said.code == 2
    assert words in said.err
    assert "Traceback" not in said.err


def test_no_command_at_all_shows_the_help(desk: Desk) -> None:
    said = desk()
    assert said.code in (0, 2) and "quickstart" in said.out + said.err  # click 8.2 made it an error


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(desk: Desk, shell: str) -> None:
    said = desk("completion", shell)
    assert said.code == 0 and "_NEOX_HPC_COMPLETE" in said.out


@pytest.mark.parametrize(
    ("words", "expected"), [("neox-hpc st", "status"), ("neox-hpc status ", "my"), ("neox-hpc submit --dr", "--dry-run")]
)
def test_verbs_options_and_runs_complete(desk: Desk, words: str, expected: str) -> None:
    desk.submit_local(TRAINS, "--watch")
    environ = os.environ | {
        "PYTHONPATH": str(ROOT),
        "_NEOX_HPC_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = subprocess.run([sys.executable, "-m", "neox_hpc"], capture_output=True, text=True, env=environ, check=False)
    assert f"plain,{expected}" in done.stdout.splitlines()


def test_a_pipe_that_closes_is_no_error(desk: Desk) -> None:
    desk.submit_local("i=0; while [ $i -lt 20000 ]; do echo a line of output; i=$((i + 1)); done", "--watch")
    command = f"{sys.executable} -m neox_hpc logs my | head -n 1"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True
    )
    assert done.stderr == "" and len(done.stdout.splitlines()) == 1


def test_columns_of_a_pipe_are_aligned_and_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("A", "B"), [("\033[31mred\033[0m", "x" * 300), ("longer", "y")])
    assert capsys.readouterr().out.splitlines() == ["A       B", "red     " + "x" * 300, "longer  y"]


def test_a_terminal_shows_every_column_whole(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_table(("A", "B", "C"), [("short", "x" * 300, "where"), ("s", "y", "z" * 50)])
    shown = capsys.readouterr().out
    assert [shown.count(letter) for letter in "xz"] == [300, 50] and "short" in shown and "where" in shown


CUTS = ("", "TENSOR", "PIPE", "DATA", "ZERO", "MICRO", "ACCUM.", "RECOMPUTE", "STEP", "TOKENS/S", "TFLOP/S", "GIB", "WHERE IT GOES")
NUMBERS = ("1", "2", "10", "256", "3", "16", "32", "nothing", "42.7 s", "393,118", "98.1", "34.9")


@pytest.mark.parametrize("columns", [20, 40, 80, 100, 120, 200])
def test_a_terminal_of_any_width_loses_no_character_of_a_wide_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    parts = "products 85%, memory 7%, tensor 6%, waiting 3%, pipe 2%, data 1%"
    print_table(CUTS, [(*NUMBERS, parts), (*NUMBERS, parts)])
    shown = click.unstyle(capsys.readouterr().out)
    assert max(map(len, shown.splitlines())) <= columns
    assert sorted(re.sub(r"[\s─]", "", shown)) == sorted(re.sub(r"\s", "", "".join((*CUTS, *2 * (*NUMBERS, parts)))))
    assert all(shown.split().count(word) >= 2 for cell in NUMBERS for word in cell.split())


def test_config_show_names_the_place_of_every_key(desk: Desk) -> None:
    lines = desk("config", "show", "my.yml", "--set", "seq_length=64").out.splitlines()
    assert any(line.split() == ["num_layers", "my.yml:1", "2"] for line in lines)
    assert any(line.split() == ["seq_length", "--set", "seq_length=64", "64"] for line in lines)
    assert len(desk("config", "show", "my.yml", "--all").out.splitlines()) > 300


def test_config_show_json_is_a_run_for_training_by_hand(desk: Desk) -> None:
    run = desk("config", "show", "my.yml", "--json").facts
    assert run["config"]["data"]["data_path"] == str(desk.cwd / "data" / "train")
    assert run["config"]["checkpoints"]["save"] == str(desk.cwd / "checkpoints")
    assert run["world_size"] is None


@pytest.mark.parametrize("name", list_sites())
def test_sites_show_has_a_line_for_every_fact(desk: Desk, name: str) -> None:
    shown = desk("sites", "show", name)
    assert (shown.code, shown.err) == (0, "")
    facts = {fact for fact, value in iter_facts(load_site(name)) if value is not None} | set(open_facts(load_site(name)))
    assert {line.split()[0] for line in shown.out.splitlines()} == {"FACT"} | facts


def test_a_full_disk_behind_standard_output_is_a_failure_of_one_line(desk: Desk) -> None:
    with open("/dev/full", "w") as full:
        argv = (sys.executable, "-m", "neox_hpc", "config", "show", "my.yml")
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, env=environ, cwd=desk.cwd)
    assert (done.returncode, done.stderr) == (1, "output: No space left on device\n")


def test_a_dry_run_on_a_terminal_ends_with_what_is_wrong(desk: Desk) -> None:
    program = (
        "import os, sys; os.dup2(1, 2); sys.stdout.isatty = lambda: True;"
        "from neox_hpc.cli import run_command_line as run; run(sys.argv[1:])"
    )
    argv = ("submit", "-s", "slurm", "--site-set", "node.gpus=4", "--dry-run", "my.yml")
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True, env=environ, cwd=desk.cwd)
    assert done.stdout.startswith("#!/bin/bash") and "--site-set software.python=" in done.stdout.splitlines()[-1]


def test_sites_show_marks_what_is_not_known(desk: Desk) -> None:
    rows = [line.split(None, 2) for line in desk("sites", "show", "slurm").out.splitlines()]
    assert ["node.gpus", "not", "known  find: scontrol show node NODE | grep Gres"] in rows
    assert desk("sites", "show", "slurm", "--site-set", "node.gpus=4", "--json").facts["node"]["gpus"] == 4
    assert {site["name"] for site in desk("sites", "list", "--json").facts} >= {"local", "slurm"}


def test_dry_run_json_holds_the_files_and_the_problems(desk: Desk) -> None:
    facts = desk("submit", "-s", "slurm", "--site-set", "node.gpus=4", "--dry-run", "--json", "my.yml").facts
    assert facts["files"]["job.sh"].startswith("#!/bin/bash")
    assert json.loads(facts["files"]["plan.json"])["train_iters"] == 20
    assert [problem["kind"] for problem in facts["problems"]] == ["here"]  # software.python


def test_dry_run_without_a_plan_exits_2_and_names_what_the_script_waits_for(desk: Desk) -> None:
    said = desk("submit", "-s", "slurm", "--dry-run", "my.yml")
    assert (said.code, said.out) == (2, "")
    last = said.err.splitlines()[-1]
    assert last.startswith("no script can be shown until this is known or mended: ") and last.endswith("slurm.yml  node.gpus")


def test_keys_that_do_not_train_yet_are_one_block(desk: Desk) -> None:
    argv = ("--set", "num_workers=7", "--set", "mmap_warmup=true", "my.yml")
    dry = desk("submit", "-s", "local", "--dry-run", *argv)
    assert dry.code == 0 and dry.out.startswith("#!/bin/bash")
    assert "2 keys render, but this version does not train them yet:" in dry.err
    assert desk("submit", "-s", "local", *argv).code == 2
