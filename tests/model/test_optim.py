"""Learning rate and parameter groups."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from model.config import RunConfig
from model.optim import make_optimizer, parameter_groups
from tests.model.tiny import KEYS

PEAK, FLOOR, STEPS = 0.01, 0.001, 100


def config(**changes: Any) -> RunConfig:
    optimizer = {"type": "Adam", "params": {"lr": PEAK}}
    return RunConfig.from_keys(KEYS | {"optimizer": optimizer, "min_lr": FLOOR, "train_iters": STEPS, "warmup": 0.1} | changes)


def by_the_paper(style: str, step: int) -> float:
    """GPT-NeoX's curve, written from its description: warm-up over 10 steps, decay over 90."""
    if step <= 10:
        return PEAK * max(1, step) / 10
    u = min(step, 100) - 10
    curves = {
        "constant": PEAK,
        "linear": PEAK - PEAK * u / 90,
        "cosine": FLOOR + (PEAK - FLOOR) * math.cos(math.pi * u / 180) ** 2,
        "exponential": PEAK * 2 ** (-0.693 / math.log(2) * u / 90),
    }
    return max(FLOOR, curves[style])


@pytest.mark.parametrize("style", ["constant", "linear", "cosine", "exponential"])
def test_the_learning_rate_follows_gpt_neox(style: str) -> None:
    rates = [config(lr_decay_style=style).schedule.rate(step) for step in range(150)]
    assert rates == pytest.approx([by_the_paper(style, step) for step in range(150)], rel=1e-12)


def test_a_warm_up_below_one_step_does_not_overshoot() -> None:
    assert config(warmup=0.001).schedule.rate(0) == PEAK


def test_the_cosine_does_not_rise_after_its_end() -> None:
    assert config(lr_decay_style="cosine").schedule.rate(170) == pytest.approx(FLOOR)


def test_a_longer_run_with_the_same_decay_steps_has_the_same_first_part() -> None:
    short, long = config(lr_decay_iters=80), config(lr_decay_iters=80, train_iters=150)
    assert [short.schedule.rate(step) for step in range(100)] == [long.schedule.rate(step) for step in range(100)]


def test_biases_and_norms_have_no_weight_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    decayed, plain = parameter_groups(model.parameters(), 0.1)
    assert [p.shape for p in decayed["params"]] == [(4, 3)]
    assert [p.shape for p in plain["params"]] == [(4,), (4,), (4,)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("decoupled", [True, False])
def test_adam_decays_weights_apart_from_the_gradient_or_in_it(decoupled: bool) -> None:
    params = {"lr": 0.1, "betas": [0.9, 0.99], "eps": 1e-8, "adam_w_mode": decoupled}
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = make_optimizer(config(optimizer={"type": "Adam", "params": params}, weight_decay=0.5), [weight])
    m = v = 0.0
    expected = 2.0
    for step in range(1, 6):
        gradient = 0.3 * step
        weight.grad = torch.tensor([[gradient]])
        optimizer.param_groups[0]["lr"] = 0.1
        optimizer.step()
        if decoupled:
            expected -= 0.1 * 0.5 * expected
        else:
            gradient += 0.5 * expected
        m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
        expected -= 0.1 * (m / (1 - 0.9**step)) / (math.sqrt(v / (1 - 0.99**step)) + 1e-8)
        assert float(weight.detach()) == pytest.approx(expected, rel=1e-5)
