"""Draws loss curves and coordinate checks: the only user of matplotlib, which is an extra.

Changes when a picture does.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from neox_hpc.coordinates import Coordinate
from neox_hpc.errors import Problem, UserError
from neox_hpc.history import Curve

SMOOTHING = 50
"""The heavy line is the mean over this share (1/50) of all steps."""


def draw_png(curves: Sequence[Curve]) -> bytes:
    """A picture of the curves: every step light, their running mean heavy, validations as points.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure = _figure()
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)")
    for index, curve in enumerate(curves):
        _draw(axes, curve, f"C{index}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return _png(figure)


def draw_coordinates(points: Sequence[Coordinate]) -> bytes:
    """A picture of a coordinate check.

    Raises:
        UserError: matplotlib is not installed.
    """
    return _png(coordinates_figure(points))


def coordinates_figure(points: Sequence[Coordinate]) -> Any:
    """A panel for each parametrization, a colour for each activation; the last step heavy, the earlier ones light."""
    figure = _figure()
    names = list(dict.fromkeys(point.parametrization for point in points))
    colours = {name: f"C{index}" for index, name in enumerate(dict.fromkeys(point.activation for point in points))}
    last, widths = max(point.step for point in points), sorted({point.width for point in points})
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        axes.set(title=name, xlabel="width (hidden_size)", xscale="log", yscale="log")
        axes.set_xticks(widths, [str(width) for width in widths])
        axes.minorticks_off()
        lines: dict[tuple[str, int], list[Coordinate]] = {}
        for point in points:
            if point.parametrization == name:
                lines.setdefault((point.activation, point.step), []).append(point)
        for (activation, step), line in lines.items():
            heavy: dict[str, Any] = {"label": activation, "linewidth": 1.8, "marker": "o", "markersize": 3}
            how = heavy if step == last else {"linewidth": 0.8, "alpha": 0.3}
            axes.plot([point.width for point in line], [point.moved for point in line], color=colours[activation], **how)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"standard deviation of the change, {last} steps")
    panels[-1].legend(frameon=False)
    return figure


def _figure() -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            Problem("neox-hpc plot", "matplotlib is not installed", "pip install 'neox-hpc[plot]', or pip install matplotlib")
        ) from None
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and the ones before it in the window."""
    means, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        means.append(total / min(index + 1, window))
    return means


def _draw(axes: object, curve: Curve, colour: str) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    steps, losses = [step for step, _ in curve.training], [loss for _, loss in curve.training]
    window = max(1, len(steps) // SMOOTHING)
    axes.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(steps, running_mean(losses, window), color=colour, linewidth=1.6, label=curve.name)
    if curve.validation:
        points = list(zip(*curve.validation, strict=True))
        axes.plot(*points, "o", color=colour, markersize=4, markeredgecolor="black", label=f"{curve.name}, held out")
    for step in curve.joins:
        axes.axvline(step, color=colour, linestyle=":", linewidth=1)
