"""The vocabulary: types, defaults, problems, derived numbers."""

from __future__ import annotations

from typing import Any

import pytest

from model.config import KEYS, ConfigError, RunConfig, iter_keys
from model.config.keys import status_of

SMALL: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "seq_length": 32,
    "max_position_embeddings": 32,
    "pos_emb": "rotary",
    "train_iters": 10,
    "train_micro_batch_size_per_gpu": 4,
}


def problems_of(**keys: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_keys(SMALL | keys)
    return {problem.key: f"{problem.wrong} | {problem.fix}" for problem in caught.value.problems}


def test_every_key_has_a_status_and_documentation() -> None:
    for key, field in iter_keys():
        assert status_of(field)
        assert field.description and field.description.endswith((".", ")")), key


def test_all_problems_are_reported_at_once() -> None:
    found = problems_of(hidden_size="64", num_layer=3, pos_emb="rotry", seq_length=32.5, lr_decay_style=3)
    assert set(found) == {"hidden_size", "num_layer", "pos_emb", "seq_length", "lr_decay_style"}


def test_an_unknown_key_names_the_nearest_one() -> None:
    assert "did you mean num_layers?" in problems_of(num_layer=3)["num_layer"]


def test_text_that_yaml_did_not_read_as_a_number_is_explained() -> None:
    found = problems_of(optimizer={"type": "Adam", "params": {"lr": "1e-4"}})
    assert "write 1.0e-4" in found["optimizer.params.lr"]


def test_choices_are_read_in_any_case() -> None:
    config = RunConfig.from_keys(SMALL | {"pos_emb": "Rotary", "lr_decay_style": "COSINE"})
    assert (config.architecture.pos_emb, config.learning_rate.lr_decay_style) == ("rotary", "cosine")


@pytest.mark.parametrize(
    ("pattern", "kinds"),
    [
        ([[["flash"], 2]], ("flash", "flash")),
        ([[["global"], "all"]], ("global", "global")),
        ([[["global", "flash"], 1]], ("global", "flash")),
        (["global", "flash"], ("global", "flash")),
        (None, ("global", "global")),
    ],
)
def test_attention_patterns_expand_to_one_kind_per_layer(pattern: Any, kinds: tuple[str, ...]) -> None:
    assert RunConfig.from_keys(SMALL | {"attention_config": pattern}).architecture.attention_kinds == kinds


def test_attention_patterns_that_do_not_fit_the_layers_are_refused() -> None:
    assert "num_layers is 2" in problems_of(attention_config=[[["flash"], 3]])["attention_config"]
    assert "no pattern" in problems_of(attention_config=[["flash", 2]])["attention_config"]
    assert "no pattern" in problems_of(attention_config=[[[], "all"]])["attention_config"]


@pytest.mark.parametrize(("value", "write"), [("flash", "flash"), ("flsh", "global"), (2, "global"), ({"flash": 2}, "global")])
def test_attention_that_is_no_list_is_one_problem(value: Any, write: str) -> None:
    with pytest.raises(ConfigError) as refused:
        RunConfig.from_keys(SMALL | {"attention_config": value})
    (problem,) = refused.value.problems
    assert problem.key == "attention_config"
    assert problem.wrong.startswith("expected a list, got") and problem.wrong.endswith(f": write [[[{write}], all]]")


@pytest.mark.parametrize(
    ("keys", "precision", "stage"),
    [
        ({}, "fp32", 0),
        ({"precision": "bfloat16"}, "bfloat16", 1),
        ({"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}, "bfloat16", 1),
        ({"fp16": {"fp16": True}}, "fp16", 1),
        ({"fp16": {"enabled": False}}, "fp32", 0),
    ],
)
def test_precision_comes_from_any_of_its_three_spellings(keys: dict[str, Any], precision: str, stage: int) -> None:
    config = RunConfig.from_keys(SMALL | keys)
    assert (config.precision, config.zero_stage) == (precision, stage)


@pytest.mark.parametrize(
    ("keys", "key", "wrong"),
    [
        ({"output_layer_parallelism": "row"}, "output_layer_parallelism", "a tied one is cut as the embedding is"),
        ({"num_kv_heads": 3}, "num_kv_heads", "num_kv_heads 3 does not divide num_attention_heads 4"),
        (
            {"checkpoint_activations": True, "partition_activations": True, "deepspeed_activation_checkpointing": False},
            "partition_activations",
            "deepspeed_activation_checkpointing is false",
        ),
        (
            {"checkpoint_activations": True, "checkpoint_in_cpu": True, "neox_hpc": {"recompute_granularity": "selective"}},
            "checkpoint_in_cpu",
            "is of whole blocks",
        ),
        ({"checkpoint_activations": True, "contiguous_checkpointing": True}, "contiguous_checkpointing", "what it has partitioned"),
        ({"expansion_factor": 2.5, "intermediate_size": 90}, "expansion_factor", "both say how wide the MLP is"),
        (
            {"checkpoint_activations": True, "pos_emb": "rpe", "zero_optimization": {"stage": 3}},
            "deepspeed_activation_checkpointing",
            "takes it once",
        ),
    ],
)
def test_keys_of_the_model_that_exclude_each_other_are_refused(keys: dict[str, Any], key: str, wrong: str) -> None:
    assert wrong in problems_of(**keys)[key]


@pytest.mark.parametrize(
    ("keys", "width"),
    [
        ({}, 4 * 64),
        ({"expansion_factor": 2.6}, 166),
        ({"intermediate_size": 100, "mlp_multiple_of": 64}, 100),
        ({"activation": "swiglu", "intermediate_size": 3 * 11008}, 11008),
        ({"activation": "swiglu", "intermediate_size": 32768, "mlp_multiple_of": 256}, 11008),  # configs/llama/7B.yml of GPT-NeoX
        ({"activation": "swiglu", "intermediate_size": 14336, "mlp_multiple_of": 14336}, 14336),  # its llama3-8b-sft.yml
        ({"activation": "geglu"}, 85),
        ({"activation": "geglu", "mlp_multiple_of": 8}, 88),
    ],
)
def test_the_width_of_the_mlp_is_gpt_neoxs(keys: dict[str, Any], width: int) -> None:
    assert RunConfig.from_keys(SMALL | keys).architecture.ffn_size == width


def test_two_precisions_are_a_contradiction() -> None:
    assert "precision says fp32, bf16.enabled says bfloat16" in problems_of(precision="fp32", bf16={"enabled": True})["precision"]


@pytest.mark.parametrize(
    ("keys", "steps"), [({}, 10), ({"lr_decay_iters": 7}, 7), ({"lr_decay_fraction": 0.55}, 5), ({"lr_decay_fraction": 0.01}, 1)]
)
def test_decay_steps(keys: dict[str, Any], steps: int) -> None:
    assert RunConfig.from_keys(SMALL | keys).lr_decay_steps == steps


@pytest.mark.parametrize(("vocab", "tensor", "padded"), [(50277, 1, 50304), (50277, 2, 50432), (128, 1, 128), (129, 1, 256)])
def test_padded_vocabulary_is_the_next_multiple(vocab: int, tensor: int, padded: int) -> None:
    assert RunConfig.from_keys(SMALL | {"model_parallel_size": tensor}).padded_vocab_size(vocab) == padded


def test_values_that_do_not_train_yet_are_listed_with_what_does() -> None:
    config = RunConfig.from_keys(SMALL | {"tokenizer_type": "SPMTokenizer", "attention_config": [[["mamba"], 2]]})
    found = {problem.key: problem.fix for problem in config.untrained()}
    assert set(found) == {"tokenizer_type", "attention_config"}
    assert "HFTokenizer" in found["tokenizer_type"]
    assert "bigbird" in found["attention_config"]


def test_the_small_configuration_trains() -> None:
    assert RunConfig.from_keys(SMALL).untrained() == ()


def test_changing_keys_checks_them_again() -> None:
    config = RunConfig.from_keys(SMALL)
    assert config.with_keys(train_iters=20).training.train_iters == 20
    assert config.training.train_iters == 10
    with pytest.raises(ConfigError):
        config.with_keys(train_iters=0)


def test_flat_keys_give_the_configuration_back() -> None:
    config = RunConfig.from_keys(SMALL | {"fp16": {"enabled": True}, "optimizer": {"type": "AdamW", "params": {"lr": 1}}})
    assert config.with_keys() == config
    assert set(config.keys()) == set(KEYS)


LOCAL = {"attention_config": [[["local"], "all"]]}
FIXED = {"attention_config": [[["sparse_fixed"], "all"]]}
LONG = {"attention_config": [[["bslongformer"], "all"]]}
APART = {"different_layout_per_head": True}


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"save": "checkpoints"}, "save"),
        ({"save": "c", "checkpoint_factor": 2.5}, "checkpoint_factor"),
        ({"save": "c", "checkpoint_factor": 1, "checkpoint_scale": "log"}, "checkpoint_scale"),
        ({"data_path": "a", "train_data_paths": ["b"]}, "data_path"),
        ({"valid_data_paths": ["b"]}, "valid_data_paths"),
        ({"train_data_paths": ["b"], "train_data_weights": [1.0, 2.0]}, "train_data_weights"),
        ({"lr_decay_iters": 5, "lr_decay_fraction": 0.5}, "lr_decay_iters"),
        ({"num_attention_heads": 5}, "hidden_size"),
        ({"max_position_embeddings": 16}, "max_position_embeddings"),
        ({"pos_emb": "learned", "opt_pos_emb_offset": 2}, "opt_pos_emb_offset"),
        ({"pos_emb": "rpe", "rpe_max_distance": 16}, "rpe_max_distance"),
        ({"pos_emb": "rotary", "rotary_pct": 0.05}, "rotary_pct"),
        ({"pos_emb": "rotary", "rotary_emb_base": 1}, "rotary_emb_base"),  # whose logarithm yarn divides by
        ({"pos_emb": "alibi", "neox_hpc": {"rope_scaling": {"rope_type": "linear", "factor": 2}}}, "neox_hpc.rope_scaling"),
        ({"neox_hpc": {"rope_scaling": {"rope_type": "yarn", "factor": 2}}}, "neox_hpc.rope_scaling"),
        ({"neox_hpc": {"rope_scaling": {"rope_type": "linear", "factor": 2, "beta_fast": 3}}}, "neox_hpc.rope_scaling"),
        (LOCAL | {"sparsity_config": {"num_random_blocks": 1}}, "sparsity_config"),
        (LOCAL | {"sparsity_config": {"block": 8, "num_locl_blocks": 4}}, "sparsity_config.num_locl_blocks"),
        (FIXED | {"sparsity_config": {"num_different_global_patterns": 2}}, "sparsity_config"),
        (FIXED | {"sparsity_config": {"num_different_global_patterns": 5} | APART}, "sparsity_config"),
        (FIXED | {"sparsity_config": {"num_global_blocks": 9}}, "sparsity_config"),  # all would see all
        (LONG | {"sparsity_config": {"global_block_end_indices": [1, 2]}}, "sparsity_config"),
        (LONG | {"sparsity_config": {"global_block_end_indices": [0]}}, "sparsity_config"),
        (LONG | {"sparsity_config": {"global_block_indices": [-1]}}, "sparsity_config"),
        (LONG | {"sparsity_config": {"global_block_indices": [99]}}, "sparsity_config"),
    ],
)
def test_rules_between_keys(keys: dict[str, Any], key: str) -> None:
    assert set(problems_of(**keys)) == {key}


def test_a_number_that_is_missing_in_a_pair_has_the_pair_s_name() -> None:
    with pytest.raises(ConfigError) as refused:
        RunConfig.from_keys(SMALL | {"optimizer": {"params": {"betas": [0.9]}}})
    (problem,) = refused.value.problems
    assert (problem.key, problem.wrong, problem.fix) == ("optimizer.params.betas", "expected more values, got [0.9]", "")


def test_a_planned_key_of_the_network_is_not_advised_away() -> None:
    (problem,) = RunConfig.from_keys(SMALL | {"rope_fusion": True}).untrained()
    assert problem.fix == "wait for a later release: without it this is another network"
