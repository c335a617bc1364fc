"""What can be wrong with a job, across configuration, site and request: all of it at once, each with its fix.  Reads nothing.

Changes when something more can be found before a job is queued.
"""

from __future__ import annotations

import difflib
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Literal

from neox_hpc.containers import CONTAINERS, is_fetched
from neox_hpc.decisions import Account, choose_job_name, count, queue_of
from neox_hpc.errors import Problem
from neox_hpc.gpus import dtypes_of
from neox_hpc.launchers import GIVES_ONE_GPU, LAUNCHERS, NEEDS_JOB_OF, OWNED, PER_NODE, refused_args, split_args
from neox_hpc.memory import HEADROOM, Memory, fullest, in_gib, stages
from neox_hpc.outline import Outline
from neox_hpc.probe import Facts
from neox_hpc.request import Request
from neox_hpc.run_paths import inputs
from neox_hpc.schedulers import SCHEDULERS, Pattern, Scheduler
from neox_hpc.settings import Loaded
from neox_hpc.site import ARCHIVE, UNFINISHED, WAYS, Site
from neox_hpc.site_facts import way_to_find
from neox_hpc.software import has_software, image_of
from neox_hpc.vocabulary import Layout, RunConfig

MISSING_ACCOUNT = "MISSING_ACCOUNT"
DTYPES = {"fp32": "fp32", "fp16": "fp16", "bfloat16": "bf16"}
"""GPT-NeoX's word for a precision -> what a site calls it."""


def check_words(site: Site, request: Request) -> Iterator[Problem]:
    """Values of directives are not shell: each must fit the scheduler's pattern."""
    scheduler = SCHEDULERS[site.scheduler]
    asked = {"account": request.account, "queue": request.queue, "walltime": request.walltime_s}
    for fact, option in (("account", "--account"), ("queue", "--queue"), ("walltime", "--time")):
        if asked[fact] is not None and fact not in scheduler.takes:
            yield Problem(option, f"{site.name} has no scheduler that takes one", "remove it")
    words = [("--name", choose_job_name(request, scheduler), scheduler.name), ("--output-dir", request.run_dir, scheduler.path)]
    if "queue" in scheduler.takes and request.queue is not None:
        words += [("--queue", request.queue, scheduler.account)]
    for option, text, pattern in words:
        if not pattern.allows(text):
            yield _unfit(option, text, pattern, site)
    if request.nodes is not None and request.nodes < 1:
        yield Problem("--nodes", f"{request.nodes} nodes", "ask for at least 1")
    if site.network.address == "ip" and (site.hostfile is not None or not scheduler.runs_on_first_node):
        wrong = "the job's script does not run on its first node, so its own address is not that of rank 0"
        yield Problem(f"{site.file}  network.address", wrong, "write address: name")
    if request.queue and site.queues is not None and request.queue not in site.queues and "queue" in scheduler.takes:
        near = difflib.get_close_matches(request.queue, site.queues, n=1)
        known = f"did you mean {near[0]}?" if near else f"known: {', '.join(site.queues)}"
        yield Problem("--queue", f"{site.name} has no queue {request.queue!r}", known)


def _unfit(where: str, text: str, pattern: Pattern, site: Site) -> Problem:
    stranger = pattern.stranger(text)
    why = f": it holds {stranger!r}" if stranger else ""
    shown = text if len(text) <= 80 else f"{text[:80]}…"
    return Problem(where, f"{shown!r} does not fit {site.scheduler}{why}", f"use {pattern.words}")


def check_hosts(site: Site, facts: Facts, nodes: int | None, ranks: int) -> Iterator[Problem]:
    """A hostfile against what is planned on its hosts."""
    if facts.hostfile is None:
        return
    yield from facts.hostfile.problems
    path, hosts = facts.hostfile.path, facts.hostfile.hosts
    if nodes is not None and hosts and nodes > len(hosts):
        wrong = f"{count(nodes, 'node')}, and {path} names {count(len(hosts), 'host')}"
        yield Problem("--nodes", wrong, "ask for fewer, or add hosts")
    for host in hosts[:nodes]:
        if host.slots < ranks:
            wrong = f"{host.name} has {count(host.slots, 'slot')}, and a node of {site.name} runs {count(ranks, 'rank')}"
            fix = f"write slots={ranks}, or --site-set node.gpus={host.slots}"
            yield Problem(f"{path}:{host.line}", wrong, fix)


FORWARDED = ("USR1", "TERM", "INT")
"""Signals that the job's script passes on to the ranks; any other ends it."""


def check_directives(site: Site, request: Request, queue: str | None) -> Iterator[Problem]:
    """What only some schedulers can be told, and arguments that are handed to the scheduler as they stand."""
    scheduler = SCHEDULERS[site.scheduler]
    yield from _check_options(site, request, scheduler)
    known = queue_of(site, queue)
    sources = [
        (f"{site.file}  directives", site.directives),
        (f"{site.file}  queues", known.directives if known else ()),
        (f"{site.file}  container.directives", site.container.directives if image_of(site, request) is not None else ()),
        ("--directive", request.directives),
    ]
    seen: set[str] = set()
    for where, text in ((where, text) for where, texts in sources for text in texts):
        yield from _check_directive(site, scheduler, f"{where} {text!r}", text)
        for option in scheduler.once.intersection(scheduler.options_of(text)):
            if option in seen:
                yield Problem(f"{where} {text!r}", f"only one {option} counts, and there is another", "write all its values in one")
            seen.add(option)
    for option in site.skip_directives:
        if option not in scheduler.owned:
            fix = f"write one of {', '.join(scheduler.owned)}" if scheduler.owned else "remove it"
            yield Problem(f"{site.file}  skip_directives", f"no directive {option} is written for {site.scheduler}", fix)


def _check_options(site: Site, request: Request, scheduler: Scheduler) -> Iterator[Problem]:
    given = {
        "--after": bool(request.after),
        "--array": request.array is not None,
        "--exclude": request.exclude is not None,
        "--signal": request.early_signal is not None,
        "--requeue": request.requeue,
        "--directive": bool(request.directives),
    }
    for option, why in scheduler.cannot.items():
        if given[option]:
            yield Problem(option, f"{site.scheduler} cannot: {why}", "remove it")
    words = [("--after", after.job_id, scheduler.job_id) for after in request.after]
    words += [("--exclude", request.exclude, scheduler.nodes)] if request.exclude is not None else []
    for option, text, pattern in words:
        if option not in scheduler.cannot and not pattern.allows(text):
            yield _unfit(option, text, pattern, site)
    if request.early_signal is None or "--signal" in scheduler.cannot:
        return
    if request.early_signal.signal not in FORWARDED:
        wrong = f"the job's script passes {', '.join(FORWARDED)} on to the ranks, and {request.early_signal.signal} would end it"
        yield Problem("--signal", wrong, f"write --signal {FORWARDED[0]}@{request.early_signal.seconds}")
    elif site.launcher in PER_NODE and request.early_signal.signal == "USR1":
        wrong = f"USR1 ends what {site.launcher} starts on a node, and does not reach the ranks"
        yield Problem("--signal", wrong, "remove it, or choose a launcher that starts ranks: --site-set launcher=NAME")


def check_chain(loaded: Loaded, request: Request) -> Iterator[Problem]:
    """A chain of jobs goes on from checkpoints."""
    keys = loaded.config.checkpoints
    if request.array is None or (keys.save is not None and (not keys.save.startswith("/") or keys.save == keys.load)):
        return
    if keys.save is None:
        yield Problem("--array", "no save is given, so every task would train from the beginning", "write save: checkpoints")
    else:
        wrong = f"save: {keys.save} is not the run's own, so every task would train from the beginning"
        yield Problem("--array", wrong, f"write load: {keys.save} too, or save: checkpoints, which lies in the run directory")


def _check_directive(site: Site, scheduler: Scheduler, where: str, text: str) -> Iterator[Problem]:
    if not text.startswith("-") or not text.isprintable():
        yield Problem(where, f"is no argument of {site.scheduler}", "write one option and its value, in printable characters")
        return
    for option in scheduler.options_of(text):
        own = _owned(scheduler, option)
        if own is not None and own not in site.skip_directives:
            yield Problem(where, f"the plan decides {own}", f"use {scheduler.owned[own]}")


def _owned(scheduler: Scheduler, option: str) -> str | None:
    """The plan's own option that is meant: getopt_long(3) takes any beginning of a name."""
    if option in scheduler.owned:
        return option
    begun = [own for own in scheduler.owned if own.startswith(option) and " " not in own]
    return begun[0] if begun and option.startswith("--") and len(option) > 4 else None


def check_account(loaded: Loaded, site: Site, account: Account) -> Iterator[Problem]:
    """Who pays: a name that is one, that the scheduler can carry, and that looks as the site's do."""
    scheduler, comment = SCHEDULERS[site.scheduler], loaded.config.launch.comment
    if account.name == MISSING_ACCOUNT:
        yield Problem(account.place, f"{MISSING_ACCOUNT} is no account: it stands for one that is not given", _ACCOUNT_FIX)
    elif account.name is not None and not scheduler.account.allows(account.name):
        yield _unfit(account.place, account.name, scheduler.account, site)
    elif account.name is not None and site.account_form and not re.fullmatch(site.account_form.regex, account.name):
        wrong = f"{account.name!r} is no account that {site.name} takes such jobs from"
        yield Problem(account.place, wrong, f"give {site.account_form.words}", "here")
    elif account.name is None and site.needs_account:
        wrong = f"{site.name} charges every job to an account and none is given"
        yield Problem("--account", wrong, f"{_ACCOUNT_FIX} (sites: {{{site.name}: {{account: NAME}}}})", "here")
    if comment is not None and "comment" in scheduler.takes and not scheduler.comment.allows(comment):
        yield _unfit(loaded.where("comment"), comment, scheduler.comment, site)


_ACCOUNT_FIX = "write --account NAME, or keep it in ~/.config/neox-hpc/config.yml"


def check_launch(loaded: Loaded, site: Site, request: Request, ranks: int, nodes: int | None) -> Iterator[Problem]:
    """GPUs that the configuration counts itself must be those of the plan, and the launcher must reach its nodes."""
    launch = loaded.config.launch
    if site.launcher == "local" and nodes is not None and nodes > 1 and request.node_rank is None:
        wrong = f"{nodes} nodes, and the launcher local starts ranks on its own one"
        yield Problem(f"{site.file}  launcher", wrong, "write launcher: pdsh, or --nodes 1")
    if launch.num_gpus is not None and launch.num_gpus != ranks:
        wrong = f"num_gpus {launch.num_gpus}, and a node of {site.name} has {ranks} ranks"
        yield Problem(loaded.where("num_gpus"), wrong, f"remove it, or write --site-set node.gpus={launch.num_gpus}")
    if launch.global_num_gpus is not None and nodes is not None and launch.global_num_gpus != nodes * ranks:
        asked, rest = divmod(launch.global_num_gpus, ranks)
        wrong = f"global_num_gpus {launch.global_num_gpus}, and {count(nodes, 'node')} of {site.name} have {nodes * ranks} ranks"
        fix = f"remove it, or write --nodes {asked}" if asked and not rest else f"remove it, or make it a multiple of {ranks}"
        yield Problem(loaded.where("global_num_gpus"), wrong, fix)


def check_launcher(loaded: Loaded, site: Site, request: Request) -> Iterator[Problem]:
    """Arguments given to the launcher may not contradict the plan; GPUs are parted only by a launcher that can."""
    own = loaded.config.own.neox_hpc.launcher_args
    given = [
        (f"{site.file}  launcher_args", site.launcher_args),
        (loaded.where("neox_hpc.launcher_args"), own),
        ("--launcher-args", request.launcher_args),
    ]
    for where, texts in given:
        yield from _check_launcher_args(site, where, texts)
    yield from _check_scheduler_of(site)
    if site.gpus_visible == "one" and site.node.gpus and site.launcher not in GIVES_ONE_GPU:
        wrong = f"the launcher {site.launcher} cannot show each rank one GPU"
        yield Problem(f"{site.file}  gpus_visible", wrong, "write gpus_visible: all: ranks take the GPU of their local rank")


def _check_launcher_args(site: Site, where: str, texts: Sequence[str]) -> Iterator[Problem]:
    try:
        words = split_args(texts)
    except ValueError as error:
        wrong, _, fix = str(error).rpartition(": ")
        yield Problem(where, wrong, fix)
        return
    for word, fix in refused_args(words, OWNED[site.launcher], masks=bool(site.node.cpu_masks)):
        yield Problem(where, f"{word} is decided by the plan", fix)


def _check_scheduler_of(site: Site) -> Iterator[Problem]:
    """A launcher that belongs to a scheduler starts nothing in a job of another; without one, the shell may be in any job."""
    within = NEEDS_JOB_OF.get(site.launcher, ())
    if within and SCHEDULERS[site.scheduler].starts_job and site.scheduler not in within:
        others = [name for name in LAUNCHERS if name != "local" and site.scheduler in NEEDS_JOB_OF.get(name, (site.scheduler,))]
        wrong = f"{site.launcher} starts ranks in a job of {' or '.join(within)} only, and {site.name} has {site.scheduler}"
        yield Problem(f"{site.file}  launcher", wrong, f"write launcher: one of {', '.join(others)}")


def check_arguments(site: Site) -> Iterator[Problem]:
    """A site's launcher, and its own arguments of scheduler and launcher as its jobs meet them: in every queue, in a container and
    in none."""
    images = ("none", "/image.sif") if site.container.runtime is not None else ("none",)
    asked = [Request(name="check", run_dir="/check", cwd="/", container=image) for image in images]
    queues = (None, *(site.queues or ()))
    found = [problem for request in asked for queue in queues for problem in check_directives(site, request, queue)]
    found += [*_check_launcher_args(site, f"{site.file}  launcher_args", site.launcher_args), *_check_scheduler_of(site)]
    yield from dict.fromkeys(found)


def check_memory(loaded: Loaded, site: Site, outline: Outline) -> tuple[list[Problem], list[str]]:
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


def check_inputs(loaded: Loaded, request: Request, facts: Facts) -> Iterator[Problem]:
    """Training data is named, and no file that can be seen from here is absent."""
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


def check_software(site: Site, request: Request, facts: Facts) -> Iterator[Problem]:
    image = image_of(site, request)
    if image is not None:
        yield from _check_image(site, request, facts, image)
        return
    if not has_software(site):
        image = "; --container IMAGE needs none" if site.container.runtime is not None else ""
        fix = f"write --site-set software.python=/path/to/env/bin/python; `neox-hpc env create --site {_given(site)}` builds one"
        yield Problem(f"{site.file}  software", "no Python with torch and DeepSpeed is known", fix + image, "here")
        return
    named = next(key for _, key in WAYS if getattr(site.software, key) is not None)
    where = request.software_place or f"{site.file}  software.{named}"
    venv, python = site.software.venv, site.software.interpreter
    if venv is not None and facts.exists.get(f"{venv}/{UNFINISHED}"):
        fix = f"rm -r {shlex.quote(venv)}; neox-hpc env create --site {_given(site)} --path {shlex.quote(venv)}"
        yield Problem(where, f"{venv} is half-built: an `env create` was interrupted", fix, "here")
    elif venv is not None and site.stage.env is not None and facts.exists.get(f"{venv}{ARCHIVE}") is False:
        archive, folder = shlex.quote(f"{venv}{ARCHIVE}"), shlex.quote(venv)
        wrong = f"stage.env copies {venv}{ARCHIVE} to the nodes, and there is none here"
        yield Problem(where, wrong, f"tar -cf {archive} -C {folder} .", "here")
    elif python is not None and facts.exists.get(python) is False:
        given = "/path/to/env/bin/python" if named == "python" else "/path/to/env"
        yield Problem(where, f"no such file here: {python}", f"write --site-set software.{named}={given}", "here")


def _check_image(site: Site, request: Request, facts: Facts, image: str) -> Iterator[Problem]:
    """An image that can be run there, and that needs not be fetched when the ranks start."""
    runtime = site.container.runtime
    where = "--container" if request.container is not None else request.software_place or f"{site.file}  container.image"
    if request.container == "":
        yield Problem(where, "no image is named", "write the path of an image, or none")
    elif runtime is None:
        told = _told(site, "container.runtime")
        fix = f"{told}write --site-set container.runtime=NAME ({', '.join(CONTAINERS)}), or run without one: --container none"
        yield Problem(where, f"no container runtime of the site {site.name} is known", fix, "here")
    elif runtime == "docker":
        if image.startswith(("/", ".", "~")) or image.endswith(".sif") or not _DOCKER_NAME.fullmatch(image):
            yield Problem(
                where, f"{image!r} is not the name of a Docker image", "write NAME or NAME:TAG, as `docker images` shows it"
            )
    elif is_fetched(image):
        wrong = f"{image} would be fetched by every rank when the job starts, and compute nodes may reach no network"
        name = re.sub(r"[^\w.-]+", "-", image.rpartition("/")[2]) or "image"
        fix = f"fetch it once where there is network: {runtime} pull {name}.sif {shlex.quote(image)}; then --container {name}.sif"
        yield Problem(where, wrong, fix, "here")
    elif facts.exists.get(image) is False:
        fix = f"a relative path counts from {request.cwd}; correct it, or make the image"
        yield Problem(where, f"no such image here: {image}", fix, "here")


_DOCKER_NAME = re.compile(r"[a-z0-9][\w./-]*(:\d+/[\w./-]+)?(:[\w.-]+)?(@sha256:[0-9a-f]{64})?")
"""A reference of the distribution project: registry, path, tag, digest."""


def check_model(loaded: Loaded, site: Site, vocab: int) -> Iterator[Problem]:
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
        where = loaded.where(precision_key(loaded))
        yield Problem(where, f"fp16 needs GPUs, and a node of {site.name} has none", "write precision: bfloat16")
    for key in ("zero_quantized_weights", "zero_quantized_gradients"):
        if getattr(config.deepspeed.zero_optimization, key) and site.node.gpus == 0:
            wrong = f"{key} is a CUDA kernel of DeepSpeed's, and a node of {site.name} has no GPU"
            yield Problem(loaded.where(f"zero_optimization.{key}"), wrong, "remove it")


def check_devices(loaded: Loaded, site: Site) -> Iterator[Problem]:
    """What the site's devices cannot do."""
    node, dtype = site.node, DTYPES[loaded.config.precision]
    dtypes = node.dtypes or dtypes_of(node.gpu_name or "")
    if dtypes is not None and dtype not in dtypes:
        where = loaded.where(precision_key(loaded))
        known = [name for name, short in DTYPES.items() if short in dtypes and name != "fp32"]
        wrong = f"{node.gpu_name or 'the devices'} of {site.name} do not compute in {dtype} (they do in {', '.join(dtypes)})"
        yield Problem(where, wrong, f"write precision: {' or '.join(known or ['fp32'])}, or choose another site")
    if node.accelerator == "xpu":
        wrong = f"{site.name} has {node.gpu_name or 'xpu devices'}: the job renders, and this version cannot train on them"
        yield Problem(f"{site.file}  node.accelerator", wrong, "choose a site with CUDA or ROCm devices", "here")


def check_image_arch(site: Site, request: Request, facts: Facts) -> Iterator[Problem]:
    """An image for other processors starts on none of the nodes."""
    image, arch, nodes = image_of(site, request), facts.image_arch or site.container.arch, site.node.arch
    if image is not None and arch is not None and nodes is not None and arch != nodes:
        where = "--container" if request.container is not None else f"{site.file}  container.image"
        fix = f"build it on a node of {site.name}, or pull the image for {nodes}; or choose another site"
        yield Problem(where, f"{image} is built for {arch}, and the nodes of {site.name} are {nodes}", fix)


def precision_key(loaded: Loaded) -> str:
    """The key that says the precision: DeepSpeed's sections do too."""
    if loaded.config.deepspeed.precision is not None:
        return "precision"
    return {"fp16": "fp16", "bfloat16": "bf16"}.get(loaded.config.precision, "precision")


def _check_tensor(loaded: Loaded) -> Iterator[Problem]:
    """Sizes that tensor ranks share.  The vocabulary is not among them: it is padded."""
    shape, tensor = loaded.config.architecture, loaded.config.parallelism.model_parallel_size
    cut = [("num_attention_heads", shape.num_attention_heads)]
    if loaded.config.parallelism.sequence_parallel:
        cut.append(("seq_length", shape.seq_length))
    if shape.output_layer_parallelism == "row":
        cut.append(("hidden_size", shape.hidden_size))
    for key, size in cut:
        if size % tensor:
            fix = f"write a multiple of {tensor}, or another model_parallel_size"
            yield Problem(loaded.where(key), f"{key} {size} cannot be cut over model_parallel_size {tensor}", fix)
    if shape.ffn_size % tensor:
        key = "intermediate_size" if shape.expansion_factor is None else "expansion_factor"
        wrong = f"the MLP is {shape.ffn_size} wide, which cannot be cut over model_parallel_size {tensor}"
        wider = -(-shape.ffn_size // tensor) * tensor
        better = f"mlp_multiple_of: {math.lcm(tensor, shape.mlp_multiple_of)}" if shape.gated else f"intermediate_size: {wider}"
        instead = " in its place" if key == "expansion_factor" and not shape.gated else ""
        yield Problem(loaded.where(key), wrong, f"write {better}{instead}, or another model_parallel_size")
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


def missing(site: Site, fact: str, what: str, example: str, kind: Literal["anywhere", "here"] = "anywhere") -> Problem:
    """A fact of the site that a job cannot do without."""
    own = f"a site file of your own with `extends: {site.name}`" if site.given in ("", site.name) else site.given
    fix = f"{_told(site, fact)}write --site-set {fact}={example}, or keep it in {own}"
    return Problem(f"{site.file}  {fact}", f"not known for the site {site.name}: {what}", fix, kind)


def _given(site: Site) -> str:
    """What --site takes for this machine, as a word of a command."""
    return shlex.quote(site.given or site.name)


def _told(site: Site, fact: str) -> str:
    way = way_to_find(site, fact)
    return f"{way}; " if way else ""
