"""What rank 0 prints: plain lines in a log, a progress bar on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from types import TracebackType


class Console:
    """Prints every ``interval`` steps.  Other ranks than 0 print nothing."""

    def __init__(self, *, rank: int, interval: int, last_step: int, begin_step: int = 0) -> None:
        self._speaks, self._interval, self._last = rank == 0, interval, last_step
        self._bar = _progress_bar(begin_step, last_step) if self._speaks and sys.stderr.isatty() else None

    def __enter__(self) -> Console:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, message: str) -> None:
        """One line."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False)
        elif self._speaks:
            print(message, flush=True)

    def table(self, title: str, rows: Iterable[tuple[str, str]]) -> None:
        """A few named values."""
        self.say(title + ": " + "; ".join(f"{name} {value}" for name, value in rows))

    def step(self, metrics: Mapping[str, float | int]) -> None:
        """A step's metrics; printed when its turn comes."""
        number = int(metrics["step"])
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=number, loss=metrics["loss"])
        elif self._speaks and (number % self._interval == 0 or number in (1, self._last)):
            print(step_line(metrics, self._last), flush=True)


def step_line(metrics: Mapping[str, float | int], last_step: int) -> str:
    """A step as one line of a log."""
    words = [
        f"step {int(metrics['step']):>{len(str(last_step))}}/{last_step}",
        f"loss {metrics['loss']:.4f}",
        f"lr {metrics['lr']:.3e}",
        f"grad norm {metrics['grad_norm']:.3f}",
        f"{metrics['step_time_s'] * 1000:.0f} ms",
        f"{metrics['tokens_per_s']:.0f} tokens/s",
        f"{metrics['tflops_per_rank']:.3f} TFLOP/s per rank",
    ]
    if "mfu" in metrics:
        words.append(f"MFU {metrics['mfu']:.1%}")
    if "loss_scale" in metrics:
        words.append(f"loss scale {metrics['loss_scale']:g}")
    return " | ".join(words)


def _progress_bar(begin: int, last: int):  # type: ignore[no-untyped-def]  # rich is imported late
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=RichConsole(stderr=True))
    bar.add_task("training", total=last, completed=begin, loss=float("nan"))
    bar.start()
    return bar
