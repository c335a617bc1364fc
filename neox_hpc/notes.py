"""What a user should know of a job though nothing is wrong with it.  Reads nothing.

Changes when a plan has something more to tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from neox_hpc.decisions import Account, choose_job_name, count, published_vocabulary
from neox_hpc.launchers import MAPS_CORES, cores_of
from neox_hpc.outline import bubble_share
from neox_hpc.probe import Facts
from neox_hpc.request import Request
from neox_hpc.run_paths import inputs
from neox_hpc.schedulers import SCHEDULERS
from neox_hpc.settings import Loaded
from neox_hpc.site import EnvValue, Site
from neox_hpc.site_facts import BUILT_IN_NETWORKS
from neox_hpc.software import MISSING_SOFTWARE, Software, image_of
from neox_hpc.vocabulary import KEYS, BatchSizes, Layout, RunConfig

LAUNCH_KEYS = ("num_nodes", "num_gpus", "global_num_gpus", "account", "comment", "deepspeed_mpi", "hostfile")
"""Keys of the section launch that a plan follows; the site's launcher takes the place of the others."""


def default_notes(loaded: Loaded, site: Site, request: Request, account: Account, queue: str | None) -> Iterator[str]:
    """Account and queue, where they were not asked for; keys that the site's launcher replaces."""
    job_name = choose_job_name(request, SCHEDULERS[site.scheduler])
    if job_name != request.name:
        yield f"name: the job is {job_name} in the queue, where {site.scheduler} takes no longer one; the run is {request.name}"
    if account.name is not None and request.account is None:
        yield f"account: {account.name}, from {account.place}"
    if queue is not None and request.queue is None:
        names = site.default_queue
        several = f" ({', '.join(names)}: the first that takes the job)" if len(names) > 1 else ""
        yield f"queue: {queue}, the default of {site.name}{several}"
    takes = SCHEDULERS[site.scheduler].takes
    unused = [key for key in ("account", "comment") if key not in takes] + ["hostfile"] * (site.hostfile is None)
    given = [key for key, section in KEYS.items() if section == "launch" and key in loaded.places]
    followed = given if request.launched else LAUNCH_KEYS
    replaced = [loaded.where(key).replace("  ", " ") for key in given if key not in followed or key in unused]
    if replaced:
        yield f"not used, the site's scheduler and launcher ({site.launcher}) take their place: {', '.join(replaced)}"
    if request.early_signal is not None:
        yield f"signal: {request.early_signal.signal} reaches the ranks, and this version of the training ends at it"
    tensor = loaded.config.parallelism.model_parallel_size
    if loaded.config.parallelism.sequence_parallel and tensor == 1:
        yield "layout: sequence_parallel changes nothing with model_parallel_size 1"
    if site.node.ranks and site.node.ranks % tensor:
        yield f"layout: groups of model_parallel_size {tensor} cross nodes of {site.node.ranks} ranks, so their traffic does too"


def software_notes(site: Site, request: Request) -> list[str]:
    """What the ranks run in, where the command line does not say it."""
    image, runtime = image_of(site, request), site.container.runtime
    if image is not None:
        return [f"software: image {image}, run by {runtime}"] if runtime is not None else []
    if request.software_place is not None:
        given = site.software.venv or site.software.conda or site.software.module or site.software.python
        return [f"software: {given}, from {request.software_place}"]
    return []


def stage_notes(site: Site, software: Software) -> Iterator[str]:
    """What the site would copy to the nodes' disks and this job has not in a form that can be copied."""
    copied = {kind for kind, _ in software.staged}
    kind, lacks = ("env", "it is no virtual environment") if software.image is None else ("image", "it is no image in a file")
    if getattr(site.stage, kind) is not None and kind not in copied and software.python != MISSING_SOFTWARE:
        yield f"stage: {software.told} stays where it is, {lacks} (stage.{kind} of {site.name})"


def plugin_notes(software: Software, env: Iterable[tuple[str, EnvValue]]) -> Iterator[str]:
    """A network that is not built into NCCL comes by a plug-in: of the site's modules or paths, else of what the ranks run in."""
    values = dict(env)
    network = values.get("NCCL_NET")
    if network is None or network.value in BUILT_IN_NETWORKS or software.python == MISSING_SOFTWARE:
        return
    if software.image is not None or not (software.modules or "LD_LIBRARY_PATH" in values):
        yield (
            f"network: NCCL_NET={network.value} is a plug-in that {software.told} must bring, or the ranks end at their start; "
            "--site-set env.NCCL_NET=Socket does without it, slowly"
        )


def width_note(config: RunConfig) -> list[str]:
    """A gated MLP of a width that suits no GPU: mostly of a file from before GPT-NeoX's rule for it."""
    shape = config.architecture
    asked, width = shape.intermediate_size, shape.ffn_size
    if asked is None or not shape.gated or width % 64 == 0:
        return []
    rule = "GPT-NeoX's rule: two thirds, halved"
    return [f"mlp: intermediate_size {asked} makes a gated MLP of width {width} ({rule}); for a width of {asked} write {3 * asked}"]


def batch_note(config: RunConfig, layout: Layout, batch: BatchSizes) -> list[str]:
    """How large a step is, where the configuration does not say it: it grows with the nodes."""
    if config.deepspeed.train_batch_size is not None:
        return []
    product = f"micro {batch.micro} x accumulation {batch.accumulation} x {layout.data} data-parallel"
    return [f"batch: {batch.train} sequences a step = {product}"]


def pipeline_note(layout: Layout, batch: BatchSizes) -> list[str]:
    """How long stages wait, where a step has too few micro-batches to fill them."""
    if batch.accumulation >= layout.pipe:
        return []
    few, share = count(batch.accumulation, "micro-batch"), bubble_share(layout, batch)
    return [
        f"pipeline: {few} a step for {layout.pipe} stages leaves them idle {share:.0%} of the time; "
        "more gradient_accumulation_steps fill it"
    ]


def unknown_notes(site: Site, loaded: Loaded, request: Request, facts: Facts) -> list[str]:
    notes = []
    if facts.vocab_size is None:
        notes.append(
            f"vocabulary: its file cannot be read here; {published_vocabulary(loaded.config)} tokens are assumed for the memory"
        )
    if site.node.cores is None:
        notes.append(f"cores: node.cores of {site.name} is not known, so a rank gets the scheduler's default (often one core)")
    if site.hostfile is not None and facts.hostfile is None:
        notes.append("hosts: there is no hostfile here, so its hosts were not counted")
    takes_part = SCHEDULERS[site.scheduler].all_memory
    given = any(text.startswith("--mem") for text in (*site.directives, *request.directives))
    if takes_part and site.node.memory_gib is None and not given:
        notes.append(
            f"memory of a node: node.memory_gib of {site.name} is not known, and {site.scheduler} may give a job a part of it; "
            f"--directive {takes_part} asks for all"
        )
    if site.node.cpu_masks and site.launcher not in MAPS_CORES and not (site.launcher == "jsrun" and in_rows(site.node.cpu_masks)):
        bound = "gives each rank the same number of cores in a row" if site.launcher == "jsrun" else "binds no ranks to cores"
        notes.append(f"cores: {site.launcher} {bound}; node.cpu_masks of {site.name} is not followed")
    if image_of(site, request) and not (facts.image_arch or site.container.arch) and site.node.arch not in (None, "x86_64"):
        notes.append(f"image: the nodes of {site.name} are {site.node.arch}; what the image is built for cannot be seen from here")
    unseen = [path.key for path in inputs(loaded.config, request.cwd) if any(file not in facts.exists for file in path.files)]
    if unseen:
        notes.append(f"not checked, cannot be seen from here: {', '.join(unseen)}")
    return notes


def optimizer_note(config: RunConfig) -> Iterator[str]:
    """What DeepSpeed's Adam on the CPU needs, which cannot be seen from here."""
    if config.optimizer_name == "cpu_adam" and config.own.neox_hpc.cpu_adam_op is None:
        yield (
            "optimizer: cpu_adam is an operation of DeepSpeed's that no job compiles: build it, `python -m model.engine.cpu_adam "
            "FILE.so`, and name it, neox_hpc: {cpu_adam_op: FILE.so}; or install DeepSpeed with DS_BUILD_CPU_ADAM=1; or train with "
            "torch's Adam, deepspeed_extra_args: {zero_force_ds_cpu_optimizer: false}; else the run stops before its first step"
        )


def in_rows(masks: tuple[str, ...]) -> bool:
    """Whether every rank has the same number of neighbouring cores: the one map that a launcher without maps follows."""
    cores = [cores_of(mask) for mask in masks]
    return len({len(row) for row in cores}) == 1 and all(row == list(range(row[0], row[0] + len(row))) for row in cores)
