"""Bytes of activations on a rank: what the network's own layers keep for the backward pass, and what they work in.  No torch.

Changes when a layer keeps something else.  Each term names the operation of ``model/`` whose autograd holds it; the shape of the
count follows Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", arXiv:2205.05198,
equations 1, 2 and 4, which are for another network (GPT-3's, with dropout and 16-bit scores).
Legend: T tokens of a micro-batch, D width, F width of the MLP, S sequence, N heads, t tensor ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from neox_hpc.vocabulary import SPARSE, BatchSizes, Layout, RunConfig

FUSED_KINDS = frozenset({"flash"})
COUNTED_KINDS = frozenset({"global", "flash", *SPARSE})
"""Kinds of attention whose blocks these formulas describe."""
Device = Literal["cpu", "gpu"]
CHUNK = {"cpu": 3 << 23, "gpu": 1 << 26}
"""Logits that exist at one time, and the fewest rows of them (model/parallel/loss.py)."""
CHUNK_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes of one micro-batch in the layers of one stage."""

    kept: int
    """From the forward pass to the backward pass."""
    work: int
    """While one block, or one recomputed group of blocks, goes back."""
    loss: int
    """While the head and the loss are computed, on the last stage; the gradients that they leave behind included."""
    after_loss: int
    """What the loss leaves behind until the backward pass has used it."""
    passed: int
    """What one stage hands to the next."""


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """Bytes of the tensors of one micro-batch on one rank."""

    residual: int
    """x_BSD of the residual stream; its share under sequence parallelism."""
    whole: int
    """x_BSD of all tokens."""
    heads: int
    """The width of this rank's heads."""
    keys: int
    """Keys, or values, of this rank's heads."""
    inner: int
    """The width of the MLP here; a gated one has values and gates of it."""
    scores: int
    """B N S S of this rank's heads."""
    grouped: int
    """The matrix of queries, keys and values, where they are made by two that are put together."""
    rows: int
    """A number in fp32 for each token."""
    tensor: int


def stage_activations(
    config: RunConfig, layout: Layout, batch: BatchSizes, padded_vocab: int, layers: range, device: Device
) -> Activations:
    """The activations of the stage that holds ``layers`` (of embedding, blocks, final norm and head)."""
    shape = config.architecture
    sizes = _sizes(config, layout, batch)
    blocks = range(max(layers.start, 1), min(layers.stop, shape.num_layers + 1))
    last = layers.stop == shape.num_layers + 3
    kept, work = _kept_by_blocks(config, sizes, blocks, device)
    ends = 3 * 8 * shape.seq_length * batch.micro  # tokens, labels and the mask with its numbers in int64 or fp32
    if layers.start == 0 and shape.hidden_dropout:
        ends += sizes.residual  # the mask of the embedding's dropout
    if last:
        ends += sizes.residual + _norm(config, sizes.residual, sizes.rows, device)  # the final norm's input
    loss, after = _loss(config, layout, batch, padded_vocab, device) if last else (0, 0)
    masks = _masks(config, layout) if blocks else 0  # of all micro-batches and layers, at any time
    return Activations(kept=kept + ends, work=work + masks, loss=loss + masks, after_loss=after, passed=sizes.residual)


def _sizes(config: RunConfig, layout: Layout, batch: BatchSizes) -> _Sizes:
    shape, tensor = config.architecture, layout.tensor
    width = 4 if config.precision == "fp32" else 2
    tokens = shape.seq_length * batch.micro
    heads = tokens * shape.hidden_size * width // tensor
    kv_heads = max(shape.kv_heads, tensor)  # where there are fewer than ranks, a rank uses one
    whole = tokens * shape.hidden_size * width
    return _Sizes(
        residual=whole // (tensor if config.parallelism.sequence_parallel else 1),
        whole=whole,
        heads=heads,
        keys=tokens * shape.head_size * kv_heads * width // tensor,
        inner=tokens * shape.ffn_size * width // tensor,
        grouped=shape.hidden_size * (shape.hidden_size // tensor + 2 * shape.head_size * kv_heads // tensor) * width,
        scores=tokens * shape.seq_length * shape.num_attention_heads * width // tensor,
        rows=4 * tokens,
        tensor=tensor,
    )


def _kept_by_blocks(config: RunConfig, sizes: _Sizes, numbers: range, device: Device) -> tuple[int, int]:
    """What all blocks of a stage keep, and what one of them (or one group that is recomputed) works in."""
    blocks, scaled = len(numbers), bool(numbers) and _scaled(config, numbers[-1])
    block, work = _block(config, sizes, device, scaled), _work(config, sizes, device, scaled)
    if config.recomputes != "full" or not blocks:
        plain = sum(not _scaled(config, number) for number in numbers[:2])
        return plain * _block(config, sizes, device, False) + (blocks - plain) * block, work if blocks else 0
    together, training = min(config.training.checkpoint_num_layers, blocks), config.training
    stored = sizes.residual // (
        sizes.tensor if training.partition_activations and training.deepspeed_activation_checkpointing else 1
    )
    return -(-blocks // together) * stored, together * block + work


def _scaled(config: RunConfig, number: int) -> bool:
    """The scores of the block (the first has number 1) stay small until they are in fp32: those of all but the first two."""
    return config.architecture.apply_query_key_layer_scaling and number > 2


def _block(config: RunConfig, sizes: _Sizes, device: Device, scaled: bool) -> int:
    """Kept by one block (model/layers/block.py)."""
    shape = config.architecture
    norms = 1 if shape.gpt_j_residual and shape.gpt_j_tied else 2
    inputs = 1 if shape.gpt_j_residual else 2  # of the norms: both sit on the block's input when side by side
    total = (norms + inputs) * sizes.residual  # a norm's output is its linear layer's input
    total += norms * _norm(config, sizes.residual, sizes.rows, device)
    total += _attention(config, sizes, device, scaled)
    total += sizes.inner * _mlp(config)
    if shape.hidden_dropout:
        total += 2 * sizes.residual  # masks
    return total


def _norm(config: RunConfig, size: int, rows: int, device: Device) -> int:
    """Kept by a norm beside its input and output: two numbers a row.

    torch's RMSNorm on a CPU keeps its output before the gain as well, and in 16 bits that and its input, instead of the input
    itself, in fp32.
    """
    if config.architecture.norm != "rmsnorm" or device != "cpu":
        return 2 * rows
    return 2 * rows + (size if config.precision == "fp32" else 3 * size)


def _mlp(config: RunConfig) -> int:
    """Tensors of the MLP's width that are kept: values and gates, or neither; and what the activation makes of them."""
    shape = config.architecture
    if config.recomputes == "selective":
        return 2 if shape.gated else 1
    fused = shape.use_flashattn_swiglu  # computes silu(gates) again
    return 3 if fused else shape.kept_by_activation


def _attention(config: RunConfig, sizes: _Sizes, device: Device, scaled: bool) -> int:
    """Queries, keys and values after the rotation; what comes out; probabilities where they exist."""
    total = sizes.heads + 2 * sizes.keys + sizes.heads
    if config.architecture.kv_heads != config.architecture.num_attention_heads:
        total += sizes.grouped  # one matrix put together from two
    if config.architecture.use_qk_layernorm:
        total += sizes.heads + 2 * sizes.keys  # all that was made, of which the norms see a part
        total += _norm(config, sizes.heads, sizes.rows * config.architecture.num_attention_heads // sizes.tensor, device)
        total += _norm(config, sizes.keys, sizes.rows * max(config.architecture.kv_heads, sizes.tensor) // sizes.tensor, device)
    return total if config.recomputes == "selective" else total + _core(config, sizes, device, scaled)


def _core(config: RunConfig, sizes: _Sizes, device: Device, scaled: bool) -> int:
    """What selective recomputation makes again: between queries, keys, values and what comes out."""
    shape = config.architecture
    if is_fused(config):
        # on a CPU it comes out head by head, and merging the heads copies
        return sizes.rows * shape.num_attention_heads // sizes.tensor + (sizes.heads if device == "cpu" else 0)
    total = sizes.scores
    if config.precision != "fp32" and (scaled or shape.attention_softmax_in_fp32):
        total += 2 * sizes.scores  # the softmax in fp32 beside its 16-bit copy
        total += 0 if scaled else 2 * sizes.heads  # queries and keys in fp32
    return total + (2 * sizes.scores if shape.attention_dropout else 0)  # the mask, and what it leaves


def _masks(config: RunConfig, layout: Layout) -> int:
    """Masks of attention, of bool or added to scores, which layers of one kind share (model/layers/masks.py)."""
    shape = config.architecture
    pairs, heads = shape.seq_length**2, shape.num_attention_heads // layout.tensor
    kinds = {kind if kind in SPARSE else "all" for kind in shape.attention_kinds}
    if shape.positions.to_scores == "fixed":
        wide = config.precision == "fp32" or shape.attention_softmax_in_fp32 or shape.apply_query_key_layer_scaling
        return len(kinds) * pairs * (1 + heads * (4 if wide else 2))
    if shape.positions.to_scores == "learned":  # made in every layer again: the last one in fp32, and before its mask
        return pairs * (len(kinds) + 2 * 4 * heads)
    wide = shape.sliding_window_width is not None and shape.sliding_window_width + 1 < shape.seq_length
    per_head = heads if shape.sparsity_config is not None and shape.sparsity_config.different_layout_per_head else 1
    return pairs * sum(per_head if kind in SPARSE else int(wide) for kind in kinds)


def is_fused(config: RunConfig) -> bool:
    """Attention is one kernel, so that its scores never exist."""
    if config.architecture.positions.to_scores == "learned":  # torch's fused attention has no gradient for what is added to scores
        return False
    shape = config.architecture
    if set(shape.attention_kinds) <= FUSED_KINDS:
        return True
    return shape.scaled_upper_triang_masked_softmax_fusion and not shape.apply_query_key_layer_scaling


def _work(config: RunConfig, sizes: _Sizes, device: Device, scaled: bool) -> int:
    """While a block goes back: gradients of the stream, and of the MLP's activation, or of the scores and what made them."""
    scores = 0 if is_fused(config) else 2 * sizes.scores
    if config.recomputes == "selective":
        scores += _core(config, sizes, device, scaled)
    inner = sizes.inner * ((2 if config.recomputes == "selective" else 1) + (3 if config.architecture.gated else 0))
    return 2 * sizes.whole + max(inner, 3 * sizes.heads + scores)


def _loss(config: RunConfig, layout: Layout, batch: BatchSizes, padded_vocab: int, device: Device) -> tuple[int, int]:
    """While the loss is computed, and what it leaves behind: the gradients of its input and of the head's matrix (in fp32).

    A buffer of a chunk's logits, and one in fp32 where they are in 16 bits.  On a CPU products are in fp32, from copies of the
    input and the matrix; on a GPU the matrix's gradient is added up in fp32 from terms in 16 bits.
    """
    shape = config.architecture
    row = shape.output_layer_parallelism == "row"
    tokens, width = shape.seq_length * batch.micro, 4 if config.precision == "fp32" else 2
    products = 4 if device == "cpu" else width
    columns, inputs = (
        (padded_vocab, shape.hidden_size // layout.tensor) if row else (padded_vocab // layout.tensor, shape.hidden_size)
    )
    matrix, stream = columns * inputs, tokens * inputs
    chunks = math.ceil(tokens / max(CHUNK_ROWS, CHUNK[device] // columns))
    wide = 4 if products == 2 and not config.deepspeed.fp16_lm_cross_entropy else 0
    logits = math.ceil(tokens / chunks) * columns * (products + wide)
    copies = 0 if width == 4 else products * matrix + (4 * stream if device == "cpu" else 0)
    whole = width * tokens * shape.hidden_size  # the final norm's output
    if config.parallelism.sequence_parallel and layout.tensor > 1:
        whole += whole // layout.tensor
    return whole + 4 * matrix + products * stream + logits + copies, 4 * matrix + whole
