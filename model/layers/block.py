"""A transformer block: attention and MLP around the residual stream, by GPT-NeoX's three rules; changes when the rules do.

sequential:      x + attention(norm1 x) -> y;  y + mlp(norm2 y)
gpt_j_residual:  x + attention(norm1 x) + mlp(norm2 x)
gpt_j_tied:      x + attention(norm1 x) + mlp(norm1 x)        (with gpt_j_residual)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from model.config import RunConfig
from model.kernels.attention import Attention
from model.layers.attention import SelfAttention
from model.layers.cache import LayerCache
from model.layers.dropout import ATTENTION_OUTPUT, MLP_OUTPUT, Dropout
from model.layers.masks import Mask
from model.layers.mlp import MLP
from model.layers.norm import Norm
from model.layers.positions import Heads
from model.layers.stage import Stage
from model.parallel.collectives import sum_out
from model.parallel.groups import Groups
from model.parallel.linear import add_bias


class Block(nn.Module):
    """Maps a stage to the next; ``cache`` grows by its tokens."""

    def __init__(
        self,
        config: RunConfig,
        groups: Groups,
        *,
        number: int,
        norm: Norm,
        attend: Attention,
        activation: Callable[[Tensor], Tensor],
        positions: Heads,
        mask: Mask,
        query_scale: float = 1.0,
    ) -> None:
        super().__init__()
        shape, seed = config.architecture, config.training.seed
        self._parallel, self._tied = shape.gpt_j_residual, shape.gpt_j_tied
        self._dropouts = None
        if rate := shape.hidden_dropout:
            self._dropouts = tuple(Dropout(rate, seed, number, place, groups) for place in (ATTENTION_OUTPUT, MLP_OUTPUT))
        self.input_layernorm = norm(config, groups)
        self.attention = SelfAttention(config, groups, attend, positions, mask, number, norm, query_scale)
        if not (self._parallel and self._tied):
            self.post_attention_layernorm = norm(config, groups)
        self.mlp = MLP(config, groups, activation)
        self._groups = groups

    def forward(self, stage: Stage, cache: LayerCache | None = None) -> Stage:
        """One block."""
        rule = self._side_by_side if self._parallel else self._in_sequence
        return stage._replace(x=rule(stage, cache))

    def _in_sequence(self, stage: Stage, cache: LayerCache | None) -> Tensor:
        attended_BSD = self.attention(self.input_layernorm(stage.x), stage, cache)
        y_BSD = stage.x + self._drop(attended_BSD, stage, 0)
        return y_BSD + self._drop(self.mlp(self.post_attention_layernorm(y_BSD)), stage, 1)

    def _side_by_side(self, stage: Stage, cache: LayerCache | None) -> Tensor:
        normed_BSD = self.input_layernorm(stage.x)
        for_mlp_BSD = normed_BSD if self._tied else self.post_attention_layernorm(stage.x)
        if self._groups.tensor_group is None or self._dropouts is not None:  # two dropouts are drawn on two whole sums
            attended_BSD = self._drop(self.attention(normed_BSD, stage, cache), stage, 0)
            return stage.x + attended_BSD + self._drop(self.mlp(for_mlp_BSD), stage, 1)
        both_BSD = self.attention(normed_BSD, stage, cache, partial=True) + self.mlp(for_mlp_BSD, partial=True)
        summed_BSD = sum_out(both_BSD, self._groups)  # one exchange instead of two
        return stage.x + add_bias(summed_BSD, self._groups, self.attention.dense.bias, self.mlp.linear2.bias)

    def _drop(self, x_BSD: Tensor, stage: Stage, place: int) -> Tensor:
        if self._dropouts is None or not self.training:
            return x_BSD
        assert stage.sample_B is not None, "samples have numbers where something is dropped"
        return self._dropouts[place].residual(x_BSD, stage.sample_B)
