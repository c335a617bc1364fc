"""Who sets the learning rate: our curve, or the schedule of DeepSpeed's that the configuration names."""

from __future__ import annotations

from typing import Any

from model.optim import give_rate


def set_rate(engine: Any, rate: float) -> float:
    """Give the coming step the learning rate ``rate``, unless DeepSpeed's schedule has set one; the rate that it has."""
    if engine.lr_scheduler is None:
        give_rate(engine.optimizer.param_groups, rate)
        return rate
    return float(engine.optimizer.param_groups[0]["lr"])


def restore_schedule(engine: Any, steps: int) -> None:
    """Put DeepSpeed's schedule, if there is one, where it stands after ``steps`` steps that changed the weights.

    Each of its schedules is a function of that count; a step that fp16 skips does not advance it.
    """
    if engine.lr_scheduler is not None and steps:
        engine.lr_scheduler.step(steps - 1)  # it counts from -1, before the first step
