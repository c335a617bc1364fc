"""Causal self-attention over the heads of one tensor rank; changes when heads are made or merged otherwise.

Legend: B batch, S tokens, D width, d the width of the heads here, N heads here, H head size, K tokens seen (cache included).
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from model.config import RunConfig
from model.kernels.attention import Attention
from model.layers.cache import LayerCache
from model.layers.init import input_init, output_init
from model.parallel.groups import Groups
from model.parallel.linear import ColumnParallelLinear, RowParallelLinear


class Positions(Protocol):
    """How heads learn where their tokens stand."""

    def split(self, qkv_BSN3H: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """q_BNSH, k_BNSH, v_BNSH of tokens whose first position is ``start``."""


class SelfAttention(nn.Module):
    """QKV, positions, attention, output projection.

    Rows of the QKV matrix stand head by head, each q, k, v (GPT-NeoX's layout, also Hugging Face's GPTNeoX), so that a contiguous
    shard holds whole heads.  Dropout on probabilities draws from torch's generator, which tensor ranks seed alike (the residual
    stream must drop alike on them): the n-th heads of two tensor ranks drop alike.
    """

    def __init__(self, config: RunConfig, groups: Groups, attend: Attention, positions: Positions) -> None:
        super().__init__()
        shape = config.architecture
        if shape.num_attention_heads % groups.layout.tensor:
            raise ValueError(
                f"num_attention_heads {shape.num_attention_heads} is not a multiple of model_parallel_size {groups.layout.tensor}"
            )
        width, bias = shape.hidden_size, shape.use_bias_in_attn_linear
        self.query_key_value = ColumnParallelLinear(width, 3 * width, bias=bias, init=input_init(config), groups=groups)
        self.dense = RowParallelLinear(width, width, bias=bias, init=output_init(config), groups=groups)
        self._heads = shape.num_attention_heads // groups.layout.tensor
        self._attend, self._positions = attend, positions
        self._dropout, self._softmax_in_fp32 = shape.attention_dropout, shape.attention_softmax_in_fp32

    def heads(self, x_BSD: Tensor, doc_ids_BS: Tensor | None, cache: LayerCache | None) -> Tensor:
        """y_BSd: the attended values of the heads that lie here, before the output projection."""
        qkv_BSN3H = self.query_key_value(x_BSD).unflatten(-1, (self._heads, -1))
        q_BNSH, k_BNKH, v_BNKH = self._positions.split(qkv_BSN3H, 0 if cache is None else cache.length)
        if cache is not None:
            k_BNKH, v_BNKH = cache.append(k_BNKH, v_BNKH)
        dropout = self._dropout if self.training else 0.0
        y_BNSH = self._attend(q_BNSH, k_BNKH, v_BNKH, doc_ids_BQ=doc_ids_BS, dropout=dropout, softmax_in_fp32=self._softmax_in_fp32)
        return y_BNSH.transpose(1, 2).flatten(2)

    def forward(self, x_BSD: Tensor, doc_ids_BS: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """x_BSD -> x_BSD"""
        return self.dense(self.heads(x_BSD, doc_ids_BS, cache))
