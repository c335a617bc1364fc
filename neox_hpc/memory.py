"""Bytes per GPU of a layout: what a rank holds of weights, gradients, optimizer, buffers and activations.  Arithmetic, no torch.

A first estimate, so that a job that cannot fit does not reach a queue.  The model's states (weights, gradients, optimizer) are
counted exactly; buffers and activations follow the formulas below; what the allocator and the communicators add is left to
``HEADROOM``.  Sources:

- states: Rajbhandari et al. 2020, "ZeRO", arXiv:1910.02054, section 3.1 (2 + 2 + 12 bytes a parameter in mixed precision) and
  section 5 (what each stage divides by the data-parallel ranks)
- activations: Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", arXiv:2205.05198,
  equations 1, 2, 4 and section 5 (micro-batches in flight on the first stage of a pipeline)
- buffers: deepspeed/runtime/zero/stage_1_and_2.py 0.19.8: one bucket of reduce_bucket_size, two with overlap_comm
"""

from __future__ import annotations

from dataclasses import dataclass

from neox_hpc.vocabulary import BatchSizes, Layout, RunConfig, layer_parameters, stage_bounds

GIB = 2**30
HEADROOM = 0.9
"""Share of a GPU's memory that an estimate may fill: the rest is for the driver, the communicators and fragmentation."""
FUSED_KINDS = frozenset({"flash"})
COUNTED_KINDS = frozenset({"global", "flash", "local"})
"""Kinds of attention whose blocks these formulas describe."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of the rank that holds most."""

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    step: int
    """Only while the optimizer steps, when no activation is held."""

    @property
    def states(self) -> int:
        """What every step of the training holds, counted exactly."""
        return self.weights + self.gradients + self.optimizer

    @property
    def peak(self) -> int:
        """The most that is held at one time."""
        return self.states + self.buffers + max(self.activations, self.step)

    def __str__(self) -> str:
        parts = ("weights", "gradients", "optimizer", "buffers", "activations")
        return ", ".join(f"{part} {in_gib(getattr(self, part))}" for part in parts)


def in_gib(size: int) -> str:
    """``48`` or ``0.7``: GiB, as short as it is still right."""
    value = size / GIB
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def estimate_memory(config: RunConfig, layout: Layout, batch: BatchSizes, vocab_size: int) -> Memory | None:
    """The memory of the fullest rank; ``None`` where the network has blocks that the formulas do not describe."""
    shape, stage = config.architecture, config.zero_stage
    if set(shape.attention_kinds) - COUNTED_KINDS or config.experts.moe_num_experts > 1:
        return None
    parameters = count_parameters(config, layout, vocab_size)
    width = 4 if config.precision == "fp32" else 2
    accumulated = 2 if config.precision == "fp16" else 4  # bf16 accumulates in fp32
    moments = 8 if config.precision == "fp32" else 12  # and the fp32 master weights
    zero = config.deepspeed.zero_optimization
    buckets = (2 if zero.overlap_comm else 1) if stage and config.precision != "bfloat16" else 0
    return Memory(
        weights=width * parameters // (layout.data if stage >= 3 else 1),
        gradients=accumulated * parameters // (layout.data if stage >= 2 else 1),
        optimizer=moments * parameters // (layout.data if stage >= 1 else 1),
        buffers=buckets * accumulated * int(zero.reduce_bucket_size),
        activations=_activations(config, layout, batch, vocab_size, width),
        step=4 * parameters // (layout.data if stage >= 1 else 1),  # gradients in fp32
    )


def count_parameters(config: RunConfig, layout: Layout, vocab_size: int) -> int:
    """Parameters of the rank that holds most."""
    layers = layer_parameters(config, config.padded_vocab_size(vocab_size), layout.tensor)
    if layout.pipe == 1 and not config.architecture.no_weight_tying:
        return sum(layers[:-1])  # a tied head has no matrix of its own; on another stage it has a copy
    return max(sum(layers[n] for n in stage) for stage in stages(config, layout, vocab_size))


def stages(config: RunConfig, layout: Layout, vocab_size: int) -> tuple[range, ...]:
    """The layers of every pipeline stage.

    Raises:
        ValueError: they cannot be dealt.
    """
    return stage_bounds(config, layout.pipe, parameters=layer_parameters(config, config.padded_vocab_size(vocab_size)))


def _activations(config: RunConfig, layout: Layout, batch: BatchSizes, vocab_size: int, width: int) -> int:
    """What waits for the backward pass on the first stage, and the larger of one recomputation and the logits."""
    shape, training = config.architecture, config.training
    layers = max(
        len(range(max(stage.start, 1), min(stage.stop, shape.num_layers + 1))) for stage in stages(config, layout, vocab_size)
    )
    in_flight = min(layout.pipe, batch.accumulation)
    tokens = shape.seq_length * batch.micro
    per_block = _block_activations(config, layout.tensor, tokens, width)
    logits = tokens * config.padded_vocab_size(vocab_size) // layout.tensor * width  # the loss works in their place
    if not training.checkpoint_activations:
        return layers * in_flight * per_block + logits
    every = min(training.checkpoint_num_layers, layers)
    stored = -(-layers // every) * tokens * shape.hidden_size * width
    return in_flight * stored + max(every * per_block, logits)


def _block_activations(config: RunConfig, tensor: int, tokens: int, width: int) -> int:
    """Equations 1 and 2 without dropout's masks; without the scores where attention is fused; width 2 is the paper's."""
    shape = config.architecture
    whole = 10 * tokens * shape.hidden_size
    cut = 24 * tokens * shape.hidden_size
    fused = shape.scaled_upper_triang_masked_softmax_fusion or set(shape.attention_kinds) <= FUSED_KINDS
    scores = 0 if fused else 5 * shape.num_attention_heads * shape.seq_length * tokens
    if config.parallelism.sequence_parallel:
        return (whole + cut + scores) // tensor * width // 2
    return (whole + (cut + scores) // tensor) * width // 2
