"""The engine: DeepSpeed's names, what it is told, the pieces that each rank updates."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import RunConfig
from model.engine.norm import clip_gradients
from model.engine.settings import deepspeed_settings
from model.gpt import GPT
from model.parallel.groups import one_rank
from model.parallel.parameters import global_parameters
from tests.model.test_training import FP16, NO_FP16
from tests.model.tiny import KEYS, curve, write_tiny_run
from tests.ranks import RankPool

TRAIN = "tests.model.cases_training:train"
CASES = "tests.model.cases_engine"
ZERO_1: dict[str, Any] = {"zero_optimization": {"stage": 1}}
ZERO_2: dict[str, Any] = {"zero_optimization": {"stage": 2}}
ZERO_3: dict[str, Any] = {"zero_optimization": {"stage": 3}}
BF16: dict[str, Any] = {"precision": "bfloat16"}


def test_the_internals_of_deepspeed_are_those_of_the_pinned_version(two_ranks: RankPool) -> None:
    assert version("deepspeed") == "0.19.8"
    for keys, kind in (
        (ZERO_1, "DeepSpeedZeroOptimizer"),
        (ZERO_2, "DeepSpeedZeroOptimizer"),
        (ZERO_3, "DeepSpeedZeroOptimizer_Stage3"),
        (BF16, "BF16_Optimizer"),
    ):
        assert two_ranks.run(f"{CASES}:missing_names", KEYS | keys)[1] == (kind, [])


@pytest.mark.parametrize("keys", [ZERO_1, ZERO_2, ZERO_3, BF16], ids=["fp32 ZeRO-1", "fp32 ZeRO-2", "fp32 ZeRO-3", "bf16"])
def test_three_data_ranks_share_out_every_element_once_and_no_padding(
    rank_pool: Callable[[int], RankPool], keys: dict[str, Any]
) -> None:
    found: dict[str, list[tuple[int, int]]] = {}
    sizes: dict[str, int] = {}
    for rank in rank_pool(3).run(f"{CASES}:pieces", KEYS | keys | {"train_batch_size": 12}):
        for name, start, length, size in rank:
            found.setdefault(name, []).append((start, length))
            sizes[name] = size
    assert set(found) == {p.global_name for p in global_parameters(GPT(RunConfig.from_keys(KEYS), 512))}
    for name, places in found.items():
        ends = [start + length for start, length in sorted(places)]
        assert [start for start, _ in sorted(places)] == [0, *ends[:-1]], name
        assert ends[-1] == sizes[name]


@pytest.mark.parametrize("zero", [ZERO_1, ZERO_2, ZERO_3], ids=["ZeRO-1", "ZeRO-2", "ZeRO-3"])
def test_a_checkpoint_of_three_data_ranks_continues_on_two(
    tmp_path: Path, rank_pool: Callable[[int], RankPool], zero: dict[str, Any]
) -> None:
    keys = zero | {"train_batch_size": 12, "hidden_dropout": 0.0, "train_iters": 10}
    rank_pool(3).run(TRAIN, write_tiny_run(tmp_path / "three", exit_interval=4, **keys))
    rank_pool(2).run(TRAIN, write_tiny_run(tmp_path / "whole", **keys))
    rank_pool(2).run(TRAIN, write_tiny_run(tmp_path / "two", load=str(tmp_path / "three" / "checkpoints"), **keys))
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "whole")[4:], rel=2e-5)


@pytest.mark.parametrize("zero", [{}, ZERO_1], ids=["ZeRO-0", "ZeRO-1"])
def test_the_last_stages_copy_of_a_tied_matrix_is_not_stored(tmp_path: Path, two_ranks: RankPool, zero: dict[str, Any]) -> None:
    stored = two_ranks.run(f"{CASES}:stored_names", KEYS | zero, tmp_path)[0]
    everything = {p.global_name for p in global_parameters(GPT(RunConfig.from_keys(KEYS), 512))}
    assert set(stored) == {name for name in everything if not name.startswith("embedding")}


def test_deepspeed_has_understood_what_it_is_told(two_ranks: RankPool) -> None:
    zero = {
        "stage": 1,
        "reduce_bucket_size": 1000004,
        "allgather_bucket_size": 1000034,
        "allgather_partitions": False,
        "overlap_comm": True,
        "reduce_scatter": False,
        "contiguous_gradients": True,
    }
    keys = {"train_micro_batch_size_per_gpu": 2, "steps_per_print": 7, "wall_clock_breakdown": True, "gradient_clipping": 0.25}
    said = two_ranks.run(f"{CASES}:deepspeed_says", KEYS | keys | {"zero_optimization": zero})[0]
    assert said == zero | {
        "batch": (8, 2, 2),
        "clipping": 0.25,
        "steps_per_print": 7,
        "wall_clock_breakdown": True,
        "bf16": False,
        "accumulation": "torch.float32",
        "loss_scale": None,
    }
    bf16 = two_ranks.run(f"{CASES}:deepspeed_says", KEYS | BF16)[0]
    assert (bf16["bf16"], bf16["stage"], bf16["accumulation"]) == (True, 1, "torch.float32")


@pytest.mark.skipif(not FP16, reason=NO_FP16)
def test_deepspeed_has_understood_the_loss_scale(two_ranks: RankPool) -> None:
    keys = {"initial_scale_power": 9, "loss_scale_window": 77, "hysteresis": 3, "min_loss_scale": 4}
    moving = two_ranks.run(f"{CASES}:deepspeed_says", KEYS | {"fp16": {"enabled": True} | keys})[0]["loss_scale"]
    expected = {"init_scale": 2**9, "scale_window": 77, "delayed_shift": 3, "min_scale": 4, "consecutive_hysteresis": False}
    assert moving == (0, expected)
    fixed = two_ranks.run(f"{CASES}:deepspeed_says", KEYS | {"fp16": {"enabled": True, "loss_scale": 128.0}})[0]
    assert fixed["loss_scale"][0] == 128.0


def told(**keys: Any) -> dict[str, Any]:
    """What DeepSpeed is told."""
    config = RunConfig.from_keys(KEYS | keys)
    return deepspeed_settings(config, config.batch_sizes(config.layout(2)))


@pytest.mark.parametrize(
    ("keys", "added_in", "sent_in"),
    [
        ({}, "fp32", "fp32"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "bf16", "bf16"),
        ({"communication_data_type": "bf16"}, "fp32", "bf16"),
    ],
)
def test_bf16_gradients_are_sent_as_they_are_added_up_unless_told_otherwise(
    two_ranks: RankPool, keys: dict[str, Any], added_in: str, sent_in: str
) -> None:
    settings = told(precision="bfloat16", **keys)
    assert (settings["data_types"], settings["communication_data_type"]) == ({"grad_accum_dtype": added_in}, sent_in)
    assert two_ranks.run(f"{CASES}:gradient_types", KEYS | BF16 | keys)[0] == (added_in, sent_in)


def test_the_log_of_collectives_is_off_unless_enabled() -> None:
    """DeepSpeed turns it on as soon as the section is there."""
    assert "comms_logger" not in told(comms_logger={"verbose": True})
    assert told(comms_logger={"enabled": True})["comms_logger"]["enabled"] is True


def test_deepspeeds_log_is_shown_where_something_is_written_to_it() -> None:
    assert "log_level" not in told()
    assert told(dump_state=True)["log_level"] == "info"
    assert told(comms_logger={"enabled": True, "verbose": True})["log_level"] == "info"
    assert told(dump_state=True, deepspeed_extra_args={"log_level": "error"})["log_level"] == "error"


def test_an_optimizer_on_the_cpu_is_not_compiled_in_the_job() -> None:
    offloaded = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    assert told(zero_optimization=offloaded)["zero_force_ds_cpu_optimizer"] is False
    assert told(zero_optimization=offloaded)["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert "zero_force_ds_cpu_optimizer" not in told(zero_optimization={"stage": 2})


def test_collectives_are_shown_in_a_table(two_ranks: RankPool) -> None:
    shown, nothing = two_ranks.run(f"{CASES}:collectives_shown", KEYS | ZERO_1 | {"comms_logger": {"enabled": True}})
    assert "all_reduce" in shown or "broadcast" in shown
    assert nothing == ""


SCHEDULES: dict[str, dict[str, Any]] = {
    "WarmupLR": {"warmup_max_lr": 0.01, "warmup_num_steps": 4, "warmup_type": "linear"},
    "WarmupDecayLR": {"total_num_steps": 9, "warmup_max_lr": 0.01, "warmup_num_steps": 3},
    "WarmupCosineLR": {"total_num_steps": 9, "warmup_num_steps": 3},
    "OneCycle": {
        "cycle_min_lr": 0.001,
        "cycle_max_lr": 0.01,
        "cycle_first_step_size": 3,
        "decay_lr_rate": 0.1,
        "decay_step_size": 1,
    },
    "LRRangeTest": {"lr_range_test_min_lr": 0.001, "lr_range_test_step_size": 2},
}


@pytest.mark.parametrize(
    ("kind", "zero"),
    [*((kind, ZERO_1) for kind in SCHEDULES), ("WarmupLR", {}), ("OneCycle", ZERO_3)],
    ids=lambda value: value if isinstance(value, str) else str(value.get("zero_optimization", "")),
)
def test_a_run_with_deepspeeds_schedule_continues_at_the_rates_of_the_uninterrupted_one(
    two_ranks: RankPool, kind: str, zero: dict[str, Any]
) -> None:
    keys = KEYS | zero | {"scheduler": {"type": kind, "params": SCHEDULES[kind]}}
    whole, continued = two_ranks.run(f"{CASES}:rates", keys, 8, 5)[0]
    assert len({rate for rate, _ in whole}) > 3
    assert continued == whole[5:]


def test_a_linear_warm_up_of_deepspeeds_has_the_rates_of_its_formula(two_ranks: RankPool) -> None:
    """Step k (0 is the first) takes k - 1 of 4 shares of the peak, the first none: DeepSpeed sets a rate after a step."""
    keys = KEYS | {"scheduler": {"type": "WarmupLR", "params": SCHEDULES["WarmupLR"]}}
    whole, _ = two_ranks.run(f"{CASES}:rates", keys, 8, 5)[0]
    assert [rate for rate, _ in whole] == pytest.approx([0, 0, 0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


def test_a_run_follows_deepspeeds_schedule_through_an_interruption(tmp_path: Path, two_ranks: RankPool) -> None:
    keys: dict[str, Any] = {"train_iters": 8, "scheduler": {"type": "WarmupLR", "params": SCHEDULES["WarmupLR"]}}
    two_ranks.run(TRAIN, write_tiny_run(tmp_path / "whole", **keys))
    two_ranks.run(TRAIN, write_tiny_run(tmp_path / "cut", exit_interval=5, **keys))
    two_ranks.run(TRAIN, write_tiny_run(tmp_path / "cut", **keys))
    assert curve(tmp_path / "whole", "lr") == pytest.approx([0, 0, 0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])
    for key in ("lr", "loss"):
        assert curve(tmp_path / "cut", key) == curve(tmp_path / "whole", key)


def test_without_a_schedule_of_deepspeeds_the_rate_is_ours(two_ranks: RankPool) -> None:
    whole, continued = two_ranks.run(f"{CASES}:rates", KEYS, 3, 1)[0]
    assert [rate for rate, _ in whole] == [0.5, 1.5, 2.5]
    assert continued == whole[1:]


def test_at_zero_0_the_clipping_is_ours() -> None:
    for stage, clipping in ((0, 0.0), (1, KEYS["gradient_clipping"])):
        config = RunConfig.from_keys(KEYS | {"zero_optimization": {"stage": stage}})
        assert deepspeed_settings(config, config.batch_sizes(config.layout(2)))["gradient_clipping"] == clipping


@pytest.mark.parametrize("largest", [0.0, 0.5, 1000.0])
def test_clipping_equals_torchs(largest: float) -> None:
    ours, theirs = (GPT(RunConfig.from_keys(KEYS), 512) for _ in range(2))
    generator = torch.Generator().manual_seed(1)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        mine.grad = torch.randn(mine.shape, generator=generator)
        other.grad = mine.grad.clone()
    norm = clip_gradients(list(global_parameters(ours)), one_rank(), largest)
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs.parameters(), largest or float("inf"))), rel=1e-6)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
