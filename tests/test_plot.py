"""Loss curves: what is joined, what is drawn."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from neox_hpc.coordinates import read_coordinates
from neox_hpc.history import read_curve
from neox_hpc.plot import coordinates_figure, running_mean
from neox_hpc.rundir import RunDir
from tests.desk import Desk, desk

__all__ = ["desk"]


def make_run(path: Path, steps: range, *, load: Path | None = None, finetune: bool = False, loss: float = 1.0) -> RunDir:
    path.mkdir(parents=True)
    lines = [{"step": step, "loss": loss} for step in steps] + [{"step": steps[-1], "validation_loss": loss + 0.5}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    checkpoints = {"load": str(load) if load else None, "save": str(path / "checkpoints"), "finetune": finetune}
    (path / "run.json").write_text(json.dumps({"config": {"checkpoints": checkpoints}}))
    (path / "plan.json").write_text("{}")
    return RunDir(path)


def test_a_run_continues_the_curve_of_the_run_it_was_loaded_from(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", range(1, 11), loss=3.0)
    second = make_run(
        tmp_path / "a.2", range(9, 16), load=first.path / "checkpoints", loss=2.0
    )  # loaded at step 8, not at the last
    third = make_run(tmp_path / "a.3", range(16, 21), load=second.path / "checkpoints" / "global_step15", loss=1.0)
    curve = read_curve(third)
    assert curve.training == tuple((step, 3.0 if step < 9 else 2.0 if step < 16 else 1.0) for step in range(1, 21))
    assert curve.joins == (9, 16)
    assert curve.validation == ((15, 2.5), (20, 1.5))


def test_finetuning_and_resuming_begin_a_curve_of_their_own(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", range(1, 11))
    tuned = make_run(tmp_path / "b", range(1, 4), load=first.path / "checkpoints", finetune=True)
    resumed = make_run(tmp_path / "c", range(1, 4), load=tmp_path / "c" / "checkpoints")
    assert len(read_curve(tuned).training) == len(read_curve(resumed).training) == 3


def test_runs_that_load_each_other_end(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", range(1, 3), load=tmp_path / "b" / "checkpoints")
    make_run(tmp_path / "b", range(1, 3), load=tmp_path / "a" / "checkpoints")
    assert len(read_curve(a).training) == 2


def test_running_mean_is_the_mean_of_the_window() -> None:
    values = [1.0, 5.0, 3.0, 7.0, 2.0]
    assert running_mean(values, 3) == pytest.approx([1.0, 3.0, 3.0, 5.0, 4.0])


def test_plot_writes_a_png_into_the_run(desk: Desk) -> None:
    run = make_run(desk.cwd / "runs" / "a", range(1, 11))
    said = desk("plot", "a")
    assert said.code == 0, said
    assert (run.path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert said.out.strip() == str(run.path / "loss.png")


def test_plot_of_a_run_without_steps_is_refused(desk: Desk) -> None:
    make_run(desk.cwd / "runs" / "a", range(1, 2)).metrics.unlink()
    assert "no step to draw yet" in desk("plot", "a").err


def test_a_picture_that_cannot_be_written_is_a_users_error(desk: Desk) -> None:
    make_run(desk.cwd / "runs" / "a", range(1, 11))
    said = desk("plot", "a", "-o", "my.yml/loss.png")
    assert said.code == 2 and said.err.startswith("my.yml/loss.png: cannot be written: Not a directory")


def make_check(path: Path) -> RunDir:
    """A run with coord_check, by what its training writes."""
    run = make_run(path, range(1, 2))
    run.metrics.unlink()
    points = [
        {"parametrization": name, "activation": "logits", "width": width, "step": step, "moved": (width / 32) ** power}
        for name, power in (("muP", 0.0), ("standard", 1.0))
        for step in (1, 2)
        for width in (32, 64, 128)
    ]
    (path / "coordinates.json").write_text(json.dumps({"coordinates": points}))
    return run


def test_plot_of_a_coordinate_check_draws_a_panel_for_each_parametrization(desk: Desk) -> None:
    run = make_check(desk.cwd / "runs" / "a")
    said = desk("plot", "a")
    assert said.code == 0, said
    assert (run.path / "coordinates.png").read_bytes().startswith(b"\x89PNG")
    figure = coordinates_figure(read_coordinates(run.path))
    assert {axes.get_title(): list(axes.lines[-1].get_ydata()) for axes in figure.axes} == {"muP": [1, 1, 1], "standard": [1, 2, 4]}
    assert all(list(axes.lines[-1].get_xdata()) == [32, 64, 128] for axes in figure.axes)


def test_the_points_of_a_coordinate_check_as_json(desk: Desk) -> None:
    make_check(desk.cwd / "runs" / "a")
    found = json.loads(desk("plot", "a", "--json").out)["coordinates"]
    assert found[-1] == {"parametrization": "standard", "activation": "logits", "width": 128, "step": 2, "moved": 4.0}


def test_a_file_without_coordinates_is_a_failure(desk: Desk) -> None:
    run = make_check(desk.cwd / "runs" / "a")
    (run.path / "coordinates.json").write_text("{}")
    said = desk("plot", "a")
    assert said.code == 1 and "holds no coordinates" in said.err


def test_plot_without_matplotlib_names_the_pip_command(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(desk.cwd / "runs" / "a", range(1, 11))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said = desk("plot", "a")
    assert said.code == 2 and "pip install" in said.err
