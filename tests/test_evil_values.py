"""Evil values in every field that reaches a script.  The script runs in a real shell: nothing runs that should not, what arrives is
what was written, and a value that a directive cannot carry is refused by the plan, which names the character.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from neox_hpc.errors import UserError
from neox_hpc.launchers import LAUNCHERS
from neox_hpc.schedulers import SCHEDULERS, After, asked
from neox_hpc.site_files import load_site
from tests.planning import TWO_CORES, planned, scheduled
from tests.test_templates import Stage, allocation, stage

__all__ = ["stage"]

CANARY = "canary"
"""What the commands inside evil values would make, wherever a shell stands."""
ATOMS = (
    *(
        "$HOME",
        "${PATH}",
        "`touch canary`",
        "$(touch canary)",
        "; touch canary;",
        "&& touch canary",
        "| touch canary",
        "\n touch canary\n",
    ),
    *(
        "'",
        '"',
        "'; touch canary; '",
        '"; touch canary; "',
        "\\",
        "\\\\",
        " ",
        "  ",
        ",",
        ":",
        "=",
        "(x2)",
        "64(x2)",
        "*",
        "?",
        "[a]",
    ),
    *(
        "{a,b}",
        "~",
        "#",
        "!",
        "%",
        "%j",
        "^",
        "&",
        "<",
        ">",
        "-n",
        "--",
        "\t",
        "\r",
        "é",
        "日本",
        "🚀",
        "\x01",
        "\x7f",
        "{{id}}",
        "a",
        "Z9",
    ),
)
TEXTS = st.lists(st.sampled_from(ATOMS), min_size=1, max_size=6).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20
)
LONG = "x'$(touch canary)`\" " * 210
"""4 kB."""

PAIRS = [
    ("slurm", "srun"),
    ("pbs", "pals"),
    ("lsf-csm", "jsrun"),
    ("flux", "flux"),
    ("pbs", "openmpi"),
    ("lsf", "mpich"),
    ("slurm", "impi"),
    ("slurm", "mvapich"),
    ("local", "local"),
]
RECORDER = """#!/bin/sh
printf '%s\\0' "$@" >"$RECORD/argv"
env -0 >"$RECORD/env"
"""
MODULES = """module() {
  printf '%s\\0' "$@" >>"$RECORD/modules"
}
"""


def test_every_launcher_meets_evil_values() -> None:
    assert {launcher for _, launcher in PAIRS} == set(LAUNCHERS) - {"pdsh"}  # real ones: tests/cluster/test_launchers.py
    assert {scheduler for scheduler, _ in PAIRS} == set(SCHEDULERS)


def programs(stage: Stage, scheduler: str) -> dict[str, str]:
    """Programs that record what arrives; the variables of the scheduler."""
    variables = allocation(stage, scheduler) if scheduler != "local" else {}
    for name in ("srun", "mpirun", "mpiexec", "jsrun"):
        write_program(stage.root / "bin" / name, RECORDER)
    if scheduler == "flux":
        known = (stage.root / "bin" / "flux").read_text()
        write_program(stage.root / "bin" / "flux", known.replace("*) exit 9", f'*) exec "{stage.root}/bin/srun" "$@"'))
    (stage.root / "modules.sh").write_text(MODULES)
    return variables


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def facts_of(stage: Stage, scheduler: str, launcher: str, **facts: Any) -> dict[str, Any]:
    """A site as its file has it: two nodes of two ranks (without a scheduler: one)."""
    python = stage.root / "bin" / "python"
    whole = {
        "scheduler": scheduler,
        "launcher": launcher,
        "node": {"gpus": 0, "cpu_ranks": 2, "accelerator": "cpu"},
        "software": {"python": str(python)},
        "modules": {"init": str(stage.root / "modules.sh")},
    }
    return {key: {**whole.get(key, {}), **value} if isinstance(value, dict) else value for key, value in (whole | facts).items()}


def run_with(stage: Stage, facts: dict[str, Any], variables: dict[str, str], **asked: Any) -> list[str]:
    """Run the script that comes of a site's facts and a request; the problems, where there is none."""
    file = stage.root / "site.yml"
    file.write_text(yaml.safe_dump(facts, allow_unicode=True), encoding="utf-8")
    try:
        where = load_site(file)
    except UserError as error:
        return [str(problem) for problem in error.problems]
    nodes = 1 if facts["scheduler"] == "local" else 2
    found = planned(where, facts=TWO_CORES, asked={"nodes": nodes, "run_dir": str(stage.run)} | asked)
    if found.plan is None:
        return [str(problem) for problem in found.problems if problem.kind == "anywhere"]
    for name in ("argv", "env", "modules"):
        (stage.root / "record" / name).unlink(missing_ok=True)
    status, output = stage.finish(found.plan, **variables)
    assert status == 0, output
    assert not list(stage.root.rglob(CANARY)) and not Path("/canary").exists()
    return []


@pytest.mark.parametrize(("scheduler", "launcher"), PAIRS)
def test_what_a_site_says_arrives_as_it_was_written(stage: Stage, scheduler: str, launcher: str) -> None:
    variables = programs(stage, scheduler)

    @settings(max_examples=12, deadline=None, derandomize=True, database=None)
    @given(value=TEXTS, argument=TEXTS, module=TEXTS, folder=TEXTS)
    @example(value=LONG, argument=LONG, module="rocm/7.1", folder="it's $(touch canary)")
    def holds(value: str, argument: str, module: str, folder: str) -> None:
        python = stage.root / "bin" / folder.replace("/", "_")[:40] / "python"
        assume(python.parent.name not in (".", ".."))
        python.parent.mkdir(exist_ok=True)
        write_program(python, RECORDER)
        facts = facts_of(
            stage,
            scheduler,
            launcher,
            env={"EVIL": [{"value": value}], "EXPANDED": [{"value": value, "expand": True}]},
            launcher_args=[f"--evil={shlex.quote(argument)}"],
            modules={"load": [module]},
            software={"python": str(python)},
        )
        assert run_with(stage, facts, variables) == []
        arrived = stage.argv()
        assert f"--evil={argument}" in arrived
        assert launcher == "local" or str(python) in arrived
        assert stage.env()["EVIL"] == value
        assert stage.env()["EXPANDED"] == expanded(value, stage.env())
        assert (stage.root / "record" / "modules").read_bytes().decode() == f"load\0{module}\0"

    holds()


def expanded(value: str, environ: dict[str, str]) -> str:
    """``${NAME}`` by the job's own variable, nothing else: the rule of the site file, told in another way."""
    return re.sub(r"\$\{([A-Za-z_]\w*)\}", lambda found: environ.get(found[1], ""), value, flags=re.ASCII)


FIELDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "name": lambda text: {"asked": {"name": text}},
    "account": lambda text: {"asked": {"account": text}},
    "queue": lambda text: {"asked": {"queue": text}},
    "run_dir": lambda text: {"asked": {"run_dir": f"/scratch/{text}"}},
    "exclude": lambda text: {"asked": {"exclude": text}},
    "after": lambda text: {"asked": {"after": (After(job_id=text),)}},
    "comment": lambda text: {"keys": {"comment": text}},
}
"""What becomes part of a directive."""
QUEUED = [name for name, scheduler in SCHEDULERS.items() if scheduler.starts_job]
UNABLE = {"pbs": {"comment", "exclude"}, "lsf": {"comment"}, "lsf-csm": {"comment", "exclude"}, "flux": {"comment"}}
"""What a scheduler has no directive for."""


def arrived(text: str, directives: Sequence[str]) -> bool:
    """Whether one word of the directives, parted as a shell parts words, is the text or ends with it after a sign."""
    words = [word for directive in directives for word in shlex.split(directive, comments=True)]
    return any(word == text or re.search(rf"[=:(!/]{re.escape(text)}(/logs/job\.out|\)|\])?$", word) for word in words)


@pytest.mark.parametrize(("scheduler", "field"), [(s, f) for s in QUEUED for f in FIELDS if f not in UNABLE.get(s, ())])
def test_a_directive_carries_a_value_unchanged_or_the_plan_names_the_character(scheduler: str, field: str) -> None:
    outcomes = set()

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(value=TEXTS)
    @example(value=LONG)
    @example(value="a1")
    @example(value="123")
    @example(value="f2ab")
    def holds(value: str) -> None:
        where = scheduled(scheduler)
        found = planned(where, **FIELDS[field](value))
        problems = [problem for problem in found.problems if problem.kind == "anywhere"]
        outcomes.add(found.plan is not None)
        if found.plan is not None:
            parts = value.split(",") if (scheduler, field) == ("lsf", "exclude") else [value]  # a comparison each
            assert all(part and arrived(part, asked(SCHEDULERS[scheduler], found.plan)) for part in parts)
            return
        [problem] = problems
        strange = re.sub(r"[A-Za-z0-9_.+-]", "", value)
        named = re.search(r"it holds ('.*'|\".*\")$", problem.wrong, re.DOTALL)
        assert len(str(problem)) < 600
        assert (named is not None and ast.literal_eval(named[1]) in value) or not strange or "does not fit" in problem.wrong
        if re.search(r"[$`'\"\\\n]", value):
            assert named is not None

    holds()
    assert outcomes == {True, False}


@pytest.mark.parametrize("field", ["account", "queue", "exclude"])
def test_an_empty_value_is_not_taken_for_none(field: str) -> None:
    assert [problem.where for problem in planned(scheduled("slurm"), asked={field: ""}).problems if problem.kind == "anywhere"]
