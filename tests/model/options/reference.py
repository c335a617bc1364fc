"""References of whole networks: GPT-NeoX's definition once more in float64, and models of transformers called with our weights.

Nothing of ``model/`` is used.  Legend: B batch, S tokens, D width, F width of the MLP, N heads, M key-value heads, H head size, Q
queries, K keys, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.options.option import Reference


class ClosedForm:
    """The plain network; an option's reference overrides what the option changes.  Weights and arithmetic are float64."""

    def __init__(self, weights: Mapping[str, Tensor], keys: Mapping[str, Any]) -> None:
        self.w = {name: weight.double() for name, weight in weights.items()}
        self.keys = keys
        self.heads = keys["num_attention_heads"]
        self.size = keys["hidden_size"] // self.heads

    @classmethod
    def logits(cls, weights: Mapping[str, Tensor], keys: Mapping[str, Any], tokens_BS: Tensor) -> Tensor:
        """logits_BSV: a :data:`Reference`."""
        network = cls(weights, keys)
        x_BSD = network.dropped(network.embed(tokens_BS), "embedding", keys["num_layers"])
        for layer in range(keys["num_layers"]):
            x_BSD = network.block(x_BSD, layer)
        return network.head(network.norm(x_BSD, "final_norm"))

    def embed(self, tokens_BS: Tensor) -> Tensor:
        """x_BSD"""
        return self.w["embedding.word_embeddings.weight"][tokens_BS]

    def block(self, x_BSD: Tensor, layer: int) -> Tensor:
        """x_BSD; in sequence."""
        name = f"layers.{layer}"
        attended_BSD = self.attention(self.norm(x_BSD, f"{name}.input_layernorm"), layer)
        x_BSD = x_BSD + self.dropped(attended_BSD, "attention", layer)
        return x_BSD + self.dropped(self.mlp(self.norm(x_BSD, f"{name}.post_attention_layernorm"), layer), "mlp", layer)

    def norm(self, x_BSD: Tensor, name: str) -> Tensor:
        """LayerNorm."""
        centred = x_BSD - x_BSD.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def attention(self, x_BSD: Tensor, layer: int) -> Tensor:
        """x_BSD"""
        name = f"layers.{layer}.attention"
        q_BNSH, k_BNSH, v_BNSH = self.made(x_BSD, name)
        q_BNSH, k_BNSH = self.placed(q_BNSH, layer), self.placed(k_BNSH, layer)
        scores_BNQK = self.scores(q_BNSH @ k_BNSH.transpose(-1, -2) / math.sqrt(self.size), layer)
        scores_BNQK = scores_BNQK.masked_fill(~self.seen(x_BSD.shape[1], layer), -math.inf)
        y_BNSH = self.dropped(scores_BNQK.softmax(-1), "probabilities", layer) @ v_BNSH
        return self.linear(y_BNSH.transpose(1, 2).flatten(2), f"{name}.dense")

    def made(self, x_BSD: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, each BNSH: rows of the matrix stand head by head, each q, k, v; with fewer key-value heads queries apart."""
        if f"{name}.query_key_value.weight" in self.w:
            qkv = self.linear(x_BSD, f"{name}.query_key_value").unflatten(-1, (self.heads, 3, self.size))
            q_BSNH, k_BSNH, v_BSNH = qkv.unbind(-2)
        else:
            q_BSNH = self.linear(x_BSD, f"{name}.query_key_value.query", "_").unflatten(-1, (self.heads, self.size))
            kv = self.linear(x_BSD, f"{name}.query_key_value.key_value", "_").unflatten(-1, (-1, 2, self.size))
            k_BSNH, v_BSNH = (part.repeat_interleave(self.heads // part.shape[2], 2) for part in kv.unbind(-2))
        return q_BSNH.transpose(1, 2), k_BSNH.transpose(1, 2), v_BSNH.transpose(1, 2)

    def placed(self, x_BNSH: Tensor, layer: int) -> Tensor:
        """Queries, or keys, that know where they stand."""
        return x_BNSH

    def scores(self, scores_BNQK: Tensor, layer: int) -> Tensor:
        """Scores with what is added to them, before the mask."""
        return scores_BNQK

    def seen(self, tokens: int, layer: int) -> Tensor:
        """QK, or NQK: true where a query sees a key."""
        return torch.ones(tokens, tokens, dtype=torch.bool).tril()

    def mlp(self, x_BSD: Tensor, layer: int) -> Tensor:
        """x_BSD"""
        name = f"layers.{layer}.mlp"
        return self.linear(self.activation(self.linear(x_BSD, f"{name}.linear1")), f"{name}.linear2")

    def activation(self, x: Tensor) -> Tensor:
        """GELU: x Phi(x)."""
        return x / 2 * (1 + torch.erf(x / math.sqrt(2)))

    def dropped(self, x: Tensor, place: str, layer: int) -> Tensor:
        """x without what is dropped there."""
        return x

    def head(self, x_BSD: Tensor) -> Tensor:
        """logits_BSV"""
        return x_BSD @ self.w["head.final_linear.weight"].T

    def linear(self, x: Tensor, name: str, joint: str = ".") -> Tensor:
        """A matrix, and its bias if there is one."""
        y, bias = x @ self.w[f"{name}{joint}weight"].T, self.w.get(f"{name}{joint}bias")
        return y if bias is None else y + bias


Names = Callable[[Mapping[str, Tensor], Mapping[str, Any]], Mapping[str, Tensor]]
"""(our weights, keys) -> theirs, by their names."""


def hugging_face(
    model: str,
    config: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    names: Names,
    *,
    without: str = "",
) -> Reference:
    """A causal language model of transformers, in fp32.

    Args:
        model: its class, e.g. ``LlamaForCausalLM``.
        config: what its configuration is given besides the sizes, from our keys.
        without: a module of theirs that passes everything through, because GPT-NeoX has none there.
    """

    def logits(weights: Mapping[str, Tensor], keys: Mapping[str, Any], tokens_BS: Tensor) -> Tensor:
        transformers: Any = pytest.importorskip("transformers", reason="pip install transformers")
        kind = getattr(transformers, model)
        sizes = {
            "vocab_size": len(weights["embedding.word_embeddings.weight"]),
            "hidden_size": keys["hidden_size"],
            "num_hidden_layers": keys["num_layers"],
            "num_attention_heads": keys["num_attention_heads"],
            "max_position_embeddings": keys["max_position_embeddings"],
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
            "tie_word_embeddings": not keys["no_weight_tying"],
            "attn_implementation": "eager",
        }
        network = kind(kind.config_class(**sizes | dict(config(keys)))).eval()
        if without:
            network.set_submodule(without, torch.nn.Identity())
        theirs = names(weights, keys)
        missing = {name for name, _ in network.named_parameters()} ^ theirs.keys()
        assert not missing, f"names differ: {sorted(missing)}"
        found: Tensor = torch.func.functional_call(network, dict(theirs), (tokens_BS,), {"use_cache": False}).logits
        return found

    return logits


def heads_apart(weights: Mapping[str, Tensor], keys: Mapping[str, Any], layer: int) -> dict[str, Tensor]:
    """The weights and biases of queries, keys and values of a layer, as ``q.weight``, ``k.bias`` …, each head below the other."""
    name, size = f"layers.{layer}.attention.query_key_value", keys["hidden_size"] // keys["num_attention_heads"]
    found = {}
    for kind in ("weight", "bias"):
        if f"{name}.{kind}" in weights:
            q, k, v = weights[f"{name}.{kind}"].unflatten(0, (-1, 3, size)).unbind(1)
        else:
            q = weights[f"{name}.query_{kind}"].unflatten(0, (-1, size))
            k, v = weights[f"{name}.key_value_{kind}"].unflatten(0, (-1, 2, size)).unbind(1)
        found |= {f"{part}.{kind}": rows.flatten(0, 1) for part, rows in zip("qkv", (q, k, v), strict=True)}
    return found


def renamed(weights: Mapping[str, Tensor], table: Mapping[str, str]) -> dict[str, Tensor]:
    """Weights under names in which each left side of ``table`` has become its right side, in order."""
    found = {}
    for name, weight in weights.items():
        for ours, theirs in table.items():
            name = name.replace(ours, theirs)
        found[name] = weight
    return found


GPT_NEOX = {
    "embedding.word_embeddings": "gpt_neox.embed_in",
    "final_norm": "gpt_neox.final_layer_norm",
    "head.final_linear": "lm_head",
    "layers.": "gpt_neox.layers.",
    "mlp.linear1": "mlp.dense_h_to_4h",
    "mlp.linear2": "mlp.dense_4h_to_h",
}
"""Our names -> those of transformers' GPTNeoX; the values are the same."""
