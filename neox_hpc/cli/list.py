"""``neox-hpc list``: the runs of this user.

Changes when what is shown of many runs at once does.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import click

from neox_hpc.cli.show import number, print_json, print_table, style_state
from neox_hpc.cli.status import as_facts
from neox_hpc.errors import NeoxHpcError
from neox_hpc.jobs import Answer, asker, scheduler_of
from neox_hpc.registry import Entry, read_registry, registry_file
from neox_hpc.rundir import RunDir, open_run
from neox_hpc.status import Standing, look


@click.command("list")
@click.option("-n", "--lines", type=click.IntRange(min=1), default=20, show_default=True, help="How many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
def list_runs(lines: int, as_json: bool) -> None:
    """The runs that this user submitted from this machine, newest first.

    \b
    Examples:
      neox-hpc list
      neox-hpc list --json | jq -r '.[] | select(.state == "running") | .name'
    """
    file = registry_file(os.environ)
    entries = list({entry.path: entry for entry in reversed(read_registry(file))}.values())[::-1]
    silent: dict[str, Answer] = {}
    found = ((entry, standing) for entry in entries if (standing := _look(entry, silent)) is not None)
    standings = list(itertools.islice(found, lines))
    if as_json:
        print_json([as_facts(standing) | {"submitted_at": entry.submitted_at} for entry, standing in standings])
    elif standings:
        print_table(("RUN", "STATE", "STEP", "LOSS", "SITE", "JOB", "SUBMITTED", "DIRECTORY"), [_row(*pair) for pair in standings])
    else:
        click.echo("no runs yet: neox-hpc submit --site local configs/quickstart.yml", err=True)


def _look(entry: Entry, silent: dict[str, Answer]) -> Standing | None:
    """None: the directory is gone, or damaged, which is told."""
    try:
        run = open_run(Path(entry.path))
        return look(run, lambda: _ask(run, silent))
    except NeoxHpcError as error:
        if Path(entry.path).is_dir():
            click.echo(f"left out, job {entry.job_id} on {entry.site}: {error}", err=True)
        return None


def _ask(run: RunDir, silent: dict[str, Answer]) -> Answer:
    """Of many runs, only those without an outcome are asked for; a scheduler that is silent once is not waited for again."""
    attempts = run.attempts
    if attempts and attempts[-1].exit_status is not None:
        return Answer()
    scheduler = str(run.plan.get("scheduler"))
    if scheduler in silent:
        return silent[scheduler]
    answer = asker(run, os.environ)()
    if answer.silence and scheduler_of(run).starts_job:
        silent[scheduler] = answer
    return answer


def _row(entry: Entry, standing: Standing) -> tuple[str, ...]:
    progress = standing.progress
    step = "" if progress.step is None else f"{progress.step}/{standing.train_iters or '?'}"
    return (
        standing.run.name,
        style_state(standing.verdict.state.value),
        step,
        number(progress.loss, ".4f"),
        standing.site,
        entry.job_id,
        entry.submitted_at.replace("T", " ")[:16],
        entry.path,
    )
