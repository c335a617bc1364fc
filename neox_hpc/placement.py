"""Where the ranks of a plan run: cores, GPU and coordinates of each place on a node, and the nodes of each pipeline stage.

Changes when launchers place ranks in another way, or another axis is laid over them.  Reads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from neox_hpc.launchers import MAPS_CORES, PER_NODE
from neox_hpc.plan import Plan
from neox_hpc.vocabulary import Layout


@dataclass(frozen=True, kw_only=True)
class Place:
    """The ranks of one local number and one pipeline stage: they run the same command on the same cores and GPU of their nodes."""

    local_rank: int
    stage: int
    ranks: range
    nodes: range
    """Numbers of their nodes, in the order of the hostfile."""
    cores: str
    """``49-55``; ``any 7``, which the launcher chooses; empty: it binds none."""
    gpu: str
    """Empty: the CPU."""
    tensor: tuple[int, ...]
    """Places on the tensor axis; several where its groups cross nodes."""
    data: Sequence[int]
    """Places on the data axis, from node to node."""


def places(plan: Plan) -> tuple[Place, ...]:
    """Every class of ranks, stage by stage."""
    size = plan.ranks_per_node
    found = []
    for stage in range(plan.layout.pipe):
        own = stage_ranks(plan.layout, stage)
        firsts = (own.start + (local - own.start) % size for local in range(size))
        found += [_place(plan, stage, range(first, own.stop, size)) for first in firsts if first < own.stop]
    return tuple(found)


def _place(plan: Plan, stage: int, ranks: range) -> Place:
    size, layout = plan.ranks_per_node, plan.layout
    whole = size % layout.tensor == 0  # no group of the tensor axis crosses nodes
    few = ranks[: 1 if whole else layout.tensor]  # then places repeat
    data = (layout.coordinates(rank)[1] for rank in ranks)
    return Place(
        local_rank=ranks.start % size,
        stage=stage,
        ranks=ranks,
        nodes=range(ranks.start // size, ranks[-1] // size + 1),
        cores=_cores(plan, ranks.start % size),
        gpu=_gpu(plan, ranks.start % size),
        tensor=tuple(dict.fromkeys(layout.coordinates(rank)[0] for rank in few)),
        data=range(next(data), layout.data, size // layout.tensor) if whole else tuple(dict.fromkeys(data)),
    )


def _cores(plan: Plan, local: int) -> str:
    launcher, masks = plan.site.launcher, plan.step.cpu_masks
    if masks and launcher in MAPS_CORES:
        return masks[local]
    return f"any {plan.cores_per_rank}" if plan.cores_per_rank and launcher not in PER_NODE else ""


def _gpu(plan: Plan, local: int) -> str:
    if not plan.gpus_per_node:
        return ""
    if plan.step.gpus_visible == "one":
        return "one of its own"
    return plan.step.gpu_ids[local] if plan.step.gpu_ids else str(local)


def stage_ranks(layout: Layout, stage: int) -> range:
    """The ranks of a pipeline stage."""
    size = layout.tensor * layout.data
    return range(stage * size, (stage + 1) * size)


# What the script itself says ---------------------------------------------------------------------------------------------------


def host_lines(script: str) -> tuple[str, ...]:
    """The lines that find the job's nodes and write its hostfile."""
    found = re.search(r"^unique\(\) \{\n.*?\n\}\n(.*?)^nodes=", script, re.MULTILINE | re.DOTALL)
    return tuple(line for line in (found[1].splitlines() if found else ()) if line and not line.startswith("#"))


def meeting_lines(script: str) -> tuple[str, ...]:
    """The lines that say where ranks meet."""
    return tuple(re.findall(r"^(?:read -r MASTER_ADDR.*|MASTER_(?:ADDR|PORT)=.*)$", script, re.MULTILINE))


def exported(script: str) -> Mapping[str, str]:
    """The variables that the script exports, each with its value as the script writes it; none: it was set before."""
    found: dict[str, str] = {}
    for words in re.findall(r"^export (.*)$", script, re.MULTILINE):
        name, equals, value = words.partition("=")
        found |= {name: value.partition(" # ")[0]} if equals else dict.fromkeys(words.partition(" # ")[0].split(), "")
    return found
