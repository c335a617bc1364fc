"""``neox-hpc quickstart``: a real small model through the whole product, in minutes.

Changes when the steps of the quickstart do.  Every step is a command that a user could type, and is shown as one.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from neox_hpc import proc
from neox_hpc.cli.show import print_facts, print_table
from neox_hpc.errors import Failure
from neox_hpc.quickstart import Promise, check_loss, check_sample, continuation, held_out_loss, join_samples, shown_path
from neox_hpc.registry import read_registry, registry_file
from neox_hpc.rundir import RunDir, write_atomically
from neox_hpc.share import share
from neox_hpc.vocabulary import check_own_model

DATA = Path("data") / "stdlib"
MEASURE_TIMEOUT_S = 600.0
SHOWN_LINES = 12


@click.command()
def quickstart() -> int:
    """Train a real small language model on this machine, sample from it, and check the result.  Minutes on two cores.

    \b
    The corpus is the source code of Python's own standard library, parted by file into training and held-out files.
    Called again, it trains a further half, from the first run's checkpoints on; the curve joins.
    """
    check_own_model()
    cwd = Path.cwd()
    _run(("python", "-m", "model.data.prepare", "stdlib", "-d", str(DATA)))
    run = _train(cwd)
    _run(("neox-hpc", "plot", run.name))
    sample = _sample(run, cwd)
    measured = _measure((*_BASELINES, "--sample", shown_path(sample, cwd), "--json"))
    promises = (*check_loss(held_out_loss(run), measured), *check_sample(measured))
    _report(run, sample, promises, cwd)
    return 0 if all(promise.kept for promise in promises) else 1


_BASELINES = ("python", "-m", "model.data.baselines", "--train", str(DATA / "train"), "--heldout", str(DATA / "heldout"))


def _train(cwd: Path) -> RunDir:
    before = _runs(cwd)
    further = continuation(before)
    command = ["neox-hpc", "submit", "--site", "local", "--watch", shown_path(share("configs") / "quickstart.yml", cwd)]
    if further is not None:
        run, steps = further
        command += ["--set", f"load={shown_path(run.path / 'checkpoints', cwd)}", "--set", f"train_iters={steps}"]
    _run(command)
    new = [run for run in _runs(cwd) if run not in before]
    if not new:
        raise Failure("the training left no new run in runs/")
    return new[0]


def _runs(cwd: Path) -> list[RunDir]:
    """The quickstart's runs in this directory, newest first."""
    paths = [Path(entry.path) for entry in read_registry(registry_file(os.environ))]
    here = [path for path in paths if path.parent == cwd / "runs" and path.name.partition(".")[0] == "quickstart"]
    return [RunDir(path) for path in here if (path / "plan.json").is_file()]


def _sample(run: RunDir, cwd: Path) -> Path:
    """Generate text by the run's own keys (temperature, maximum_tokens, num_samples); the texts alone go into sample.txt."""
    _run(("python", "-m", "model.generate", shown_path(run.path / "run.json", cwd)))
    path = run.path / "sample.txt"
    write_atomically(path, join_samples((run.path / "samples.jsonl").read_text(encoding="utf-8").splitlines()).encode())
    return path


def _run(command: Sequence[str]) -> None:
    """Show a command, and run it on the user's terminal.

    Raises:
        Failure: it fails.
    """
    _show(command)
    status = proc.show(_argv(command))
    if status != 0:
        raise Failure(f"`{shlex.join(command)}` failed with exit status {status}")


def _measure(command: Sequence[str]) -> Mapping[str, Any]:
    _show(command)
    found = json.loads(proc.run(_argv(command), timeout_s=MEASURE_TIMEOUT_S))
    assert isinstance(found, dict)
    return found


def _argv(command: Sequence[str]) -> list[str]:
    """The shown command with this Python's own programs, whether or not they are on PATH."""
    program = {"python": [sys.executable], "neox-hpc": [sys.executable, "-m", "neox_hpc"]}[command[0]]
    return [*program, *command[1:]]


def _show(command: Sequence[str]) -> None:
    click.echo(f"\n{click.style('$', bold=True)} {shlex.join(command)}")


def _report(run: RunDir, sample: Path, promises: Sequence[Promise], cwd: Path) -> None:
    text = sample.read_text(encoding="utf-8").splitlines()
    click.echo(f"\n{click.style('A sample', bold=True)} (temperature {_temperature(run)}):\n")
    for line in text[:SHOWN_LINES]:
        click.echo(f"    {line[:100]}")
    click.echo("    …\n" if len(text) > SHOWN_LINES else "")
    rows = [(promise.what, promise.measured, promise.bound, "yes" if promise.kept else "NO") for promise in promises]
    print_table(("WHAT", "MEASURED", "PROMISED", "KEPT"), rows)
    click.echo()
    places = (
        ("loss curve", run.path / "loss.png"),
        ("sample", sample),
        ("checkpoints", run.path / "checkpoints"),
        ("run", run.path),
    )
    print_facts([(label, shown_path(path, cwd)) for label, path in (*places, ("data", cwd / DATA))])


def _temperature(run: RunDir) -> float:
    return float(json.loads((run.path / "run.json").read_text(encoding="utf-8"))["config"]["generation"]["temperature"])
