"""Positions, and heads that share keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tests.model.options.option import Option
from tests.model.options.reference import GPT_NEOX, ClosedForm, hugging_face, renamed


def _neox_config(keys: Mapping[str, Any]) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": keys["rotary_emb_base"], "partial_rotary_factor": keys["rotary_pct"]}
    return {
        "intermediate_size": 4 * keys["hidden_size"],
        "rope_parameters": rope,
        "use_parallel_residual": keys["gpt_j_residual"],
    }


def _neox_names(weights: Mapping[str, Tensor], keys: Mapping[str, Any]) -> dict[str, Tensor]:
    return renamed(weights, GPT_NEOX)


GPT_NEOX_MODEL = hugging_face("GPTNeoXForCausalLM", _neox_config, _neox_names)

OPTIONS = {
    "rotary": Option(keys={"pos_emb": "rotary", "rotary_pct": 0.5, "rotary_emb_base": 100}, reference=GPT_NEOX_MODEL),
    "grouped heads": Option(keys={"num_kv_heads": 2}, reference=ClosedForm.logits),
    "one key-value head": Option(keys={"num_kv_heads": 1}, reference=ClosedForm.logits),
}
