"""A transformer block: attention and MLP around the residual stream, by GPT-NeoX's three rules; changes when the rules do.

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
from model.layers.attention import Positions, SelfAttention
from model.layers.cache import LayerCache
from model.layers.mlp import MLP
from model.layers.stage import Stage
from model.parallel.collectives import sum_out
from model.parallel.groups import Groups

Norm = Callable[[RunConfig, Groups], nn.Module]


class Block(nn.Module):
    """Maps a stage to the next; ``cache`` grows by its tokens."""

    def __init__(
        self,
        config: RunConfig,
        groups: Groups,
        *,
        norm: Norm,
        attend: Attention,
        activation: Callable[[Tensor], Tensor],
        positions: Positions,
    ) -> None:
        super().__init__()
        shape = config.architecture
        self._parallel, self._tied, self._dropout = shape.gpt_j_residual, shape.gpt_j_tied, shape.hidden_dropout
        self.input_layernorm = norm(config, groups)
        self.attention = SelfAttention(config, groups, attend, positions)
        if not (self._parallel and self._tied):
            self.post_attention_layernorm = norm(config, groups)
        self.mlp = MLP(config, groups, activation)
        self._group = groups.tensor_group

    def forward(self, stage: Stage, cache: LayerCache | None = None) -> Stage:
        """One block."""
        rule = self._side_by_side if self._parallel else self._in_sequence
        return stage._replace(x=rule(stage.x, stage.doc_ids_BS, cache))

    def _in_sequence(self, x_BSD: Tensor, doc_ids_BS: Tensor | None, cache: LayerCache | None) -> Tensor:
        y_BSD = x_BSD + self._drop(self.attention(self.input_layernorm(x_BSD), doc_ids_BS, cache))
        return y_BSD + self._drop(self.mlp(self.post_attention_layernorm(y_BSD)))

    def _side_by_side(self, x_BSD: Tensor, doc_ids_BS: Tensor | None, cache: LayerCache | None) -> Tensor:
        normed_BSD = self.input_layernorm(x_BSD)
        for_mlp_BSD = normed_BSD if self._tied else self.post_attention_layernorm(x_BSD)
        if self._group is None or self._dropout:  # two dropouts are drawn on two whole sums
            return x_BSD + self._drop(self.attention(normed_BSD, doc_ids_BS, cache)) + self._drop(self.mlp(for_mlp_BSD))
        return x_BSD + self._one_sum(self.attention.heads(normed_BSD, doc_ids_BS, cache), self.mlp.inner(for_mlp_BSD))

    def _one_sum(self, attended_BSd: Tensor, inner_BSF: Tensor) -> Tensor:
        """Attention and MLP with one reduction over the tensor ranks instead of two."""
        dense, linear2 = self.attention.dense, self.mlp.linear2
        total_BSD = sum_out(dense.partial(attended_BSd) + linear2.partial(inner_BSF), self._group)
        for bias in (dense.bias, linear2.bias):
            total_BSD = total_BSD if bias is None else total_BSD + bias
        return total_BSD

    def _drop(self, x_BSD: Tensor) -> Tensor:
        return F.dropout(x_BSD, self._dropout, training=self.training) if self._dropout else x_BSD
