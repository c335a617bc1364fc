"""``neox-hpc status``: how one run stands, for a person and for a program.

Changes when what is shown of a run does.
"""

from __future__ import annotations

import shlex
from functools import partial
from typing import Any

import click

from neox_hpc.cli.runs import RunParameter, all_hosts, newest_run
from neox_hpc.cli.show import duration, number, print_facts, print_json, style_state
from neox_hpc.jobs import ask_runs
from neox_hpc.logs import tail
from neox_hpc.rundir import RunDir
from neox_hpc.status import Standing, State, explain_exit, look, remaining_s

TAIL_LINES = 12


@click.command()
@click.argument("runs", type=RunParameter(), nargs=-1, metavar="[RUN]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs; a list for several runs.")
def status(runs: tuple[RunDir, ...], as_json: bool) -> None:
    """How a run stands.  RUN is a directory, a name or a job id; without it: the newest run.

    \b
    The scheduler is asked, once for several runs; when it does not answer, or has forgotten the job, the run directory tells.
    Exits 0 whenever the state could be told, whatever it is (use --json in scripts).

    \b
    Examples:
      neox-hpc status
      neox-hpc status quickstart.2
      neox-hpc status 4711 --json | jq -r .state
    """
    runs = runs or (newest_run(),)
    answers = ask_runs(runs, all_hosts())
    standings = [look(run, partial(answers.__getitem__, run.path)) for run in runs]
    if as_json:
        facts = [as_facts(standing) for standing in standings]
        print_json(facts if len(facts) > 1 else facts[0])
        return
    for index, standing in enumerate(standings):
        click.echo("", nl=index > 0)
        print_standing(standing)


def as_facts(standing: Standing) -> dict[str, Any]:
    """For ``--json``."""
    verdict, progress, error = standing.verdict, standing.progress, standing.first_error
    return {
        "name": standing.run.name,
        "run_dir": standing.run.place,
        "site": standing.site,
        "scheduler": standing.scheduler,
        "job_id": standing.job_id,
        "software": standing.software,
        "state": verdict.state.value,
        "why": verdict.why,
        "exit_status": verdict.exit_status,
        "attempt": standing.attempt,
        "step": progress.step,
        "train_iters": standing.train_iters,
        "loss": progress.loss,
        "validation_loss": progress.validation_loss,
        "validation_step": progress.validation_step,
        "tokens_per_s": progress.tokens_per_s,
        "elapsed_s": standing.elapsed_s,
        "remaining_s": remaining_s(standing),
        "quiet_s": standing.quiet_s,
        "first_error": None if error is None else {"rank": error.rank, "message": error.message, "file": str(error.path)},
        "log": f"{standing.run.place}/logs/job.out",
    }


def print_standing(standing: Standing) -> None:
    """For a person: the state and its cause first, the way on last."""
    run, verdict = standing.run, standing.verdict
    click.echo(f"{click.style(run.name, bold=True)}  {style_state(verdict.state.value)}{_reason(standing)}")
    print_facts(
        [
            ("error", _error(standing)),
            ("warning", _warning(standing)),
            ("step", _progress(standing)),
            (
                "job",
                f"{standing.job_id or 'none'} on {standing.site}" + (f", attempt {standing.attempt}" if standing.attempt else ""),
            ),
            (
                "elapsed",
                duration(standing.elapsed_s) + (f", {duration(left)} left" if (left := remaining_s(standing)) is not None else ""),
            ),
            ("software", _software(standing)),
            ("run", run.place),
            ("log", f"{run.place}/logs/job.out" if run.log.exists() else ""),
            ("output", _output(standing)),
            ("next", _next(standing)),
        ]
    )


def _software(standing: Standing) -> str:
    """What the ranks run in, and the beginning of the number by which it is recognised."""
    facts = standing.software
    number = str(facts.get("lock_sha256") or facts.get("image_id") or "")[:12]
    return f"{facts.get('is') or ''}{f'  ({number})' if number else ''}"


def _reason(standing: Standing) -> str:
    verdict = standing.verdict
    parts = [verdict.why, explain_exit(verdict.exit_status) if verdict.exit_status else ""]
    words = ", ".join(part for part in parts if part)
    return f"  ({words})" if words else ""


def _error(standing: Standing) -> str:
    error = standing.first_error
    if error is None or standing.verdict.state is State.DONE:
        return ""
    return f"rank {error.rank}: {error.message}\n{error.path}"


def _warning(standing: Standing) -> str:
    if standing.quiet_s is None:
        return ""
    step_time = standing.progress.step_time_s
    usual = f" (a step takes {step_time:.3g} s)" if step_time is not None else ""
    return f"no step for {duration(standing.quiet_s)}: it may hang{usual}"


def _progress(standing: Standing) -> str:
    progress = standing.progress
    if progress.step is None:
        return "none yet" if standing.attempt else ""
    total = f"/{standing.train_iters} ({100 * progress.step // standing.train_iters} %)" if standing.train_iters else ""
    loss = f"  loss {number(progress.loss, '.4f')}" if progress.loss is not None else ""
    speed = f"  {number(progress.tokens_per_s, ',.0f')} tokens/s" if progress.tokens_per_s is not None else ""
    valid = (
        f"  validation {progress.validation_loss:.4f} at step {progress.validation_step}"
        if progress.validation_loss is not None
        else ""
    )
    return f"{progress.step}{total}{loss}{valid}{speed}"


def _output(standing: Standing) -> str:
    """The end of the log, where nothing else tells why a job has failed."""
    if standing.verdict.state not in (State.FAILED, State.LOST, State.TIMEOUT) or standing.first_error is not None:
        return ""
    return "\n".join(tail(standing.run.log, TAIL_LINES)) or "none"


def _next(standing: Standing) -> str:
    name, state = shlex.quote(standing.run.name), standing.verdict.state
    if state is State.NOT_SUBMITTED:
        return "it was written, not submitted" if standing.run.far is None else "the same submit command goes on where it broke off"
    if state in (State.RUNNING, State.PENDING):
        return f"neox-hpc logs -f {name}   neox-hpc cancel {name}"
    if state is State.DONE:
        return f"neox-hpc plot {name}"
    return f"neox-hpc logs {name}"
