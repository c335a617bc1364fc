"""``neox-hpc submit`` and ``render``: a configuration becomes a run.

Changes when the steps of a submit do.  ``--dry-run`` ends before anything is imported that could write or reach a scheduler.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neox_hpc.cli.prepare import Prepared, asked_of, job_options, prepare, print_notes, print_problems
from neox_hpc.cli.show import print_facts, print_json
from neox_hpc.errors import Failure, Problem, UserError

if TYPE_CHECKING:
    from neox_hpc.rundir import Receipt, RunDir


@click.command()
@job_options
@click.option("--dry-run", is_flag=True, help="Print the script that would be submitted, byte for byte; write and submit nothing.")
@click.option(
    "--test-only", is_flag=True, help="Let the scheduler judge the script (sbatch --test-only); write and submit nothing."
)
@click.option("-w", "--watch", is_flag=True, help="Stay and show the training's progress; exit as the job does.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
def submit(dry_run: bool, test_only: bool, watch: bool, as_json: bool, **options: Any) -> int:
    """Plan a training run, write its run directory, and submit its job.

    \b
    Relative data_path, vocab_file and load count from here; save, log_dir and tensorboard_dir from the run directory,
    which is OUTPUT_DIR/NAME, or NAME.2, NAME.3 … when that exists.

    \b
    Examples:
      neox-hpc submit --site local --watch configs/quickstart.yml
      neox-hpc submit --site ./mysite.yml --nodes 2 --time 2h -A project42 my.yml
      neox-hpc submit --site slurm --site-set node.gpus=4 --dry-run -d configs 125M local_setup --set train_iters=1000
    """
    if watch and (as_json or dry_run or test_only):
        wrong = "cannot be combined with --json, --dry-run or --test-only"
        raise UserError(Problem("--watch", wrong, "remove one; `neox-hpc status --json` shows a run"))
    prepared = prepare(asked_of(options), cwd=Path.cwd())
    if dry_run:
        return _show(prepared, as_json)
    _refuse(prepared, prepared.planned.problems)
    if test_only:
        return _test(prepared)
    run, receipt = _submit(prepared)
    if as_json:
        print_json({"name": run.name, "run_dir": run.place, "job_id": receipt.job_id, "site": prepared.plan.site.name})
        return 0
    _print_submitted(prepared, run, receipt, watch=watch)
    if watch:
        from neox_hpc.cli.watch import watch_run

        return watch_run(run)
    return 0


@click.command()
@job_options
def render(**options: Any) -> int:
    """Write the run directory that submit would write, and submit nothing.  Its path is the last line on stdout.

    \b
    Examples:
      neox-hpc render --site slurm --site-set node.gpus=4 my.yml
      sbatch "$(neox-hpc render --site mysite.yml my.yml)/job.sh"
    """
    prepared = prepare(asked_of(options), cwd=Path.cwd())
    _refuse(prepared, (problem for problem in prepared.planned.problems if problem.kind == "anywhere"))
    print_notes(prepared.planned.notes)
    print_problems(prepared.planned.problems)
    click.echo(prepared.far.make(prepared) if prepared.far is not None else str(_write(prepared).path))
    return 0


def _show(prepared: Prepared, as_json: bool) -> int:
    """The dry run: the script on stdout, everything else on stderr."""
    from neox_hpc.cli.placement import placement_document, print_placement

    planned, files = prepared.planned, prepared.files
    if as_json:
        problems = [{"where": p.where, "wrong": p.wrong, "fix": p.fix, "kind": p.kind} for p in planned.problems]
        shown = {"run_dir": str(prepared.path), "files": files and dict(files), "notes": list(planned.notes), "problems": problems}
        print_json(shown | ({"placement": placement_document(prepared)} if files is not None else {}))
        return 0 if files is not None else 2
    on_terminal = sys.stdout.isatty()
    if files is not None and on_terminal:
        click.echo(files["job.sh"], nl=False)  # first, so that what is wrong is not scrolled away
    if files is not None:
        print_placement(prepared)
    print_notes(planned.notes)
    print_problems(planned.problems)
    if files is None:
        mended_first = ", ".join(problem.where for problem in planned.problems if problem.kind == "anywhere")
        click.echo(f"no script can be shown until this is known or mended: {mended_first}", err=True)
        return 2
    if not on_terminal:
        click.echo(files["job.sh"], nl=False)  # last: the reader of a pipe (head) may be gone after it
    return 0


def _test(prepared: Prepared) -> int:
    """The scheduler's own verdict."""
    import os

    from neox_hpc.jobs import Here, try_script
    from neox_hpc.schedulers import SCHEDULERS

    assert prepared.files is not None
    print_notes(prepared.planned.notes)
    host = prepared.far.machine if prepared.far is not None else Here(os.environ)
    click.echo(try_script(SCHEDULERS[prepared.plan.site.scheduler], prepared.files["job.sh"], host))
    return 0


def _refuse(prepared: Prepared, problems: Any) -> None:
    """Stop at the problems that this verb does not allow; shown all together, with the rest."""
    if prepared.files is None or tuple(problems):
        print_notes(prepared.planned.notes)
        print_problems(prepared.planned.problems)
        raise click.exceptions.Exit(2)


def _write(prepared: Prepared) -> RunDir:
    from neox_hpc.rundir import write_run_dir
    from neox_hpc.snapshot import take_snapshot

    return write_run_dir(prepared.path, prepared.run_files, take_snapshot())


def _submit(prepared: Prepared) -> tuple[RunDir, Receipt]:
    """Steps 6 to 8.  A refused job leaves no run directory; one of which nobody knows whether it was taken keeps it."""
    import os

    from neox_hpc.cli.surroundings import now_utc
    from neox_hpc.jobs import scheduler_of, submit_job
    from neox_hpc.rundir import remove_run_dir, write_receipt

    if prepared.far is not None:
        run = prepared.far.keep(prepared)
        _remember(prepared, run, "", now_utc())  # whatever ends this command, `status` tells what has become of it
        receipt = prepared.far.submit(prepared, run)
        _remember(prepared, run, receipt.job_id, receipt.submitted_at)
        return run, receipt
    run = _write(prepared)
    try:
        taken = submit_job(scheduler_of(run), run, os.environ)
    except UserError:
        remove_run_dir(run)
        raise
    receipt = _receipt(prepared, run, taken.job_id, taken.command, taken.process_started)
    try:
        write_receipt(run, receipt)
    except UserError as error:
        raise Failure(f"{error}\n  the job was taken all the same: it is {taken.job_id} on {prepared.plan.site.name}") from None
    _remember(prepared, run, receipt.job_id, receipt.submitted_at)
    return run, receipt


def _remember(prepared: Prepared, run: RunDir, job_id: str, at: str) -> None:
    import os

    from neox_hpc.registry import Entry, registry_file, remember

    entry = Entry(path=str(run.path), job_id=job_id, site=prepared.plan.site.name, submitted_at=at)
    file = registry_file(os.environ)
    if not remember(entry, file):
        click.echo(f"note: {file} cannot be written: this run is found by its path only", err=True)


def _receipt(prepared: Prepared, run: RunDir, job_id: str, command: tuple[str, ...], process_started: int | None) -> Receipt:
    from neox_hpc.cli.surroundings import host_name, now_utc
    from neox_hpc.identity import identify
    from neox_hpc.rundir import Receipt, sha256_of
    from neox_hpc.snapshot import take_snapshot

    assert prepared.files is not None
    return Receipt(
        job_id=job_id,
        submitted_at=now_utc(),
        host=host_name(),
        user=prepared.request.user,
        command=command,
        neox_hpc=prepared.request.neox_hpc,
        code_sha256=take_snapshot(run.path / "code" / "model").sha256,
        script_sha256=sha256_of(prepared.files["job.sh"]),
        software=identify(prepared.plan.software),
        git_commit=prepared.request.git_commit,
        process_started=process_started,
    )


def _print_submitted(prepared: Prepared, run: RunDir, receipt: Receipt, *, watch: bool) -> None:
    print_notes(prepared.planned.notes)
    plan, name = prepared.plan, shlex.quote(run.name)
    shape = f"{plan.nodes} x {plan.ranks_per_node} {'GPUs' if plan.gpus_per_node else 'CPU ranks'}"
    click.echo(f"{click.style(run.name, bold=True)}  job {receipt.job_id} on {plan.site.name}, {shape}")
    print_facts([("run", run.place), ("next", "" if watch else f"neox-hpc status {name}   neox-hpc logs -f {name}")])
