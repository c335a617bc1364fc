"""``neox-hpc list``: the runs of this user.

Changes when what is shown of many runs at once does.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import click

from neox_hpc.cli.runs import all_hosts
from neox_hpc.cli.show import number, print_json, print_table, style_state
from neox_hpc.cli.status import as_facts
from neox_hpc.errors import NeoxHpcError, UserError
from neox_hpc.jobs import Answer, ask_runs, scheduler_of
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
    runs = list(itertools.islice(_open(entries), lines))
    asked = [run for _, run in runs if not _has_outcome(run)]
    try:
        answers = ask_runs(asked, all_hosts())
    except UserError as error:  # a machine does not let the user in: the others' runs are shown all the same
        click.echo(str(error), err=True)
        answers = {run.path: Answer(silence="not asked") for run in asked}
    standings = [(entry, look(run, partial(_answer_of, run, answers))) for entry, run in runs]
    if as_json:
        print_json([as_facts(standing) | {"submitted_at": entry.submitted_at} for entry, standing in standings])
    elif standings:
        print_table(("RUN", "STATE", "STEP", "LOSS", "SITE", "JOB", "SUBMITTED", "DIRECTORY"), [_row(*pair) for pair in standings])
    else:
        click.echo("no runs yet: neox-hpc submit --site local configs/quickstart.yml", err=True)


def _open(entries: list[Entry]) -> Iterator[tuple[Entry, RunDir]]:
    """Their run directories; what is gone is left out, what is damaged too, which is told."""
    for entry in entries:
        try:
            yield entry, _readable(open_run(Path(entry.path)))
        except NeoxHpcError as error:
            if Path(entry.path).is_dir():
                click.echo(f"left out, job {entry.job_id} on {entry.site}: {error}", err=True)


def _readable(run: RunDir) -> RunDir:
    """The same.

    Raises:
        Failure: its plan or its receipt is damaged.
    """
    scheduler_of(run)
    assert run.receipt is None or run.receipt.job_id
    return run


def _answer_of(run: RunDir, answers: Mapping[Path, Answer]) -> Answer:
    return answers.get(run.path, Answer())


def _has_outcome(run: RunDir) -> bool:
    """Of many runs, only those without an outcome are asked for."""
    attempts = run.attempts
    return bool(attempts) and attempts[-1].exit_status is not None


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
        standing.run.place,
    )
