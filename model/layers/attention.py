"""Causal self-attention over the heads of one tensor rank; changes when heads are made or merged otherwise.

Legend: B batch, S tokens, D width, d the width of the heads here, N heads here, M key-value heads here, H head size, K tokens seen
(cache included).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import RunConfig
from model.kernels.attention import Attention
from model.layers.cache import LayerCache
from model.layers.dropout import PROBABILITIES, Dropout
from model.layers.init import input_init, output_init
from model.layers.masks import Mask
from model.layers.norm import Norm
from model.layers.positions import Heads
from model.layers.stage import Stage
from model.parallel.collectives import share
from model.parallel.groups import Groups
from model.parallel.linear import ColumnParallelLinear, RowParallelLinear, column_linear
from model.parallel.parameters import make_parameter, zeros


class SelfAttention(nn.Module):
    """QKV, positions, attention, output projection.

    Rows of the QKV matrix stand head by head, each q, k, v (GPT-NeoX's layout, also Hugging Face's GPTNeoX), so that a contiguous
    shard holds whole heads.  Dropout on probabilities is ours in eager attention; inside a fused one it draws from torch's
    generator, which every rank seeds apart.
    """

    def __init__(
        self,
        config: RunConfig,
        groups: Groups,
        attend: Attention,
        positions: Heads,
        mask: Mask,
        number: int,
        norm: Norm,
        query_scale: float = 1.0,
    ) -> None:
        super().__init__()
        shape = config.architecture
        width, heads, bias = shape.hidden_size, shape.num_attention_heads, shape.use_bias_in_attn_linear
        if heads % groups.layout.tensor:
            raise ValueError(f"num_attention_heads {heads} is not a multiple of model_parallel_size {groups.layout.tensor}")
        self._heads = heads // groups.layout.tensor
        self.query_key_value: nn.Module
        if shape.num_kv_heads in (None, heads):
            self.query_key_value = ColumnParallelLinear(width, 3 * width, bias=bias, init=input_init(config), groups=groups)
        else:
            self.query_key_value = GroupedHeads(config, groups)
        self.query_layernorm: nn.Module | None = None
        self.key_layernorm: nn.Module | None = None
        if shape.use_qk_layernorm:
            self.query_layernorm, self.key_layernorm = norm(config, groups, of_heads=True), norm(config, groups, of_heads=True)
        self.dense = RowParallelLinear(width, width, bias=bias, init=output_init(config), groups=groups)
        self._attend, self._positions, self._mask = attend, positions, mask
        self._query_scale = query_scale
        self._softmax_in_fp32 = shape.attention_softmax_in_fp32
        self._layer_scale = float(max(1, number)) if shape.apply_query_key_layer_scaling else 1.0
        rate = shape.attention_dropout
        self._dropout = Dropout(rate, config.training.seed, number, PROBABILITIES, groups) if rate else None
        self._again = config.recomputes == "selective"

    def forward(self, x_BSD: Tensor, stage: Stage, cache: LayerCache | None, *, partial: bool = False) -> Tensor:
        """x_BSD -> x_BSD; ``partial``: this rank's term of the sum over tensor ranks, without the bias."""
        start = 0 if cache is None else cache.length
        made = self._normed(self.query_key_value(x_BSD))
        if isinstance(made, Tensor):
            q_BNSH, k_BMKH, v_BMKH = self._positions.split(made.unflatten(-1, (self._heads, -1)), start)
        else:
            q_BSNH, kv_BSM2H = made
            q_BNSH, k_BMKH, v_BMKH = self._positions.split_grouped(q_BSNH, kv_BSM2H, start)
        if cache is not None:
            k_BMKH, v_BMKH = cache.append(k_BMKH, v_BMKH)
        if self._again and self.training:
            draws = self._dropout is not None
            y_BNSH = checkpoint(self._core, q_BNSH, k_BMKH, v_BMKH, stage, use_reentrant=False, preserve_rng_state=draws)
        else:
            y_BNSH = self._core(q_BNSH, k_BMKH, v_BMKH, stage)
        out: Tensor = self.dense(y_BNSH.transpose(1, 2).flatten(2), partial=partial)
        return out

    def _normed(self, made: Tensor | tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        """With ``use_qk_layernorm`` queries and keys have gone through norms (Dehghani et al. 2023, arXiv:2302.05442, section 2):
        q_BSNH, kv_BSM2H."""
        if self.query_layernorm is None or self.key_layernorm is None:
            return made
        if isinstance(made, Tensor):
            q_BSNH, k_BSMH, v_BSMH = made.unflatten(-1, (self._heads, 3, -1)).unbind(-2)
        else:
            q_BSNH, (k_BSMH, v_BSMH) = made[0], made[1].chunk(2, dim=-1)
        return self.query_layernorm(q_BSNH), torch.cat((self.key_layernorm(k_BSMH), v_BSMH), dim=-1)

    def _core(self, q_BNSH: Tensor, k_BMKH: Tensor, v_BMKH: Tensor, stage: Stage) -> Tensor:
        if self._query_scale != 1:
            q_BNSH = q_BNSH * self._query_scale
        drop = None
        if self._dropout is not None and self.training:
            assert stage.sample_B is not None, "samples have numbers where something is dropped"
            drop = Drop(self._dropout, stage.sample_B)
        wide = self._softmax_in_fp32 or self._layer_scale != 1
        dtype = torch.float32 if wide and q_BNSH.dtype.itemsize < 4 else q_BNSH.dtype
        return self._attend(
            q_BNSH,
            k_BMKH,
            v_BMKH,
            mask_NQK=self._mask(q_BNSH.shape[2], k_BMKH.shape[2], q_BNSH.device, dtype),
            doc_ids_BQ=stage.doc_ids_BS,
            drop=drop,
            softmax_in_fp32=self._softmax_in_fp32,
            layer_scale=self._layer_scale,
        )


class GroupedHeads(nn.Module):
    """Queries of all heads, keys and values of fewer (Ainslie et al. 2023, "GQA", arXiv:2305.13245; one: Shazeer 2019,
    arXiv:1911.02150): x_BSD -> q_BSNH, kv_BSM2H.

    Where there are fewer key-value heads than tensor ranks, every rank holds all of them and uses the one of its queries.
    """

    def __init__(self, config: RunConfig, groups: Groups) -> None:
        super().__init__()
        shape, tensor = config.architecture, groups.layout.tensor
        kv_heads = shape.kv_heads
        if kv_heads % tensor and tensor % kv_heads:
            raise ValueError(f"num_kv_heads {kv_heads} is neither a multiple nor a divisor of model_parallel_size {tensor}")
        width, rows = shape.hidden_size, 2 * kv_heads * shape.head_size
        self._groups, self._head_size = groups, shape.head_size
        self._cut = kv_heads % tensor == 0
        """Every rank has key-value heads of its own."""
        self._place = 0 if self._cut else groups.tensor_rank * kv_heads // tensor
        init, kv_dim = input_init(config), 0 if self._cut else None
        self.query_weight = make_parameter((width, width), init, groups, shard_dim=0)
        self.key_value_weight: Tensor = make_parameter((rows, width), init, groups, shard_dim=kv_dim)
        self.query_bias: Tensor | None = None
        self.key_value_bias: Tensor | None = None
        if shape.use_bias_in_attn_linear:
            self.query_bias = make_parameter((width,), zeros, groups, shard_dim=0)
            self.key_value_bias = make_parameter((rows,), zeros, groups, shard_dim=kv_dim)

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """One matrix product for both."""
        weight, bias = self.key_value_weight, self.key_value_bias
        if not self._cut:
            given = share(self._groups, *(p for p in (weight, bias) if p is not None))
            rows = slice(2 * self._place * self._head_size, 2 * (self._place + 1) * self._head_size)
            weight, bias = given[0][rows], given[1][rows] if len(given) > 1 else None
        both = torch.cat([self.query_weight, weight])
        both_bias = None if self.query_bias is None or bias is None else torch.cat([self.query_bias, bias])
        y_BSd = column_linear(x_BSD, both, both_bias, self._groups)
        q_BSd, kv_BSd = y_BSd.split([len(self.query_weight), len(weight)], dim=-1)
        return q_BSd.unflatten(-1, (-1, self._head_size)), kv_BSd.unflatten(-1, (-1, 2 * self._head_size))


class Drop(NamedTuple):
    """A dropout and the samples that it is for."""

    dropout: Dropout
    sample_B: Tensor

    @property
    def rate(self) -> float:
        """Share that is dropped."""
        return self.dropout.rate

    def __call__(self, p_BNQK: Tensor) -> Tensor:
        """p_BNQK with entries dropped."""
        return self.dropout.probabilities(p_BNQK, self.sample_B)
