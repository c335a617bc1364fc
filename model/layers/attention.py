"""Causal self-attention over the heads of one tensor rank.

Legend: B batch, S tokens, D width, N heads here, H head size, K tokens seen (cache included).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import RunConfig
from model.kernels.attention import Attention
from model.layers.init import input_init, output_init
from model.layers.positions import Rotary
from model.parallel.groups import Groups
from model.parallel.linear import ColumnParallelLinear, RowParallelLinear


class LayerCache:
    """Keys and values of the tokens that one layer has seen while sampling."""

    def __init__(self) -> None:
        self._k_BNKH: Tensor | None = None
        self._v_BNKH: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens seen."""
        return 0 if self._k_BNKH is None else self._k_BNKH.shape[2]

    def append(self, k_BNSH: Tensor, v_BNSH: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, the new ones last."""
        if self._k_BNKH is None or self._v_BNKH is None:
            self._k_BNKH, self._v_BNKH = k_BNSH, v_BNSH
        else:
            self._k_BNKH = torch.cat([self._k_BNKH, k_BNSH], dim=2)
            self._v_BNKH = torch.cat([self._v_BNKH, v_BNSH], dim=2)
        return self._k_BNKH, self._v_BNKH


class SelfAttention(nn.Module):
    """QKV, rotary positions, attention, output projection.

    Rows of the QKV matrix stand head by head, each q, k, v (GPT-NeoX's layout, also Hugging Face's GPTNeoX).
    """

    def __init__(self, config: RunConfig, groups: Groups, attend: Attention, rotary: Rotary | None) -> None:
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
        self._attend, self._rotary = attend, rotary
        self._dropout, self._softmax_in_fp32 = shape.attention_dropout, shape.attention_softmax_in_fp32

    def heads(self, x_BSD: Tensor, cache: LayerCache | None) -> Tensor:
        """y_BSd: the attended values of the heads that lie here, before the output projection."""
        B, S, _ = x_BSD.shape
        qkv_BSN3H = self.query_key_value(x_BSD).view(B, S, self._heads, -1)
        q_BNSH, k_BNSH, v_BNSH = qkv_BSN3H.transpose(1, 2).chunk(3, dim=-1)
        start = 0 if cache is None else cache.length
        if self._rotary is not None:
            q_BNSH, k_BNSH = self._rotary(q_BNSH, start), self._rotary(k_BNSH, start)
        if cache is not None:
            k_BNSH, v_BNSH = cache.append(k_BNSH, v_BNSH)
        dropout = self._dropout if self.training else 0.0
        y_BNSH = self._attend(q_BNSH, k_BNSH, v_BNSH, dropout=dropout, softmax_in_fp32=self._softmax_in_fp32)
        return y_BNSH.transpose(1, 2).reshape(B, S, -1)

    def forward(self, x_BSD: Tensor, cache: LayerCache | None = None) -> Tensor:
        """x_BSD -> x_BSD"""
        return self.dense(self.heads(x_BSD, cache))
