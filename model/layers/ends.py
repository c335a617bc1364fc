"""The ends of the network: tokens in, logits out; changes when tokens enter or logits leave otherwise."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from model.config import RunConfig
from model.layers.init import input_init
from model.layers.stage import Stage
from model.parallel.collectives import copy_in
from model.parallel.embedding import VocabParallelEmbedding
from model.parallel.groups import Groups
from model.parallel.linear import ColumnParallelLinear


class Embedding(nn.Module):
    """tokens_BS -> x_BSD"""

    def __init__(self, config: RunConfig, padded_vocab: int, groups: Groups) -> None:
        super().__init__()
        width = config.architecture.hidden_size
        self.word_embeddings = VocabParallelEmbedding(padded_vocab, width, init=input_init(config), groups=groups)
        self._dropout = config.architecture.hidden_dropout

    def forward(self, stage: Stage) -> Stage:
        """Rows of the embedding."""
        x_BSD = self.word_embeddings(stage.x)
        return stage._replace(x=F.dropout(x_BSD, self._dropout, training=self.training) if self._dropout else x_BSD)


class FinalNorm(nn.Module):
    """x_BSD -> x_BSD: the norm after the last block."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, stage: Stage) -> Stage:
        """The norm."""
        return stage._replace(x=self.norm(stage.x))


class Head(nn.Module):
    """x_BSD -> logits_BSv, the share of the vocabulary that lies here."""

    def __init__(self, config: RunConfig, padded_vocab: int, groups: Groups) -> None:
        super().__init__()
        width = config.architecture.hidden_size
        self.final_linear = ColumnParallelLinear(width, padded_vocab, bias=False, init=input_init(config), groups=groups)

    def forward(self, stage: Stage) -> Stage:
        """Logits."""
        return stage._replace(x=self.final_linear(stage.x))


class TiedHead(nn.Module):
    """The same, by the embedding's own matrix, which the caller passes in."""

    def __init__(self, groups: Groups) -> None:
        super().__init__()
        self._group = groups.tensor_group

    def forward(self, stage: Stage, weight_vD: Tensor) -> Stage:
        """Logits."""
        return stage._replace(x=F.linear(copy_in(stage.x, self._group), weight_vD))
