"""Former keys and the keys of GPT-NeoX's README: each becomes today's, with a note, or is known and planned."""

from __future__ import annotations

from typing import Any

import pytest

from model.config import FORMER, KEYS, ConfigError, RunConfig, translate
from tests.model.config.test_run_config import SMALL


@pytest.mark.parametrize(
    ("former", "today"),
    [
        ({"sparsity": "none"}, {"attention_config": ("global", "global")}),
        ({"sparsity": "interspersed"}, {"attention_config": ("sparse_variable", "global")}),
        ({"attention_type": "multiquery"}, {"num_kv_heads": 1}),
        ({"attention_type": "groupedquery", "num_kv_heads": 2}, {"num_kv_heads": 2}),
        ({"decay_lr_to": 0.033, "optimizer": {"params": {"lr": 1e-4}}}, {"min_lr": 3.3e-6}),
        ({"warmup_iters": 5, "train_iters": 20}, {"warmup": 0.25}),
        ({"warmup_iters": 5, "lr_decay_iters": 10}, {"warmup": 0.5}),
        ({"use_bias": False}, {"use_bias_in_mlp": False, "use_bias_in_attn_linear": False}),
        ({"mlp_type": "llama", "hidden_size": 64}, {"activation": "swiglu", "intermediate_size": 510}),
        ({"save_interval": 7}, {"checkpoint_factor": 7}),
        ({"expert_interval": 2}, {"moe_expert_interval": 2}),
    ],
)
def test_a_former_key_is_read_as_todays(former: dict[str, Any], today: dict[str, Any]) -> None:
    found = RunConfig.from_keys(SMALL | former).keys()
    assert {key: found[key] for key in today} == today
    assert translate(SMALL | former).notes


def test_fp16_of_type_bfloat16_is_the_section_bf16() -> None:
    former = {"fp16": {"fp16": True, "enabled": True, "type": "bfloat16", "auto_cast": True, "loss_scale": 0}}
    config = RunConfig.from_keys(SMALL | former)
    assert config.precision == "bfloat16"
    assert config.deepspeed.fp16 is None


@pytest.mark.parametrize(
    "former", [{"fp16": {"fp16": True, "enabled": True}}, {"zero_optimization": {"stage": 1, "cpu_offload": False}}]
)
def test_a_former_key_that_changes_nothing_needs_no_note(former: dict[str, Any]) -> None:
    assert translate(SMALL | former).notes == ()
    RunConfig.from_keys(SMALL | former)


@pytest.mark.parametrize(("former", "today"), [("cpu_offload", "offload_optimizer"), ("cpu_offload_params", "offload_param")])
def test_offload_to_the_cpu_is_a_section(former: str, today: str) -> None:
    config = RunConfig.from_keys(SMALL | {"zero_optimization": {"stage": 3, former: True}})
    assert getattr(config.deepspeed.zero_optimization, today).device == "cpu"
    assert config.untrained() == ()


def test_a_key_of_deepspeeds_checkpoints_is_told_to_be_needless() -> None:
    former = {"zero_optimization": {"stage": 1, "load_from_fp32_weights": False}}
    assert "DeepSpeed's own checkpoints" in translate(SMALL | former).notes[0].text
    RunConfig.from_keys(SMALL | former)


README_MOE: dict[str, Any] = {
    "moe_type": "deepspeed",
    "moe_num_experts": 8,
    "moe_loss_coeff": 0.2,
    "expert_interval": 2,
    "enable_expert_tensor_parallelism": True,
    "moe_expert_parallel_size": 4,
    "moe_token_dropping": True,
    "moe_top_k": 2,
    "moe_min_capacity": 8,
    "moe_train_capacity_factor": 1.5,
    "moe_eval_capacity_factor": 2.0,
    "moe_use_residual": False,
    "create_moe_param_group": False,
    "moe_glu": True,
}
"""The example of GPT-NeoX's README and the other keys of its code, each away from its default."""


def test_the_experts_of_the_readme_are_all_known_and_none_trains_in_silence() -> None:
    config = RunConfig.from_keys(SMALL | README_MOE)
    untrained = {problem.key.removeprefix("neox_hpc.") for problem in config.untrained()}
    assert untrained == set(README_MOE) - {"expert_interval"} | {"moe_expert_interval"}


def test_todays_key_counts_where_both_are_given() -> None:
    found = translate({"warmup_iters": 5, "train_iters": 20, "warmup": 0.1})
    assert found.values["warmup"] == 0.1
    assert "warmup is given as well and counts" in found.notes[0].text


@pytest.mark.parametrize(
    ("former", "key"),
    [
        ({"sparsity": "some"}, "sparsity"),
        ({"warmup_iters": 5, "train_iters": None}, "warmup_iters"),
        ({"decay_lr_to": "low"}, "decay_lr_to"),
        ({"attention_type": "groupedquery"}, "attention_type"),
        ({"zero_optimization": {"stage": 1, "cpu_offload": "yes"}}, "zero_optimization.cpu_offload"),
        ({"mlp_type": "odd"}, "mlp_type"),
        ({"fp16": {"enabled": True, "type": "fp8"}}, "fp16.type"),
    ],
)
def test_a_former_key_without_a_meaning_is_a_problem_with_a_fix(former: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_keys(SMALL | former)
    found = {problem.key: problem for problem in caught.value.problems}
    assert found[key].fix.startswith("write ")


def test_no_former_key_is_one_of_todays_but_deepspeeds_name_for_five_of_them() -> None:
    assert set(FORMER) & set(KEYS) == {"activation_checkpointing"}
