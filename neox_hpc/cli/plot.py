"""``neox-hpc plot``: the loss curve, or a coordinate check, as a picture.

Changes when what can be plotted does.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from neox_hpc.cli.runs import RunParameter, all_hosts, newest_run
from neox_hpc.cli.show import print_json
from neox_hpc.coordinates import read_coordinates
from neox_hpc.errors import Problem, UserError
from neox_hpc.history import Curve, read_curve
from neox_hpc.plot import draw_coordinates, draw_png
from neox_hpc.rundir import RunDir, write_atomically


@click.command()
@click.argument("runs", type=RunParameter(), nargs=-1, metavar="[RUN]...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The PNG; default: loss.png (or coordinates.png) in the run, here for several.",
)
@click.option("--json", "as_json", is_flag=True, help="The points and the picture's path as one JSON document.")
def plot(runs: tuple[RunDir, ...], output: Path | None, as_json: bool) -> None:
    """Draw the loss over the steps.  A run that was loaded from another one's checkpoints continues that one's curve.
    Of a run with coord_check (muP): how far activations moved, over widths.

    \b
    Examples:
      neox-hpc plot
      neox-hpc plot quickstart quickstart.2 -o both.png
    """
    runs = runs or (newest_run(),)
    hosts = all_hosts()
    for run in runs:
        hosts.refresh(run, {"metrics.jsonl": 0, "coordinates.json": 0})
    if len(runs) == 1 and (points := read_coordinates(runs[0].path)):
        path = output or runs[0].path / "coordinates.png"
        write_atomically(path, draw_coordinates(points))
        if as_json:
            print_json({"file": str(path), "coordinates": [asdict(point) for point in points]})
        else:
            click.echo(f"{path}")
        return
    curves = [_read(run) for run in runs]
    path = output or (runs[0].path / "loss.png" if len(runs) == 1 else Path("loss.png"))
    write_atomically(path, draw_png(curves))
    if as_json:
        print_json({"file": str(path), "curves": [_facts(curve) for curve in curves]})
    else:
        click.echo(f"{path}")


def _read(run: RunDir) -> Curve:
    curve = read_curve(run)
    if not curve.training:
        raise UserError(Problem(run.name, "has no step to draw yet", f"neox-hpc status {run.name}"))
    return curve


def _facts(curve: Curve) -> dict[str, object]:
    return {"name": curve.name, "training": curve.training, "validation": curve.validation, "joins": curve.joins}
