"""``--watch``: a running training on the screen, until it ends.

Changes when what is shown while waiting does.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator

import click

from neox_hpc.cli.runs import all_hosts, refresher
from neox_hpc.cli.show import duration, number
from neox_hpc.cli.status import print_standing
from neox_hpc.follow import follow
from neox_hpc.jobs import asker, scheduler_of
from neox_hpc.metrics import Follower, Line
from neox_hpc.rundir import RunDir
from neox_hpc.status import Standing, State, remaining_s

PLAIN_S = 10.0
"""Seconds between two lines of progress where no bar can be drawn."""
INTERRUPTED = 130


def watch_run(run: RunDir) -> int:
    """Show a run until it ends; returns the exit code of its verdict.  Ctrl-C leaves the job alone."""
    hosts = all_hosts()
    refresh = refresher(run, hosts, {})
    standings = follow(run, asker(run, hosts), shared=scheduler_of(run).starts_job, refresh=refresh)
    try:
        last = (_show_bar if sys.stdout.isatty() else _show_lines)(standings, Follower(run.metrics))
    except KeyboardInterrupt:
        name = shlex.quote(run.name)
        click.echo(
            f"\nThe job goes on.  Look again: neox-hpc status {name}   neox-hpc logs -f {name}\nStop it:    neox-hpc cancel {name}"
        )
        return INTERRUPTED
    print_standing(last)
    return last.verdict.exit_code


def _show_lines(standings: Iterator[Standing], metrics: Follower) -> Standing:
    """Plain lines: a change of phase, the first step, then one every PLAIN_S; every validation."""
    phase, shown_step, shown_s = "", None, -PLAIN_S
    for standing in standings:
        if (now := _phase(standing)) != phase and not standing.verdict.state.ended:
            phase = now
            click.echo(phase)
        for text in _validations(metrics.new_lines()):
            click.echo(text)
        step = standing.progress.step
        if step is not None and step != shown_step and (time.monotonic() - shown_s >= PLAIN_S or standing.verdict.state.ended):
            shown_step, shown_s = step, time.monotonic()
            click.echo(_line(standing))
    return standing


def _show_bar(standings: Iterator[Standing], metrics: Follower) -> Standing:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("", total=None, facts="")
        for standing in standings:
            for text in _validations(metrics.new_lines()):
                bar.console.print(text, highlight=False)
            done, facts = standing.progress.step or 0, _facts(standing)
            bar.update(task, description=_phase(standing), total=standing.train_iters, completed=done, facts=facts)
    return standing


def _validations(lines: list[Line]) -> list[str]:
    return [
        f"  step {line['step']:>6}  validation loss {line['validation_loss']:.4f}" for line in lines if "validation_loss" in line
    ]


def _phase(standing: Standing) -> str:
    state, name = standing.verdict.state, standing.run.name
    if state is State.PENDING:
        return f"{name} waits in the queue" + (f" ({standing.verdict.why})" if standing.verdict.why else "")
    if state is State.UNKNOWN:
        return f"{name}: {standing.verdict.why}"
    if state is State.RUNNING and standing.progress.step is None:
        return f"{name} starts (its output: {standing.run.place}/logs/job.out)"
    return f"{name} {'trains' if state is State.RUNNING else state.value}"


def _line(standing: Standing) -> str:
    step = f"  step {standing.progress.step:>6}" + (f"/{standing.train_iters}" if standing.train_iters else "")
    return f"{step}  {_facts(standing)}"


def _facts(standing: Standing) -> str:
    progress = standing.progress
    left = remaining_s(standing)
    parts = (
        f"loss {number(progress.loss, '.4f')}" if progress.loss is not None else "",
        f"{number(progress.tokens_per_s, ',.0f')} tokens/s" if progress.tokens_per_s is not None else "",
        f"{duration(left)} left" if left else "",
    )
    return "  ".join(part for part in parts if part)
