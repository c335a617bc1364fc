"""The estimate of memory: parameters against the network itself, bytes against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from neox_hpc.memory import GIB, Memory, count_parameters, estimate_memory
from neox_hpc.vocabulary import BatchSizes, Layout
from tests.planning import loaded, shipped


def batch(layout: Layout, micro: int = 4, accumulation: int = 1) -> BatchSizes:
    return BatchSizes(train=micro * accumulation * layout.data, micro=micro, accumulation=accumulation, data=layout.data)


def memory(layout: Layout, micro: int = 4, **keys: Any) -> Memory:
    found = estimate_memory(loaded(**keys).config, layout, batch(layout, micro), 512)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"no_weight_tying": True},
        {"gpt_j_residual": True, "gpt_j_tied": True},
        {"use_bias_in_mlp": False, "use_bias_in_attn_linear": False},
        {"intermediate_size": 100, "num_layers": 3},
    ],
)
def test_parameters_are_those_of_the_network(keys: dict[str, Any]) -> None:
    pytest.importorskip("torch", reason="the network needs torch: pip install -e '.[train]'")
    from model.gpt import GPT  # needs the extra

    config = loaded(**keys).config
    network = GPT(config, 500)
    assert count_parameters(config, Layout(world_size=1), 500) == sum(p.numel() for p in network.parameters())


def test_published_sizes_are_met() -> None:
    """arXiv:2204.06745: 20,554,567,680 parameters; arXiv:2304.01373, table 1: 85,056,000 without embeddings."""
    assert count_parameters(shipped("20B").config, Layout(world_size=1), 50277) == pytest.approx(20_554_567_680, rel=2e-3)
    pythia = shipped("pythia/160M").config
    padded = pythia.padded_vocab_size(50277)
    assert count_parameters(pythia, Layout(world_size=1), 50277) - 2 * padded * 768 == 85_056_000


def test_a_cut_over_tensor_and_pipe_holds_its_share() -> None:
    config = shipped("20B").config
    whole, cut = (
        count_parameters(config, layout, 50277) for layout in (Layout(world_size=1), Layout(world_size=8, tensor=2, pipe=4))
    )
    assert whole / 8 < cut < whole / 8 * 1.06  # the first stage has the embedding as well


@pytest.mark.parametrize(
    ("keys", "data", "expected"),
    [
        ({}, 1, (4, 4, 8)),
        ({}, 8, (4, 4, 8)),
        ({"zero_optimization": {"stage": 1}}, 8, (4, 4, 1)),
        ({"precision": "fp16", "zero_optimization": {"stage": 1}}, 4, (2, 2, 3)),
        ({"precision": "bfloat16", "zero_optimization": {"stage": 1}}, 4, (2, 4, 3)),
        ({"precision": "fp16"}, 4, (2, 2, 3)),  # runs as stage 1
        ({"precision": "fp16", "zero_optimization": {"stage": 2}}, 4, (2, 0.5, 3)),
        ({"precision": "fp16", "zero_optimization": {"stage": 3}}, 4, (0.5, 0.5, 3)),
    ],
)
def test_bytes_a_parameter_by_precision_and_zero_stage(keys: dict[str, Any], data: int, expected: tuple[float, ...]) -> None:
    layout = Layout(world_size=data)
    found = memory(layout, **keys)
    count = count_parameters(loaded().config, layout, 512)
    per_parameter = tuple(part / count for part in (found.weights, found.gradients, found.optimizer))
    assert per_parameter == pytest.approx(expected, rel=1e-3)
    assert found.states == found.weights + found.gradients + found.optimizer


def test_activations_of_one_block_are_equation_1() -> None:
    # s 64, b 4, h 64, a 4, 16-bit, no recomputation: 4 blocks of sbh(34 + 5as/h), and logits s b V of 2 bytes
    found = memory(Layout(world_size=1), precision="fp16")
    assert found.activations == 4 * (64 * 4 * 64 * 34 + 5 * 4 * 64 * 64 * 4) + 64 * 4 * 512 * 2


def test_recomputation_keeps_a_blocks_input_and_fused_attention_no_scores() -> None:
    keys = {"precision": "fp16", "checkpoint_activations": True, "scaled_upper_triang_masked_softmax_fusion": True}
    assert memory(Layout(world_size=1), **keys).activations == 4 * (64 * 4 * 64 * 2) + 64 * 4 * 64 * 34


def test_a_pipelines_first_stage_holds_a_micro_batch_for_every_stage() -> None:
    layout = Layout(world_size=4, pipe=4)
    config = loaded(pipe_parallel_size=4).config
    few, many = (estimate_memory(config, layout, batch(layout, accumulation=n), 512) for n in (2, 16))
    assert few is not None and many is not None
    logits = 64 * 4 * 512 * 4
    assert (many.activations - logits) == 2 * (few.activations - logits)


def test_buckets_are_counted_once_or_twice() -> None:
    zero = {"stage": 1, "reduce_bucket_size": 1000}
    one, two = (memory(Layout(world_size=2), precision="fp16", zero_optimization=zero | {"overlap_comm": x}) for x in (False, True))
    assert (one.buffers, two.buffers) == (2000, 4000)


def test_20b_fits_one_node_of_eight_64_gib_gpus_and_not_of_40() -> None:
    """arXiv:2204.06745 trained it on 40 GiB GPUs with tensor 2 x pipe 4 and 12 replicas, ZeRO-1."""
    config, cell = shipped("20B").config, Layout(world_size=8, tensor=2, pipe=4)
    paper = Layout(world_size=96, tensor=2, pipe=4)
    alone, shared = (estimate_memory(config, layout, batch(layout, accumulation=32), 50277) for layout in (cell, paper))
    assert alone is not None and shared is not None
    assert 40 * GIB < alone.peak < 64 * GIB * 0.9
    assert shared.peak < 40 * GIB * 0.9


def test_blocks_without_a_formula_are_not_estimated() -> None:
    layout = Layout(world_size=1)
    assert estimate_memory(loaded(attention_config=["rwkv"] * 4).config, layout, batch(layout), 512) is None
    assert estimate_memory(loaded(moe_num_experts=8).config, layout, batch(layout), 512) is None


def test_the_estimate_reads_in_gib() -> None:
    found = Memory(weights=5 * GIB, gradients=5 * GIB, optimizer=29 * GIB, buffers=GIB // 2, activations=GIB, step=2 * GIB)
    assert str(found) == "weights 5.0, gradients 5.0, optimizer 29, buffers 0.5, activations 1.0"
    assert found.peak == (39 * 2 + 1 + 4) * GIB // 2
