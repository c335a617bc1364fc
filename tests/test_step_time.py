"""The time of a step: against closed forms on made-up machines, and against published trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import step_time as bench
from neox_hpc.step_time import (
    HOP_BETWEEN_S,
    HOP_IN_NODE_S,
    RING_START_S,
    Speeds,
    StepTime,
    estimate_step,
    missing_speeds,
    speeds_of,
)
from neox_hpc.vocabulary import BatchSizes, RunConfig, layer_parameters
from tests.planning import loaded, planned, site, slurm

ROOT = Path(__file__).resolve().parent.parent
NEVER = 1e30
"""Operations or bytes a second that take no time."""
KEYS: dict[str, Any] = {
    "num_layers": 8,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "seq_length": 512,
    "max_position_embeddings": 512,
    "precision": "fp16",
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "make_vocab_size_divisible_by": 1,
    "attention_config": [[["flash"], "all"]],
    "zero_optimization": {"stage": 1},
}
VOCABULARY = 5000


def speeds(**given: float) -> Speeds:
    """A machine whose other parts take no time."""
    return Speeds(**{**dict.fromkeys(("products", "memory", "in_node", "between", "peak"), NEVER), "ranks_per_node": 8, **given})


def config(**keys: Any) -> RunConfig:
    return loaded(**(KEYS | keys)).config


def step(machine: Speeds, world: int = 1, micro: int = 2, accumulation: int = 3, **keys: Any) -> StepTime:
    made = config(**keys)
    layout = made.layout(world)
    train = micro * accumulation * layout.data
    batch = BatchSizes(train=train, micro=micro, accumulation=accumulation, data=layout.data)
    return estimate_step(made, layout, batch, VOCABULARY, machine)


@pytest.mark.parametrize("keys", [{}, {"num_kv_heads": 4}, {"activation": "swiglu"}, {"checkpoint_activations": True}])
def test_products_take_the_operations_that_training_counts(keys: dict[str, Any]) -> None:
    """On one rank with nothing else to do, the rate of products is the rate of the step."""
    machine = speeds(products=1e12)
    assert step(machine, **keys).tflops_per_rank == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(
    "keys", [{}, {"num_kv_heads": 4}, {"activation": "swiglu"}, {"activation": "geglu", "intermediate_size": 3000}]
)
def test_products_take_six_operations_for_each_weight_of_a_matrix_and_those_of_the_scores(keys: dict[str, Any]) -> None:
    """Kaplan et al. 2020, arXiv:2001.08361, section 2.1, with both products of the whole scores; norms are no matrices."""
    bare = keys | {"use_bias_in_mlp": False, "use_bias_in_attn_linear": False}
    _, block, *_, head = layer_parameters(config(**bare), VOCABULARY)
    tokens, weights = 3 * 2 * 512, 8 * (block - 2 * 2 * 1024) + head
    expected = tokens * (6 * weights + 12 * 8 * 512 * 1024)
    assert step(speeds(products=1e12), **bare).products == pytest.approx(expected / 1e12, rel=1e-9)


def test_recomputation_costs_a_third_of_the_blocks() -> None:
    plain, full, selective = (
        step(speeds(products=1e12), **keys).products
        for keys in (
            {},
            {"checkpoint_activations": True},
            {"checkpoint_activations": True, "neox_hpc": {"recompute_granularity": "selective"}},
        )
    )
    head = 3 * 2 * 512 * 6 * 5000 * 1024 / 1e12
    assert full - head == pytest.approx((plain - head) * 4 / 3)
    assert selective - plain == pytest.approx(3 * 2 * 512 * 8 * 4 * 512 * 1024 / 1e12)


def test_tensor_ranks_share_the_products_and_sum_over_a_ring() -> None:
    one, four = (step(speeds(products=1e12), world=world, model_parallel_size=world).products for world in (1, 4))
    assert four == pytest.approx(one / 4)
    sums, size = 3 * (8 * 4 + 2), 2 * 512 * 1024 * 2  # two forward and two backward of a block, one of embedding and head
    ring = RING_START_S + 2 * 3 * HOP_IN_NODE_S
    got = step(speeds(in_node=1e9), world=4, model_parallel_size=4).tensor
    assert got == pytest.approx(sums * (2 * 3 / 4 * size / 1e9 + ring))


def test_blocks_side_by_side_are_summed_together() -> None:
    cut = {"world": 2, "model_parallel_size": 2}
    apart, together = (step(speeds(in_node=1e9), **cut, gpt_j_residual=beside).tensor for beside in (False, True))
    assert together / apart == pytest.approx((8 * 3 + 2) / (8 * 4 + 2))


@pytest.mark.parametrize(("pipe", "accumulation"), [(2, 1), (4, 3), (8, 16)])
def test_equal_stages_wait_for_one_micro_batch_less_than_there_are_stages(pipe: int, accumulation: int) -> None:
    """arXiv:2104.04473, section 2.2: (p - 1) / m of the time of m micro-batches."""
    found = step(speeds(products=1e12), world=pipe, accumulation=accumulation, pipe_parallel_size=pipe, hidden_size=4096)
    blocks = 3 * 2 * (12 * 4096**2 + 2 * 512 * 4096) * 8 / pipe * 2 * 512 / 1e12  # of a stage, without the head
    head = 3 * 2 * 2 * 512 * 5000 * 4096 / 1e12
    assert found.products == pytest.approx(accumulation * (blocks + head))
    assert found.waiting == pytest.approx((pipe - 1) * blocks)


@pytest.mark.parametrize(("world", "tensor", "speed"), [(4, 1, "in_node"), (32, 1, "between"), (32, 4, "between")])
def test_gradients_are_scattered_and_weights_gathered_over_the_data_parallel_ranks(world: int, tensor: int, speed: str) -> None:
    """Every rank sends all but its share of both; between nodes the rings of a node share its cards."""
    found = step(speeds(**{speed: 1e9}), world=world, model_parallel_size=tensor)
    p = sum(layer_parameters(config(model_parallel_size=tensor), 5000, tensor)[:-1])
    data, nodes = world // tensor, max(1, world // 8)
    hops = (data - nodes) * HOP_IN_NODE_S + (nodes - 1) * HOP_BETWEEN_S
    assert found.data == pytest.approx(2 * (2 * p * (data - 1) / data * tensor / 1e9 + RING_START_S + hops))


def test_gradients_that_overlap_hide_behind_the_backward_pass() -> None:
    zero = {"stage": 1, "overlap_comm": True}
    slow = speeds(between=1e9, products=1e9)
    shown, hidden = (step(slow, world=16, zero_optimization=options).data for options in ({"stage": 1}, zero))
    assert hidden == pytest.approx(shown / 2, rel=1e-6)  # weights are gathered after the update


def test_a_thin_product_waits_for_the_memory() -> None:
    """Inputs, matrix and outputs pass once, forward and for each of the two gradients."""
    T, D, V = 2 * 512, 1024, 5000
    passed = [T * (columns + rows) + columns * rows for columns, rows in ((3 * D, D), (D, D), (4 * D, D), (D, 4 * D))]
    expected = 3 * 3 * 2 * (8 * sum(passed) + T * (V + D) + V * D) / 1e12
    assert step(speeds(memory=1e12)).products == pytest.approx(expected)


def test_scores_go_through_memory_where_attention_is_not_one_kernel() -> None:
    apart, fused = (step(speeds(memory=1e12), attention_config=[[[kind], "all"]]).memory for kind in ("global", "flash"))
    assert apart - fused == pytest.approx(3 * 8 * 11 * 2 * 16 * 512 * 512 * 2 / 1e12)  # 4 passes forward, 7 backward


def test_stages_hand_on_an_output_and_a_gradient_a_micro_batch() -> None:
    found = step(speeds(between=1e9), world=16, pipe_parallel_size=2)
    assert found.pipe == pytest.approx(3 * 2 * (2 * 512 * 1024 * 2) * 8 / 1e9)  # eight ranks of a node at once


def test_zero_3_gathers_weights_twice_a_micro_batch() -> None:
    zero_1, zero_3 = (step(speeds(between=1e9), world=16, zero_optimization={"stage": stage}).data for stage in (1, 3))
    rings = 3 * (1 + 2 * 4 * 8) - 2  # a block is gathered in four pieces
    assert zero_3 - 3 * 1.5 * zero_1 == pytest.approx(
        (rings - 2 * 3.5) * (RING_START_S + 14 * HOP_IN_NODE_S + HOP_BETWEEN_S), rel=1e-3
    )


def test_the_update_is_shared_out_by_zero() -> None:
    alone, shared = (step(speeds(memory=1e12), world=world).update for world in (1, 4))
    assert shared == pytest.approx(alone / 4)


# What a site tells ------------------------------------------------------------------------------------------------------------


def test_measured_speeds_come_before_shares_of_the_data_sheet() -> None:
    frontier, sheet = site("frontier"), site("polaris")
    measured, shares = (speeds_of(where, config(), 64) for where in (frontier, sheet))
    assert measured is not None and shares is not None
    assert (measured.products, measured.memory, measured.peak) == (115.3e12, 1249e9, 191.5e12)
    assert (shares.memory, shares.in_node, shares.between) == pytest.approx((0.8 * 1600e9, 0.8 * 100e9, 0.9 * 50e9))


def test_what_a_site_lacks_for_an_estimate_is_named() -> None:
    assert missing_speeds(slurm(), config(), 8) == (
        *("speed.peak_tflops.fp16", "speed.memory_gb_s"),
        *("speed.gpu_link_gb_s", "speed.node_link_gb_s"),
    )
    assert missing_speeds(slurm("speed.peak_tflops.fp16=312", "speed.memory_gb_s=1555"), config(), 1) == ()


SPEEDS = ("speed.peak_tflops.fp32=20", "speed.memory_gb_s=1500", "speed.gpu_link_gb_s=300", "speed.node_link_gb_s=100")


def test_a_plan_tells_the_time_of_a_step_and_of_the_training() -> None:
    outline = planned(slurm(*SPEEDS), asked={"nodes": 2}).outline
    assert outline is not None and outline.step is not None
    assert outline.step.tokens == 64 * 4 * 8
    assert outline.training_s == pytest.approx(20 * outline.step.seconds)
    assert outline.training_node_hours == pytest.approx(2 * 20 * outline.step.seconds / 3600)


def test_no_time_is_told_without_speeds_or_gpus() -> None:
    for where in (slurm(), site("local")):
        outline = planned(where).outline
        assert outline is not None and outline.step is None and outline.training_s is None


# Published trainings ----------------------------------------------------------------------------------------------------------


def test_the_page_is_what_the_estimate_says() -> None:
    assert (ROOT / "docs" / "step-time.md").read_text() == bench.page(), f"stale: run  {bench.COMMAND}"


def test_half_of_the_published_trainings_are_met_within_a_quarter() -> None:
    rows = [row for table in bench.tables("tables") for row in table.rows]
    assert len(rows) == 14 and bench.median_miss(rows) <= 0.25


def test_the_readme_tells_the_errors_of_the_page() -> None:
    rows = [row for table in bench.tables("tables") for row in table.rows]
    told = f"by {bench.median_miss(rows):.0%} in the median and {max(row.miss for row in rows):.0%} at worst".replace("%", " %")
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert told in readme and all(row.miss > 0 for row in rows)
    for table in bench.tables("tables"):
        assert bench.paper_miss(table) in (ROOT / "docs" / "step-time.md").read_text()
        assert bench.paper_miss(table).replace("%", " %") in readme


def test_no_speed_of_a_compared_machine_comes_from_a_compared_source() -> None:
    for table in bench.tables("tables"):
        facts = {fact: source for fact, source in table.site.sources.items() if fact.startswith(("speed", "network.allreduce"))}
        assert facts
        for source in facts.values():
            assert not any(number in source for number in ("2104.04473", "2204.06745", "2312.12705"))
