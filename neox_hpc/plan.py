"""A configuration, a site, a request and facts make a plan: every decision, and every check across them.  Reads nothing.

All problems are found at once; a plan exists unless something is wrong on every machine.
"""

from __future__ import annotations

import difflib
import math
import os.path
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from neox_hpc.containers import CONTAINERS
from neox_hpc.errors import Problem
from neox_hpc.launchers import Shell, Step
from neox_hpc.memory import GIB, HEADROOM, Memory, count_parameters, estimate_memory, fullest, in_gib, stages
from neox_hpc.probe import Facts
from neox_hpc.run_paths import inputs, with_absolute_paths
from neox_hpc.schedulers import SCHEDULERS
from neox_hpc.settings import Loaded
from neox_hpc.site import EnvValue, NodeBin, Queue, Site, show_walltime
from neox_hpc.vocabulary import KEYS, BatchSizes, Layout, Origin, RunConfig, RunFile

MISSING_ACCOUNT = "MISSING_ACCOUNT"
MISSING_SOFTWARE = "MISSING_SOFTWARE"
PUBLISHED_VOCABULARIES = {"HFTokenizer": 50277, "CharLevelTokenizer": 512}
"""Tokens of a tokenizer whose file is not here: GPT-NeoX-20B's (arXiv:2204.06745, section 3.2); else GPT-2's."""
GPT2_VOCABULARY = 50257
MOST_NODES = 16384
"""How far the fewest nodes are looked for where neither site nor queue has a limit."""
LAUNCH_KEYS = ("num_nodes", "num_gpus", "global_num_gpus", "account", "comment")
"""Keys of the section launch that a plan follows; the site's launcher takes the place of the others."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for on the command line, and what step 1 read of the user's surroundings."""

    name: str
    run_dir: str
    """Absolute; chosen before planning, so that a dry run and the submit after it give the same bytes."""
    cwd: str
    """Directory of the submit command."""
    user: str = ""
    git_commit: str = ""
    neox_hpc: str = ""
    """Version."""
    nodes: int | None = None
    walltime_s: int | None = None
    account: str | None = None
    user_account: tuple[str, str] | None = None
    """Place and account in the user's own configuration."""
    environment_account: tuple[str, str] | None = None
    """Variable and account, where the scheduler reads one."""
    queue: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A job, decided: ``render`` writes it down and decides nothing."""

    name: str
    run_dir: str
    site: Site
    """With the facts of this machine filled in, where the site is this machine."""
    nodes: int
    ranks_per_node: int
    gpus_per_node: int
    cores_per_rank: int | None
    layout: Layout
    batch: BatchSizes
    account: str | None
    comment: str | None
    queue: str | None
    """As the scheduler calls it."""
    walltime_s: int | None
    directives: tuple[str, ...]
    """The site's and the queue's own."""
    env: tuple[tuple[str, EnvValue], ...]
    step: Step
    """The training's parallel start."""
    run: RunFile

    @property
    def device(self) -> Literal["cpu", "gpu"]:
        """What the ranks compute on."""
        return "gpu" if self.gpus_per_node else "cpu"


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

    @property
    def tokens_a_step(self) -> int:
        """Tokens that one optimizer step sees."""
        return self.batch.train * self.sequence

    @property
    def tokens(self) -> int | None:
        """Tokens that the whole training sees."""
        return None if self.steps is None else self.tokens_a_step * self.steps

    @property
    def node_hours(self) -> float | None:
        """What the job may use at most: its nodes for its walltime."""
        return None if self.walltime_s is None else self.nodes * self.walltime_s / 3600


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The result of planning."""

    plan: Plan | None
    """Absent when something is wrong anywhere."""
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    """What was decided without being asked, and why; what could not be checked."""
    outline: Outline | None = None
    """Absent when nodes, layout or batch cannot be told."""


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


def run_name(name: str | None, config_files: tuple[str, ...]) -> str:
    """``--name``, else the first configuration file's name without its ending."""
    return name or (os.path.splitext(os.path.basename(config_files[0]))[0] if config_files else "run")


def make_plan(loaded: Loaded, site: Site, request: Request, facts: Facts) -> Planned:
    """Decide everything about a job, and check it.

    Problems that hold anywhere leave no plan; the others (account, software, data) leave a plan whose script can be shown.
    """
    site, gpu_ids = with_machine(site, facts)
    account = choose_account(loaded, site, request)
    problems = [*_check_words(site, request), *_check_account(loaded, site, account)]
    problems += [*_check_inputs(loaded, request, facts), *_check_software(site, facts)]
    problems += [Problem(loaded.where(p.key), p.wrong, p.fix, "untrained") for p in loaded.config.untrained()]
    vocab = facts.vocab_size or _published_vocabulary(loaded.config)
    ranks = site.node.ranks
    if ranks is None:
        problems.append(_missing(site, "node.gpus", "the GPUs of a node", "4"))
        return Planned(plan=None, problems=(*problems, *_check_model(loaded, site, vocab)))
    queue = _choose_queue(site, request)
    nodes = choose_nodes(loaded, site, request, queue, ranks, vocab)
    walltime = choose_walltime(site, queue, request, nodes.value or 1)
    problems += [decision.problem for decision in (nodes, walltime) if decision.problem is not None]
    problems += [*_check_model(loaded, site, vocab), *_check_launch(loaded, site, ranks, nodes.value)]
    layout, batch, wrong = _solve(loaded, site, (nodes.value or 1) * ranks, vocab)
    problems += wrong
    notes = [*loaded.notes, *(decision.reason for decision in (nodes, walltime) if decision.reason)]
    notes += [*_default_notes(loaded, site, request, account, queue), *_unknown_notes(site, loaded, request, facts)]
    outline = None
    if layout is not None and batch is not None and nodes.value is not None:
        notes += _batch_note(loaded.config, layout, batch) + _pipeline_note(layout, batch)
        outline = _outline(loaded.config, site, nodes.value, ranks, layout, batch, queue, walltime.value, vocab)
    if outline is not None:
        wrong, told = _check_memory(loaded, site, outline)
        problems, notes = problems + wrong, notes + told
    if layout is None or batch is None or nodes.value is None or any(problem.kind == "anywhere" for problem in problems):
        return Planned(plan=None, problems=tuple(problems), notes=tuple(notes), outline=outline)
    plan = _assemble(loaded, site, request, nodes.value, ranks, layout, batch, account, queue, walltime.value, gpu_ids)
    return Planned(plan=plan, problems=tuple(problems), notes=tuple(notes), outline=outline)


def with_machine(site: Site, facts: Facts) -> tuple[Site, tuple[str, ...]]:
    """The site with this machine's facts where it is this machine and they are not given; and the devices that its ranks use."""
    if not site.here:
        return site, ()
    machine, node = facts.machine, site.node
    gpus = len(machine.gpu_ids) if node.gpus is None else node.gpus
    filled = {
        "gpus": gpus,
        "accelerator": node.accelerator or (machine.accelerator if gpus else "cpu"),
        "cores": node.cores or machine.cores,
        "memory_gib": node.memory_gib or machine.memory_gib,
    }
    software = site.software.model_copy(update={"python": site.software.python or machine.python})
    site = site.model_copy(update={"node": node.model_copy(update=filled), "software": software})
    return site, machine.gpu_ids[:gpus]


# Decisions -------------------------------------------------------------------------------------------------------------


def choose_account(loaded: Loaded, site: Site, request: Request) -> Account:
    """``--account``, else the user's configuration, else ``account:``, else the scheduler's variable."""
    if "account" not in SCHEDULERS[site.scheduler].takes:
        return Account()
    if request.account is not None:
        return Account(name=request.account)
    written = loaded.config.launch.account
    sources = (request.user_account, written and (loaded.where("account"), written), request.environment_account)
    return next((Account(name=name, place=place) for place, name in filter(None, sources)), Account())


def choose_nodes(loaded: Loaded, site: Site, request: Request, queue: str | None, ranks: int, vocab: int) -> Decision:
    """``--nodes``, else num_nodes, else solved from the batch equation, else the fewest that hold the model's cut and fit."""
    config = loaded.config
    if request.nodes is not None:
        decision = Decision(value=request.nodes)
        where = "--nodes"
    elif config.launch.num_nodes > 0:
        decision = Decision(value=config.launch.num_nodes, reason=f"nodes: {config.launch.num_nodes}, from num_nodes")
        where = loaded.where("num_nodes")
    else:
        decision = Decision(value=1) if site.max_nodes == 1 else _solve_nodes(loaded, site, queue, ranks, vocab)
        where = loaded.where("train_batch_size") if config.deepspeed.train_batch_size else loaded.where("model_parallel_size")
    if decision.value is not None and site.max_nodes is not None and decision.value > site.max_nodes:
        wrong = f"{decision.value} nodes, and {site.name} gives a job at most {site.max_nodes}"
        most = min(site.max_nodes, max((node_bin.max_nodes for node_bin in _bins(site, queue)), default=site.max_nodes))
        return Decision(problem=Problem(where, wrong, f"ask for at most {most}, or choose another site"))
    if decision.value is not None and decision.value < 1:
        return Decision(problem=Problem(where, f"{decision.value} nodes", "ask for at least 1"))
    return decision


def _solve_nodes(loaded: Loaded, site: Site, queue: str | None, ranks: int, vocab: int) -> Decision:
    deepspeed, cell = loaded.config.deepspeed, _cell(loaded.config)
    train, micro = deepspeed.train_batch_size, deepspeed.train_micro_batch_size_per_gpu
    accumulation = deepspeed.gradient_accumulation_steps
    if not (train and micro and accumulation):
        return _fewest_nodes(loaded, site, queue, ranks, vocab)
    world, rest = divmod(train * cell, micro * accumulation)
    product = f"train_batch_size {train} / (micro {micro} x accumulation {accumulation}) x {_cut(loaded.config)}"
    if rest or world == 0 or world % ranks:
        wrong = f"{product} = {train * cell / (micro * accumulation):g} ranks, which do not fill nodes of {ranks}"
        fix = f"make train_batch_size a multiple of {micro * accumulation * ranks // math.gcd(ranks, cell)}, or give --nodes"
        return Decision(problem=Problem(loaded.where("train_batch_size"), wrong, fix))
    return Decision(value=world // ranks, reason=f"nodes: {world // ranks}, from {product} = {world} ranks")


def _fewest_nodes(loaded: Loaded, site: Site, queue: str | None, ranks: int, vocab: int) -> Decision:
    """The fewest whose ranks hold the cut whole, multiply out with the batch, and have the memory; else the fewest for the cut."""
    cell = _cell(loaded.config)
    fewest = cell // math.gcd(cell, ranks)
    limits = [node_bin.max_nodes for node_bin in _bins(site, queue)]
    held = f"the fewest whose {ranks} ranks each hold {_cut(loaded.config)} whole"
    for nodes in range(fewest, max(limits, default=site.max_nodes or MOST_NODES) + 1, fewest):
        if _fits(loaded.config, site, nodes, ranks, vocab):
            also = "" if nodes == fewest else " and multiply out with the batch and the GPUs' memory"
            return Decision(value=nodes, reason=f"nodes: {nodes}, {held}{also}")
    return Decision(value=fewest, reason=f"nodes: {fewest}, {held}")


def _fits(config: RunConfig, site: Site, nodes: int, ranks: int, vocab: int) -> bool:
    try:
        layout = config.layout(nodes * ranks)
        batch = config.batch_sizes(layout)
        memory = estimate_memory(config, layout, batch, vocab, _device(site))
    except ValueError:
        return False
    room = _memory_of_rank(site, ranks)
    return memory is None or room is None or fullest(memory).peak <= room * HEADROOM


def _outline(
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
    try:
        memory = estimate_memory(config, layout, batch, vocab, _device(site))
        dealt = stages(config, layout, vocab)
    except ValueError:  # told already: layers that cannot be dealt to stages
        return None
    return Outline(
        nodes=nodes,
        ranks_per_node=ranks,
        layout=layout,
        batch=batch,
        stages=dealt,
        memory=memory,
        room=_memory_of_rank(site, ranks),
        queue=queue,
        walltime_s=walltime_s,
        vocab_size=vocab,
        parameters=count_parameters(config, Layout(world_size=1), vocab),
        sequence=config.architecture.seq_length,
        steps=config.training.train_iters,
    )


def _device(site: Site) -> Literal["cpu", "gpu"]:
    return "cpu" if site.node.gpus == 0 else "gpu"


def _memory_of_rank(site: Site, ranks: int) -> float | None:
    """Bytes: a GPU's own memory, or a CPU rank's share of the node's."""
    node = site.node
    if node.gpus:
        return node.gpu_memory_gib and node.gpu_memory_gib * GIB
    return node.memory_gib and node.memory_gib * GIB / ranks


def _published_vocabulary(config: RunConfig) -> int:
    return PUBLISHED_VOCABULARIES.get(config.tokenizer.tokenizer_type, GPT2_VOCABULARY)


def _choose_queue(site: Site, request: Request) -> str | None:
    return request.queue or site.default_queue


def choose_walltime(site: Site, queue: str | None, request: Request, nodes: int) -> Decision:
    """``--time``, else the queue's limit for that many nodes, else none: the queue's own default."""
    if "walltime" not in SCHEDULERS[site.scheduler].takes:
        return Decision()
    known = _queue(site, queue)
    if known is None or not known.bins:
        reason = (
            "" if request.walltime_s else "walltime: not given and no limit known, so the queue's own default; --time 2h sets it"
        )
        return Decision(value=request.walltime_s, reason=reason)
    limit = next((node_bin for node_bin in known.bins if node_bin.min_nodes <= nodes <= node_bin.max_nodes), None)
    if limit is None:
        fix = f"it takes {_ranges(known.bins)}: change --nodes or --queue"
        where = "--nodes" if request.nodes is not None else "--queue"
        return Decision(problem=Problem(where, f"queue {queue} takes no job of {nodes} nodes", fix))
    if request.walltime_s is not None and request.walltime_s > limit.walltime:
        wrong = (
            f"{show_walltime(request.walltime_s)} is beyond the {show_walltime(limit.walltime)} of queue {queue}"
            f" for {_count(nodes, 'node')}"
        )
        return Decision(problem=Problem("--time", wrong, f"write --time {show_walltime(limit.walltime)} or less"))
    if request.walltime_s is not None:
        return Decision(value=request.walltime_s)
    return Decision(
        value=limit.walltime,
        reason=f"walltime: {show_walltime(limit.walltime)}, the limit of queue {queue} for {_count(nodes, 'node')}",
    )


def _solve(loaded: Loaded, site: Site, world: int, vocab: int) -> tuple[Layout | None, BatchSizes | None, list[Problem]]:
    try:
        layout = loaded.config.layout(world)
    except ValueError as error:
        cell = _cell(loaded.config)
        fix = f"{_cut(loaded.config)} needs a multiple of {cell} ranks and {site.name} gives {world}: "
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


# Checks ----------------------------------------------------------------------------------------------------------------


def _check_words(site: Site, request: Request) -> Iterator[Problem]:
    """Values of directives are not shell: each must fit the scheduler's pattern."""
    scheduler = SCHEDULERS[site.scheduler]
    asked = {"account": request.account, "queue": request.queue, "walltime": request.walltime_s}
    for fact, option in (("account", "--account"), ("queue", "--queue"), ("walltime", "--time")):
        if asked[fact] is not None and fact not in scheduler.takes:
            yield Problem(option, f"{site.name} has no scheduler that takes one", "remove it")
    words = [("--name", request.name, scheduler.name), ("--output-dir", request.run_dir, scheduler.path)]
    if "account" in scheduler.takes:
        words += [("--queue", request.queue or "x", scheduler.account)]
    for option, text, pattern in words:
        if not pattern.allows(text):
            yield Problem(option, f"{text!r} does not fit {site.scheduler}", f"use {pattern.words}")
    if request.queue and site.queues is not None and request.queue not in site.queues and "queue" in scheduler.takes:
        near = difflib.get_close_matches(request.queue, site.queues, n=1)
        known = f"did you mean {near[0]}?" if near else f"known: {', '.join(site.queues)}"
        yield Problem("--queue", f"{site.name} has no queue {request.queue!r}", known)


def _check_account(loaded: Loaded, site: Site, account: Account) -> Iterator[Problem]:
    scheduler, comment = SCHEDULERS[site.scheduler], loaded.config.launch.comment
    if account.name == MISSING_ACCOUNT:
        yield Problem(account.place, f"{MISSING_ACCOUNT} is no account: it stands for one that is not given", _ACCOUNT_FIX)
    elif account.name is not None and not scheduler.account.allows(account.name):
        yield Problem(account.place, f"{account.name!r} does not fit {site.scheduler}", f"use {scheduler.account.words}")
    elif account.name is None and site.needs_account:
        wrong = f"{site.name} charges every job to an account and none is given"
        yield Problem("--account", wrong, f"{_ACCOUNT_FIX} (sites: {{{site.name}: {{account: NAME}}}})", "here")
    if comment is not None and "comment" in scheduler.takes and not scheduler.comment.allows(comment):
        yield Problem(loaded.where("comment"), f"{comment!r} does not fit {site.scheduler}", f"use {scheduler.comment.words}")


_ACCOUNT_FIX = "write --account NAME, or keep it in ~/.config/neox-hpc/config.yml"


def _check_launch(loaded: Loaded, site: Site, ranks: int, nodes: int | None) -> Iterator[Problem]:
    """GPUs that the configuration counts itself must be those of the plan."""
    launch = loaded.config.launch
    if launch.num_gpus is not None and launch.num_gpus != ranks:
        wrong = f"num_gpus {launch.num_gpus}, and a node of {site.name} has {ranks} ranks"
        yield Problem(loaded.where("num_gpus"), wrong, f"remove it, or write --site-set node.gpus={launch.num_gpus}")
    if launch.global_num_gpus is not None and nodes is not None and launch.global_num_gpus != nodes * ranks:
        asked, rest = divmod(launch.global_num_gpus, ranks)
        wrong = f"global_num_gpus {launch.global_num_gpus}, and {_count(nodes, 'node')} of {site.name} have {nodes * ranks} ranks"
        fix = f"remove it, or write --nodes {asked}" if asked and not rest else f"remove it, or make it a multiple of {ranks}"
        yield Problem(loaded.where("global_num_gpus"), wrong, fix)


def _check_memory(loaded: Loaded, site: Site, outline: Outline) -> tuple[list[Problem], list[str]]:
    """A problem where what is counted exactly does not fit; a note with the estimate."""
    what, room = "GPU" if site.node.gpus else "rank", outline.room
    if outline.memory is None:
        return [], ["memory: not estimated, the network has blocks without a formula yet"]
    memory = fullest(outline.memory)
    if room is None:
        return [], [f"memory: about {in_gib(memory.peak)} GiB a {what} ({memory}); node.gpu_memory_gib of {site.name} is not known"]
    if memory.states > room:
        wrong = f"{in_gib(memory.states)} GiB a {what} of weights, gradients and optimizer, and {site.name} has {in_gib(int(room))}"
        return [Problem(loaded.where("model_parallel_size"), wrong, _memory_fix(loaded.config, memory))], []
    tight = (
        "" if memory.peak <= room * HEADROOM else ": it may not fit; smaller micro-batches or more model_parallel_size make room"
    )
    return [], [f"memory: about {in_gib(memory.peak)} of {in_gib(int(room))} GiB a {what} ({memory}){tight}"]


def _memory_fix(config: RunConfig, memory: Memory) -> str:
    if config.zero_stage == 0:
        return "write zero_optimization: {stage: 1}, which shares the optimizer out, or raise model_parallel_size"
    moment = memory.fullest
    more = "" if moment.weights + moment.gradients > moment.optimizer else ", or take more --nodes: they share the optimizer out"
    return f"raise model_parallel_size or pipe_parallel_size{more}"


def _check_inputs(loaded: Loaded, request: Request, facts: Facts) -> Iterator[Problem]:
    data = loaded.config.data
    if data.data_path is None and data.train_data_paths is None:
        fix = "write data_path: PREFIX (of PREFIX.bin and PREFIX.idx) or train_data_paths: [PREFIX, …]"
        yield Problem(loaded.where("data_path"), "no training data is given", fix, "here")
    for path in inputs(loaded.config, request.cwd):
        absent = [file for file in path.files if facts.exists.get(file) is False]
        if absent:
            wrong = f"no such file here: {', '.join(absent)}"
            yield Problem(
                loaded.where(path.key), wrong, f"a relative path counts from {request.cwd}; make the file, or correct it", "here"
            )


def _check_software(site: Site, facts: Facts) -> Iterator[Problem]:
    python = site.software.python
    if python is None:
        yield _missing(
            site, "software.python", "the Python of the environment with torch and DeepSpeed", "/path/to/env/bin/python", "here"
        )
    elif facts.exists.get(python) is False:
        yield Problem(
            f"{site.file}  software.python", f"no such file here: {python}", "write --site-set software.python=/path", "here"
        )


def _check_model(loaded: Loaded, site: Site, vocab: int) -> Iterator[Problem]:
    """The network and its arithmetic against the cut over tensor ranks and stages."""
    config = loaded.config
    yield from _check_tensor(loaded)
    yield from _check_stages(loaded, vocab)
    pipe = max(1, config.parallelism.pipe_parallel_size)
    if pipe > 1 and config.zero_stage > 1:
        wrong = f"ZeRO stage {config.zero_stage} cannot be combined with {pipe} pipeline stages: "
        wrong += "it frees gradients after every micro-batch, and a stage adds them up until the last one (DeepSpeed refuses it)"
        yield Problem(loaded.where("zero_optimization.stage"), wrong, "write stage: 1, or pipe_parallel_size: 1")
    if config.precision == "fp16" and site.node.gpus == 0:
        where = loaded.where("fp16" if "fp16" in loaded.places else "precision")
        yield Problem(where, f"fp16 needs GPUs, and a node of {site.name} has none", "write precision: bfloat16")
    for key in ("zero_quantized_weights", "zero_quantized_gradients"):
        if getattr(config.deepspeed.zero_optimization, key) and site.node.gpus == 0:
            wrong = f"{key} is a CUDA kernel of DeepSpeed's, and a node of {site.name} has no GPU"
            yield Problem(loaded.where(f"zero_optimization.{key}"), wrong, "remove it")


def _check_tensor(loaded: Loaded) -> Iterator[Problem]:
    """Sizes that tensor ranks share.  The vocabulary is not among them: it is padded."""
    shape, tensor = loaded.config.architecture, loaded.config.parallelism.model_parallel_size
    cut = [("num_attention_heads", shape.num_attention_heads), ("intermediate_size", shape.ffn_size)]
    if loaded.config.parallelism.sequence_parallel:
        cut.append(("seq_length", shape.seq_length))
    if shape.output_layer_parallelism == "row":
        cut.append(("hidden_size", shape.hidden_size))
    for key, size in cut:
        if size % tensor:
            fix = f"write a multiple of {tensor}, or another model_parallel_size"
            yield Problem(loaded.where(key), f"{key} {size} cannot be cut over model_parallel_size {tensor}", fix)
    kv_heads = shape.num_kv_heads or tensor
    if kv_heads % tensor and tensor % kv_heads:
        wrong = f"num_kv_heads {kv_heads} can neither be cut over model_parallel_size {tensor} nor copied evenly to its ranks"
        fix = f"write a multiple or a divisor of {tensor}, or another model_parallel_size"
        yield Problem(loaded.where("num_kv_heads"), wrong, fix)


def _check_stages(loaded: Loaded, vocab: int) -> Iterator[Problem]:
    config = loaded.config
    blocks, pipe = config.architecture.num_layers, max(1, config.parallelism.pipe_parallel_size)
    if pipe > blocks:
        wrong = f"{blocks} layers cannot be dealt to {pipe} pipeline stages"
        yield Problem(loaded.where("pipe_parallel_size"), wrong, f"write pipe_parallel_size: {blocks} or less")
        return
    try:
        stages(config, Layout(world_size=pipe, pipe=pipe), vocab)
    except ValueError as error:
        wrong, _, fix = str(error).partition(": ")
        yield Problem(loaded.where("pipe_partition_method"), wrong, fix or "write type:transformer|mlp, parameters or uniform")


def _default_notes(loaded: Loaded, site: Site, request: Request, account: Account, queue: str | None) -> Iterator[str]:
    """Account and queue, where they were not asked for; keys that the site's launcher replaces."""
    if account.name is not None and request.account is None:
        yield f"account: {account.name}, from {account.place}"
    if queue is not None and request.queue is None:
        yield f"queue: {queue}, the default of {site.name}"
    takes = SCHEDULERS[site.scheduler].takes
    unused = [key for key in ("account", "comment") if key not in takes]
    given = [key for key, section in KEYS.items() if section == "launch" and key in loaded.places]
    replaced = [loaded.where(key).replace("  ", " ") for key in given if key not in LAUNCH_KEYS or key in unused]
    if replaced:
        yield f"not used, the site's scheduler and launcher ({site.launcher}) take their place: {', '.join(replaced)}"
    tensor = loaded.config.parallelism.model_parallel_size
    if loaded.config.parallelism.sequence_parallel and tensor == 1:
        yield "layout: sequence_parallel changes nothing with model_parallel_size 1"
    if site.node.ranks and site.node.ranks % tensor:
        yield f"layout: groups of model_parallel_size {tensor} cross nodes of {site.node.ranks} ranks, so their traffic does too"


def _batch_note(config: RunConfig, layout: Layout, batch: BatchSizes) -> list[str]:
    """How large a step is, where the configuration does not say it: it grows with the nodes."""
    if config.deepspeed.train_batch_size is not None:
        return []
    product = f"micro {batch.micro} x accumulation {batch.accumulation} x {layout.data} data-parallel"
    return [f"batch: {batch.train} sequences a step = {product}"]


def _pipeline_note(layout: Layout, batch: BatchSizes) -> list[str]:
    """How long stages wait, where a step has too few micro-batches to fill them."""
    if batch.accumulation >= layout.pipe:
        return []
    few, share = _count(batch.accumulation, "micro-batch"), bubble_share(layout, batch)
    return [
        f"pipeline: {few} a step for {layout.pipe} stages leaves them idle {share:.0%} of the time; "
        "more gradient_accumulation_steps fill it"
    ]


def bubble_share(layout: Layout, batch: BatchSizes) -> float:
    """Share of a step that a stage waits: (p - 1) / (m + p - 1) of p stages and m micro-batches (arXiv:2104.04473, section 2.2)."""
    return (layout.pipe - 1) / (batch.accumulation + layout.pipe - 1)


def _unknown_notes(site: Site, loaded: Loaded, request: Request, facts: Facts) -> list[str]:
    notes = []
    if facts.vocab_size is None:
        notes.append(
            f"vocabulary: its file cannot be read here; {_published_vocabulary(loaded.config)} tokens are assumed for the memory"
        )
    if site.node.cores is None:
        notes.append(f"cores: node.cores of {site.name} is not known, so a rank gets the scheduler's default (often one core)")
    unseen = [path.key for path in inputs(loaded.config, request.cwd) if any(file not in facts.exists for file in path.files)]
    if unseen:
        notes.append(f"not checked, cannot be seen from here: {', '.join(unseen)}")
    return notes


def _missing(site: Site, fact: str, what: str, example: str, kind: Literal["anywhere", "here"] = "anywhere") -> Problem:
    found = f"`{site.find[fact]}` tells; " if fact in site.find else ""
    fix = f"{found}write --site-set {fact}={example}, or make a site file of your own with `extends: {site.name}`"
    return Problem(f"{site.file}  {fact}", f"not known for the site {site.name}: {what}", fix, kind)


# Assembly --------------------------------------------------------------------------------------------------------------


def _assemble(
    loaded: Loaded,
    site: Site,
    request: Request,
    nodes: int,
    ranks: int,
    layout: Layout,
    batch: BatchSizes,
    account: Account,
    queue: str | None,
    walltime_s: int | None,
    gpu_ids: tuple[str, ...],
) -> Plan:
    gpus = site.node.gpus or 0
    cores = max(1, site.node.cores // ranks) if site.node.cores is not None else None
    known = _queue(site, queue)
    step = Step(
        nodes=nodes,
        ranks_per_node=ranks,
        cores_per_rank=cores,
        cpu_masks=site.node.cpu_masks,
        gpu_ids=gpu_ids,
        launcher_args=site.launcher_args,
        container=CONTAINERS[site.container](),
        python=site.software.python or MISSING_SOFTWARE,
        module="model.train",
        module_args=(Shell("$run/run.json"),),  # as the script names it
    )
    return Plan(
        name=request.name,
        run_dir=request.run_dir,
        site=site,
        nodes=nodes,
        ranks_per_node=ranks,
        gpus_per_node=gpus,
        cores_per_rank=cores,
        layout=layout,
        batch=batch,
        account=account.name or (MISSING_ACCOUNT if site.needs_account else None),
        comment=loaded.config.launch.comment,
        queue=known.partition or queue if known else queue,
        walltime_s=walltime_s,
        directives=(*site.directives, *(known.directives if known else ())),
        env=_env(site, nodes, gpus, cores),
        step=step,
        run=_run_file(loaded, site, request, layout.world_size, "gpu" if gpus else "cpu"),
    )


def _env(site: Site, nodes: int, gpus: int, cores: int | None) -> tuple[tuple[str, EnvValue], ...]:
    """The job's variables: ours, then the site's over them, for this node count."""
    chosen: dict[str, EnvValue] = {}
    if cores is not None:
        chosen["OMP_NUM_THREADS"] = EnvValue(value=str(cores))
    if not gpus:
        chosen["DS_ACCELERATOR"] = EnvValue(value="cpu")  # DeepSpeed would take a GPU that it finds
    if gpus and site.node.local_disk is not None:
        chosen["TRITON_CACHE_DIR"] = EnvValue(value=f"{site.node.local_disk}/triton", expand=True)  # a rank compiles: not on NFS
    if site.network.interface is not None:
        for name in ("GLOO_SOCKET_IFNAME", *(("NCCL_SOCKET_IFNAME",) if gpus else ())):
            chosen[name] = EnvValue(value=site.network.interface)
    for name, values in site.env.items():
        for value in values:
            if value.applies(nodes):
                chosen[name] = value
    return tuple(chosen.items())


def _run_file(loaded: Loaded, site: Site, request: Request, world: int, device: Literal["cpu", "gpu"]) -> RunFile:
    return RunFile(
        name=request.name,
        world_size=world,
        device=device,
        config=with_absolute_paths(loaded.config, cwd=request.cwd, run_dir=request.run_dir),
        origin=Origin(
            neox_hpc=request.neox_hpc,
            site=site.name,
            user=request.user,
            git_commit=request.git_commit,
            config_files=loaded.files,
        ),
    )


def _queue(site: Site, name: str | None) -> Queue | None:
    return (site.queues or {}).get(name) if name is not None else None


def _bins(site: Site, queue: str | None) -> tuple[NodeBin, ...]:
    known = _queue(site, queue)
    return known.bins if known is not None else ()


def _cell(config: RunConfig) -> int:
    return config.parallelism.model_parallel_size * max(1, config.parallelism.pipe_parallel_size)


def _cut(config: RunConfig) -> str:
    return f"tensor {config.parallelism.model_parallel_size} x pipe {max(1, config.parallelism.pipe_parallel_size)}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}{'es' if what.endswith('ch') else 's'}"


def _ranges(bins: tuple[NodeBin, ...]) -> str:
    """``1 to 9472 nodes``; ranges that touch are one."""
    ranges: list[tuple[int, int]] = []
    for node_bin in bins:
        if ranges and ranges[-1][1] + 1 == node_bin.min_nodes:
            ranges[-1] = (ranges[-1][0], node_bin.max_nodes)
        else:
            ranges.append((node_bin.min_nodes, node_bin.max_nodes))
    return ", ".join(f"{first} to {last} nodes" for first, last in ranges)
