"""Positions that are added to embeddings: learned ones and sinusoids; changes when they are added otherwise.

Legend: B batch, S tokens (this rank's share of them under sequence parallelism), D width, P positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import RunConfig
from model.layers.init import input_init
from model.layers.positions import Positions
from model.parallel.collectives import share
from model.parallel.groups import Groups
from model.parallel.parameters import make_parameter


class LearnedPositions(nn.Module):
    """A row of a table for every position (Radford et al. 2018, GPT, section 4.1), the same table on every tensor rank.

    It has ``max_position_embeddings`` rows, of which the first ``opt_pos_emb_offset`` are for no position (OPT, Zhang et al. 2022,
    arXiv:2205.01068: two rows are for padding).
    """

    def __init__(self, config: RunConfig, groups: Groups) -> None:
        super().__init__()
        shape = config.architecture
        self.weight: Tensor = make_parameter((shape.max_position_embeddings, shape.hidden_size), input_init(config), groups)
        self._offset, self._groups = shape.opt_pos_emb_offset, groups
        self._scale = config.maximal_update.mup_rp_embedding_mult

    def forward(self, x_BSD: Tensor, start: int) -> Tensor:
        """x_BSD, whose first token stands at position ``start``, with its positions added."""
        table_PD = self.weight
        if self._groups.sequence_parallel:
            (table_PD,) = share(self._groups, table_PD)
        return torch.add(x_BSD, _rows(table_PD, x_BSD, start, self._groups, self._offset), alpha=self._scale)


class Sinusoids(nn.Module):
    """sin and cos of position / 10000^(2i/D), the sines first, as tensor2tensor and GPT-NeoX have them (Vaswani et al. 2017,
    arXiv:1706.03762, section 3.5, whose order alternates)."""

    def __init__(self, config: RunConfig, groups: Groups) -> None:
        super().__init__()
        shape = config.architecture
        width = shape.hidden_size
        angle = torch.arange(shape.max_position_embeddings, dtype=torch.float64)[:, None] * 10000 ** (
            -torch.arange(0, width, 2, dtype=torch.float64) / width
        )
        scale = config.maximal_update.mup_rp_embedding_mult
        self._table_PD = scale * torch.cat([angle.sin(), angle.cos()], dim=-1)[:, :width].float()
        self._groups = groups

    def forward(self, x_BSD: Tensor, start: int) -> Tensor:
        """x_BSD, whose first token stands at position ``start``, with its positions added."""
        if self._table_PD.device != x_BSD.device:
            self._table_PD = self._table_PD.to(x_BSD.device)
        return x_BSD + _rows(self._table_PD, x_BSD, start, self._groups).to(x_BSD.dtype)


def learned(config: RunConfig, groups: Groups) -> Positions:
    """``pos_emb: learned``"""
    return Positions(added=lambda: LearnedPositions(config, groups))


def sinusoidal(config: RunConfig, groups: Groups) -> Positions:
    """``pos_emb: sinusoidal``"""
    return Positions(added=lambda: Sinusoids(config, groups))


def _rows(table_PD: Tensor, x_BSD: Tensor, start: int, groups: Groups, offset: int = 0) -> Tensor:
    """The rows of the tokens that lie here."""
    tokens = x_BSD.shape[1]
    first = offset + start + (groups.tensor_rank * tokens if groups.sequence_parallel else 0)
    assert first + tokens <= len(table_PD), f"position {first + tokens - 1} of {len(table_PD)}"
    return table_PD[first : first + tokens]
