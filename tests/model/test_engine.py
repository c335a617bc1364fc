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
    keys = {"initial_scale_power": 9, "loss_scale_window": 77, "hysteresis": 3, "min_loss_scale": 4.0}
    moving = two_ranks.run(f"{CASES}:deepspeed_says", KEYS | {"fp16": {"enabled": True} | keys})[0]["loss_scale"]
    expected = {"init_scale": 2**9, "scale_window": 77, "delayed_shift": 3, "min_scale": 4.0, "consecutive_hysteresis": False}
    assert moving == (0, expected)
    fixed = two_ranks.run(f"{CASES}:deepspeed_says", KEYS | {"fp16": {"enabled": True, "loss_scale": 128.0}})[0]
    assert fixed["loss_scale"][0] == 128.0


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
