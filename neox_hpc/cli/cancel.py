"""``neox-hpc cancel``: stop a job.

Changes when stopping does.
"""

from __future__ import annotations

import click

from neox_hpc.checks import FORWARDED
from neox_hpc.cli.runs import RunParameter, all_hosts
from neox_hpc.cli.surroundings import now_utc, user_name
from neox_hpc.errors import Problem, UserError
from neox_hpc.jobs import asker, cancel_job, scheduler_of, signal_job
from neox_hpc.rundir import RunDir, write_cancelled
from neox_hpc.status import look


@click.command()
@click.argument("run", type=RunParameter())
@click.option("--signal", type=click.Choice(FORWARDED), help="Send this to the ranks instead, and leave the job alone.")
def cancel(run: RunDir, signal: str | None) -> None:
    """Stop a run's job.  RUN is a directory, a name or a job id.  Its files and checkpoints stay.

    \b
    Examples:
      neox-hpc cancel quickstart
      neox-hpc cancel 4711
      neox-hpc cancel --signal USR1 quickstart
    """
    hosts = all_hosts()
    standing = look(run, asker(run, hosts))
    receipt = run.receipt
    if receipt is None:
        raise UserError(Problem(run.name, "was never submitted: there is no job to cancel"))
    if standing.verdict.state.ended:
        click.echo(f"{run.name} has ended already: {standing.verdict.state.value}")
        return
    if signal is not None:
        signal_job(scheduler_of(run), receipt, signal, hosts.of(run))
        click.echo(f"{run.name}: {signal} is on its way to job {receipt.job_id}")
        return
    cancel_job(scheduler_of(run), receipt, hosts.of(run))
    record = write_cancelled(run, at=now_utc(), user=user_name())
    if (far := run.far) is not None:
        hosts.far(far).put(f"{far.path}/cancelled.json", record)
    click.echo(f"{run.name}: job {receipt.job_id} is cancelled; its files are in {run.place}")
