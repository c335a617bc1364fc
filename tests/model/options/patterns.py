"""What a query sees: sliding windows and block-sparse patterns, alone and with positions and grouped heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.model.options.option import Option
from tests.model.options.positions import T5
from tests.model.options.reference import ClosedForm, heads_apart, hugging_face, renamed


def _starcoder_config(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_key_value_heads": keys["num_kv_heads"],
        "intermediate_size": 4 * keys["hidden_size"],
        "sliding_window": keys["sliding_window_width"] + 1,  # theirs counts the query's own key
        "rope_parameters": {"rope_type": "default", "rope_theta": keys["rotary_emb_base"]},
    }


def _starcoder_names(weights: Mapping[str, Tensor], keys: Mapping[str, Any]) -> dict[str, Tensor]:
    table = {
        "embedding.word_embeddings": "model.embed_tokens",
        "final_norm": "model.norm",
        "head.final_linear": "lm_head",
        "layers.": "model.layers.",
        "attention.dense": "self_attn.o_proj",
        "mlp.linear1": "mlp.c_fc",
        "mlp.linear2": "mlp.c_proj",
    }
    found = renamed({name: weight for name, weight in weights.items() if "query_key_value" not in name}, table)
    for layer in range(keys["num_layers"]):
        for name, weight in heads_apart(weights, keys, layer).items():
            found[f"model.layers.{layer}.self_attn.{name[0]}_proj{name[1:]}"] = weight
    return found


STARCODER = hugging_face("Starcoder2ForCausalLM", _starcoder_config, _starcoder_names)


class Blocks(ClosedForm):
    """The published layouts of DeepSpeed's SparsityConfig classes, block by block; one direction."""

    def seen(self, tokens: int, layer: int) -> Tensor:
        sparse, size = self.keys["sparsity_config"], self.keys["sparsity_config"]["block"]
        blocks = -(-self.keys["seq_length"] // size)
        rule = getattr(self, self.keys["attention_config"][layer])
        seen_NLL = torch.zeros(self.heads, blocks, blocks, dtype=torch.bool)
        for head in range(self.heads):
            for row in range(blocks):
                for column in range(row + 1):
                    seen_NLL[head, row, column] = rule(sparse, head, row, column)
        seen_NQK = seen_NLL.repeat_interleave(size, 1).repeat_interleave(size, 2)[:, :tokens, :tokens]
        return seen_NQK & super().seen(tokens, layer)

    def local(self, sparse: Mapping[str, Any], head: int, row: int, column: int) -> bool:
        return row - column <= sparse["num_local_blocks"] // 2

    def sparse_fixed(self, sparse: Mapping[str, Any], head: int, row: int, column: int) -> bool:
        window, last = sparse["num_local_blocks"], sparse["num_global_blocks"]
        first = window - (1 + head % sparse["num_different_global_patterns"]) * last
        return row // window == column // window or first <= column % window < first + last

    def sparse_variable(self, sparse: Mapping[str, Any], head: int, row: int, column: int) -> bool:
        starts = [sum(sparse["local_window_blocks"][:n]) for n in range(len(sparse["local_window_blocks"]))]
        while starts[-1] <= row:
            starts.append(starts[-1] + sparse["local_window_blocks"][-1])
        together = max(start for start in starts if start <= row) <= column
        ranges = zip(sparse["global_block_indices"], sparse["global_block_end_indices"], strict=True)
        return together or any(start <= column < end for start, end in ranges)

    def bigbird(self, sparse: Mapping[str, Any], head: int, row: int, column: int) -> bool:
        near = row - column <= sparse["num_sliding_window_blocks"] // 2
        return near or column < sparse["num_global_blocks"] or row < sparse["num_global_blocks"]

    def bslongformer(self, sparse: Mapping[str, Any], head: int, row: int, column: int) -> bool:
        near = row - column <= sparse["num_sliding_window_blocks"] // 2
        return near or column in sparse["global_block_indices"] or row in sparse["global_block_indices"]


class BlocksOfT5(Blocks, T5):
    """Both."""


class Window(ClosedForm):
    """Each query sees as many keys before its own as the window is wide."""

    def seen(self, tokens: int, layer: int) -> Tensor:
        place = torch.arange(tokens)
        return super().seen(tokens, layer) & (place[:, None] - place <= self.keys["sliding_window_width"])


def _blocks(kind: str, network: type[ClosedForm] = Blocks, more: Mapping[str, Any] | None = None, **sparse: Any) -> Option:
    keys = {"attention_config": [kind, kind], "sparsity_config": {"block": 2} | sparse} | dict(more or {})
    return Option(keys=keys, reference=network.logits)


FUSED = {"scaled_upper_triang_masked_softmax_fusion": True}
RPE = {"pos_emb": "rpe", "rpe_num_buckets": 8, "rpe_max_distance": 12}

OPTIONS = {
    "sliding window, rotary, grouped heads": Option(
        keys={"sliding_window_width": 4, "pos_emb": "rotary", "rotary_emb_base": 100, "num_kv_heads": 2, "bias_gelu_fusion": True},
        reference=STARCODER,
    ),
    "sliding window, flash": Option(
        keys={"sliding_window_width": 3, "attention_config": [[["flash"], "all"]]}, reference=Window.logits
    ),
    "local": _blocks("local", num_local_blocks=5),
    "sparse_fixed": _blocks(
        "sparse_fixed",
        num_local_blocks=4,
        num_global_blocks=1,
        num_different_global_patterns=3,
        different_layout_per_head=True,
    ),
    "sparse_variable, fused, one key-value head": _blocks(
        "sparse_variable",
        more=FUSED | {"num_kv_heads": 1},
        local_window_blocks=[1, 2],
        global_block_indices=[1, 4],
        global_block_end_indices=[2, 6],
    ),
    "bigbird without chance, rpe": _blocks(
        "bigbird", BlocksOfT5, RPE, num_sliding_window_blocks=3, num_global_blocks=2, num_random_blocks=0
    ),
    "bslongformer, rpe, fused": _blocks(
        "bslongformer", BlocksOfT5, RPE | FUSED, num_sliding_window_blocks=2, global_block_indices=[0, 3]
    ),
}
