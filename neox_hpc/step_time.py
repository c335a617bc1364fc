"""How long a step takes on a machine, part by part: an estimate from its layout and the site's speeds.  Arithmetic, no torch.

Changes when a part of a step is counted another way.  A stage works through m micro-batches; in each it multiplies matrices, at the
speed that large products reach, moves what lies between them through the device's memory, sums over its tensor ranks, and hands
its output on.  The pipeline takes the time of all stages once and of the slowest m - 1 times more; after it gradients are summed
over the data-parallel ranks and the optimizer updates.  Parts follow each other; only what DeepSpeed is told to overlap does.

Not counted: the time to start kernels (models below about a billion parameters come out too fast), products of odd sizes that fill
a device badly, reading data, logging, checkpoints, slow nodes.  Every speed stands in the site's file (``speed``, ``network``);
none is fitted to a training.  docs/step-time.md holds the estimates beside published trainings.

Legend: T tokens of a micro-batch, D width, F width of the MLP, S sequence, N heads, V vocabulary, t tensor ranks, d data-parallel
ranks, p parameters of a rank, w bytes of a number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

from neox_hpc.activations import is_fused
from neox_hpc.memory import bytes_sent, stages
from neox_hpc.site import Dtype, Site
from neox_hpc.vocabulary import BatchSizes, Layout, RunConfig, layer_parameters, step_flops

DTYPES: dict[str, Dtype] = {"fp32": "fp32", "fp16": "fp16", "bfloat16": "bf16"}
"""GPT-NeoX's word for a precision -> what a site calls it."""
MATMUL_SHARE = 0.8
COPY_SHARE = 0.8
LINK_SHARE = 0.8
NETWORK_SHARE = 0.9
"""Of a data sheet's number, what is reached, where a site has no measurement.  Products: 0.77 to 0.86 for MI250X, H100, GH200 and
A100 (stas00/ml-engineering, "Maximum Achievable Matmul FLOPS").  Copies: 0.78 of an MI250X's memory (huizhg/gpu-perf-mi250x).
Links in a node: 0.77 of an A100's, 0.81 of an H100's (NVIDIA/nccl-tests#149, NVIDIA/nccl#1455).  Network: 0.86 to 0.96 of
four or eight HDR200 cards (NVIDIA/nccl-tests#175 and #100, NVIDIA/nccl#812).  All read 2026-11-21."""
RING_START_S, HOP_IN_NODE_S, HOP_BETWEEN_S = 8.4e-6, 3.4e-6, 14.0e-6
"""Of a collective: its start, and each step of its ring over a link of a node or the network (NVIDIA/nccl, src/graph/tuning.cc, the
protocol for large sizes; read 2026-11-21)."""
GATHERED_AT_ONCE = 4
"""Pieces in which ZeRO-3 gathers a block: one a matrix (deepspeed/runtime/zero/partitioned_param_coordinator.py)."""
SCORES_FORWARD, SCORES_BACKWARD, SCORES_DROPPED = 4.0, 7.0, 2.5
"""How often a matrix of scores goes through memory where attention is not one kernel: written, read and written by the softmax,
read; backward: two written and five read.  Dropout reads and writes it once more, and a mask of half its size."""
UPDATE_BYTES = 30
"""Of a parameter's update by Adam: gradient, weight and two moments in fp32 read, the last three and the 16-bit weight written."""


class Cost(NamedTuple):
    """Seconds of a piece of a micro-batch on a rank."""

    products: float = 0.0
    memory: float = 0.0
    tensor: float = 0.0

    def plus(self, other: Cost) -> Cost:
        """One after the other."""
        return Cost(*(mine + its for mine, its in zip(self, other, strict=True)))

    def times(self, number: float) -> Cost:
        """So often."""
        return Cost(*(number * part for part in self))


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """What is reached, in operations and bytes a second."""

    products: float
    """Of one device."""
    memory: float
    """Of one device's own memory."""
    in_node: float
    """Bus bandwidth of a sum over the devices of a node."""
    between: float
    """The same between nodes, over all cards of a node."""
    ranks_per_node: int
    peak: float
    """Operations of one device, as published."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one optimizer step, by part: of the slowest stage, then what it waits for, then what follows."""

    products: float
    memory: float
    tensor: float
    """Sums over tensor ranks."""
    pipe: float
    """Outputs and gradients handed from stage to stage."""
    waiting: float
    """While the pipeline fills and empties."""
    data: float
    """Sums over data-parallel ranks, and ZeRO's gathering of weights, as far as nothing hides them."""
    update: float
    tokens: int
    """Of the step, over all ranks."""
    flops_per_rank: float
    """With recomputation, as training counts them (model/config/flops.py)."""
    peak: float

    @property
    def parts(self) -> dict[str, float]:
        """Part -> seconds, in the order of a step."""
        return {name: getattr(self, name) for name in PARTS}

    @property
    def seconds(self) -> float:
        """The whole step."""
        return sum(self.parts.values())

    @property
    def tokens_per_s(self) -> float:
        """Over all ranks."""
        return self.tokens / self.seconds

    @property
    def tflops_per_rank(self) -> float:
        """Of one device."""
        return self.flops_per_rank / self.seconds / 1e12

    @property
    def share_of_peak(self) -> float:
        """``tflops_per_rank`` of the published peak."""
        return self.flops_per_rank / self.seconds / self.peak


PARTS = ("products", "memory", "tensor", "pipe", "waiting", "data", "update")


def missing_speeds(site: Site, config: RunConfig, world: int) -> tuple[str, ...]:
    """The facts of a site without which a step's time cannot be told; none: it can."""
    speed, dtype, ranks = site.speed, DTYPES[config.precision], site.node.ranks or 1
    lacking = []
    if not any(dtype in (table or {}) for table in (speed.matmul_tflops, speed.peak_tflops)):
        lacking.append(f"speed.peak_tflops.{dtype}")
    if speed.copy_gb_s is None and speed.memory_gb_s is None:
        lacking.append("speed.memory_gb_s")
    if min(ranks, world) > 1 and speed.gpu_allreduce_gb_s is None and speed.gpu_link_gb_s is None:
        lacking.append("speed.gpu_link_gb_s")
    if world > ranks and site.network.allreduce_gb_s is None and speed.node_link_gb_s is None:
        lacking.append("speed.node_link_gb_s")
    return tuple(lacking)


def speeds_of(site: Site, config: RunConfig, world: int) -> Speeds | None:
    """What the site's devices and links reach in a configuration's precision; ``None`` where a fact is missing.

    Measurements come first, then shares of what the data sheets say.  A link that no rank uses is as fast as memory.
    """
    if missing_speeds(site, config, world):
        return None
    speed, dtype = site.speed, DTYPES[config.precision]
    peak = (speed.peak_tflops or {}).get(dtype)
    measured = (speed.matmul_tflops or {}).get(dtype)
    products = measured or MATMUL_SHARE * (peak or 0.0)
    memory = speed.copy_gb_s or COPY_SHARE * (speed.memory_gb_s or 0.0)
    in_node = speed.gpu_allreduce_gb_s or LINK_SHARE * (speed.gpu_link_gb_s or 0.0) or memory
    between = site.network.allreduce_gb_s or NETWORK_SHARE * (speed.node_link_gb_s or 0.0) or memory
    return Speeds(
        products=products * 1e12,
        memory=memory * 1e9,
        in_node=in_node * 1e9,
        between=between * 1e9,
        ranks_per_node=site.node.ranks or 1,
        peak=(peak or products) * 1e12,
    )


def estimate_step(config: RunConfig, layout: Layout, batch: BatchSizes, vocab_size: int, speeds: Speeds) -> StepTime:
    """The time of one optimizer step.

    Raises:
        ValueError: the layers cannot be dealt to the stages.
    """
    rank = _Rank(config, layout, batch, config.padded_vocab_size(vocab_size), speeds)
    held = stages(config, layout, vocab_size)
    handed = rank.handed_on() if layout.pipe > 1 else 0.0
    kinds = {rank.kind(layers): layers for layers in held}
    each = {kind: (rank.micro_batch(layers), rank.parameters(layers)) for kind, layers in kinds.items()}
    costs = [each[rank.kind(layers)][0] for layers in held]
    times = [sum(cost) + handed for cost in costs]
    slowest = max(range(len(times)), key=times.__getitem__)
    cost, p = costs[slowest].times(batch.accumulation), max(count for _, count in each.values())
    sequences = batch.train
    return StepTime(
        products=cost.products,
        memory=cost.memory,
        tensor=cost.tensor,
        pipe=batch.accumulation * handed,
        waiting=sum(times) - times[slowest],
        data=rank.summed_over_data(p, backward=times[slowest] / 2),
        update=UPDATE_BYTES * p / (layout.data if config.zero_stage else 1) / speeds.memory,
        tokens=sequences * config.architecture.seq_length,
        flops_per_rank=step_flops(config, sequences, rank.padded, recomputed=True) / layout.world_size,
        peak=speeds.peak,
    )


class _Rank:
    """What a rank does in a micro-batch, piece by piece."""

    def __init__(self, config: RunConfig, layout: Layout, batch: BatchSizes, padded: int, speeds: Speeds) -> None:
        shape = config.architecture
        self.config, self.layout, self.batch, self.padded, self.speeds = config, layout, batch, padded, speeds
        self.width = 4 if config.precision == "fp32" else 2
        self.tokens = shape.seq_length * batch.micro
        self.stream = self.tokens * shape.hidden_size * self.width
        """Bytes of x_BSD."""
        self.share = self.stream // (layout.tensor if config.parallelism.sequence_parallel else 1)
        self.counts = layer_parameters(config, padded, layout.tensor)
        self._block = self._block_cost()

    def kind(self, layers: range) -> tuple[int, bool, bool, bool]:
        """What two stages of equal cost have in common: how many blocks, and which of embedding, final norm and head."""
        last = len(self.counts) - 1
        return self._blocks(layers), 0 in layers, last - 1 in layers, last in layers

    def parameters(self, layers: range) -> int:
        """Of a stage; a tied head beside the embedding has none of its own."""
        tied = not self.config.architecture.no_weight_tying and len(layers) == len(self.counts)
        blocks = self._blocks(layers)
        ends = sum(self.counts[layer] for layer in layers if layer == 0 or layer > self.config.architecture.num_layers)
        return blocks * self.counts[1] + ends - (self.counts[-1] if tied else 0)

    def micro_batch(self, layers: range) -> Cost:
        """Forward, backward, and what is computed again; gradients are added to those of earlier micro-batches."""
        cost = self._block.times(self._blocks(layers)).plus(self._added_up(self.parameters(layers)))
        if 0 in layers:
            cost = cost.plus(Cost(memory=self._moved(3 * self.share), tensor=self._summed(self.stream)))
        return cost.plus(self._head()) if layers.stop == len(self.counts) else cost

    def handed_on(self) -> float:
        """An output to the next stage, a gradient to the one before it; all ranks of a node at the same time."""
        neighbours = self.layout.data * self.layout.tensor < self.speeds.ranks_per_node
        speed = self.speeds.in_node if neighbours else self.speeds.between / self.speeds.ranks_per_node
        return 2 * self.share / speed

    def summed_over_data(self, p: int, *, backward: float) -> float:
        """Gradients of p parameters, and the weights that ZeRO gathers.

        With overlap_comm, and without stages, DeepSpeed sums during a micro-batch's backward pass.  What ZeRO-3 fetches ahead is
        not taken off: trainings that were published with it are slower even so (docs/step-time.md).
        """
        config, zero = self.config, self.config.zero_stage
        options, sent, whole = config.deepspeed.zero_optimization, bytes_sent(config), zero == 0 or self._bf16_optimizer
        buckets = math.ceil(p / options.reduce_bucket_size)
        if self.layout.data == 1:
            return 0.0
        gradients = (2 if whole else 1) * self._ring(sent * p, buckets)  # a sum is scattered, then gathered
        if options.overlap_comm and self.layout.pipe == 1 and zero in (1, 2):
            gradients = max(0.0, gradients - backward)
        if zero == 3:
            pieces = GATHERED_AT_ONCE * self.config.architecture.num_layers
            return self.batch.accumulation * (gradients + 2 * self._ring(self.width * p, pieces))
        weights = self._ring(self.width * p, buckets) if zero else 0.0
        return gradients * (self.batch.accumulation if zero == 2 else 1) + weights

    def _ring(self, size: int, pieces: int) -> float:
        """Data-parallel ranks hand ``size`` bytes around, but for each one's own share; the rings of a node share its cards."""
        data, in_node = self.layout.data, max(1, self.speeds.ranks_per_node // self.layout.tensor)
        nodes = math.ceil(data / in_node)
        rings = self.speeds.ranks_per_node / in_node if nodes > 1 else 1
        speed = self.speeds.between if nodes > 1 else self.speeds.in_node
        return size * (data - 1) / data * rings / speed + pieces * (RING_START_S + _hops(data, nodes))

    def _blocks(self, layers: range) -> int:
        return max(0, min(layers.stop, self.config.architecture.num_layers + 1) - max(layers.start, 1))

    def _block_cost(self) -> Cost:
        """A block: forward, backward (twice the products), and what recomputation repeats of the forward pass."""
        forward = self._linear().plus(self._between()).plus(self._attention(SCORES_FORWARD, 1)).plus(self._block_sums())
        backward = self._linear().plus(self._between()).times(2).plus(self._attention(SCORES_BACKWARD, 2))
        backward = backward.plus(Cost(tensor=2 * self._summed(self.stream)))
        again = {
            "nothing": Cost(),
            "full": forward,
            "selective": self._attention(SCORES_FORWARD, 1).plus(Cost(memory=self._moved(self._inner()))),
        }
        return reduce(Cost.plus, (forward, backward, again[self.config.recomputes]))

    def _linear(self) -> Cost:
        """The matrices of attention and MLP."""
        shape, t = self.config.architecture, self.layout.tensor
        D, F = shape.hidden_size, shape.ffn_size
        gates = 2 if shape.gated else 1
        outputs = D + 2 * shape.head_size * max(shape.kv_heads, t)
        return Cost(
            products=self._product(outputs // t, D)
            + self._product(D, D // t)
            + self._product(gates * F // t, D)
            + self._product(D, F // t)
        )

    def _product(self, columns: int, inner: int) -> float:
        """A matrix product of all tokens; a thin one waits for the memory."""
        moved = self.width * (self.tokens * (columns + inner) + columns * inner)
        return max(2 * self.tokens * columns * inner / self.speeds.products, moved / self.speeds.memory)

    def _between(self) -> Cost:
        """Norms, residual sums and dropout on the stream; rotation and biases of the heads; the activation."""
        shape = self.config.architecture
        norms = 1 if shape.gpt_j_residual and shape.gpt_j_tied else 2
        stream = (2 * norms + 6 + (1 if shape.hidden_dropout else 0)) * self.share
        heads = 2 * (self.stream + 2 * self.tokens * shape.head_size * shape.kv_heads * self.width) // self.layout.tensor
        return Cost(memory=self._moved(stream + heads + self._inner()))

    def _inner(self) -> int:
        """Bytes that the MLP's activation reads and writes."""
        shape = self.config.architecture
        return (3 if shape.gated else 2) * self.tokens * shape.ffn_size * self.width // self.layout.tensor

    def _attention(self, passes: float, products: int) -> Cost:
        """Scores, and their products with the values.

        As one kernel it leaves out the half that causality hides, at about half the speed of large products (50 to 73 % of an
        A100's peak: arXiv:2307.08691), so it is counted whole; the scores never reach the memory.
        """
        shape, t = self.config.architecture, self.layout.tensor
        flops = products * 4 * self.tokens * shape.seq_length * shape.hidden_size / t
        passes += SCORES_DROPPED if shape.attention_dropout else 0
        scores = 0.0 if is_fused(self.config) else passes * self.tokens * shape.seq_length * shape.num_attention_heads / t
        return Cost(products=flops / self.speeds.products, memory=self._moved(scores * self.width))

    def _block_sums(self) -> Cost:
        """Attention and MLP are summed over tensor ranks, together where they stand side by side (model/layers/block.py)."""
        shape = self.config.architecture
        sums = 1 if shape.gpt_j_residual and not shape.hidden_dropout else 2
        return Cost(tensor=sums * self._summed(self.stream))

    def _head(self) -> Cost:
        """Logits, their loss (three times read and once written), and the gradients of both sides."""
        columns = self.padded // self.layout.tensor
        logits = 4 * self.tokens * columns * self.width
        return Cost(
            products=3 * self._product(columns, self.config.architecture.hidden_size),
            memory=self._moved(logits + 3 * self.share),
            tensor=self._summed(self.stream),
        )

    def _added_up(self, p: int) -> Cost:
        """Read, read and written; into a sum in fp32 by DeepSpeed's bf16 optimizer."""
        return Cost(memory=self._moved((10 if self._bf16_optimizer else 3 * self.width) * p))

    @property
    def _bf16_optimizer(self) -> bool:
        """DeepSpeed's optimizer that adds up and sums whole gradients."""
        return self.config.precision == "bfloat16" and self.config.zero_stage == 1

    def _summed(self, size: int) -> float:
        """A sum over tensor ranks (NVIDIA/nccl-tests, doc/PERFORMANCE.md: 2 (t - 1) / t of the bytes cross the bus)."""
        t, nodes = self.layout.tensor, math.ceil(self.layout.tensor / self.speeds.ranks_per_node)
        if t == 1:
            return 0.0
        speed = self.speeds.in_node if nodes == 1 else min(self.speeds.in_node, self.speeds.between)
        return 2 * (t - 1) / t * size / speed + RING_START_S + 2 * _hops(t, nodes)

    def _moved(self, size: float) -> float:
        return size / self.speeds.memory


def _hops(ranks: int, nodes: int) -> float:
    """Once around a ring, but for the last step."""
    return (ranks - nodes) * HOP_IN_NODE_S + (nodes - 1) * HOP_BETWEEN_S
