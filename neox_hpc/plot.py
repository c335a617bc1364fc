"""Draws loss curves: the only user of matplotlib, which is an extra.

Changes when the picture does.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from neox_hpc.errors import Problem, UserError
from neox_hpc.history import Curve

SMOOTHING = 50
"""The heavy line is the mean over this share (1/50) of all steps."""


def draw_png(curves: Sequence[Curve]) -> bytes:
    """A picture of the curves: every step light, their running mean heavy, validations as points.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            Problem("neox-hpc plot", "matplotlib is not installed", "pip install 'neox-hpc[plot]', or pip install matplotlib")
        ) from None
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)")
    for index, curve in enumerate(curves):
        _draw(axes, curve, f"C{index}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
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
