"""ZeRO's stages and offload to the CPU: the same training as one rank, through interruptions and from one stage to another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.model.tiny import curve, write_tiny_run
from tests.ranks import RankPool

TRAIN = "tests.model.cases_training:train"


def zero(stage: int, **keys: Any) -> dict[str, Any]:
    """A section of ZeRO.  At stage 3 no parameter is small enough to stay whole, unless ``keys`` say so."""
    whole = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    return {"zero_optimization": {"stage": stage} | whole | keys}


CPU = {"device": "cpu"}
BF16: dict[str, Any] = {"precision": "bfloat16"}
STAGES_2: dict[str, Any] = {"pipe_parallel_size": 2}
TENSOR_2: dict[str, Any] = {"model_parallel_size": 2}
CELLS: dict[str, dict[str, Any]] = {
    "ZeRO-2": zero(2),
    "ZeRO-2 in turn": zero(2, round_robin_gradients=True),
    "ZeRO-3": zero(3),
    "ZeRO-3 with small parameters whole": zero(3, stage3_param_persistence_threshold=1000),
    "ZeRO-3 in tiles": zero(3, sub_group_size=5000),
    "ZeRO-3 tied": zero(3) | {"no_weight_tying": False},
    "ZeRO-3 recomputed": zero(3) | {"checkpoint_activations": True},
    "tensor 2 ZeRO-2": zero(2) | TENSOR_2,
    "tensor 2 ZeRO-3": zero(3) | TENSOR_2,
    "ZeRO-1 offloaded": zero(1, offload_optimizer=CPU),
    "ZeRO-2 offloaded": zero(2, offload_optimizer=CPU),
    "ZeRO-3 offloaded": zero(3, offload_optimizer=CPU, offload_param=CPU),
    "ZeRO-3 parameters offloaded": zero(3, offload_param=CPU),
    "tensor 2 ZeRO-1 offloaded": zero(1, offload_optimizer=CPU) | TENSOR_2,
    "tensor 2 ZeRO-3 offloaded": zero(3, offload_optimizer=CPU, offload_param=CPU) | TENSOR_2,
    "two stages ZeRO-1 offloaded tied": zero(1, offload_optimizer=CPU) | STAGES_2 | {"no_weight_tying": False},
    "ZeRO-3 with a second partition": zero(3, zero_hpz_partition_size=2),
    "ZeRO-1 divided before": zero(1, reduce_scatter=False) | {"prescale_gradients": True},
    "ZeRO-2 divided in two": zero(2, reduce_scatter=False) | {"gradient_predivide_factor": 2.0},
    "ZeRO-0 divided in two": zero(0) | {"gradient_predivide_factor": 2.0},
    "ZeRO-2 overlapped": zero(2, overlap_comm=True, contiguous_gradients=True),
    "ZeRO-3 overlapped": zero(3, overlap_comm=True, contiguous_gradients=True),
}
REDUCED: dict[str, dict[str, Any]] = {
    "bf16 ZeRO-2": zero(2) | BF16,
    "bf16 ZeRO-3": zero(3) | BF16,
    "bf16 ZeRO-1 offloaded": zero(1, offload_optimizer=CPU) | BF16,
    "bf16 two stages": zero(1) | STAGES_2 | BF16,
    "bf16 two stages, added up in bf16": zero(1) | STAGES_2 | BF16 | {"data_types": {"grad_accum_dtype": "bf16"}},
    "bf16 two stages offloaded": zero(1, offload_optimizer=CPU) | STAGES_2 | BF16,
    "bf16 two stages offloaded, tied": zero(1, offload_optimizer=CPU) | STAGES_2 | BF16 | {"no_weight_tying": False},
    "bf16 ZeRO-3 offloaded": zero(3, offload_optimizer=CPU, offload_param=CPU) | BF16,
}
IN_CI = ("ZeRO-2", "ZeRO-3", "tensor 2 ZeRO-3", "ZeRO-3 offloaded", "bf16 ZeRO-3")
SHORT: dict[str, Any] = {"train_iters": 10, "eval_interval": 5, "train_micro_batch_size_per_gpu": 2}


def chosen(cells: dict[str, dict[str, Any]]) -> Any:
    """All of the cells; most of them in the long suite only."""
    marked = [pytest.param(name, marks=[] if name in IN_CI else pytest.mark.full) for name in cells]
    return pytest.mark.parametrize("cell", marked)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory, rank_pool: Callable[[int], RankPool]) -> Callable[..., Path]:
    """The run of one rank without ZeRO and recomputation: by what else its keys say, each trained once."""
    folder = tmp_path_factory.mktemp("one")
    known: dict[str, Path] = {}

    def trained(**keys: Any) -> Path:
        kept = {key: value for key, value in keys.items() if key in ("no_weight_tying", "precision")}
        name = str(sorted(kept.items()))
        if name not in known:
            known[name] = folder / f"run{len(known)}"
            rank_pool(1).run(TRAIN, write_tiny_run(known[name], save=None, **SHORT, hidden_dropout=0.0, **kept))
        return known[name]

    return trained


@chosen(CELLS)
def test_two_ranks_follow_one(tmp_path: Path, two_ranks: RankPool, one_rank: Callable[..., Path], cell: str) -> None:
    two_ranks.run(TRAIN, write_tiny_run(tmp_path / "run", save=None, **SHORT, hidden_dropout=0.0, **CELLS[cell]))
    whole = one_rank(**CELLS[cell])
    assert curve(whole)[0] - curve(whole)[-1] > 0.5
    assert curve(tmp_path / "run") == pytest.approx(curve(whole), rel=2e-5)
    assert curve(tmp_path / "run", "grad_norm") == pytest.approx(curve(whole, "grad_norm"), rel=1e-5)


@chosen(REDUCED)
def test_two_ranks_in_bf16_follow_one(tmp_path: Path, two_ranks: RankPool, one_rank: Callable[..., Path], cell: str) -> None:
    untied = REDUCED[cell].get("no_weight_tying", True)
    two_ranks.run(TRAIN, write_tiny_run(tmp_path / "run", save=None, **SHORT, hidden_dropout=0.0, **REDUCED[cell]))
    assert curve(tmp_path / "run") == pytest.approx(curve(one_rank(**BF16, no_weight_tying=untied)), rel=5e-3)


@chosen(CELLS | REDUCED)
def test_an_interrupted_run_continues_bit_for_bit(tmp_path: Path, two_ranks: RankPool, cell: str) -> None:
    keys = SHORT | (CELLS | REDUCED)[cell]
    two_ranks.run(TRAIN, write_tiny_run(tmp_path / "whole", **keys))
    two_ranks.run(TRAIN, write_tiny_run(tmp_path / "cut", exit_interval=6, **keys))
    two_ranks.run(TRAIN, write_tiny_run(tmp_path / "cut", **keys))
    for key in ("loss", "grad_norm"):
        assert curve(tmp_path / "cut", key) == curve(tmp_path / "whole", key)
    assert curve(tmp_path / "cut", "validation_loss")[-1] == curve(tmp_path / "whole", "validation_loss")[-1]


def test_a_run_continues_from_stage_to_stage(tmp_path: Path, rank_pool: Callable[[int], RankPool]) -> None:
    """Every form is once the source and once the target of a checkpoint; each trains two steps.  The head is tied, so that stages
    hold two copies of one matrix."""
    legs = [
        (2, zero(0)),
        (2, CELLS["ZeRO-3"]),
        (2, CELLS["ZeRO-2"]),
        (2, CELLS["tensor 2 ZeRO-3"]),
        (3, zero(3)),
        (2, CELLS["ZeRO-1 offloaded"]),
        (2, CELLS["ZeRO-3 offloaded"]),
        (1, zero(3)),
        (2, CELLS["ZeRO-2 offloaded"]),
        (2, STAGES_2 | zero(0)),
        (2, CELLS["ZeRO-3"]),
        (4, STAGES_2 | zero(1)),
        (2, CELLS["ZeRO-3 in tiles"]),
        (2, zero(1)),
        (1, zero(0)),
    ]
    steps = 2 * len(legs)
    keys: dict[str, Any] = {"train_iters": steps, "train_batch_size": 12, "eval_iters": 0, "no_weight_tying": False}
    rank_pool(1).run(TRAIN, write_tiny_run(tmp_path / "whole", save=None, **keys))
    for number, (ranks, leg) in enumerate(legs):
        load = str(tmp_path / f"leg{number - 1}" / "checkpoints") if number else None
        run_file = write_tiny_run(tmp_path / f"leg{number}", load=load, exit_interval=2, **keys, **leg)
        rank_pool(ranks).run(TRAIN, run_file)
    found = [loss for number in range(len(legs)) for loss in curve(tmp_path / f"leg{number}")]
    assert found == pytest.approx(curve(tmp_path / "whole"), rel=2e-5)


def test_weights_alone_begin_the_optimizer_afresh_at_stage_3(tmp_path: Path, two_ranks: RankPool) -> None:
    """Against ZeRO-0, which has no hidden copy of anything."""
    keys: dict[str, Any] = {"hidden_dropout": 0.0, "train_iters": 8, "eval_iters": 0}
    two_ranks.run(TRAIN, write_tiny_run(tmp_path / "first", exit_interval=4, **keys, **zero(3)))
    load = {"load": str(tmp_path / "first" / "checkpoints"), "no_load_optim": True}
    for name, cell in (("plain", zero(0)), ("partitioned", zero(3))):
        two_ranks.run(TRAIN, write_tiny_run(tmp_path / name, **keys, **load, **cell))
    assert curve(tmp_path / "partitioned") == pytest.approx(curve(tmp_path / "plain"), rel=2e-5)
