"""From a configuration to the network: the architecture on one screen; changes when the network has another plan.

GPT-NeoX (Black et al. 2022, arXiv:2204.06745): embedding, blocks, final norm, head.
Legend: B batch, S tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.compiled import compile_blocks, eagerly
from model.config import RunConfig
from model.config.partition import layer_parameters, stage_bounds
from model.data.batch import Batch
from model.implementations import Implementations, choose
from model.layers.block import Block
from model.layers.cache import LayerCache
from model.layers.ends import Embedding, FinalNorm, Head
from model.layers.init import Draw, drawing_device
from model.layers.masks import Mask
from model.layers.positions import Positions
from model.layers.stage import Stage, pack, unpack
from model.mup import BaseShapes, Multipliers, initial_factor, multipliers
from model.parallel.groups import Groups, one_rank
from model.parallel.parameters import GlobalParameter, fill_parameters, global_parameters, name_parameters, reset_parameters
from model.parallel.pipe import from_last, receive, send

Recompute = Callable[..., Tensor]
"""(function, *tensors) -> function(*tensors), whose inside is computed again in the backward pass."""


def make_layers(
    config: RunConfig,
    padded_vocab: int,
    groups: Groups,
    table: Implementations,
    positions: Positions,
    which: Sequence[int],
    times: Multipliers = Multipliers(),  # noqa: B008 (frozen)
) -> list[nn.Module]:
    """The layers whose numbers are ``which`` (the embedding is 0), each from a :class:`Stage` to the next; the head ends them.

    Their parameters have global names and no values yet.
    """
    shape = config.architecture
    patterns = {row.name: row.code for row in table.pattern}
    masks = {name: Mask(make(config, groups), positions.bias) for name, make in patterns.items()}
    last = shape.num_layers + 2
    made: dict[str, nn.Module] = {}
    for number in which:
        if number == 0:
            made["embedding"] = Embedding(config, padded_vocab, groups, positions)
        elif number == last - 1:
            made["final_norm"] = FinalNorm(table.norm.code(config, groups))
        elif number == last:
            tied = None if shape.no_weight_tying else made.get("embedding") or Embedding(config, padded_vocab, groups, Positions())
            assert tied is None or isinstance(tied, Embedding)
            made["head"] = Head(config, padded_vocab, groups, tied, table.loss.code, times.head)
        else:
            made[f"layers.{number - 1}"] = Block(
                config,
                groups,
                number=number - 1,
                norm=table.norm.code,
                attend=table.attention[number - 1].code,
                activation=table.activation.code,
                positions=positions.heads,
                mask=masks[table.pattern[number - 1].name],
                query_scale=times.query,
            )
    name_parameters(_named(name, layer) for name, layer in made.items())
    if isinstance(positions.bias, nn.Module):
        name_parameters([("relative_positions", positions.bias)])
    return list(made.values())


class GPT(nn.Module):
    """The layers of this rank's pipeline stage, which are all of them where there is one; the forward pass is then the loss."""

    def __init__(
        self,
        config: RunConfig,
        vocab_size: int,
        groups: Groups | None = None,
        *,
        device: torch.device | None = None,
        weights: Mapping[str, Tensor] | None = None,
        base: BaseShapes | None = None,
    ) -> None:
        """Built on the CPU in fp32.

        Args:
            vocab_size: the tokenizer's; the matrices are padded.
            device: where it will run (it chooses the implementations, and draws the weights); the CPU when absent.
            weights: whole tensors by global name; drawn from the seed when absent.
            base: muP's base network, where ``use_mup``.

        Raises:
            ValueError: the layout cannot cut the model, an implementation is missing, or the weights are of another architecture.
        """
        super().__init__()
        assert config.maximal_update.use_mup == (base is not None), "muP is relative to a base network"
        self.vocab_size = vocab_size
        self.padded_vocab_size = config.padded_vocab_size(vocab_size)
        self.groups = groups or one_rank()
        device = device or torch.device("cpu")
        self.implementations = choose(config, device)
        if self.groups.sequence_parallel and config.architecture.seq_length % self.groups.layout.tensor:
            asked = f"model_parallel_size {self.groups.layout.tensor} with sequence_parallel"
            raise ValueError(f"seq_length {config.architecture.seq_length} is not a multiple of {asked}")
        sizes = layer_parameters(config, self.padded_vocab_size)
        bounds = stage_bounds(config, self.groups.layout.pipe, parameters=sizes)
        here = bounds[self.groups.pipe_rank]
        self.first_layer = here.start
        """Among all layers of the network, of which the embedding is 0."""
        times = multipliers(config, base)
        positions = self.implementations.positions.code(config, self.groups)
        layers = make_layers(config, self.padded_vocab_size, self.groups, self.implementations, positions, here, times)
        head = layers.pop() if self.groups.last_stage else None
        self.layers = nn.ModuleList(layers)
        self.relative_positions = positions.bias if isinstance(positions.bias, nn.Module) else None
        """What all blocks share, on every stage."""
        if self.relative_positions is not None and not self.blocks:
            raise ValueError(
                f"pos_emb {config.architecture.pos_emb}: pipeline stage {self.groups.pipe_rank} has no block that could use it\n"
                "  fix: fewer stages (pipe_parallel_size), or pipe_partition_method: type:transformer|mlp"
            )
        assert head is None or isinstance(head, Head)
        self.head: Head | None = head
        training, shape = config.training, config.architecture
        self.tied = not shape.no_weight_tying
        """The head uses the embedding's matrix."""
        self._every = training.checkpoint_num_layers if config.recomputes == "full" else 0
        fused = any(row.name != "eager" for row in self.implementations.attention)
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=bool(shape.attention_dropout) and fused)
        self.recompute: Recompute = again
        """What ``checkpoint_activations`` recomputes blocks with: torch's, unless the engine puts another in its place."""
        self.fields = ("x", "sample_B") if shape.hidden_dropout or shape.attention_dropout else ("x",)
        """Of :class:`Stage`, what travels in training."""
        self._width = shape.hidden_size
        self._compiled = config.own.neox_hpc.compile
        if self._compiled:
            compile_blocks(self.blocks, device)
        if base is not None:
            for parameter in global_parameters(self):
                parameter.growth = base.growth(parameter.global_name, parameter.global_shape)
        if weights is None:
            reset_parameters(self, training.seed, drawing_device(config, device), _factor(config, base))
        else:
            fill_parameters(self, weights, whole=self.groups.layout.pipe == 1)

    def stage_of(self, batch: Batch) -> Stage:
        """What the first layer is given."""
        return Stage(batch.tokens_BS, batch.doc_ids_BS, batch.sample_B if "sample_B" in self.fields else None)

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss of a micro-batch in fp32, over the labels that count; the same on every tensor rank."""
        assert self.head is not None and self.groups.first_stage, "all layers on one stage"
        stage = self.run_layers(self.stage_of(batch))
        loss: Tensor = self.head(stage.x, batch.labels_BS, batch.loss_mask_BS)
        return loss

    def run_layers(self, stage: Stage, cache: Sequence[LayerCache] | None = None) -> Stage:
        """The layers that lie here, except for the head."""
        blocks: list[Block] = []
        for number, layer in enumerate(self.layers):
            if cache is not None and isinstance(layer, (Embedding, Block)):
                stage = layer(stage, cache[number])
            elif not isinstance(layer, Block):
                stage, blocks = layer(self._run_again(blocks, stage)), []
            elif self._every and self.training:
                blocks.append(layer)
            else:
                stage = layer(stage)
        return self._run_again(blocks, stage)

    def logits(self, tokens_BS: Tensor, cache: Sequence[LayerCache] | None = None, *, last_only: bool = False) -> Tensor:
        """logits_BSV without the padding, on every rank; ``cache`` holds the tokens before these and grows.

        ``last_only``: of the last token.  No gradient.
        """
        assert not self.groups.sequence_parallel, "a single token cannot be shared out: sample on groups without it"
        stage = Stage(tokens_BS)
        if not self.groups.first_stage:
            B, S = tokens_BS.shape
            like = next(self.parameters())
            stage = Stage(receive((B, S, self._width), like.dtype, like.device, self.groups))
        with eagerly(self._compiled):  # every token that is sampled would be another shape
            stage = self.run_layers(stage, cache)
        if self.head is None:
            send(stage.x, self.groups)
        x_BSD = stage.x[:, -1:] if last_only else stage.x
        shape = (*x_BSD.shape[:2], self.padded_vocab_size)
        whole = None if self.head is None else self.head(x_BSD)
        return from_last(whole, shape, x_BSD, self.groups)[..., : self.vocab_size]

    def new_cache(self) -> list[LayerCache]:
        """An empty cache for each of the layers that lie here."""
        return [LayerCache() for _ in self.layers]

    @property
    def blocks(self) -> list[Block]:
        """Those that lie here."""
        return [layer for layer in self.layers if isinstance(layer, Block)]

    def _run_again(self, blocks: Sequence[Block], stage: Stage) -> Stage:
        """Blocks whose insides the backward pass computes again, ``checkpoint_num_layers`` at a time."""
        for first in range(0, len(blocks), self._every or 1):
            fields = [name for name, field in stage._asdict().items() if field is not None]
            part = partial(_run, blocks[first : first + self._every], fields)
            stage = stage._replace(x=self.recompute(part, *pack(stage)))
        return stage


def _run(blocks: Sequence[Block], fields: Sequence[str], *tensors: Tensor) -> Tensor:
    stage = unpack(tensors, fields)
    for block in blocks:
        stage = block(stage)
    return stage.x


def _factor(config: RunConfig, base: BaseShapes | None) -> Callable[[GlobalParameter], float]:
    """What a first value is multiplied by: 1 but for weights under muP."""

    def factor(parameter: GlobalParameter) -> float:
        if base is None or parameter.growth is None or not isinstance(parameter.init, Draw):
            return 1.0
        scale = config.maximal_update.mup_init_scale
        return scale * initial_factor(parameter.init, parameter.global_shape, parameter.growth, base)

    return factor


def _named(name: str, layer: nn.Module) -> tuple[str, nn.Module]:
    """What the parameters below a layer are named by: a tied head's are the embedding's."""
    if isinstance(layer, FinalNorm):
        return name, layer.norm
    if isinstance(layer, Head):
        return "embedding" if layer.tied else "head.final_linear", layer
    return name, layer
