"""The loss scale of fp16 as a state machine: DeepSpeed's scaler, with what it is told, against the rules of its documentation."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.model.tiny import KEYS
from tests.ranks import RankPool

CASE = "tests.model.cases_engine:loss_scales"


def by_the_rules(
    overflows: str, *, power: int, window: int, hysteresis: int, smallest: int, consecutive: bool
) -> list[float | str]:
    """The scale after every step; ``x`` overflows, ``.`` does not.

    It begins at 2^power.  An overflow costs one of ``hysteresis`` lives, the last of which is not lost: then it halves the scale,
    never below the smallest; where it stands there already, the run stops.  A good step with a multiple of ``window`` good steps
    behind it since the last overflow doubles the scale and gives the lives back; with ``consecutive`` every good step gives them.
    """
    scale, lives, good = float(2**power), hysteresis, 0
    scales: list[float | str] = []
    for step in overflows:
        if step == "x":
            if lives > 1:
                lives -= 1
            elif scale == smallest:
                return [*scales, "stopped"]
            else:
                scale = max(scale / 2, smallest)
            good = 0
        else:
            doubles = good > 0 and good % window == 0
            if consecutive or doubles:
                lives = hysteresis
            if doubles:
                scale *= 2
            good += 1
        scales.append(scale)
    return scales


def keys_of(power: int, window: int, hysteresis: int, smallest: int, consecutive: bool) -> dict[str, Any]:
    fp16 = {"initial_scale_power": power, "loss_scale_window": window, "hysteresis": hysteresis, "min_loss_scale": smallest}
    return KEYS | {"fp16": {"enabled": True, "consecutive_hysteresis": consecutive} | fp16}


def sequence(seed: int, length: int = 60) -> str:
    """Overflows that come in spells."""
    draw = random.Random(seed)
    return "".join(draw.choice("x" * draw.randint(1, 5) + "." * draw.randint(1, 14)) for _ in range(length))


@pytest.fixture
def scaler(rank_pool: Callable[[int], RankPool]) -> Callable[..., list[float | str]]:
    def scales(keys: dict[str, Any], overflows: str, cut: int = -1) -> list[float | str]:
        found: list[float | str] = rank_pool(1).run(CASE, keys, overflows, cut)[0]
        return ["stopped" if str(scale).startswith("stopped") else scale for scale in found]

    return scales


@pytest.mark.parametrize(
    ("overflows", "scales"),
    [
        ("x", [16.0]),  # the first is forgiven
        ("xx", [16.0, 8.0]),
        ("x.x", [16.0, 16.0, 8.0]),  # a good step does not give the life back
        ("xxx", [16.0, 8.0, 4.0]),
        (".....", [16.0, 16.0, 16.0, 32.0, 32.0]),  # three good steps behind it
        ("x....x", [16.0, 16.0, 16.0, 16.0, 32.0, 32.0]),  # doubling gives the life back
        ("xxxxx", [16.0, 8.0, 4.0, 2.0, "stopped"]),
    ],
)
def test_short_sequences_by_hand(scaler: Callable[..., list[float | str]], overflows: str, scales: list[float | str]) -> None:
    rules = {"power": 4, "window": 3, "hysteresis": 2, "smallest": 2, "consecutive": False}
    assert by_the_rules(overflows, **rules) == scales  # type: ignore[arg-type]
    assert scaler(keys_of(*rules.values()), overflows) == scales  # type: ignore[arg-type]


@pytest.mark.parametrize("consecutive", [False, True])
@pytest.mark.parametrize("hysteresis", [1, 2, 4])
@pytest.mark.parametrize("window", [1, 3])
def test_long_sequences_by_the_rules(
    scaler: Callable[..., list[float | str]], window: int, hysteresis: int, consecutive: bool
) -> None:
    ends = set()
    for seed in range(12):
        overflows = sequence(seed)
        rules = {"power": 8, "window": window, "hysteresis": hysteresis, "smallest": 1, "consecutive": consecutive}
        expected = by_the_rules(overflows, **rules)  # type: ignore[arg-type]
        ends.add(len(expected) == len(overflows))
        assert scaler(keys_of(*rules.values()), overflows) == expected, overflows  # type: ignore[arg-type]
    assert True in ends, "no sequence came to its end"


@pytest.mark.parametrize("cut", [1, 7, 20, 33])
def test_a_checkpoint_keeps_all_that_moves_the_scale(scaler: Callable[..., list[float | str]], cut: int) -> None:
    for seed in range(6):
        keys, overflows = keys_of(12, 3, 3, 1, False), sequence(seed)
        assert scaler(keys, overflows, cut) == scaler(keys, overflows)


def test_an_overflow_at_the_smallest_scale_ends_the_run_with_a_fix(rank_pool: Callable[[int], RankPool]) -> None:
    first, other = rank_pool(2).run("tests.model.cases_engine:smallest_scale", KEYS)
    assert first.startswith("the fp16 gradient overflowed at the smallest loss scale (min_loss_scale)\n  fix: ")
    assert "overflowed" not in other


def test_a_fixed_scale_does_not_move(scaler: Callable[..., list[float | str]]) -> None:
    assert set(scaler(KEYS | {"fp16": {"enabled": True, "loss_scale": 128.0}}, sequence(0))) == {128.0}
