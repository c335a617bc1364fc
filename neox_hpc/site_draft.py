"""A first site file from what a scheduler's own commands tell.  Text in, text out; someone else runs the commands.

Changes when a scheduler tells more, or tells it otherwise.  What is not told stays null in the draft.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neox_hpc.gpus import dtypes_of
from neox_hpc.site import show_walltime


@dataclass(frozen=True, kw_only=True)
class NodeKind:
    """Nodes that are alike; ``None``: not told."""

    count: int
    gpus: int | None = None
    gpu_name: str | None = None
    cpus: int | None = None
    """As the scheduler counts them."""
    threads_per_core: int | None = None
    by_threads: bool = False
    """Whether ``cpus`` counts hardware threads."""
    memory_gib: int | None = None

    @property
    def cores(self) -> int | None:
        """Physical cores."""
        return None if self.cpus is None else self.cpus // (self.threads_per_core or 1 if self.by_threads else 1)


@dataclass(frozen=True, kw_only=True)
class DraftQueue:
    """A queue as it was told; ``None``: no limit, or none told."""

    max_nodes: int | None = None
    min_nodes: int | None = None
    walltime_s: int | None = None
    default: bool = False


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a scheduler told of its machine."""

    kinds: tuple[NodeKind, ...] = ()
    queues: Mapping[str, DraftQueue] = field(default_factory=dict)

    @property
    def usual(self) -> NodeKind:
        """The kind that a training runs on: with GPUs if there are any, else the most frequent."""
        return max(self.kinds, key=lambda kind: (bool(kind.gpus), kind.count), default=NodeKind(count=0))


@dataclass(frozen=True, kw_only=True)
class Source:
    """How one scheduler is asked."""

    commands: Mapping[str, tuple[str, ...]]
    """Name of an answer -> the command that gives it."""
    parse: Callable[[Mapping[str, str]], Told]
    """The answers, without those that could not be had."""
    program: str
    """Where it is there, this is the scheduler."""


# Slurm ------------------------------------------------------------------------------------------------------------------------


def parse_slurm(answers: Mapping[str, str]) -> Told:
    """``sinfo --exact`` with a row for each partition and kind of node.  Source: sinfo(1)."""
    counts: dict[tuple[str, str, str, str], int] = {}
    queues: dict[str, DraftQueue] = {}
    for line in answers.get("sinfo", "").splitlines():
        cells = line.strip().split("|")
        if len(cells) != 7 or not cells[1].isdecimal():
            continue
        partition, nodes, limit, cpus, memory, gres, built = cells
        name, default = partition.removesuffix("*"), partition.endswith("*")
        known = queues.get(name, DraftQueue())
        most = (known.max_nodes or 0) + int(nodes)
        queues[name] = DraftQueue(max_nodes=most, walltime_s=_slurm_time(limit), default=default)
        kind = (cpus, memory, gres, built)
        counts[kind] = max(counts.get(kind, 0), int(nodes))  # a node may be in several partitions
    return Told(kinds=tuple(_slurm_kind(*kind, count=count) for kind, count in counts.items()), queues=queues)


def _slurm_kind(cpus: str, memory: str, gres: str, built: str, *, count: int) -> NodeKind:
    """``built``: sockets, cores of each and threads of those, ``2:64:2``.  What a cluster's CPUs are is configured:
    cores or threads (slurm.conf(5), CPUs); more than there are cores are threads."""
    gpus, name = _slurm_gpus(gres)
    sockets, cores, threads = (_number(part) or 1 for part in f"{built}::".split(":")[:3])
    return NodeKind(
        count=count,
        gpus=gpus,
        gpu_name=name,
        cpus=_number(cpus),
        threads_per_core=threads,
        by_threads=threads > 1 and (_number(cpus) or 0) > sockets * cores,
        memory_gib=None if _number(memory) is None else (_number(memory) or 0) // 1024,
    )


def _slurm_gpus(gres: str) -> tuple[int, str | None]:
    """``gpu:a100:4(S:0-1),nvme:1`` -> 4 and a100."""
    found = re.findall(r"(?:^|,)gpu:(?:([^:,()]+):)?(\d+)", gres)
    names = [name for name, _ in found if name]
    return sum(int(count) for _, count in found), names[0] if names else None


def _slurm_time(text: str) -> int | None:
    """``1-00:00:00``, ``30:00`` (minutes and seconds) or ``infinite``."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + seconds


# PBS --------------------------------------------------------------------------------------------------------------------------


def parse_pbs(answers: Mapping[str, str]) -> Told:
    """``pbsnodes -avF json`` and ``qstat -Q -f -F json``.  Source: pbsnodes(8B), qstat(1B), pbs_node_attributes(7B)."""
    kinds: Counter[tuple[int | None, int | None, int | None]] = Counter()
    for node in _json(answers.get("pbsnodes", "")).get("nodes", {}).values():
        has = node.get("resources_available", {})
        kinds[(_number(has.get("ngpus", 0)), _number(has.get("ncpus")), _pbs_gib(has.get("mem")))] += 1
    queues = {
        name: DraftQueue(
            max_nodes=_number(queue.get("resources_max", {}).get("nodect")),
            min_nodes=_number(queue.get("resources_min", {}).get("nodect")),
            walltime_s=_pbs_time(str(queue.get("resources_max", {}).get("walltime", ""))),
        )
        for name, queue in _json(answers.get("qstat", "")).get("Queue", {}).items()
        if str(queue.get("enabled", "True")) == "True"
    }
    told = (NodeKind(count=count, gpus=gpus, cpus=cpus, memory_gib=gib) for (gpus, cpus, gib), count in kinds.items())
    return Told(kinds=tuple(told), queues=queues)


def _pbs_gib(text: object) -> int | None:
    found = re.fullmatch(r"(\d+)(kb|mb|gb|tb)", str(text).lower())
    return None if found is None else int(found[1]) * {"kb": 2**10, "mb": 2**20, "gb": 2**30, "tb": 2**40}[found[2]] // 2**30


def _pbs_time(text: str) -> int | None:
    parts = text.split(":")
    if not all(part.isdigit() for part in parts):
        return None
    return sum(int(part) * 60**place for place, part in enumerate(reversed(parts)))


# LSF --------------------------------------------------------------------------------------------------------------------------


def parse_lsf(answers: Mapping[str, str]) -> Told:
    """``bhosts -w``, ``lshosts -w``, ``lshosts -gpu`` and ``bqueues -l``.  Source: IBM's LSF command reference."""
    gpus = _lsf_gpus(answers.get("gpus", ""))
    memory = {words[0]: words[5] for words in _table(answers.get("lshosts", "")) if len(words) > 5}
    kinds: Counter[tuple[int, str | None, int | None, int | None]] = Counter()
    for words in _table(answers.get("bhosts", "")):
        if len(words) > 3:
            held = gpus.get(words[0], [])
            kinds[(len(held), held[0] if held else None, _number(words[3]), _lsf_gib(memory.get(words[0], "")))] += 1
    told = (NodeKind(count=n, gpus=gpus, gpu_name=name, cpus=cpus, memory_gib=gib) for (gpus, name, cpus, gib), n in kinds.items())
    return Told(kinds=tuple(told), queues=_lsf_queues(answers.get("bqueues", "")))


def _lsf_gpus(text: str) -> dict[str, list[str]]:
    """Host -> the models of its GPUs; a host's name stands before its first GPU only."""
    found: dict[str, list[str]] = {}
    host = ""
    for line in text.splitlines()[1:]:
        words = line.split()
        if not line[:1].isspace() and words:
            host, *words = words
        if len(words) > 1 and words[0].isdigit():
            found.setdefault(host, []).append(words[1])
    return found


def _lsf_gib(text: str) -> int | None:
    found = re.fullmatch(r"([\d.]+)([MGT])", text)
    return None if found is None else round(float(found[1]) * {"M": 1 / 1024, "G": 1, "T": 1024}[found[2]])


def _lsf_queues(text: str) -> dict[str, DraftQueue]:
    """Blocks that begin with ``QUEUE: name``; the line after ``RUNLIMIT`` says minutes."""
    queues = {}
    for block in re.split(r"^QUEUE:\s*", text, flags=re.MULTILINE)[1:]:
        limit = re.search(r"^\s*RUNLIMIT\s*\n\s*([\d.]+) min", block, flags=re.MULTILINE)
        default = re.search(r"[Tt]his is the default queue", block) is not None
        queues[block.split()[0]] = DraftQueue(walltime_s=round(float(limit[1]) * 60) if limit else None, default=default)
    return queues


# Flux -------------------------------------------------------------------------------------------------------------------------


def parse_flux(answers: Mapping[str, str]) -> Told:
    """``flux resource list`` and ``flux queue list``.  Source: flux-resource(1), flux-queue(1)."""
    kinds = []
    for line in answers.get("resource", "").splitlines():
        nodes, cores, gpus = (_number(word) for word in f"{line}||".split("|")[:3])
        if nodes:
            kinds.append(NodeKind(count=nodes, gpus=(gpus or 0) // nodes, cpus=None if cores is None else cores // nodes))
    queues = {}
    for line in answers.get("queue", "").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 4 and cells[0]:
            name, limit, least, most = cells
            queues[name.removesuffix("*")] = DraftQueue(
                max_nodes=_number(most), min_nodes=_number(least), walltime_s=_flux_time(limit), default=name.endswith("*")
            )
    return Told(kinds=tuple(kinds), queues=queues)


def _flux_time(text: str) -> int | None:
    """``1.5h``, ``30m``, ``2d``, ``90s`` or seconds; ``inf``: none."""
    found = re.fullmatch(r"([\d.]+)([smhd]?)", text)
    return None if found is None else round(float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]) or None


SOURCES: dict[str, Source] = {
    "slurm": Source(
        program="sinfo",
        commands={"sinfo": ("sinfo", "--exact", "--noheader", "--format=%P|%D|%l|%c|%m|%G|%z")},
        parse=parse_slurm,
    ),
    "pbs": Source(
        program="pbsnodes",
        commands={"pbsnodes": ("pbsnodes", "-avF", "json"), "qstat": ("qstat", "-Q", "-f", "-F", "json")},
        parse=parse_pbs,
    ),
    "lsf": Source(
        program="bqueues",
        commands={
            "bhosts": ("bhosts", "-w"),
            "lshosts": ("lshosts", "-w"),
            "gpus": ("lshosts", "-gpu"),
            "bqueues": ("bqueues", "-l"),
        },
        parse=parse_lsf,
    ),
    "flux": Source(
        program="flux",
        commands={
            "resource": ("flux", "resource", "list", "--states=all", "--no-header", "--format={nnodes}|{ncores}|{ngpus}"),
            "queue": (
                *("flux", "queue", "list", "--no-header"),
                "--format={queuem}|{limits.timelimit!F}|{limits.min.nnodes}|{limits.max.nnodes}",
            ),
        },
        parse=parse_flux,
    ),
}
"""By the name of the scheduler; the generic site that a draft extends has the same name."""


# The draft --------------------------------------------------------------------------------------------------------------------


def write_draft(name: str, scheduler: str, told: Told, date: str, silent: Sequence[str] = ()) -> str:
    """The site file.  ``silent``: commands that gave no answer."""
    source = f"{', '.join(' '.join(command) for command in SOURCES[scheduler].commands.values())}, {date}"
    usual = told.usual
    lines = [
        f"# {name}: a draft from what {scheduler} told on {date}.  Look at every line; give what is null; a fact has a source.",
        "# `neox-hpc sites check` says what is missing, `neox-hpc sites show` what holds, with all that the file extends.",
        *(f"# no answer: {command}" for command in silent),
        f"title: {name}",
        f"extends: {scheduler}",
        *_node_lines(told, usual),
        *_queue_lines(told),
        "sources:",
        f"  node: {_text(source)}",
        *([f"  node.dtypes: {_text(_BY_NAME)}"] if dtypes_of(usual.gpu_name or "") else []),
        f"  max_nodes: {_text(source)}",
        f"  queues: {_text(source)}",
        f"  default_queue: {_text(source)}",
    ]
    return "\n".join(lines) + "\n"


_BY_NAME = "what NVIDIA and AMD publish of GPUs of this name"


def _node_lines(told: Told, usual: NodeKind) -> list[str]:
    others = [kind for kind in told.kinds if kind is not usual]
    accelerator = _accelerator(usual)
    lines = [f"max_nodes: {usual.count or 'null'}", "node:"]
    lines += [f"  # also {_words(kind)}" for kind in others]
    lines.append(f"  gpus: {'null' if usual.gpus is None else usual.gpus}")
    if usual.gpu_name:
        lines.append(f"  gpu_name: {_text(usual.gpu_name)}")
    lines.append(f"  accelerator: {accelerator or 'null  # cuda or rocm'}")
    lines.append("  gpu_memory_gib: null")
    if dtypes := dtypes_of(usual.gpu_name or ""):
        lines.append(f"  dtypes: [{', '.join(dtypes)}]")
    threads = "" if usual.threads_per_core else "  # if the scheduler counts hardware threads, give half or less"
    lines.append(f"  cores: {usual.cores or 'null'}{threads if usual.cores else ''}")
    if usual.threads_per_core:
        lines.append(f"  threads_per_core: {usual.threads_per_core}")
    if usual.by_threads:
        lines.append("  scheduler_cpus: threads  # a rank asks for all threads of its cores")
    lines.append(f"  memory_gib: {usual.memory_gib or 'null'}")
    return lines


def _accelerator(kind: NodeKind) -> str | None:
    name = (kind.gpu_name or "").lower()
    if kind.gpus == 0:
        return "cpu"
    if re.search(r"mi\d{2,3}|instinct", name):
        return "rocm"
    return "cuda" if re.search(r"[abghlptv]\d{1,3}0|gh200|rtx|tesla|nvidia|geforce", name) else None


def _queue_lines(told: Told) -> list[str]:
    if not told.queues:
        return ["queues: null"]
    lines = ["queues:"]
    for name, queue in told.queues.items():
        limit = [f"max_nodes: {queue.max_nodes}", f'walltime: "{show_walltime(queue.walltime_s or 0)}"']
        if queue.min_nodes and queue.min_nodes > 1:
            limit.insert(0, f"min_nodes: {queue.min_nodes}")
        known = queue.max_nodes and queue.walltime_s
        lines.append(f"  {_text(name)}: " + (f"{{bins: [{{{', '.join(limit)}}}]}}" if known else "{}  # its limits were not told"))
    default = next((name for name, queue in told.queues.items() if queue.default), None)
    return [*lines, f"default_queue: {_text(default) if default else 'null'}"]


def _words(kind: NodeKind) -> str:
    gpus = f"{kind.gpus} x {kind.gpu_name or 'GPU'}" if kind.gpus else "no GPUs"
    return f"{kind.count} nodes of {gpus}, {kind.cores or '?'} cores, {kind.memory_gib or '?'} GiB"


def _text(value: str) -> str:
    """A YAML scalar that is text, whatever it looks like."""
    return value if re.fullmatch(r"[A-Za-z][A-Za-z0-9_. /=-]*", value) and value.lower() not in _YAML_WORDS else json.dumps(value)


_YAML_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


def _number(text: object) -> int | None:
    """The whole number that a text begins with (``64+``, ``64``); nothing else is one."""
    found = re.match(r"\s*(\d+)", str(text))
    return None if found is None else int(found[1])


def _table(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()[1:] if line.strip()]


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
