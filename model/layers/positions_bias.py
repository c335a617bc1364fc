"""Positions that are added to the attention's scores, by the distance of two tokens; changes when they are counted otherwise.

Legend: N heads here, D distances, R buckets.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from model.config import RunConfig
from model.layers.init import input_init
from model.layers.positions import Positions
from model.parallel.groups import Groups
from model.parallel.parameters import make_parameter


class Alibi:
    """-slope x distance, a slope for each head (Press et al. 2022, arXiv:2108.12409, section 3)."""

    learned = False

    def __init__(self, config: RunConfig, groups: Groups) -> None:
        heads = config.architecture.num_attention_heads
        here = heads // groups.layout.tensor
        self._slope_N1 = torch.tensor(slopes(heads))[groups.tensor_rank * here :][:here, None]

    def by_distance(self, distances: int) -> Tensor:
        """bias_ND"""
        return -self._slope_N1 * torch.arange(distances)


def slopes(heads: int) -> list[float]:
    """2^(-8 i / heads) for i = 1 … heads.  Where heads is no power of two: those of the power below, then every other one of the
    power above (the authors' code: attention_with_linear_biases, ``get_slopes``)."""
    power = 2 ** int(math.log2(heads))
    between = [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return [2 ** (-8 * (i + 1) / power) for i in range(power)] + between


class RelativePositions(nn.Module):
    """A learned number for each head and bucket of distances (T5, Raffel et al. 2020, arXiv:1910.10683), times the root
    of the head's size, as in GPT-NeoX: T5's own scores are not divided by it.

    One table serves all layers; every pipeline stage has a copy, whose gradients are summed (model/engine/pipeline.py).
    """

    learned = True

    def __init__(self, config: RunConfig, groups: Groups) -> None:
        super().__init__()
        shape = config.architecture
        self._buckets, self._furthest = shape.rpe_num_buckets, shape.rpe_max_distance
        self._scale = math.sqrt(shape.head_size)
        init = replace(input_init(config), method="xavier_normal")  # in GPT-NeoX whatever init_method says
        self.weight = make_parameter((self._buckets, shape.num_attention_heads), init, groups, shard_dim=1)

    def forward(self, distances: int) -> Tensor:
        """bias_ND in fp32."""
        bucket_D = buckets(distances, self._buckets, self._furthest).to(self.weight.device)
        return self._scale * self.weight.float().index_select(0, bucket_D).T

    def by_distance(self, distances: int) -> Tensor:
        """bias_ND: by a call, for what hangs on calls of modules (ZeRO-3 gathers the table)."""
        bias_ND: Tensor = self(distances)
        return bias_ND


def alibi(config: RunConfig, groups: Groups) -> Positions:
    """``pos_emb: alibi``"""
    return Positions(bias=Alibi(config, groups))


def relative(config: RunConfig, groups: Groups) -> Positions:
    """``pos_emb: rpe``"""
    return Positions(bias=RelativePositions(config, groups))


def buckets(distances: int, count: int, furthest: int) -> Tensor:
    """bucket_D: one for each distance up to half of them, the others wider and wider up to ``furthest``."""
    exact, distance_D = count // 2, torch.arange(distances)
    grown_D = torch.log(distance_D.clamp(min=1).float() / exact) / math.log(furthest / exact) * (count - exact)
    return torch.where(distance_D < exact, distance_D, (exact + grown_D.long()).clamp(max=count - 1))
