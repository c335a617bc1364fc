"""Bytes per GPU of a layout: what a rank holds of weights, gradients, optimizer, buffers and activations.  Arithmetic, no torch.

A step has four moments at which a rank may hold most: when the last layer's output is there (all activations), when the backward
pass is nearly through (all gradients, and what the last block works in), while gradients are reduced (their buffers), and while
the optimizer updates.  Each is counted from what DeepSpeed 0.19.8 allocates there; every formula names its place.  Compared with
the peak of real trainings over a grid of layouts (tests/test_memory.py): within 10 %.  What the allocator, libraries and
communicators add is left to ``HEADROOM``.  Not compared yet: GPUs, fp16, offload (whose copies of gradients are not counted: on
CPU ranks with ZeRO-2 18 % too little was seen).

Legend: p parameters of the rank, d data-parallel ranks.  Sources beside DeepSpeed's: Rajbhandari et al.
2020, "ZeRO", arXiv:1910.02054 (what each stage divides by d); Narayanan et al. 2021, arXiv:2104.04473, section 2.2 (a stage i of n
holds min(n - i, m) of a step's m micro-batches).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from neox_hpc.activations import COUNTED_KINDS, Activations, Device, stage_activations
from neox_hpc.vocabulary import BatchSizes, Layout, RunConfig, layer_parameters, shared_parameters, stage_bounds

GIB = 2**30
HEADROOM = 0.9
"""Share of a GPU's memory that an estimate may fill: the rest is for the driver, the communicators and fragmentation."""
FLAT_BUCKET = 500_000_000
"""Gradients reduced at once outside of ZeRO (deepspeed/runtime/engine.py, MEMORY_OPT_ALLREDUCE_SIZE)."""
MAX_LIVE = 1_000_000_000
PREFETCH = 50_000_000
SUB_GROUP = 1_000_000_000
"""DeepSpeed's defaults of ZeRO-3: elements that are whole at once, fetched ahead, updated at once
(deepspeed/runtime/zero/config.py)."""
PARTS = ("weights", "gradients", "optimizer", "buffers", "activations")


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Bytes that a rank holds at one time of a step."""

    when: str
    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int

    @property
    def total(self) -> int:
        """All parts."""
        return sum(getattr(self, part) for part in PARTS)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank of one pipeline stage."""

    layers: range
    """Of embedding, blocks, final norm and head."""
    moments: tuple[Moment, ...]
    states: int
    """Weights, gradients and optimizer, which every step holds."""
    host: int
    """In the node's own memory: what is offloaded."""

    @property
    def fullest(self) -> Moment:
        """When most is held."""
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def peak(self) -> int:
        """The most that is held at one time."""
        return self.fullest.total

    def __str__(self) -> str:
        return ", ".join(f"{part} {in_gib(getattr(self.fullest, part))}" for part in PARTS)


@dataclass(frozen=True, kw_only=True)
class _Rank:
    """What the formulas are made of: parameters, data-parallel ranks, bytes of a weight."""

    p: int
    d: int
    width: int
    largest: int
    """Parameters of its largest layer: no weight is larger."""
    earlier: bool
    """Micro-batches have left gradients when most activations are held."""
    replayed: int
    """Parameters whose forward pass is taken again: of the embedding, which stands before them, and the blocks."""


@dataclass(frozen=True, kw_only=True)
class _Held:
    """Bytes that DeepSpeed holds."""

    weights: int
    optimizer: int
    kept_gradients: int
    """Of earlier micro-batches, when most activations are held."""
    gradients: int
    """When the backward pass is through, or its fullest bucket is."""
    gathered: int = 0
    """Weights that are whole during the forward pass."""
    ahead: int = 0
    """The buffer in which they are gathered."""
    replayed: int = 0
    """Weights that are whole until the gradients are reduced, because recomputation has used them again."""
    contiguous: int = 0
    """Buffers that stand through the backward pass."""
    reducing: int = 0
    """Buffers while gradients are reduced."""
    meanwhile: bool = False
    """They are reduced in the course of the backward pass, not after it."""
    updated: int = 0
    """Gradients during the update."""
    updating: int = 0
    """Buffers during the update."""


def in_gib(size: int) -> str:
    """``48`` or ``0.7``: GiB, as short as it is still right."""
    value = size / GIB
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def estimate_memory(
    config: RunConfig, layout: Layout, batch: BatchSizes, vocab_size: int, device: Device = "gpu"
) -> tuple[Memory, ...] | None:
    """The memory of a rank of every pipeline stage; ``None`` where the network has blocks that the formulas do not describe.

    Raises:
        ValueError: the layers cannot be dealt to the stages.
    """
    if set(config.architecture.attention_kinds) - COUNTED_KINDS or config.experts.moe_num_experts > 1:
        return None
    padded = config.padded_vocab_size(vocab_size)
    bounds = stages(config, layout, vocab_size)
    return tuple(_stage(config, layout, batch, padded, number, layers, device) for number, layers in enumerate(bounds))


def estimate_first_stage(config: RunConfig, layout: Layout, batch: BatchSizes, vocab_size: int, device: Device = "gpu") -> Memory:
    """The first of :func:`estimate_memory` alone: no stage holds more micro-batches.

    Raises:
        ValueError: the layers cannot be dealt to the stages.
    """
    return _stage(config, layout, batch, config.padded_vocab_size(vocab_size), 0, stages(config, layout, vocab_size)[0], device)


def fullest(memories: tuple[Memory, ...]) -> Memory:
    """The stage whose ranks hold most."""
    return max(memories, key=lambda memory: memory.peak)


def count_parameters(config: RunConfig, layout: Layout, vocab_size: int) -> int:
    """Parameters of the rank that holds most."""
    counts = layer_parameters(config, config.padded_vocab_size(vocab_size), layout.tensor)
    return max(_count(config, counts, layout.tensor, layers) for layers in stages(config, layout, vocab_size))


def stages(config: RunConfig, layout: Layout, vocab_size: int) -> tuple[range, ...]:
    """The layers of every pipeline stage.

    Raises:
        ValueError: they cannot be dealt.
    """
    return stage_bounds(config, layout.pipe, parameters=layer_parameters(config, config.padded_vocab_size(vocab_size)))


def _count(config: RunConfig, counts: tuple[int, ...], tensor: int, layers: range) -> int:
    """Parameters in a stage; a tied head beside the embedding has none of its own, on another stage it has a copy."""
    tied = not config.architecture.no_weight_tying and layers.start == 0 and layers.stop == len(counts)
    return sum(counts[layer] for layer in layers) - (counts[-1] if tied else 0) + shared_parameters(config, tensor)


def _stage(config: RunConfig, layout: Layout, batch: BatchSizes, padded: int, number: int, layers: range, device: Device) -> Memory:
    flying = min(layout.pipe - number, batch.accumulation)
    rank = _rank(config, layout, padded, layers, earlier=batch.accumulation > flying)
    activations = stage_activations(config, layout, batch, padded, layers, device)
    held = _held(config, layout, rank)
    most = max(activations.loss, activations.after_loss + activations.work) + _passing(layout, number, flying, activations)
    reduced = held.reducing if held.meanwhile else held.contiguous
    moments: tuple[Moment, ...] = (
        *([_moment("gathering", held, held.kept_gradients, 0, 0, held.gathered + held.ahead)] if held.ahead else []),
        _moment("forward", held, held.kept_gradients, held.contiguous, flying * activations.kept + most, held.gathered),
        _moment("backward", held, held.gradients, reduced, activations.work, held.replayed),
        _moment("reduction", held, held.gradients, held.reducing, 0, held.replayed),
        _moment("update", held, held.updated, held.updating, 0),
    )
    host = 0
    if device == "gpu" and config.deepspeed.zero_optimization.offloads_optimizer:
        host, moments = held.optimizer, tuple(replace(moment, optimizer=0) for moment in moments)
    states = held.weights + held.gradients + held.optimizer - host
    return Memory(layers=layers, moments=moments, states=states, host=host)


def _passing(layout: Layout, number: int, flying: int, activations: Activations) -> int:
    """Between stages (deepspeed/runtime/pipe/engine.py): outputs until their gradients come, and a stage's received inputs, their
    copies and gradients."""
    if layout.pipe == 1:
        return 0
    sent = flying if number < layout.pipe - 1 else 0
    received = flying + 3 if number else 0
    return (sent + received) * activations.passed


def _moment(when: str, held: _Held, gradients: int, buffers: int, activations: int, gathered: int = 0) -> Moment:
    return Moment(
        when=when,
        weights=held.weights + gathered,
        gradients=gradients,
        optimizer=held.optimizer,
        buffers=buffers,
        activations=activations,
    )


def _rank(config: RunConfig, layout: Layout, padded: int, layers: range, *, earlier: bool) -> _Rank:
    counts = layer_parameters(config, padded, layout.tensor)
    p, width = _count(config, counts, layout.tensor, layers), 4 if config.precision == "fp32" else 2
    replayed = sum(counts[layer] for layer in layers if layer < len(counts) - 2) if config.recomputes == "full" else 0
    largest = max(counts[layer] for layer in layers)
    return _Rank(p=p, d=layout.data, width=width, largest=largest, earlier=earlier, replayed=replayed)


def _held(config: RunConfig, layout: Layout, rank: _Rank) -> _Held:
    """By the optimizer that DeepSpeed builds (model/engine/settings.py)."""
    if config.zero_stage == 3:
        return _zero3(config, rank)
    if config.precision == "bfloat16" and config.zero_stage == 1:
        return _bf16_optimizer(config, rank)
    if config.zero_stage:
        return _zero12(config, rank)
    return _plain(config, rank)


def _plain(config: RunConfig, rank: _Rank) -> _Held:
    """No ZeRO, in fp32: torch's optimizer on the weights themselves.

    The gradients are reduced in flat copies of FLAT_BUCKET elements (engine.py, ``allreduce_no_retain``), on one rank too.
    """
    p = rank.p
    return _Held(
        weights=4 * p,
        optimizer=_kept(config, p),
        kept_gradients=4 * p if rank.earlier else 0,  # they are freed at the end of a step
        gradients=4 * p,
        reducing=4 * min(p, FLAT_BUCKET),
        updated=4 * p,
        updating=_working(config, rank.largest),  # one weight after the other
    )


def _kept(config: RunConfig, p: int) -> int:
    """What the optimizer keeps of ``p`` weights (model/config/optimizers.py)."""
    return int(p * config.optimizer.bytes_a_weight(config.optimizer_numbers))


def _working(config: RunConfig, p: int) -> int:
    """What it makes while it updates them."""
    return 4 * p * config.optimizer.working


def _bf16_optimizer(config: RunConfig, rank: _Rank) -> _Held:
    """bf16 with ZeRO-1 (bf16_optimizer.py): gradients of all weights in fp32, beside those of the backward pass.

    They are reduced as one flat copy where they fit in a bucket, and in another precision (communication_data_type) as one more
    (engine.py, ``allreduce_bucket``).
    """
    p = rank.p
    sent = 0 if bytes_sent(config) == 4 else 2 * p
    return _Held(
        weights=2 * p,
        optimizer=(4 * p + _kept(config, p)) // rank.d,
        kept_gradients=4 * p + (2 * p if rank.earlier else 0),
        gradients=6 * p,
        reducing=(4 * p if p <= FLAT_BUCKET else 0) + sent,
        updated=6 * p,
        updating=_working(config, p // rank.d),
    )


def bytes_sent(config: RunConfig) -> int:
    """Bytes of a gradient while it is reduced (model/engine/settings.py)."""
    asked, types = config.deepspeed.communication_data_type, config.deepspeed.data_types
    added = types.grad_accum_dtype if types is not None and types.grad_accum_dtype is not None else "fp32"
    default = {"fp32": "fp32", "fp16": "fp16", "bfloat16": added}[config.precision]
    return 4 if (asked or default) == "fp32" else 2


def _zero12(config: RunConfig, rank: _Rank) -> _Held:
    """fp32 and fp16 with ZeRO-1, and ZeRO-2 (zero/stage_1_and_2.py): a flat fp32 copy of this rank's share of the weights.

    Gradients wait in a bucket, are copied flat, and once more if they are reduced in another precision; with contiguous_gradients
    the bucket is one buffer, or two (overlap_comm), for the whole backward pass.  bf16 adds the reduced ones up in fp32.
    """
    p, d, width, zero = rank.p, rank.d, rank.width, config.deepspeed.zero_optimization
    bucket = min(p, int(zero.reduce_bucket_size))
    copied = 0 if bytes_sent(config) == width else bytes_sent(config) * bucket
    wide = config.precision == "bfloat16"
    share = (4 if wide else width) * p // d
    contiguous = width * int(zero.reduce_bucket_size) * (2 if zero.overlap_comm else 1) if zero.contiguous_gradients else 0
    partly = config.zero_stage == 2 or (
        zero.overlap_comm and not rank.earlier
    )  # reduced and freed in the course of the backward pass
    gradients = width * ((p - bucket) // d + bucket) if partly else width * p
    added = share if wide or (config.zero_stage == 2 and rank.earlier) else 0
    return _Held(
        weights=width * p,
        optimizer=(4 * p + _kept(config, p)) // d,
        kept_gradients=(added if config.zero_stage == 2 else width * p) if rank.earlier else 0,
        gradients=gradients + added,
        contiguous=contiguous,
        reducing=copied + (contiguous + share if contiguous else width * bucket),
        meanwhile=partly and bucket < p,
        updated=share,
        updating=(0 if wide else 4 * p // d) + _working(config, p // d),
    )


def _zero3(config: RunConfig, rank: _Rank) -> _Held:
    """ZeRO-3 (zero/stage3.py): shares of weights and gradients, some of the weights whole while they are used."""
    p, d, width, zero = rank.p, rank.d, rank.width, config.deepspeed.zero_optimization
    bucket = min(p, int(zero.reduce_bucket_size))
    contiguous = width * int(zero.reduce_bucket_size) if zero.contiguous_gradients else 0
    whole = min(p, int(MAX_LIVE if zero.stage3_max_live_parameters is None else zero.stage3_max_live_parameters))
    ahead = min(p, int(PREFETCH if zero.stage3_prefetch_bucket_size is None else zero.stage3_prefetch_bucket_size))
    tile, sent = min(p // d, int(zero.sub_group_size or SUB_GROUP)), bytes_sent(config)
    return _Held(
        weights=width * p // d,
        optimizer=(4 * p + _kept(config, p)) // d,
        kept_gradients=4 * p // d,
        gradients=4 * p // d + width * bucket,
        gathered=width * whole if d > 1 else 0,  # one rank's share is the whole
        ahead=width * ahead if d > 1 else 0,
        replayed=width * min(whole, rank.replayed) if d > 1 else 0,
        contiguous=contiguous,
        reducing=contiguous + 2 * sent * bucket + (0 if sent == width else sent * bucket),
        meanwhile=bucket < p,
        updated=4 * p // d,
        updating=4 * tile + _working(config, tile),
    )
