"""``neox-hpc logs``: the job's output.

Changes when how it is printed does.
"""

from __future__ import annotations

import shlex
import sys

import click

from neox_hpc.cli.runs import RunParameter, all_hosts, newest_run, refresher
from neox_hpc.cli.show import style_state
from neox_hpc.follow import follow
from neox_hpc.jobs import Hosts, asker, scheduler_of
from neox_hpc.logs import Stream, tail_offset
from neox_hpc.rundir import RunDir
from neox_hpc.status import Standing, State, look

LOG = "logs/job.out"


@click.command()
@click.argument("run", type=RunParameter(), required=False)
@click.option("-f", "--follow", "following", is_flag=True, help="Go on until the job ends (Ctrl-C leaves the job alone).")
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Begin with the last LINES lines; default: the whole output.")
def logs(run: RunDir | None, *, following: bool, lines: int | None) -> None:
    """Print a run's output, of all its attempts.  RUN is a directory, a name or a job id; without it: the newest run.

    \b
    Examples:
      neox-hpc logs
      neox-hpc logs -f quickstart
      neox-hpc logs -n 50 4711
    """
    run = run or newest_run()
    hosts = all_hosts()
    wanted: dict[str, int | str] = {LOG: 0 if lines is None else f"~{lines}"}
    hosts.refresh(run, wanted)
    stream = Stream(run.log, 0 if lines is None else tail_offset(run.log, lines))
    wanted[LOG] = stream.offset
    if following:
        _follow(run, stream, hosts, wanted)
        return
    _print_new(stream)
    if not stream.has_begun:
        _explain_silence(look(run, asker(run, hosts)))


def _follow(run: RunDir, stream: Stream, hosts: Hosts, wanted: dict[str, int | str]) -> None:
    last = None
    try:
        refresh = refresher(run, hosts, wanted)
        for standing in follow(run, asker(run, hosts, wanted), shared=scheduler_of(run).starts_job, refresh=refresh):
            _print_new(stream)
            if last is None and not stream.has_begun and not standing.verdict.state.ended:
                _explain_silence(standing)
            last = standing
    except KeyboardInterrupt:
        click.echo(f"\nthe job is left as it is; neox-hpc status {shlex.quote(run.name)}", err=True)
        raise
    _print_new(stream)
    assert last is not None
    click.echo(f"{run.name}  {style_state(last.verdict.state.value)}", err=True)


def _print_new(stream: Stream) -> None:
    output = sys.stdout.buffer
    for block in stream.new_blocks():
        output.write(block)
    output.flush()


def _explain_silence(standing: Standing) -> None:
    verdict = standing.verdict
    words = {State.PENDING: "it waits in the queue", State.NOT_SUBMITTED: "it was written, not submitted"}.get(
        verdict.state, verdict.state.value
    )
    why = f" ({verdict.why})" if verdict.why else ""
    click.echo(f"{standing.run.name}: no output yet: {words}{why}", err=True)
