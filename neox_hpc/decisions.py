"""What is decided for a job where its user did not: name, account, nodes, queue, walltime, layout and batch; each with its reason.

Changes when a decision is made another way.  Reads nothing.
"""

from __future__ import annotations

import math
import os.path
from dataclasses import dataclass

from neox_hpc.errors import Problem
from neox_hpc.hostfile import Hostfile
from neox_hpc.memory import HEADROOM, estimate_memory, fullest, in_gib
from neox_hpc.outline import device_of, memory_of_rank
from neox_hpc.request import Request
from neox_hpc.schedulers import RUN_NAME, SCHEDULERS, Scheduler
from neox_hpc.settings import Loaded
from neox_hpc.site import NodeBin, Queue, Site, show_walltime
from neox_hpc.vocabulary import BatchSizes, Layout, RunConfig

PUBLISHED_VOCABULARIES = {"HFTokenizer": 50277, "SPMTokenizer": 32000, "CharLevelTokenizer": 512}
"""Tokens of a tokenizer whose file is not here: GPT-NeoX-20B's (arXiv:2204.06745, section 3.2), LLaMA's (its tokenizer.model); else
GPT-2's."""
GPT2_VOCABULARY = 50257
MOST_NODES = 16384
"""How far the fewest nodes are looked for where neither site nor queue has a limit."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A value, and the reason to show; or the problem that prevents it."""

    value: int | None = None
    reason: str = ""
    problem: Problem | None = None


@dataclass(frozen=True, kw_only=True)
class Account:
    """Who pays, and where that was read."""

    name: str | None = None
    place: str = "--account"


def choose_job_name(request: Request, scheduler: Scheduler) -> str:
    """What the scheduler calls the job: its name, cut where that was not asked for and is too long for the scheduler."""
    if request.name_is_given:
        return request.name
    cuts = (request.name[:length] for length in range(len(request.name), 0, -1))
    return next(filter(scheduler.name.allows, cuts), request.name) if RUN_NAME.allows(request.name) else request.name


def choose_account(loaded: Loaded, site: Site, request: Request) -> Account:
    """``--account``, else the user's configuration, else ``account:``, else the scheduler's variable."""
    if "account" not in SCHEDULERS[site.scheduler].takes:
        return Account()
    if request.account is not None:
        return Account(name=request.account)
    written = loaded.config.launch.account
    sources = (request.user_account, written and (loaded.where("account"), written), request.environment_account)
    return next((Account(name=name, place=place) for place, name in filter(None, sources)), Account())


def hostfile_paths(loaded: Loaded, site: Site, request: Request) -> tuple[str, ...]:
    """Where the hosts of a site without a scheduler may stand, first one first: GPT-NeoX's order, then the site's own file."""
    if site.hostfile is None:
        return ()
    given = (loaded.config.launch.hostfile, request.environment_hostfile, site.hostfile)
    return tuple(os.path.normpath(os.path.join(request.cwd, path)) for path in given if path)


def choose_hostfile(loaded: Loaded, site: Site, request: Request, found: Hostfile | None) -> str | None:
    """The file that is there; from elsewhere, that of the variable or the site (a configuration's is often a placeholder)."""
    paths = hostfile_paths(loaded, site, request)
    if found is not None:
        return found.path
    if not paths:
        return None
    return paths[-2] if request.environment_hostfile else paths[-1]


def choose_nodes(
    loaded: Loaded,
    site: Site,
    request: Request,
    queue: str | None,
    ranks: int,
    vocab: int,
    hostfile: Hostfile | None = None,
) -> Decision:
    """``--nodes``, else num_nodes, else all hosts of a hostfile, else solved from the batch equation, else the fewest that hold the
    model's cut and fit."""
    config = loaded.config
    if request.nodes is not None and request.nodes < 1:
        return Decision()  # told with the other words of the command line
    if request.nodes is not None:
        decision = Decision(value=request.nodes)
        where = "--nodes"
    elif config.launch.num_nodes > 0:
        decision = Decision(value=config.launch.num_nodes, reason=f"nodes: {config.launch.num_nodes}, from num_nodes")
        where = loaded.where("num_nodes")
    elif hostfile is not None and hostfile.hosts:
        decision = Decision(value=len(hostfile.hosts), reason=f"nodes: {len(hostfile.hosts)}, all hosts of {hostfile.path}")
        where = hostfile.path
    else:
        decision = Decision(value=1) if site.max_nodes == 1 else _solve_nodes(loaded, site, queue, ranks, vocab)
        where = loaded.where("train_batch_size") if config.deepspeed.train_batch_size else loaded.where("model_parallel_size")
    if decision.value is not None and site.max_nodes is not None and decision.value > site.max_nodes:
        wrong = f"{decision.value} nodes, and {site.name} gives a job at most {site.max_nodes}"
        most = min(site.max_nodes, max((node_bin.max_nodes for node_bin in bins_of(site, queue)), default=site.max_nodes))
        return Decision(problem=Problem(where, wrong, f"ask for at most {most}, or choose another site"))
    return decision


def _solve_nodes(loaded: Loaded, site: Site, queue: str | None, ranks: int, vocab: int) -> Decision:
    deepspeed, cell = loaded.config.deepspeed, cell_of(loaded.config)
    train, micro = deepspeed.train_batch_size, deepspeed.train_micro_batch_size_per_gpu
    accumulation = deepspeed.gradient_accumulation_steps
    if not (train and micro and accumulation):
        return _fewest_nodes(loaded, site, queue, ranks, vocab)
    world, rest = divmod(train * cell, micro * accumulation)
    product = f"train_batch_size {train} / (micro {micro} x accumulation {accumulation}) x {cut_of(loaded.config)}"
    if rest or world == 0 or world % ranks:
        wrong = f"{product} = {train * cell / (micro * accumulation):g} ranks, which do not fill nodes of {ranks}"
        fix = f"make train_batch_size a multiple of {micro * accumulation * ranks // math.gcd(ranks, cell)}, or give --nodes"
        return Decision(problem=Problem(loaded.where("train_batch_size"), wrong, fix))
    return Decision(value=world // ranks, reason=f"nodes: {world // ranks}, from {product} = {world} ranks")


def _fewest_nodes(loaded: Loaded, site: Site, queue: str | None, ranks: int, vocab: int) -> Decision:
    """The fewest whose ranks hold the cut whole, multiply out with the batch, and have the memory; else the fewest for the cut."""
    cell = cell_of(loaded.config)
    fewest = cell // math.gcd(cell, ranks)
    limits = [node_bin.max_nodes for node_bin in bins_of(site, queue)]
    held = f"the fewest whose {ranks} ranks each hold {cut_of(loaded.config)} whole"
    counts = range(fewest, max(limits, default=site.max_nodes or MOST_NODES) + 1, fewest)
    # more nodes never need more memory a GPU, so what the most do not hold need not be looked for: that takes seconds
    hopeless = bool(counts) and _too_large(loaded.config, site, counts[-1], ranks, vocab)
    for nodes in () if hopeless else counts:
        if _fits(loaded.config, site, nodes, ranks, vocab):
            also = "" if nodes == fewest else " and multiply out with the batch and the GPUs' memory"
            return Decision(value=nodes, reason=f"nodes: {nodes}, {held}{also}")
    return Decision(value=fewest, reason=f"nodes: {fewest}, {held}")


def _fits(config: RunConfig, site: Site, nodes: int, ranks: int, vocab: int) -> bool:
    """Whether the batch multiplies out and the memory is there."""
    return _exceeds(config, site, nodes, ranks, vocab) is False


def _too_large(config: RunConfig, site: Site, nodes: int, ranks: int, vocab: int) -> bool:
    """Whether the memory is not there."""
    return _exceeds(config, site, nodes, ranks, vocab) is True


def _exceeds(config: RunConfig, site: Site, nodes: int, ranks: int, vocab: int) -> bool | None:
    """Whether a rank needs more memory than it has, as far as both are known; nothing where the batch does not multiply out."""
    try:
        layout = config.layout(nodes * ranks)
        batch = config.batch_sizes(layout)
        memory = estimate_memory(config, layout, batch, vocab, device_of(site))
    except ValueError:
        return None
    room = memory_of_rank(site, ranks)
    return memory is not None and room is not None and fullest(memory).peak > room * HEADROOM


def choose_queue(loaded: Loaded, site: Site, request: Request, ranks: int, vocab: int) -> str | None:
    """``--queue``, else the first of the site's default queues that takes the job, else the first of them."""
    if request.queue is not None or not site.default_queue:
        return request.queue
    if len(site.default_queue) == 1:
        return site.default_queue[0]
    return next((name for name in site.default_queue if _takes(loaded, site, request, name, ranks, vocab)), site.default_queue[0])


def _takes(loaded: Loaded, site: Site, request: Request, queue: str, ranks: int, vocab: int) -> bool:
    nodes = choose_nodes(loaded, site, request, queue, ranks, vocab)
    return nodes.value is not None and choose_walltime(site, queue, request, nodes.value).problem is None


def choose_walltime(site: Site, queue: str | None, request: Request, nodes: int) -> Decision:
    """``--time``, else the queue's limit for that many nodes, else none: the queue's own default."""
    if "walltime" not in SCHEDULERS[site.scheduler].takes:
        return Decision()
    known = queue_of(site, queue)
    if known is None or not known.bins:
        return Decision(value=request.walltime_s, reason="" if request.walltime_s else _NO_WALLTIME)
    limit = known.bin_of(nodes)
    if limit is None:
        fix = f"it takes {ranges(known.bins)}: change --nodes or --queue{_other_queues(site, nodes, request.walltime_s)}"
        where = "--nodes" if request.nodes is not None else "--queue"
        return Decision(problem=Problem(where, f"queue {queue} takes no job of {nodes} nodes", fix))
    most_s = limit.limit_s(nodes)
    if request.walltime_s is not None and request.walltime_s > most_s:
        asked, most = show_walltime(request.walltime_s), show_walltime(most_s)
        wrong = f"{asked} is beyond the {most} of queue {queue} for {_nodes(limit, nodes)}"
        fix = f"write --time {most} or less{_other_queues(site, nodes, request.walltime_s)}"
        return Decision(problem=Problem("--time", wrong, fix))
    if request.walltime_s is not None and not limit.takes(nodes, request.walltime_s) and limit.min_walltime is not None:
        asked, least = show_walltime(request.walltime_s), show_walltime(limit.min_walltime)
        wrong = f"queue {queue} takes no job of {asked}, which is shorter than {least}"
        fix = f"write --time {least} or more{_other_queues(site, nodes, request.walltime_s)}"
        return Decision(problem=Problem("--time", wrong, fix))
    if request.walltime_s is not None:
        return Decision(value=request.walltime_s)
    reason = f"walltime: {show_walltime(most_s)}, the limit of queue {queue} for {_nodes(limit, nodes)}"
    return Decision(value=most_s, reason=reason)


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a queue says to a job."""

    queue: str
    takes: bool
    why: str
    """``up to 02:00:00``; ``it takes 1 to 2 nodes``."""


def queue_offers(site: Site, nodes: int, walltime_s: int | None) -> tuple[Offer, ...]:
    """Every queue of a site, for so many nodes and, if that is asked for, so long; those of other nodes with what they take."""
    return tuple(_offer(name, queue, nodes, walltime_s) for name, queue in (site.queues or {}).items())


def _offer(name: str, queue: Queue, nodes: int, walltime_s: int | None) -> Offer:
    if not queue.bins:
        return Offer(queue=name, takes=True, why="its limits are not known")
    limit = queue.bin_of(nodes)
    if limit is None:
        return Offer(queue=name, takes=False, why=f"it takes {ranges(queue.bins)}")
    most = limit.limit_s(nodes)
    if walltime_s is not None and walltime_s > most:
        return Offer(queue=name, takes=False, why=f"{count(nodes, 'node')} get at most {show_walltime(most)}")
    if walltime_s is not None and not limit.takes(nodes, walltime_s):
        return Offer(queue=name, takes=False, why=f"it takes no job shorter than {show_walltime(limit.min_walltime or 0)}")
    return Offer(queue=name, takes=True, why=f"up to {show_walltime(most)}")


_NO_WALLTIME = (
    "walltime: not given and no limit known, so the job has the queue's own default, which may be minutes, and ends then; "
    "--time 2h sets it"
)


def _nodes(limit: NodeBin, nodes: int) -> str:
    """``4 nodes``, with the node-hours where those are what limits them."""
    shown = count(nodes, "node")
    return shown if limit.node_hours is None else f"{shown} ({limit.node_hours:g} node-hours)"


def _other_queues(site: Site, nodes: int, walltime_s: int | None) -> str:
    """The queues of a site that would take the job, in words."""
    taking = [(name, queue.bin_of(nodes)) for name, queue in (site.queues or {}).items()]
    names = [name for name, limit in taking if limit is not None and (walltime_s is None or limit.takes(nodes, walltime_s))]
    return f"; --queue {' or '.join(names)} takes such a job" if names else ""


def solve_layout(loaded: Loaded, site: Site, world: int, vocab: int) -> tuple[Layout | None, BatchSizes | None, list[Problem]]:
    try:
        layout = loaded.config.layout(world)
    except ValueError as error:
        cell = cell_of(loaded.config)
        fix = f"{cut_of(loaded.config)} needs a multiple of {cell} ranks and {site.name} gives {world}: "
        fix += "take more nodes or a larger site"
        fix += _what_would_hold(loaded.config, cell, vocab)
        return None, None, [Problem(loaded.where("model_parallel_size"), str(error).partition(": ")[0], fix)]
    try:
        return layout, loaded.config.batch_sizes(layout), []
    except ValueError as error:
        given = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
        key = next((key for key in given if key in loaded.places), given[1])
        wrong, _, fix = str(error).partition(": ")
        return layout, None, [Problem(loaded.where(key), wrong, fix or "change one of them, or --nodes")]


def _what_would_hold(config: RunConfig, cell: int, vocab: int) -> str:
    """The smallest machine for a configuration, in words; nothing where that cannot be told."""
    try:
        layout = config.layout(cell)
        memories = estimate_memory(config, layout, config.batch_sizes(layout), vocab)
    except ValueError:
        return ""
    if memories is None:
        return ""
    memory = fullest(memories)
    return f"; {cell} GPUs of {in_gib(int(memory.peak / HEADROOM))} GiB each would hold it ({memory} GiB)"


def queue_of(site: Site, name: str | None) -> Queue | None:
    return (site.queues or {}).get(name) if name is not None else None


def bins_of(site: Site, queue: str | None) -> tuple[NodeBin, ...]:
    known = queue_of(site, queue)
    return known.bins if known is not None else ()


def cell_of(config: RunConfig) -> int:
    return config.parallelism.model_parallel_size * max(1, config.parallelism.pipe_parallel_size)


def cut_of(config: RunConfig) -> str:
    return f"tensor {config.parallelism.model_parallel_size} x pipe {max(1, config.parallelism.pipe_parallel_size)}"


def count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}{'es' if what.endswith('ch') else 's'}"


def ranges(bins: tuple[NodeBin, ...]) -> str:
    """``1 to 9472 nodes``; ranges that touch are one."""
    ranges: list[tuple[int, int]] = []
    for node_bin in bins:
        if ranges and ranges[-1][1] + 1 == node_bin.min_nodes:
            ranges[-1] = (ranges[-1][0], node_bin.max_nodes)
        else:
            ranges.append((node_bin.min_nodes, node_bin.max_nodes))
    return ", ".join(f"{first} to {last} nodes" for first, last in ranges)


def published_vocabulary(config: RunConfig) -> int:
    """Tokens of the tokenizer that a configuration names, from its publication."""
    return PUBLISHED_VOCABULARIES.get(config.tokenizer.tokenizer_type, GPT2_VOCABULARY)
