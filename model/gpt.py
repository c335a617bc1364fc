"""From a configuration to the network: the architecture on one screen.

GPT-NeoX (Black et al. 2022, arXiv:2204.06745): embedding, blocks, final norm, head.
Legend: B batch, S tokens, D width, V padded vocabulary, v its share on this tensor rank.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import RunConfig
from model.data.batch import Batch
from model.implementations import ACTIVATION_CODE, ATTENTION_CODE, Implementations, choose
from model.layers.attention import LayerCache
from model.layers.block import Block
from model.layers.ends import Embedding, Head, TiedHead
from model.layers.norm import NORMS
from model.layers.positions import Rotary
from model.parallel.collectives import gather_last
from model.parallel.groups import Groups, one_rank
from model.parallel.loss import cross_entropy, masked_mean
from model.parallel.parameters import name_parameters, reset_parameters


def layer_list(config: RunConfig, padded_vocab: int, groups: Groups, table: Implementations) -> list[tuple[str, nn.Module]]:
    """The layers in order, by name; a pipeline deals them to its stages."""
    shape = config.architecture
    rotary = None
    if shape.pos_emb == "rotary":
        rotary = Rotary(shape.rotary_dims, shape.rotary_emb_base, shape.max_position_embeddings)
    activation = ACTIVATION_CODE[table.activation]
    blocks = [Block(config, groups, ATTENTION_CODE[name], activation, rotary) for name in table.attention]
    head = Head(config, padded_vocab, groups) if shape.no_weight_tying else TiedHead(groups)
    return [
        ("embedding", Embedding(config, padded_vocab, groups)),
        *((f"layers.{number}", block) for number, block in enumerate(blocks)),
        ("final_norm", NORMS[shape.norm](config, groups)),
        ("head", head),
    ]


class GPT(nn.Module):
    """All layers on one pipeline stage."""

    embedding: Embedding
    head: Head | TiedHead

    def __init__(self, config: RunConfig, vocab_size: int, groups: Groups | None = None) -> None:
        """``vocab_size``: the tokenizer's; the matrices are padded."""
        super().__init__()
        self.vocab_size = vocab_size
        self.padded_vocab_size = config.padded_vocab_size(vocab_size)
        self.groups = groups or one_rank()
        self.implementations = choose(config)
        named = layer_list(config, self.padded_vocab_size, self.groups, self.implementations)
        self.layers = nn.ModuleList(layer for name, layer in named if name.startswith("layers."))
        for name, layer in named:
            if not name.startswith("layers."):
                self.add_module(name, layer)
        self._recompute = config.training.checkpoint_num_layers if config.training.checkpoint_activations else 0
        name_parameters(self)
        reset_parameters(self, config.training.seed)

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss of a micro-batch in fp32, over the labels that count."""
        logits_BSv = self._logits(batch.tokens_BS, None)
        return masked_mean(cross_entropy(logits_BSv, batch.labels_BS, self.groups), batch.loss_mask_BS)

    def logits(self, tokens_BS: Tensor, cache: Sequence[LayerCache] | None = None) -> Tensor:
        """logits_BSV of the next tokens, without the padding; ``cache`` holds a LayerCache a layer and grows by these tokens."""
        return gather_last(self._logits(tokens_BS, cache), self.groups.tensor_group)[..., : self.vocab_size]

    def new_cache(self) -> list[LayerCache]:
        """An empty cache."""
        return [LayerCache() for _ in self.layers]

    def _logits(self, tokens_BS: Tensor, cache: Sequence[LayerCache] | None) -> Tensor:
        x_BSD = self.final_norm(self._blocks(self.embedding(tokens_BS), cache))
        if isinstance(self.head, TiedHead):
            return self.head(x_BSD, self.embedding.word_embeddings.weight)
        return self.head(x_BSD)

    def _blocks(self, x_BSD: Tensor, cache: Sequence[LayerCache] | None) -> Tensor:
        if self._recompute and self.training and cache is None:
            for first in range(0, len(self.layers), self._recompute):
                x_BSD = checkpoint(_run, self.layers[first : first + self._recompute], x_BSD, use_reentrant=False)
            return x_BSD
        for number, block in enumerate(self.layers):
            x_BSD = block(x_BSD, None if cache is None else cache[number])
        return x_BSD


def _run(blocks: nn.ModuleList, x_BSD: Tensor) -> Tensor:
    for block in blocks:
        x_BSD = block(x_BSD)
    return x_BSD
