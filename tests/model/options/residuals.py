"""The residual stream: the three rules of a block, each with and without biases; tied heads; dropout.

What is dropped is what our ``Dropout`` draws; where it acts is the reference's.
"""

from __future__ import annotations

from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from model.layers.dropout import ATTENTION_OUTPUT, EMBEDDING, MLP_OUTPUT, PROBABILITIES, Dropout
from model.parallel.groups import one_rank
from tests.model.options.option import Option
from tests.model.options.reference import ClosedForm


class Sequential(ClosedForm):
    """x + attention(norm1 x) -> y;  y + mlp(norm2 y)"""


class Parallel(ClosedForm):
    """x + attention(norm1 x) + mlp(norm2 x)"""

    second = "post_attention_layernorm"

    def block(self, x_BSD: Tensor, layer: int) -> Tensor:
        one, two = (self.norm(x_BSD, f"layers.{layer}.{name}") for name in ("input_layernorm", self.second))
        attended_BSD = self.dropped(self.attention(one, layer), "attention", layer)
        return x_BSD + attended_BSD + self.dropped(self.mlp(two, layer), "mlp", layer)


class OneNorm(Parallel):
    """x + attention(norm1 x) + mlp(norm1 x)"""

    second = "input_layernorm"


class TiedHead(ClosedForm):
    """The embedding's matrix once more."""

    def head(self, x_BSD: Tensor) -> Tensor:
        return x_BSD @ self.w["embedding.word_embeddings.weight"].T


class Dropping(ClosedForm):
    """GPT-2's four places (Radford et al. 2019): after the embedding, after both sub-layers, and the attention's probabilities."""

    places: ClassVar = {"embedding": EMBEDDING, "attention": ATTENTION_OUTPUT, "mlp": MLP_OUTPUT, "probabilities": PROBABILITIES}

    def dropped(self, x: Tensor, place: str, layer: int) -> Tensor:
        rate = self.keys["attention_dropout" if place == "probabilities" else "hidden_dropout"]
        if not rate:
            return x
        drop = Dropout(rate, 1234, layer, self.places[place], one_rank())
        draw = drop.probabilities if place == "probabilities" else drop.residual
        return x * draw(torch.ones(x.shape), torch.arange(len(x)))


class ParallelDropping(Dropping, Parallel):
    """Both."""


RULES = {
    "sequential": ({}, Sequential),
    "parallel": ({"gpt_j_residual": True}, Parallel),
    "parallel, one norm": ({"gpt_j_residual": True, "gpt_j_tied": True}, OneNorm),
}
BIASES = {
    (True, True): "",
    (True, False): ", no bias in the MLP",
    (False, True): ", no bias in attention",
    (False, False): ", no biases",
}

OPTIONS = {
    f"{rule}{BIASES[attention, mlp]}": Option(
        keys={**keys, "use_bias_in_attn_linear": attention, "use_bias_in_mlp": mlp}, reference=network.logits
    )
    for (rule, (keys, network)), attention, mlp in product(RULES.items(), (True, False), (True, False))
} | {
    "tied head": Option(keys={"no_weight_tying": False}, reference=TiedHead.logits),
    "dropout": Option(
        keys={"hidden_dropout": 0.2, "attention_dropout": 0.3}, reference=Sequential.logits, dropping=Dropping.logits
    ),
    "parallel, dropout": Option(
        keys={"hidden_dropout": 0.2, "gpt_j_residual": True}, reference=Parallel.logits, dropping=ParallelDropping.logits
    ),
}
