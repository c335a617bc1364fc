"""From a configuration to the network: the architecture on one screen; changes when the network has another plan.

GPT-NeoX (Black et al. 2022, arXiv:2204.06745): embedding, blocks, final norm, head.
Legend: B batch, S tokens, D width, V vocabulary, v a tensor rank's share of the padded one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import RunConfig
from model.data.batch import Batch
from model.implementations import Implementations, choose
from model.layers.block import Block
from model.layers.cache import LayerCache
from model.layers.ends import Embedding, FinalNorm, Head, TiedHead
from model.layers.stage import Stage
from model.parallel.collectives import gather_last
from model.parallel.groups import Groups, one_rank
from model.parallel.loss import masked_mean
from model.parallel.parameters import fill_parameters, name_parameters, reset_parameters


def layer_list(config: RunConfig, padded_vocab: int, groups: Groups, table: Implementations) -> list[nn.Module]:
    """The layers in order, each from a :class:`Stage` to the next; a pipeline deals them to its ranks.

    Their parameters have global names and no values yet.  A tied head takes the embedding's matrix as its second argument.
    """
    shape = config.architecture
    embedding = Embedding(config, padded_vocab, groups)
    positions = table.positions.code(shape)
    blocks = [
        Block(config, groups, norm=table.norm.code, attend=row.code, activation=table.activation.code, positions=positions)
        for row in table.attention
    ]
    norm = table.norm.code(config, groups)
    head = Head(config, padded_vocab, groups) if shape.no_weight_tying else TiedHead(groups)
    named = [("embedding", embedding), *((f"layers.{n}", b) for n, b in enumerate(blocks)), ("final_norm", norm), ("head", head)]
    name_parameters(named)
    return [embedding, *blocks, FinalNorm(norm), head]


class GPT(nn.Module):
    """All layers on one pipeline stage; the forward pass is the loss."""

    def __init__(
        self,
        config: RunConfig,
        vocab_size: int,
        groups: Groups | None = None,
        *,
        device: torch.device | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Built on the CPU in fp32.

        Args:
            vocab_size: the tokenizer's; the matrices are padded.
            device: where it will run (it chooses the implementations); the CPU when absent.
            weights: whole tensors by global name; drawn from the seed when absent.

        Raises:
            ValueError: the layout cannot cut the model, an implementation is missing, or the weights are of another architecture.
        """
        super().__init__()
        self.vocab_size = vocab_size
        self.padded_vocab_size = config.padded_vocab_size(vocab_size)
        self.groups = groups or one_rank()
        self.implementations = choose(config, device or torch.device("cpu"))
        self.layers = nn.ModuleList(layer_list(config, self.padded_vocab_size, self.groups, self.implementations))
        training, shape = config.training, config.architecture
        self._recompute = training.checkpoint_num_layers if training.checkpoint_activations else 0
        self._draws = bool(shape.hidden_dropout or shape.attention_dropout)
        if weights is None:
            reset_parameters(self, training.seed)
        else:
            fill_parameters(self, weights)

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss of a micro-batch in fp32, over the labels that count; the same on every tensor rank."""
        stage = self._blocks(self.layers[0](Stage(batch.tokens_BS, batch.doc_ids_BS)), None)
        loss_BS = self.implementations.loss.code(self._logits(stage), batch.labels_BS, self.groups)
        return masked_mean(loss_BS, batch.loss_mask_BS)

    def logits(self, tokens_BS: Tensor, cache: Sequence[LayerCache] | None = None, *, last_only: bool = False) -> Tensor:
        """logits_BSV without the padding; ``cache`` holds the tokens before these and grows; ``last_only``: of one token."""
        stage = self._blocks(self.layers[0](Stage(tokens_BS)), cache)
        if last_only:
            stage = stage._replace(x=stage.x[:, -1:])
        return gather_last(self._logits(stage), self.groups.tensor_group)[..., : self.vocab_size]

    def new_cache(self) -> list[LayerCache]:
        """An empty cache."""
        return [LayerCache() for _ in self.layers[1:-2]]

    def _blocks(self, stage: Stage, cache: Sequence[LayerCache] | None) -> Stage:
        blocks = self.layers[1:-2]
        if self._recompute and self.training and cache is None:
            for first in range(0, len(blocks), self._recompute):
                part = blocks[first : first + self._recompute]
                stage = checkpoint(_run, part, stage, use_reentrant=False, preserve_rng_state=self._draws)
            return stage
        return _run(blocks, stage, cache)

    def _logits(self, stage: Stage) -> Tensor:
        """logits_BSv"""
        embedding, norm, head = self.layers[0], self.layers[-2], self.layers[-1]
        if isinstance(head, TiedHead):
            assert isinstance(embedding, Embedding)
            return head(norm(stage), embedding.word_embeddings.weight).x
        return head(norm(stage)).x


def _run(blocks: Sequence[nn.Module] | nn.ModuleList, stage: Stage, cache: Sequence[LayerCache] | None = None) -> Stage:
    for number, block in enumerate(blocks):
        stage = block(stage, None if cache is None else cache[number])
    return stage
