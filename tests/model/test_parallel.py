"""Tensor parallelism: groups, the loss over a cut vocabulary, and the cut network against the whole one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from model.gpt import GPT
from model.parallel.parameters import global_parameters
from tests.model.networks import VARIANTS, VOCAB, small_config
from tests.ranks import RankPool

CASES = "tests.model.cases_parallel"


def test_tensor_is_the_fastest_axis_of_the_rank_and_groups_join_the_right_ranks(four_ranks: RankPool) -> None:
    answers = four_ranks.run(f"{CASES}:sums_over_axes", 2)
    places = [place for place, _ in answers]
    assert [(place["tensor"], place["data"], place["pipe"]) for place in places] == [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)]
    sums = [sums for _, sums in answers]
    assert [s["tensor"] for s in sums] == [0 + 1, 0 + 1, 2 + 3, 2 + 3]
    assert [s["data"] for s in sums] == [0 + 2, 1 + 3, 0 + 2, 1 + 3]
    assert [s["model"] for s in sums] == [s["tensor"] for s in sums]
    assert {s["pipe"] for s in sums} == {None}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_network_on_two_ranks_equals_the_whole_one(two_ranks: RankPool, name: str) -> None:
    for difference in two_ranks.run(f"{CASES}:tensor_parallel_against_one_rank", VARIANTS[name]):
        assert difference["initial"] == 0
        assert difference["loss"] < 2e-6
        assert difference["logits"] < 2e-5
        assert difference["gradient"] < 1e-5


def test_the_network_on_four_ranks_equals_the_whole_one(four_ranks: RankPool) -> None:
    for difference in four_ranks.run(f"{CASES}:tensor_parallel_against_one_rank", VARIANTS["parallel"]):
        assert difference["initial"] == 0
        assert difference["gradient"] < 1e-5


@pytest.mark.parametrize("name", ["sequential", "parallel, tied norm, tied head"])
def test_training_on_two_tensor_ranks_equals_training_on_one(two_ranks: RankPool, name: str) -> None:
    for cut, whole in two_ranks.run(f"{CASES}:tensor_parallel_training", VARIANTS[name], 8):
        assert whole[-1] < whole[0] - 0.5
        assert cut == pytest.approx(whole, abs=1e-5)


def test_dropout_on_the_residual_stream_is_the_same_on_all_tensor_ranks(two_ranks: RankPool) -> None:
    first, second = two_ranks.run(f"{CASES}:dropout_on_tensor_ranks")
    assert first == second


@pytest.mark.parametrize("name", ["sequential", "parallel, tied norm, tied head"])
def test_tensor_ranks_write_the_samples_of_one_rank(two_ranks: RankPool, name: str) -> None:
    (first, whole), (second, _) = two_ranks.run(f"{CASES}:samples", VARIANTS[name])
    assert first == second == whole


@pytest.mark.parametrize(
    ("keys", "pipe"),
    [
        ({"num_layers": 3}, 2),
        (VARIANTS["parallel, tied norm, tied head"], 2),
        ({"num_kv_heads": 1}, 2),
        ({"pos_emb": "rpe", "rpe_num_buckets": 8}, 2),
        ({"pos_emb": "learned", "num_layers": 1, "pipe_partition_method": "uniform"}, 4),  # the first stage has no block
    ],
    ids=str,
)
def test_pipeline_stages_write_the_samples_of_one_rank(four_ranks: RankPool, keys: dict[str, Any], pipe: int) -> None:
    answers = four_ranks.run(f"{CASES}:samples", keys, pipe)
    assert all(cut == answers[0][1] for cut, _ in answers)


def test_parameters_carry_their_names_shapes_and_slices() -> None:
    network = GPT(small_config(gpt_j_residual=True, gpt_j_tied=True), VOCAB)
    shapes = {p.global_name: p.global_shape for p in global_parameters(network)}
    block = {
        "input_layernorm.weight": (32,),
        "input_layernorm.bias": (32,),
        "attention.query_key_value.weight": (96, 32),
        "attention.query_key_value.bias": (96,),
        "attention.dense.weight": (32, 32),
        "attention.dense.bias": (32,),
        "mlp.linear1.weight": (128, 32),
        "mlp.linear1.bias": (128,),
        "mlp.linear2.weight": (32, 128),
        "mlp.linear2.bias": (32,),
    }
    assert shapes == {
        "embedding.word_embeddings.weight": (64, 32),
        **{f"layers.{layer}.{name}": shape for layer in range(2) for name, shape in block.items()},
        "final_norm.weight": (32,),
        "final_norm.bias": (32,),
        "head.final_linear.weight": (64, 32),
    }
    cut = {p.global_name.split(".", 2)[-1]: p.shard_dim for p in global_parameters(network) if p.tensor_model_parallel}
    assert cut == {
        "weight": 0,
        "attention.query_key_value.weight": 0,
        "attention.query_key_value.bias": 0,
        "attention.dense.weight": 1,
        "mlp.linear1.weight": 0,
        "mlp.linear1.bias": 0,
        "mlp.linear2.weight": 1,
    }


def test_what_a_parameter_knows_survives_a_change_of_precision() -> None:
    network = GPT(small_config(), VOCAB).bfloat16()
    assert {p.dtype for p in global_parameters(network)} == {torch.bfloat16}
    assert all(p.global_name and p.global_shape == tuple(p.shape) for p in global_parameters(network))


def test_a_model_that_the_tensor_ranks_cannot_share_is_refused(rank_pool: Callable[[int], RankPool]) -> None:
    from model.parallel.groups import Groups

    groups = Groups(layout=small_config(model_parallel_size=3).layout(3))
    with pytest.raises(ValueError, match="num_attention_heads 4 is not a multiple of model_parallel_size 3"):
        GPT(small_config(model_parallel_size=3), VOCAB, groups)
