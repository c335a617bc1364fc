"""Keys that change nothing beside the others are refused, with what they need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from model.config import RunConfig, idle_keys, is_fragment, translate
from model.config.idle import NEEDS
from model.config.kinds import NORMS, Norm
from model.config.run import KEYS, SECTIONS

SMALL = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "seq_length": 64, "max_position_embeddings": 64}
NEOX: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "neox_configs.json").read_text())


def found(**keys: Any) -> dict[str, str]:
    written = SMALL | keys
    return {p.key: f"{p.wrong} / {p.fix}" for p in idle_keys(RunConfig.from_keys(written), written)}


@pytest.mark.parametrize(
    ("keys", "idle"),
    [
        ({"pos_emb": "alibi", "rotary_pct": 0.5}, "rotary_pct"),
        ({"pos_emb": "rotary", "opt_pos_emb_offset": 2}, "opt_pos_emb_offset"),
        ({"norm": "rmsnorm", "layernorm_epsilon": 1e-6}, "layernorm_epsilon"),
        ({"norm": "layernorm", "rms_norm_epsilon": 1e-6}, "rms_norm_epsilon"),
        ({"norm": "non_parametric_layernorm", "layernorm_fusion": True}, "layernorm_fusion"),
        (
            {"init_method_std": 0.1, "init_method": "small_init", "output_layer_init_method": "wang_init"},
            "init_method_std",
        ),
        ({"gpt_j_tied": True}, "gpt_j_tied"),
        ({"activation": "silu", "mlp_multiple_of": 64}, "mlp_multiple_of"),
        ({"activation": "swiglu", "bias_gelu_fusion": True}, "bias_gelu_fusion"),
        ({"attention_config": [[["flash"], 2]], "sparsity_config": {"block": 16}}, "sparsity_config"),
        ({"attention_config": [[["flash"], 2]], "apply_query_key_layer_scaling": True}, "apply_query_key_layer_scaling"),
        ({"moe_top_k": 2}, "moe_top_k"),
        ({"train_impl": "dpo", "kto_beta": 0.2}, "kto_beta"),
    ],
)
def test_an_option_of_what_the_run_does_not_have_is_refused(keys: dict[str, Any], idle: str) -> None:
    assert list(found(**keys)) == [idle]


@pytest.mark.parametrize("epsilon", ["layernorm_epsilon", "rms_norm_epsilon", "scalenorm_epsilon"])
def test_a_norm_that_is_added_says_which_epsilon_counts(epsilon: str) -> None:
    config = RunConfig.from_keys(SMALL | {epsilon: 1e-3})
    with mock.patch.dict(NORMS, added=Norm("", epsilon=epsilon)):
        added = config.model_copy(update={"architecture": config.architecture.model_copy(update={"norm": "added"})})
        assert list(idle_keys(added, [epsilon])) == []


def test_the_fix_names_what_it_works_with() -> None:
    assert found(gpt_j_tied=True) == {
        "gpt_j_tied": "changes nothing without gpt_j_residual: true / remove it, or write gpt_j_residual: true"
    }


def test_a_default_is_no_mistake_and_neither_is_a_key_that_counts() -> None:
    assert found(pos_emb="alibi", rotary_pct=1.0, gpt_j_tied=False) == {}
    assert found(pos_emb="rotary", rotary_pct=0.5, gpt_j_residual=True, gpt_j_tied=True) == {}
    assert found(attention_config=["local", "flash"], sparsity_config={"block": 16}) == {}


def test_local_layers_have_the_options_of_unfused_attention() -> None:
    assert found(attention_config=["local", "flash"], apply_query_key_layer_scaling=True) == {}


def test_what_is_fulfilled_anyway_is_not_refused() -> None:
    assert found(attention_config=["flash", "flash"], attention_softmax_in_fp32=True) == {}


def test_every_need_is_of_keys_that_have_a_default() -> None:
    for need in NEEDS:
        for key in need.keys:
            assert not SECTIONS[KEYS[key]].model_fields[key].is_required()


@pytest.mark.parametrize("name", [name for name, values in NEOX.items() if not is_fragment(values) and "gmlp" not in name])
def test_no_file_of_gpt_neox_is_refused_for_it(name: str) -> None:
    values = translate(NEOX[name]).values
    assert list(idle_keys(RunConfig.from_keys(values), values)) == []
