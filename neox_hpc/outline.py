"""The sizes of a job: layout, batch, stages, memory, tokens.  Known also where something else is wrong with it.

Changes when a size is added that a user wants to see before a job exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from neox_hpc.memory import GIB, Memory, count_parameters, estimate_memory, stages
from neox_hpc.site import Site
from neox_hpc.step_time import StepTime, estimate_step, missing_speeds, speeds_of
from neox_hpc.vocabulary import BatchSizes, Layout, RunConfig


@dataclass(frozen=True, kw_only=True)
class Outline:
    """The sizes of a job, known also where something else is wrong with it."""

    nodes: int
    ranks_per_node: int
    layout: Layout
    batch: BatchSizes
    stages: tuple[range, ...]
    """Layers of each pipeline stage: of embedding, blocks, final norm and head."""
    memory: tuple[Memory, ...] | None
    """Of a rank of each stage; ``None`` where it is not estimated."""
    room: float | None
    """Bytes that a rank has, if known."""
    queue: str | None
    walltime_s: int | None
    vocab_size: int
    """Tokens of the tokenizer, or those that are assumed."""
    parameters: int
    """Of the whole network, padding included."""
    sequence: int
    """Tokens of a sequence."""
    steps: int | None
    step: StepTime | None
    """``None`` where it is not estimated: ranks without GPUs, blocks without a formula, speeds that are not known."""
    lacking: tuple[str, ...]
    """Facts of the site without which the time of a step on its GPUs is not known."""

    @property
    def tokens_a_step(self) -> int:
        """Tokens that one optimizer step sees."""
        return self.batch.train * self.sequence

    @property
    def tokens(self) -> int | None:
        """Tokens that the whole training sees."""
        return None if self.steps is None else self.tokens_a_step * self.steps

    @property
    def training_s(self) -> float | None:
        """About what all steps take, if known."""
        return None if self.step is None or self.steps is None else self.steps * self.step.seconds

    @property
    def training_node_hours(self) -> float | None:
        """The same on all nodes."""
        return None if self.training_s is None else self.nodes * self.training_s / 3600

    @property
    def node_hours(self) -> float | None:
        """What the job may use at most: its nodes for its walltime."""
        return None if self.walltime_s is None else self.nodes * self.walltime_s / 3600


def make_outline(
    config: RunConfig,
    site: Site,
    nodes: int,
    ranks: int,
    layout: Layout,
    batch: BatchSizes,
    queue: str | None,
    walltime_s: int | None,
    vocab: int,
) -> Outline | None:
    """``None`` where the layers cannot be dealt to stages."""
    try:
        memory = estimate_memory(config, layout, batch, vocab, device_of(site))
        dealt = stages(config, layout, vocab)
        speeds = speeds_of(site, config, layout.world_size) if memory is not None and site.node.gpus else None
        step = estimate_step(config, layout, batch, vocab, speeds) if speeds is not None else None
    except ValueError:  # told already: layers that cannot be dealt to stages
        return None
    return Outline(
        nodes=nodes,
        ranks_per_node=ranks,
        layout=layout,
        batch=batch,
        stages=dealt,
        memory=memory,
        room=memory_of_rank(site, ranks),
        queue=queue,
        walltime_s=walltime_s,
        vocab_size=vocab,
        parameters=count_parameters(config, Layout(world_size=1), vocab),
        sequence=config.architecture.seq_length,
        steps=config.training.train_iters,
        step=step,
        lacking=missing_speeds(site, config, layout.world_size) if site.node.gpus else (),
    )


def name_layers(stage: range, outline: Outline) -> str:
    """``embedding, blocks 0-10``"""
    blocks = outline.stages[-1].stop - 3
    held = range(max(stage.start, 1) - 1, min(stage.stop, blocks + 1) - 1)
    names = ["embedding"] if 0 in stage else []
    names += [f"block {held.start}" if len(held) == 1 else f"blocks {held.start}-{held.stop - 1}"] if held else []
    return ", ".join(names + [name for n, name in enumerate(("final norm", "head"), start=blocks + 1) if n in stage])


def show_number(value: float) -> str:
    """``0.31``, ``47.3``, ``113,800``: three digits at least, and no power of ten."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def show_seconds(seconds: float) -> str:
    """``0.031 s``, ``12.3 s``, ``47 min``, ``9.1 h``, ``12.5 days``"""
    for most, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < most:
            return f"{show_number(seconds / size)} {unit}"
    return f"{show_number(seconds / 86400)} days"


def bubble_share(layout: Layout, batch: BatchSizes) -> float:
    """Share of a step that a stage waits: (p - 1) / (m + p - 1) of p stages and m micro-batches (arXiv:2104.04473, section 2.2)."""
    return (layout.pipe - 1) / (batch.accumulation + layout.pipe - 1)


def device_of(site: Site) -> Literal["cpu", "gpu"]:
    return "cpu" if site.node.gpus == 0 else "gpu"


def memory_of_rank(site: Site, ranks: int) -> float | None:
    """Bytes: a GPU's own memory, or a CPU rank's share of the node's."""
    node = site.node
    if node.gpus:
        return node.gpu_memory_gib and node.gpu_memory_gib * GIB
    return node.memory_gib and node.memory_gib * GIB / ranks
