"""Whole models of transformers, each of which makes several choices at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.model.options.option import Option
from tests.model.options.reference import hugging_face, renamed

LLAMA = {
    "embedding.word_embeddings": "model.embed_tokens",
    "final_norm": "model.norm",
    "head.final_linear": "lm_head",
    "layers.": "model.layers.",
    "attention.dense": "self_attn.o_proj",
    "mlp.linear2": "mlp.down_proj",
    ".scale": ".weight",
    "attention.query_layernorm": "self_attn.q_norm",
    "attention.key_layernorm": "self_attn.k_norm",
}


def _llama_names(weights: Mapping[str, Tensor], keys: Mapping[str, Any]) -> dict[str, Tensor]:
    """Heads as q, k and v apart; values and gates apart."""
    found = dict(weights)
    heads = keys["num_attention_heads"]
    for layer in range(keys["num_layers"]):
        name = f"layers.{layer}"
        made = f"{name}.attention.query_key_value"
        if f"{made}.weight" in weights:
            parts = found.pop(f"{made}.weight").unflatten(0, (heads, 3, -1)).unbind(1)
        else:
            pairs = found.pop(f"{made}.key_value_weight").unflatten(0, (keys["num_kv_heads"], 2, -1)).unbind(1)
            parts = found.pop(f"{made}.query_weight").unflatten(0, (heads, -1)), *pairs
        found |= {f"{name}.self_attn.{kind}_proj.weight": part.flatten(0, 1) for kind, part in zip("qkv", parts, strict=True)}
        value, gate = found.pop(f"{name}.mlp.linear1.weight")
        found |= {f"{name}.mlp.up_proj.weight": value, f"{name}.mlp.gate_proj.weight": gate}
    return renamed(found, LLAMA)


def _llama_config(keys: Mapping[str, Any]) -> dict[str, Any]:
    asked = keys["intermediate_size"]
    return {
        "intermediate_size": asked // 3,
        "num_key_value_heads": keys.get("num_kv_heads") or keys["num_attention_heads"],
        "head_dim": keys["hidden_size"] // keys["num_attention_heads"],
        "rms_norm_eps": keys.get("rms_norm_epsilon"),
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }


def _olmo_config(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in _llama_config(keys).items() if key not in ("rms_norm_eps", "head_dim")}


NEOX = {
    "embedding.word_embeddings": "model.embed_tokens",
    "final_norm": "model.final_layernorm",
    "head.final_linear": "lm_head",
    "layers.": "model.layers.",
    "attention.": "self_attn.",
}
PERSIMMON = NEOX | {
    "mlp.linear1": "mlp.dense_h_to_4h",
    "mlp.linear2": "mlp.dense_4h_to_h",
    "query_layernorm": "q_layernorm",
    "key_layernorm": "k_layernorm",
    "post_self_attn.": "post_attention_",
}


def _persimmon_config(keys: Mapping[str, Any]) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": keys["rotary_pct"]}
    return {
        "intermediate_size": 4 * keys["hidden_size"],
        "hidden_act": "relu",
        "qk_layernorm": True,
        "layer_norm_eps": 1e-5,
        "rope_parameters": rope,
    }


def _persimmon_names(weights: Mapping[str, Tensor], keys: Mapping[str, Any]) -> dict[str, Tensor]:
    return renamed(weights, PERSIMMON)


def _phi_config(keys: Mapping[str, Any]) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": keys["rotary_pct"]}
    return {"intermediate_size": 4 * keys["hidden_size"], "hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "rope_parameters": rope}


def _phi_names(weights: Mapping[str, Tensor], keys: Mapping[str, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {"lm_head.bias": torch.zeros(len(weights["head.final_linear.weight"]))}
    for name, weight in weights.items():
        if "query_key_value" in name:
            parts = weight.unflatten(0, (keys["num_attention_heads"], 3, -1)).unbind(1)
            found |= {
                name.replace("query_key_value", f"{kind}_proj"): p.flatten(0, 1) for kind, p in zip("qkv", parts, strict=True)
            }
        else:
            found[name] = weight
    return renamed(found, NEOX | {"mlp.linear1": "mlp.fc1", "mlp.linear2": "mlp.fc2"})


NO_BIASES = {"use_bias_in_attn_linear": False, "use_bias_in_mlp": False}
GATED = {"activation": "swiglu", "intermediate_size": 3 * 40, "pos_emb": "rotary", **NO_BIASES}
RMS = {"norm": "rmsnorm", "rms_norm_epsilon": 1e-3}

OPTIONS = {
    "Llama": Option(keys=GATED | RMS, reference=hugging_face("LlamaForCausalLM", _llama_config, _llama_names)),
    "Llama with grouped heads": Option(
        keys=GATED | RMS | {"num_kv_heads": 2}, reference=hugging_face("LlamaForCausalLM", _llama_config, _llama_names)
    ),
    "Qwen3": Option(
        keys=GATED | RMS | {"num_kv_heads": 2, "use_qk_layernorm": True},
        reference=hugging_face("Qwen3ForCausalLM", _llama_config, _llama_names),
    ),
    "OLMo": Option(
        keys=GATED | {"norm": "non_parametric_layernorm"}, reference=hugging_face("OlmoForCausalLM", _olmo_config, _llama_names)
    ),
    "Persimmon": Option(
        keys={"pos_emb": "rotary", "rotary_pct": 0.5, "activation": "relu", "use_qk_layernorm": True},
        reference=hugging_face("PersimmonForCausalLM", _persimmon_config, _persimmon_names),
    ),
    "Phi": Option(
        keys={"pos_emb": "rotary", "rotary_pct": 0.5, "bias_gelu_fusion": True, "gpt_j_residual": True, "gpt_j_tied": True},
        reference=hugging_face("PhiForCausalLM", _phi_config, _phi_names),
    ),
}
