"""Positions, and heads that share keys and values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.options.option import Option
from tests.model.options.reference import GPT_NEOX, ClosedForm, heads_apart, hugging_face, renamed


def _neox_config(keys: Mapping[str, Any]) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": keys["rotary_emb_base"], "partial_rotary_factor": keys["rotary_pct"]}
    return {
        "intermediate_size": 4 * keys["hidden_size"],
        "rope_parameters": rope | keys.get("neox_hpc", {}).get("rope_scaling", {}),
        "use_parallel_residual": keys["gpt_j_residual"],
    }


def _neox_names(weights: Mapping[str, Tensor], keys: Mapping[str, Any]) -> dict[str, Tensor]:
    return renamed(weights, GPT_NEOX)


GPT_NEOX_MODEL = hugging_face("GPTNeoXForCausalLM", _neox_config, _neox_names)


def _bloom_names(weights: Mapping[str, Tensor], keys: Mapping[str, Any]) -> dict[str, Tensor]:
    table = {
        "embedding.word_embeddings": "transformer.word_embeddings",
        "final_norm": "transformer.ln_f",
        "head.final_linear": "lm_head",
        "layers.": "transformer.h.",
        ".attention.": ".self_attention.",
        "mlp.linear1": "mlp.dense_h_to_4h",
        "mlp.linear2": "mlp.dense_4h_to_h",
    }
    return renamed(weights, table)


BLOOM = hugging_face("BloomForCausalLM", lambda keys: {}, _bloom_names, without="transformer.word_embeddings_layernorm")


def _opt_config(keys: Mapping[str, Any]) -> dict[str, Any]:
    rows = keys["max_position_embeddings"] - 2  # theirs are added to them
    width = keys["hidden_size"]
    sizes = {"ffn_dim": 4 * width, "word_embed_proj_dim": width, "max_position_embeddings": rows}
    return sizes | {"activation_function": "gelu", "pad_token_id": None}


def _opt_names(weights: Mapping[str, Tensor], keys: Mapping[str, Any]) -> dict[str, Tensor]:
    table = {
        "embedding.word_embeddings": "model.decoder.embed_tokens",
        "embedding.position_embeddings": "model.decoder.embed_positions",
        "final_norm": "model.decoder.final_layer_norm",
        "head.final_linear": "lm_head",
        "layers.": "model.decoder.layers.",
        "attention.dense": "self_attn.out_proj",
        "input_layernorm": "self_attn_layer_norm",
        "post_attention_layernorm": "final_layer_norm",
        "mlp.linear1": "fc1",
        "mlp.linear2": "fc2",
    }
    found = renamed({name: weight for name, weight in weights.items() if "query_key_value" not in name}, table)
    for layer in range(keys["num_layers"]):
        for name, weight in heads_apart(weights, keys, layer).items():
            found[f"model.decoder.layers.{layer}.self_attn.{name[0]}_proj{name[1:]}"] = weight
    return found


OPT = hugging_face("OPTForCausalLM", _opt_config, _opt_names)


class Learned(ClosedForm):
    """GPT: a row for each position."""

    def embed(self, tokens_BS: Tensor) -> Tensor:
        return super().embed(tokens_BS) + self.w["embedding.position_embeddings.weight"][: tokens_BS.shape[1]]


class Sinusoidal(ClosedForm):
    """Vaswani et al. 2017, section 3.5: dimension 2i is sin(position / 10000^(2i/D)), 2i + 1 its cos; here the sines come first."""

    def embed(self, tokens_BS: Tensor) -> Tensor:
        width = self.keys["hidden_size"]
        for_each = [
            [position / 10000 ** (2 * i / width) for i in range(width // 2)]  # one angle for two dimensions
            for position in range(tokens_BS.shape[1])
        ]
        rows = [[*map(math.sin, angles), *map(math.cos, angles)] for angles in for_each]
        return super().embed(tokens_BS) + torch.tensor(rows, dtype=torch.float64)


class T5(ClosedForm):
    """T5's buckets by transformers; GPT-NeoX multiplies what they add by the root of the head's size."""

    def scores(self, scores_BNQK: Tensor, layer: int) -> Tensor:
        t5 = pytest.importorskip("transformers.models.t5.modeling_t5", reason="pip install transformers")
        place = torch.arange(scores_BNQK.shape[-1])
        count, furthest = self.keys["rpe_num_buckets"], self.keys["rpe_max_distance"]
        bucket_QK = t5.T5Attention._relative_position_bucket(place - place[:, None], False, count, furthest)
        return scores_BNQK + math.sqrt(self.size) * self.w["relative_positions.weight"][bucket_QK].permute(2, 0, 1)


def _scaled(**scaling: Any) -> Option:
    rotary = {"pos_emb": "rotary", "rotary_emb_base": 100, "neox_hpc": {"rope_scaling": scaling}}
    return Option(keys=rotary, reference=GPT_NEOX_MODEL)


FLASH = {"attention_config": [[["flash"], "all"]]}

OPTIONS = {
    "none": Option(keys={}, reference=ClosedForm.logits),
    "rotary": Option(keys={"pos_emb": "rotary", "rotary_pct": 0.5, "rotary_emb_base": 100}, reference=GPT_NEOX_MODEL),
    "rotary, linear": _scaled(rope_type="linear", factor=3.0),
    "rotary, llama3": _scaled(
        rope_type="llama3", factor=4.0, low_freq_factor=0.5, high_freq_factor=2.0, original_max_position_embeddings=8
    ),
    "rotary, yarn": _scaled(rope_type="yarn", factor=4.0, beta_fast=2.0, beta_slow=0.5, original_max_position_embeddings=8),
    "learned": Option(keys={"pos_emb": "learned"}, reference=Learned.logits),
    "learned, of OPT": Option(keys={"pos_emb": "learned", "opt_pos_emb_offset": 2, "max_position_embeddings": 18}, reference=OPT),
    "sinusoidal": Option(keys={"pos_emb": "sinusoidal"}, reference=Sinusoidal.logits),
    "alibi": Option(keys={"pos_emb": "alibi", "bias_gelu_fusion": True}, reference=BLOOM),
    "alibi, six heads, flash": Option(
        keys={"pos_emb": "alibi", "bias_gelu_fusion": True, "hidden_size": 48, "num_attention_heads": 6, "num_kv_heads": 6} | FLASH,
        reference=BLOOM,
    ),
    "rpe": Option(keys={"pos_emb": "rpe", "rpe_num_buckets": 8, "rpe_max_distance": 12}, reference=T5.logits),
    "rpe, flash": Option(keys={"pos_emb": "rpe", "rpe_num_buckets": 6, "rpe_max_distance": 16} | FLASH, reference=T5.logits),
    "grouped heads": Option(keys={"num_kv_heads": 2}, reference=ClosedForm.logits),
    "one key-value head": Option(keys={"num_kv_heads": 1}, reference=ClosedForm.logits),
}
