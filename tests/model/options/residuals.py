"""The residual stream: the three rules of a block, each with and without biases; tied heads."""

from __future__ import annotations

from itertools import product

from torch import Tensor

from tests.model.options.option import Option
from tests.model.options.reference import ClosedForm


class Sequential(ClosedForm):
    """x + attention(norm1 x) -> y;  y + mlp(norm2 y)"""


class Parallel(ClosedForm):
    """x + attention(norm1 x) + mlp(norm2 x)"""

    second = "post_attention_layernorm"

    def block(self, x_BSD: Tensor, layer: int) -> Tensor:
        one, two = (self.norm(x_BSD, f"layers.{layer}.{name}") for name in ("input_layernorm", self.second))
        return x_BSD + self.attention(one, layer) + self.mlp(two, layer)


class OneNorm(Parallel):
    """x + attention(norm1 x) + mlp(norm1 x)"""

    second = "input_layernorm"


class TiedHead(ClosedForm):
    """The embedding's matrix once more."""

    def head(self, x_BSD: Tensor) -> Tensor:
        return x_BSD @ self.w["embedding.word_embeddings.weight"].T


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
} | {"tied head": Option(keys={"no_weight_tying": False}, reference=TiedHead.logits)}
