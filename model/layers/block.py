"""A transformer block: attention and MLP around the residual stream, by GPT-NeoX's three rules.

sequential:      x + attention(norm1 x) -> y;  y + mlp(norm2 y)
gpt_j_residual:  x + attention(norm1 x) + mlp(norm2 x)
gpt_j_tied:      x + attention(norm1 x) + mlp(norm1 x)        (with gpt_j_residual)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from model.config import RunConfig
from model.kernels.attention import Attention
from model.layers.attention import LayerCache, SelfAttention
from model.layers.mlp import MLP
from model.layers.norm import NORMS
from model.layers.positions import Rotary
from model.parallel.collectives import sum_out
from model.parallel.groups import Groups


class Block(nn.Module):
    """x_BSD -> x_BSD"""

    def __init__(
        self, config: RunConfig, groups: Groups, attend: Attention, activation: Callable[[Tensor], Tensor], rotary: Rotary | None
    ) -> None:
        super().__init__()
        shape = config.architecture
        norm = NORMS[shape.norm]
        self.input_layernorm = norm(config, groups)
        self.attention = SelfAttention(config, groups, attend, rotary)
        if not (shape.gpt_j_residual and shape.gpt_j_tied):
            self.post_attention_layernorm = norm(config, groups)
        self.mlp = MLP(config, groups, activation)
        self._parallel, self._tied, self._dropout = shape.gpt_j_residual, shape.gpt_j_tied, shape.hidden_dropout
        self._group = groups.tensor_group

    def forward(self, x_BSD: Tensor, cache: LayerCache | None = None) -> Tensor:
        """One block; ``cache`` grows by these tokens."""
        normed_BSD = self.input_layernorm(x_BSD)
        if not self._parallel:
            y_BSD = x_BSD + self._drop(self.attention(normed_BSD, cache))
            return y_BSD + self._drop(self.mlp(self.post_attention_layernorm(y_BSD)))
        for_mlp_BSD = normed_BSD if self._tied else self.post_attention_layernorm(x_BSD)
        if self._group is not None and not self._dropout:
            return x_BSD + self._one_sum(normed_BSD, for_mlp_BSD, cache)
        return x_BSD + (self._drop(self.attention(normed_BSD, cache)) + self._drop(self.mlp(for_mlp_BSD)))

    def _one_sum(self, normed_BSD: Tensor, for_mlp_BSD: Tensor, cache: LayerCache | None) -> Tensor:
        """Attention and MLP with one reduction over the tensor ranks instead of two."""
        dense, linear2 = self.attention.dense, self.mlp.linear2
        partial_BSD = dense.partial(self.attention.heads(normed_BSD, cache)) + linear2.partial(self.mlp.inner(for_mlp_BSD))
        total_BSD = sum_out(partial_BSD, self._group)
        for bias in (dense.bias, linear2.bias):
            total_BSD = total_BSD if bias is None else total_BSD + bias
        return total_BSD

    def _drop(self, x_BSD: Tensor) -> Tensor:
        return F.dropout(x_BSD, self._dropout, training=self.training) if self._dropout else x_BSD
