"""The ends of the network: tokens in, logits or their loss out; changes when tokens enter or logits leave otherwise."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from model.config import RunConfig
from model.layers.cache import LayerCache
from model.layers.dropout import EMBEDDING, Dropout
from model.layers.init import input_init
from model.layers.positions import Positions
from model.layers.stage import Stage
from model.parallel.collectives import gather_last, start_gather, start_sum
from model.parallel.embedding import VocabParallelEmbedding
from model.parallel.groups import Groups
from model.parallel.loss import Cut
from model.parallel.parameters import make_parameter

Loss = Callable[..., Tensor]
"""model/parallel/loss.py: ``head_loss``"""


class Embedding(nn.Module):
    """tokens_BS -> x_BSD; ``cache`` counts the tokens, where positions are added here."""

    def __init__(self, config: RunConfig, padded_vocab: int, groups: Groups, positions: Positions) -> None:
        super().__init__()
        shape = config.architecture
        self.word_embeddings = VocabParallelEmbedding(padded_vocab, shape.hidden_size, init=input_init(config), groups=groups)
        self.position_embeddings = None if positions.added is None else positions.added()
        self._scale = config.maximal_update.mup_embedding_mult
        rate, layer = shape.hidden_dropout, shape.num_layers  # blocks are layers 0 to num_layers - 1
        self._dropout = Dropout(rate, config.training.seed, layer, EMBEDDING, groups) if rate else None

    def forward(self, stage: Stage, cache: LayerCache | None = None) -> Stage:
        """Rows of the embedding, and of the positions."""
        x_BSD = self.word_embeddings(stage.x)
        if self.position_embeddings is not None:
            x_BSD = self.position_embeddings(x_BSD, 0 if cache is None else cache.count(stage.x.shape[1]))
        if self._scale != 1:
            x_BSD = x_BSD * self._scale
        if self._dropout is not None and self.training:
            assert stage.sample_B is not None, "samples have numbers where something is dropped"
            x_BSD = self._dropout.residual(x_BSD, stage.sample_B)
        return stage._replace(x=x_BSD)


class FinalNorm(nn.Module):
    """x_BSD -> x_BSD: the norm after the last block."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, stage: Stage) -> Stage:
        """The norm."""
        return stage._replace(x=self.norm(stage.x))


class Head(nn.Module):
    """x_BSD -> the mean loss, or logits_BSV.

    Its matrix is cut along the vocabulary ("column") or along its width ("row").  A tied head uses the embedding's, which it
    holds as a module: the same one, or where the first pipeline stage has that, a copy.
    """

    def __init__(
        self, config: RunConfig, padded_vocab: int, groups: Groups, tied: Embedding | None, loss: Loss, scale: float = 1.0
    ) -> None:
        super().__init__()
        shape = config.architecture
        self._cut: Cut = shape.output_layer_parallelism
        self._z_loss = config.post_training.z_loss
        self._in_fp32 = not config.deepspeed.fp16_lm_cross_entropy
        self._groups, self._width, self._loss, self._scale = groups, shape.hidden_size, loss, scale
        if tied is not None:
            self.word_embeddings = tied.word_embeddings
        else:
            dim = 0 if self._cut == "column" else 1
            self.weight = make_parameter((padded_vocab, shape.hidden_size), input_init(config), groups, shard_dim=dim)

    @property
    def tied(self) -> bool:
        """The matrix is the embedding's."""
        return "word_embeddings" in self._modules

    @property
    def matrix(self) -> Tensor:
        """The share of weight_VD that lies here."""
        return self.word_embeddings.weight if self.tied else self.weight

    def forward(
        self, x_BSD: Tensor, labels_BS: Tensor | None = None, mask_BS: Tensor | None = None, *, matrix: Tensor | None = None
    ) -> Tensor:
        """The mean loss in fp32 over the labels whose mask is 1; without labels logits_BSV, which have no gradient.

        ``matrix``: this head's, if it came another way.
        """
        weight = self.matrix if matrix is None else matrix
        if self._scale != 1:
            x_BSD = x_BSD * self._scale
        if labels_BS is None or mask_BS is None:
            return self._logits(x_BSD, weight)
        how = {"cut": self._cut, "z_loss": self._z_loss, "in_fp32": self._in_fp32}
        return self._loss(x_BSD, weight, labels_BS, mask_BS, self._groups, **how)

    def _logits(self, x_BSD: Tensor, weight: Tensor) -> Tensor:
        groups = self._groups
        if groups.sequence_parallel:
            x_BSD = start_gather(x_BSD, groups)()
        if self._cut == "column" or groups.tensor_group is None:
            return gather_last(F.linear(x_BSD, weight), groups.tensor_group)
        share = self._width // groups.layout.tensor
        return start_sum(F.linear(x_BSD.narrow(-1, groups.tensor_rank * share, share), weight), groups)()
