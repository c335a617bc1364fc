"""The estimate of memory: parameters against the network itself, states against numbers worked out by hand, and the peak of a rank
against the tensors that real trainings hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest

from model.config import RunConfig
from neox_hpc.activations import CHUNK
from neox_hpc.memory import GIB, Memory, Moment, count_parameters, estimate_memory, fullest
from neox_hpc.vocabulary import BatchSizes, Layout
from tests.planning import loaded, shipped
from tests.ranks import RankPool


def batch(layout: Layout, micro: int = 4, accumulation: int = 1) -> BatchSizes:
    return BatchSizes(train=micro * accumulation * layout.data, micro=micro, accumulation=accumulation, data=layout.data)


def memory(layout: Layout, micro: int = 4, **keys: Any) -> Memory:
    found = estimate_memory(loaded(**keys).config, layout, batch(layout, micro), 512)
    assert found is not None
    return fullest(found)


def at(when: str, found: Memory) -> Moment:
    [moment] = [moment for moment in found.moments if moment.when == when]
    return moment


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"no_weight_tying": True},
        {"gpt_j_residual": True, "gpt_j_tied": True},
        {"use_bias_in_mlp": False, "use_bias_in_attn_linear": False},
        {"intermediate_size": 100, "num_layers": 3},
        {"pos_emb": "learned"},
        {"pos_emb": "rpe"},
        {"norm": "rmsnorm", "activation": "swiglu", "use_qk_layernorm": True},
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
        ({"zero_optimization": {"stage": 1}}, 8, (4, 4, 1.5)),  # moments, and a flat copy of the weights
        ({"precision": "fp16", "zero_optimization": {"stage": 1}}, 4, (2, 2, 3)),
        ({"precision": "bfloat16", "zero_optimization": {"stage": 1}}, 4, (2, 6, 3)),  # of the backward pass, and added up in fp32
        ({"precision": "fp16"}, 4, (2, 2, 3)),  # runs as stage 1
        ({"precision": "fp16", "zero_optimization": {"stage": 2}}, 4, (2, 0.5, 3)),
        ({"precision": "fp16", "zero_optimization": {"stage": 3}}, 4, (0.5, 1, 3)),
    ],
)
def test_bytes_a_parameter_by_precision_and_zero_stage(keys: dict[str, Any], data: int, expected: tuple[float, ...]) -> None:
    layout, zero = Layout(world_size=data), {"stage": 0, "reduce_bucket_size": 1}
    if "zero_optimization" in keys:
        keys = keys | {"zero_optimization": zero | keys["zero_optimization"]}
    found = memory(layout, **keys)
    count = count_parameters(loaded().config, layout, 512)
    moment = at("reduction", found)
    per_parameter = tuple(part / count for part in (moment.weights, moment.gradients, moment.optimizer))
    assert per_parameter == pytest.approx(expected, rel=1e-3)
    assert found.states == moment.weights + moment.gradients + moment.optimizer


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"optimizer": {"type": "sgd"}}, 0),
        ({"optimizer": {"type": "sgd", "params": {"momentum": 0.9}}}, 4),
        ({"optimizer": {"type": "lion"}}, 4),
        ({"optimizer": {"type": "madgrad_wd"}}, 12),
        ({"optimizer": {"type": "madgrad_wd", "params": {"momentum": 0.0}}}, 8),
        ({"optimizer": {"type": "sm3"}, "weight_decay": 0.0}, 0),
        ({"optimizer": {"type": "onebitadam"}}, 16),
        ({"use_bnb_optimizer": True}, 2 + 1 / 32),
    ],
)
def test_bytes_that_an_optimizer_keeps_of_a_parameter(keys: dict[str, Any], expected: float) -> None:
    count = count_parameters(loaded().config, Layout(world_size=1), 512)
    assert at("update", memory(Layout(world_size=1), **keys)).optimizer / count == pytest.approx(expected, rel=1e-5)


def test_activations_of_a_block_are_the_tensors_that_autograd_keeps() -> None:
    # s 64, b 4, h 64, a 4, 16-bit on a GPU; each of 4 blocks: 2 norms' inputs and outputs, q, k, v, heads out, 8 widths of the MLP;
    # scores; mean and deviation of the norms in fp32
    block = 4 * (64 * 4 * 64) * 2 + 4 * (64 * 4 * 64) * 2 + 2 * 4 * (64 * 4 * 64) * 2 + 4 * 64 * 64 * 4 * 2 + 4 * 64 * 4 * 4
    one, two = (memory(Layout(world_size=1), precision="fp16", num_layers=n).moments[0].activations for n in (4, 5))
    assert two - one == block


def test_scores_that_are_scaled_by_the_layer_exist_whether_or_not_fused_attention_is_asked_for() -> None:
    keys = {"precision": "fp16", "apply_query_key_layer_scaling": True}
    plain, asked = (
        memory(Layout(world_size=1), scaled_upper_triang_masked_softmax_fusion=fused, **keys) for fused in (False, True)
    )
    assert asked == plain
    assert memory(Layout(world_size=1), precision="fp16", scaled_upper_triang_masked_softmax_fusion=True).peak < plain.peak


def test_chunks_of_logits_are_those_of_the_loss() -> None:
    pytest.importorskip("torch", reason="the loss needs torch: pip install -e '.[train]'")
    from model.parallel.loss import CHUNK_CPU, CHUNK_GPU  # needs the extra

    assert {"cpu": CHUNK_CPU, "gpu": CHUNK_GPU} == CHUNK


def test_recomputation_keeps_a_blocks_input() -> None:
    keys = {"precision": "fp16", "checkpoint_activations": True}
    one, two = (memory(Layout(world_size=1), num_layers=n, **keys).moments[0].activations for n in (4, 5))
    assert two - one == 64 * 4 * 64 * 2


def test_a_stage_holds_a_micro_batch_for_every_stage_behind_it() -> None:
    layout = Layout(world_size=4, pipe=4)
    config = loaded(pipe_parallel_size=4, no_weight_tying=True).config

    def held(number: int, accumulation: int) -> int:
        found = estimate_memory(config, layout, batch(layout, accumulation=accumulation), 512)
        assert found is not None
        return at("forward", found[number]).activations

    for number in range(4):
        flying = 4 - number
        grown = [held(number, m + 1) - held(number, m) for m in range(1, 8)]
        assert len(set(grown[: flying - 1])) <= 1 and all(grown[: flying - 1])
        assert not any(grown[flying - 1 :])


@pytest.mark.parametrize(("overlap", "bytes_"), [(False, 2000), (True, 4000)])
def test_contiguous_buffers_are_one_or_two(overlap: bool, bytes_: int) -> None:
    zero = {"stage": 1, "reduce_bucket_size": 1000, "contiguous_gradients": True, "overlap_comm": overlap}
    assert at("forward", memory(Layout(world_size=2), precision="fp16", zero_optimization=zero)).buffers == bytes_


def test_offloaded_states_lie_in_the_nodes_memory() -> None:
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    here, away = (memory(Layout(world_size=2), precision="fp16", zero_optimization=z) for z in ({"stage": 2}, zero))
    assert away.host == at("update", here).optimizer > 0
    assert at("update", away).optimizer == 0 and here.states - away.states == away.host


def test_20b_fits_one_node_of_eight_64_gib_gpus_and_not_of_40() -> None:
    """arXiv:2204.06745 trained it on 40 GiB GPUs with tensor 2 x pipe 4 and 12 replicas, ZeRO-1."""
    config, cell = shipped("20B").config, Layout(world_size=8, tensor=2, pipe=4)
    paper = Layout(world_size=96, tensor=2, pipe=4)
    alone, shared = (estimate_memory(config, layout, batch(layout, accumulation=32), 50277) for layout in (cell, paper))
    assert alone is not None and shared is not None
    assert 40 * GIB < fullest(alone).peak < 64 * GIB * 0.9
    assert fullest(shared).peak < 40 * GIB * 0.9


def test_blocks_without_a_formula_are_not_estimated() -> None:
    layout = Layout(world_size=1)
    assert estimate_memory(loaded(attention_config=["rwkv"] * 4).config, layout, batch(layout), 512) is None
    assert estimate_memory(loaded(moe_num_experts=8).config, layout, batch(layout), 512) is None


def test_the_estimate_reads_in_gib() -> None:
    moment = Moment(when="forward", weights=5 * GIB, gradients=5 * GIB, optimizer=29 * GIB, buffers=GIB // 2, activations=GIB)
    found = Memory(layers=range(4), moments=(moment,), states=39 * GIB, host=0)
    assert str(found) == "weights 5.0, gradients 5.0, optimizer 29, buffers 0.5, activations 1.0"
    assert found.peak == 81 * GIB // 2


# Against real trainings ------------------------------------------------------------------------------------------------

TRAINED: dict[str, Any] = {
    "num_layers": 5,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "seq_length": 128,
    "max_position_embeddings": 128,
    "pos_emb": "rotary",
    "no_weight_tying": True,
    "train_micro_batch_size_per_gpu": 4,
    "train_iters": 10,
    "scaled_upper_triang_masked_softmax_fusion": True,
}
VOCABULARY = 3000
BUCKETS = {"reduce_bucket_size": 300_000, "allgather_bucket_size": 300_000}
WIDE_SCORES: dict[str, Any] = {
    "precision": "bfloat16",
    "scaled_upper_triang_masked_softmax_fusion": False,
    "seq_length": 256,
    "max_position_embeddings": 256,
    "num_attention_heads": 8,
}
CELLS: dict[str, tuple[int, dict[str, Any]]] = {
    "scores": (2, {"scaled_upper_triang_masked_softmax_fusion": False, "gpt_j_residual": True, "attention_dropout": 0.1}),
    "scores_fp32": (1, WIDE_SCORES | {"attention_softmax_in_fp32": True}),
    "scores_by_layer": (1, WIDE_SCORES | {"apply_query_key_layer_scaling": True, "pos_emb": "alibi"}),
    "recomputed": (2, {"checkpoint_activations": True, "checkpoint_num_layers": 2, "train_micro_batch_size_per_gpu": 16}),
    "zero1_contiguous": (2, {"zero_optimization": {"stage": 1, "contiguous_gradients": True} | BUCKETS}),
    "zero2_accumulated": (2, {"zero_optimization": {"stage": 2} | BUCKETS, "gradient_accumulation_steps": 2}),
    "madgrad": (2, {"optimizer": {"type": "madgrad_wd"}}),
    "zero1_lion": (2, {"zero_optimization": {"stage": 1} | BUCKETS, "optimizer": {"type": "lion"}}),
    "zero3": (2, {"zero_optimization": {"stage": 3} | BUCKETS}),
    "bf16": (2, {"precision": "bfloat16", "gradient_accumulation_steps": 2, "hidden_dropout": 0.1}),
    "sequence": (2, {"model_parallel_size": 2, "sequence_parallel": True, "num_kv_heads": 2}),
    "alibi_fused": (2, {"pos_emb": "alibi", "num_layers": 2, "seq_length": 256, "max_position_embeddings": 256}),
    "rpe_fused": (2, {"pos_emb": "rpe", "num_layers": 2}),
    "sparse": (2, {"attention_config": ["local", "bigbird"], "sliding_window_width": 30, "num_layers": 2}),
    "gated_bf16": (
        2,
        {
            "precision": "bfloat16",
            "activation": "swiglu",
            "intermediate_size": 1536,
            "norm": "rmsnorm",
            "use_qk_layernorm": True,
            "train_micro_batch_size_per_gpu": 16,
        },
    ),
    "pipe": (4, {"pipe_parallel_size": 4, "gradient_accumulation_steps": 6, "no_weight_tying": False}),
    "pipe_sequence_bf16": (
        4,
        {
            "pipe_parallel_size": 2,
            "model_parallel_size": 2,
            "sequence_parallel": True,
            "gradient_accumulation_steps": 2,
            "precision": "bfloat16",
            "checkpoint_activations": True,
            "neox_hpc": {"recompute_granularity": "selective"},
        },
    ),
}
"""One of each kind, for every day."""
LAYOUTS = [(t, p, d) for t, p, d in product((1, 2, 4), repeat=3) if t * p * d <= 4]
RECOMPUTED: tuple[dict[str, Any], ...] = (
    {},
    {"checkpoint_activations": True},
    {"checkpoint_activations": True, "neox_hpc": {"recompute_granularity": "selective"}},
)


def grid(tensor: int, pipe: int) -> Iterator[dict[str, Any]]:
    """Every way to train on a layout."""
    ways = product(range(4), ("fp32", "bfloat16"), RECOMPUTED, (False, True))
    for stage, precision, recomputed, sequence in ways:
        same = (precision == "bfloat16" and stage == 0) or (sequence and tensor == 1)  # as stage 1; as without it
        if not same and not (pipe > 1 and stage > 1):
            keys = {"model_parallel_size": tensor, "pipe_parallel_size": pipe, "sequence_parallel": sequence}
            yield keys | {"precision": precision, "zero_optimization": {"stage": stage}} | recomputed


def compare(pool: RankPool, keys: dict[str, Any], vocabulary: int) -> list[tuple[int, int]]:
    """The estimated and the measured peak of every stage's fullest rank."""
    config = RunConfig.from_keys(keys)
    layout = config.layout(pool.world)
    estimated = estimate_memory(config, layout, config.batch_sizes(layout), vocabulary, "cpu")
    assert estimated is not None
    measured = pool.run("tests.model.cases_memory:peak_of_training", keys, vocabulary)
    ranks = pool.world // layout.pipe
    peaks = [max(measured[first : first + ranks]) for first in range(0, pool.world, ranks)]
    return list(zip([memory.peak for memory in estimated], peaks, strict=True))


@pytest.mark.parametrize("name", CELLS)
def test_the_estimate_is_within_a_tenth_of_what_a_training_holds(name: str, rank_pool: Callable[[int], RankPool]) -> None:
    pytest.importorskip("deepspeed", reason="training needs deepspeed: pip install -e '.[train]'")
    world, keys = CELLS[name]
    for estimated, measured in compare(rank_pool(world), TRAINED | keys, VOCABULARY):
        assert estimated == pytest.approx(measured, rel=0.1)


@pytest.mark.full
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_estimate_is_within_a_tenth_on_the_whole_grid(
    layout: tuple[int, int, int], rank_pool: Callable[[int], RankPool]
) -> None:
    pytest.importorskip("deepspeed", reason="training needs deepspeed: pip install -e '.[train]'")
    tensor, pipe, data = layout
    common = TRAINED | {"gradient_accumulation_steps": 3}
    wrong = []
    for keys in grid(tensor, pipe):
        for stage, (estimated, measured) in enumerate(compare(rank_pool(tensor * pipe * data), common | keys, VOCABULARY)):
            print(f"{estimated / measured:.3f}  {measured / 2**20:6.1f} MiB  {layout} stage {stage} {keys}")
            if estimated != pytest.approx(measured, rel=0.1):
                wrong.append(f"stage {stage} of {keys}: {estimated} estimated, {measured} held")
    assert not wrong, "\n".join(wrong)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bfloat16", "fp16"])
def test_the_estimate_is_within_a_tenth_of_what_a_gpu_holds(precision: str) -> None:
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    if not torch.cuda.is_available():
        pytest.skip("no GPU here: make test-gpu on a machine with one")
    keys = TRAINED | {"num_layers": 8, "hidden_size": 1024, "num_attention_heads": 16, "seq_length": 1024, "precision": precision}
    keys |= {"max_position_embeddings": 1024, "zero_optimization": {"stage": 1, "reduce_bucket_size": 50_000_000}}
    config = RunConfig.from_keys(keys)
    layout = config.layout(1)
    estimated = estimate_memory(config, layout, config.batch_sizes(layout), 50_000, "gpu")
    assert estimated is not None
    program = "import sys, json; from tests.model.cases_memory import peak_of_training; "
    program += "print(peak_of_training(json.loads(sys.argv[1]), 50_000, 'cuda'))"
    environ = os.environ | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(keys)], env=environ, capture_output=True, text=True, check=True
    )
    assert fullest(estimated).peak == pytest.approx(int(done.stdout.split()[-1]), rel=0.1)
