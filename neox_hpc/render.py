"""A plan to the text of its files: with pieces.py the only user of Jinja2.  Same plan, same bytes.

Templates may loop, include and quote; every decision is in the plan.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from neox_hpc.env import Venv
from neox_hpc.launchers import LAUNCHERS, NOTES, Shell
from neox_hpc.plan import Plan
from neox_hpc.schedulers import SCHEDULERS, asked
from neox_hpc.site import EnvValue
from neox_hpc.software import stage_step, unstage_step
from neox_hpc.vocabulary import write_run
from neox_hpc.words import expanding

JobFiles = Mapping[str, str]
"""Path relative to the run directory -> text: job.sh, run.json, plan.json."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A start whose hosts are known already: what the script of a job finds out by itself."""

    argv: Sequence[str]
    """The launcher's."""
    world_info: str
    """Host -> devices, as DeepSpeed's launcher of one node takes it."""


def render(plan: Plan, launch: Launch | None = None) -> JobFiles:
    """Every file of the job."""
    return {"job.sh": render_script(plan, launch), "run.json": write_run(plan.run), "plan.json": render_summary(plan)}


def render_script(plan: Plan, launch: Launch | None = None) -> str:
    """The batch script."""
    return fill(templates(), plan, launch)


def fill(environment: Environment, plan: Plan, launch: Launch | None = None) -> str:
    """The script's template with a plan's values."""
    scheduler = SCHEDULERS[plan.site.scheduler]
    launcher = plan.site.launcher
    template = environment.get_template(scheduler.template)
    return template.render(
        plan=plan,
        site=plan.site,
        directives=asked(scheduler, plan),
        launch=LAUNCHERS[launcher](plan.step) if launch is None else launch.argv,
        world_info=None if launch is None else launch.world_info,
        stage=LAUNCHERS[launcher](stage_step(plan.step, plan.software)),
        unstage=LAUNCHERS[launcher](unstage_step(plan.step)),
        launch_notes=[NOTES[launcher](plan.step)] if launcher in NOTES else [],
    )


def render_venv(venv: Venv) -> str:
    """The script that builds an environment."""
    template = templates().get_template("env.sh.j2")
    return template.render(venv=venv, site=venv.site)


def render_summary(plan: Plan) -> str:
    """plan.json: what ``status`` and ``--watch`` need to know of the job."""
    summary = {
        "name": plan.name,
        "site": plan.site.name,
        "scheduler": plan.site.scheduler,
        "launcher": plan.site.launcher,
        "software": plan.software.told,
        "nodes": plan.nodes,
        "ranks_per_node": plan.ranks_per_node,
        "world_size": plan.layout.world_size,
        "device": plan.device,
        "layout": {"tensor": plan.layout.tensor, "pipe": plan.layout.pipe, "data": plan.layout.data},
        "batch": {"train": plan.batch.train, "micro": plan.batch.micro, "accumulation": plan.batch.accumulation},
        "train_iters": plan.run.config.training.train_iters,
        "account": plan.account,
        "queue": plan.queue,
        "walltime_s": plan.walltime_s,
        "poll_s": plan.site.poll_s,
    }
    return json.dumps(summary, indent=1) + "\n"


_SENTINEL = re.compile(r"(^\W*[fF]|\n[ \t]*#[ \t]*[SPB])(?=lux:|LUX:|BATCH|BS|SUB)", re.MULTILINE)


def quote(value: Any) -> str:
    """One word for a shell: quoted, or left to the job's shell where it is a :class:`Shell` word or an expanding variable.

    A line of a value may begin like a directive, which LSF and Flux look for in the whole script: quotes part its word.
    """
    if isinstance(value, Shell):
        return _SENTINEL.sub(r'\1""', f'"{value}"')
    if isinstance(value, EnvValue):
        return quote(expanding(value.value)) if value.expand else quote(value.value)
    return _SENTINEL.sub(r"\1''", shlex.quote(str(value)))


def wrap(words: Iterable[Any], indent: int = 2, width: int = 110) -> str:
    """A command over several lines, each within the width where its words allow."""
    lines: list[str] = [""]
    for word in map(quote, words):
        room = width - (indent if len(lines) > 1 else 0)
        if lines[-1] and len(lines[-1]) + 1 + len(word) > room:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return (" \\\n" + " " * indent).join(lines)


@cache
def templates() -> Environment:
    """Our templates, their rules and filters."""
    environment = Environment(
        loader=FileSystemLoader(str(Path(__file__).parent / "templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # shell, not HTML: every value goes through sh
    )
    environment.filters |= {"sh": quote, "wrap": wrap}
    return environment
