"""The cut of the layers over pipeline stages, against DeepSpeed's own partition functions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

import pytest

from model.config import ConfigError, RunConfig, layer_parameters, stage_bounds
from model.config.partition import layer_names


def config(layers: int, method: str = "type:transformer|mlp", **keys: Any) -> RunConfig:
    shape = {"hidden_size": 64, "num_attention_heads": 4, "seq_length": 16, "max_position_embeddings": 16}
    return RunConfig.from_keys(shape | {"num_layers": layers, "pipe_partition_method": method, "train_batch_size": 4} | keys)


def blocks(bounds: Sequence[range], layers: int) -> list[int]:
    """How many blocks each stage holds."""
    return [len(set(stage) & set(range(1, layers + 1))) for stage in bounds]


def loads(bounds: Sequence[range], weights: Sequence[int]) -> list[int]:
    return [sum(weights[layer] for layer in stage) for stage in bounds]


def as_stages(bounds: Sequence[int]) -> list[range]:
    return [range(start, end) for start, end in pairwise(bounds)]


@pytest.mark.parametrize("method", ["type:transformer|mlp", "parameters", "uniform"])
@pytest.mark.parametrize(("layers", "stages"), [(1, 1), (2, 2), (7, 2), (7, 3), (10, 4), (44, 6), (5, 5), (63, 16)])
def test_stages_are_contiguous_whole_and_not_empty(method: str, layers: int, stages: int) -> None:
    found = config(layers, method)
    bounds = stage_bounds(found, stages, parameters=layer_parameters(found, 512))
    assert len(bounds) == stages and all(bounds)
    assert [layer for stage in bounds for layer in stage] == list(range(layers + 3))


@pytest.mark.parametrize(
    ("layers", "stages", "expected"),
    [
        (4, 2, [2, 2]),
        (5, 2, [3, 2]),  # the last stage computes the head
        (4, 3, [1, 2, 1]),
        (5, 3, [2, 2, 1]),
        (6, 4, [1, 2, 2, 1]),
        (7, 4, [2, 2, 2, 1]),
        (44, 6, [7, 7, 7, 8, 8, 7]),
    ],
)
def test_blocks_that_cannot_be_even_stand_in_the_middle(layers: int, stages: int, expected: list[int]) -> None:
    assert blocks(stage_bounds(config(layers), stages), layers) == expected


def test_one_stage_holds_every_layer_whatever_the_method() -> None:
    for stages in (0, 1):
        assert stage_bounds(config(3, "parameters"), stages) == (range(6),)


@pytest.mark.parametrize(("layers", "stages"), [(n, p) for n in (3, 7, 12, 33) for p in (2, 3, 5, 8)])
def test_uniform_is_deepspeeds_maximum(layers: int, stages: int) -> None:
    partition_uniform = pytest.importorskip("deepspeed.runtime.utils").partition_uniform
    if stages > layers + 3:
        return
    theirs = partition_uniform(layers + 3, stages)
    ours = stage_bounds(config(layers, "uniform"), stages)
    assert max(map(len, ours)) == max(map(len, as_stages(theirs)))


@pytest.mark.parametrize(("layers", "stages"), [(5, 2), (7, 3), (12, 5), (33, 8)])
def test_type_is_deepspeeds_maximum(layers: int, stages: int) -> None:
    partition_balanced = pytest.importorskip("deepspeed.runtime.utils").partition_balanced
    weights = [0, *[1] * layers, 0, 0]
    theirs = partition_balanced(weights, stages)
    ours = loads(stage_bounds(config(layers), stages), weights)
    assert max(ours) == max(loads(as_stages(theirs), weights))
    assert min(ours) >= max(ours) - 1


@pytest.mark.parametrize("seed", range(8))
def test_balanced_parameters_have_the_least_maximum_of_all_cuts(seed: int) -> None:
    partition_balanced = pytest.importorskip("deepspeed.runtime.utils").partition_balanced
    draw = random.Random(seed)
    layers, stages = draw.randint(6, 12), draw.randint(2, 5)
    weights = [draw.randint(1, 1000) for _ in range(layers + 3)]
    ours = loads(stage_bounds(config(layers, "parameters"), stages, parameters=weights), weights)
    cuts = ((0, *inner, layers + 3) for inner in combinations(range(1, layers + 3), stages - 1))
    assert max(ours) == min(max(loads(as_stages(cut), weights)) for cut in cuts)
    assert max(ours) <= max(loads(as_stages(partition_balanced(weights, stages)), weights))  # theirs is not always the least


def test_a_large_vocabulary_takes_blocks_from_the_ends_under_parameters() -> None:
    found = config(12, "parameters", no_weight_tying=True)
    bounds = stage_bounds(found, 4, parameters=layer_parameters(found, 2048))  # a matrix weighs as much as 2.7 blocks
    middle, ends = blocks(bounds, 12)[1:3], blocks(bounds, 12)[::3]
    assert min(middle) > max(ends)


def test_a_pattern_matches_names_of_gpt_neox_in_any_case() -> None:
    assert stage_bounds(config(4, "Type:PARALLELTRANSFORMER"), 2) == stage_bounds(config(4), 2)
    assert layer_names(config(1, no_weight_tying=True)) == (
        "EmbeddingPipe",
        "ParallelTransformerLayerPipe",
        "NormPipe",
        "ParallelLinearPipe",
    )
    assert layer_names(config(1))[-1] == "EmbeddingPipe"
    assert layer_names(config(2, attention_config=["rwkv", "mamba"]))[1:3] == (
        "RWKVResidualLayerPipe",
        "ParallelMambaResidualLayerPipe",
    )


@pytest.mark.parametrize("method", ["transformer", "type:", "profile", "layers", "uniform:3", "type:(("])
def test_a_method_that_is_none_is_refused_by_its_key(method: str) -> None:
    with pytest.raises(ConfigError, match="pipe_partition_method"):
        config(4, method)


def test_a_pattern_that_matches_no_layer_is_refused_with_the_names() -> None:
    with pytest.raises(ValueError, match=r"type:moe names no layer of EmbeddingPipe, NormPipe, ParallelTransformerLayerPipe"):
        stage_bounds(config(4, "type:moe"), 2)


def test_more_stages_than_counted_layers_are_refused_with_the_most() -> None:
    with pytest.raises(ValueError, match=r"counts 3 layers, which cannot be dealt to 4 stages: write pipe_parallel_size 3 or less"):
        stage_bounds(config(3), 4)


def test_parameters_of_layers_are_those_of_the_network() -> None:
    pytest.importorskip("torch", reason="the network needs torch: pip install -e '.[train]'")
    from model.gpt import GPT  # needs the extra

    found = config(2, no_weight_tying=True, pos_emb="rotary", gpt_j_residual=True, gpt_j_tied=True)
    network = GPT(found, 500)
    counts = tuple(sum(p.numel() for p in layer.parameters()) for layer in (*network.layers, network.head))
    assert layer_parameters(found, network.padded_vocab_size) == counts
