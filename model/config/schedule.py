"""The learning rate over steps, as a pure function; changes when a curve is added.  Arithmetic, no torch."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict

Style = Literal["constant", "linear", "cosine", "exponential"]


class Schedule(BaseModel):
    """A curve: what a run trains by, and what its checkpoints remember."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: float
    """The peak."""
    min_lr: float
    """The rate never falls below this after warm-up."""
    warmup_steps: float
    """Not always a whole number: ``warmup`` is a share."""
    decay_steps: int
    """Steps until the curve ends, warm-up included."""
    lr_decay_style: Style

    def rate(self, step: int) -> float:
        """The learning rate of optimizer step ``step`` (0 is the first).

        GPT-NeoX ``learning_rates.py``, W = warm-up, N = decay steps, u = step - W, E = N - W:
        up to W it rises to the peak by max(1, step) / W; then linear peak (E - u) / E, cosine
        min + (peak - min) / 2 (cos(pi u / E) + 1), exponential peak exp(-0.693 u / E), constant; never below min_lr.
        Two defects are left out: a warm-up shorter than one step does not overshoot the peak, and the cosine does not rise again
        after N.
        """
        peak, floor, warmup = self.lr, self.min_lr, self.warmup_steps
        if warmup >= 1 and step <= warmup:
            return peak * max(1, step) / warmup
        span = max(self.decay_steps - warmup, 1e-12)
        progress = min(max(step - warmup, 0.0), span) / span
        if self.lr_decay_style == "linear":
            rate = peak * (1 - progress)
        elif self.lr_decay_style == "cosine":
            rate = floor + (peak - floor) / 2 * (math.cos(math.pi * progress) + 1)
        elif self.lr_decay_style == "exponential":
            rate = peak * math.exp(-0.693 * progress)
        else:
            rate = peak
        return max(rate, floor)
