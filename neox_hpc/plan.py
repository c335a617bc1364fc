"""A configuration, a site, a request and facts make a plan: every decision and every check is called here.  Reads nothing.

All problems are found at once; a plan exists unless something is wrong on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from neox_hpc.checks import (
    MISSING_ACCOUNT,
    check_account,
    check_chain,
    check_devices,
    check_directives,
    check_hosts,
    check_image_arch,
    check_inputs,
    check_launch,
    check_launcher,
    check_memory,
    check_model,
    check_software,
    check_words,
    missing,
)
from neox_hpc.decisions import (
    Account,
    choose_account,
    choose_hostfile,
    choose_job_name,
    choose_nodes,
    choose_queue,
    choose_walltime,
    published_vocabulary,
    queue_of,
    solve_layout,
)
from neox_hpc.errors import Problem
from neox_hpc.extras import check_extras, extra_notes
from neox_hpc.launchers import Shell, Step, split_args
from neox_hpc.notes import (
    batch_note,
    default_notes,
    optimizer_note,
    pipeline_note,
    plugin_notes,
    software_notes,
    stage_notes,
    unknown_notes,
    width_note,
)
from neox_hpc.outline import Outline, make_outline
from neox_hpc.probe import Facts
from neox_hpc.request import Request
from neox_hpc.run_paths import with_absolute_paths
from neox_hpc.schedulers import SCHEDULERS, After, Chain, EarlySignal
from neox_hpc.settings import Loaded
from neox_hpc.site import EnvValue, Site
from neox_hpc.software import Software, choose_software
from neox_hpc.vocabulary import BatchSizes, Layout, Origin, RunFile


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A job, decided: ``render`` writes it down and decides nothing."""

    name: str
    job_name: str
    """As the scheduler calls it."""
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
    counts: Literal["nodes", "gpus"]
    """What the queue gives out: whole nodes, or GPUs one by one."""
    walltime_s: int | None
    directives: tuple[str, ...]
    """The site's own, the queue's and the command line's."""
    after: tuple[After, ...]
    array: Chain | None
    exclude: str | None
    early_signal: EarlySignal | None
    requeue: bool
    hostfile: str | None
    """Where the job reads its hosts, when no scheduler gives them."""
    master_addr: str | None
    master_port: int | None
    """Where ranks meet; absent: the job decides."""
    env: tuple[tuple[str, EnvValue], ...]
    software: Software
    """What the ranks run in."""
    joins: str | None
    """The run directory of another node's launch, whose training this one joins."""
    step: Step
    """The training's parallel start."""
    run: RunFile

    @property
    def cpus_per_rank(self) -> int | None:
        """``cores_per_rank`` as the scheduler counts them."""
        return self.cores_per_rank and self.cores_per_rank * self.site.node.cpus_per_core

    @property
    def device(self) -> Literal["cpu", "gpu"]:
        """What the ranks compute on."""
        return "gpu" if self.gpus_per_node else "cpu"


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


def make_plan(loaded: Loaded, site: Site, request: Request, facts: Facts) -> Planned:
    """Decide everything about a job, and check it.

    Problems that hold anywhere leave no plan; the others (account, software, data) leave a plan whose script can be shown.
    """
    site, gpu_ids = with_machine(with_slots(site, facts), facts)
    account = choose_account(loaded, site, request)
    problems = [*check_words(site, request), *check_account(loaded, site, account)]
    problems += [*check_inputs(loaded, request, facts), *check_software(site, request, facts), *check_devices(loaded, site)]
    problems += check_extras(loaded, site, request, facts)
    problems += [*check_launcher(loaded, site, request), *check_image_arch(site, request, facts), *check_chain(loaded, request)]
    problems += [Problem(loaded.where(p.key), p.wrong, p.fix, "untrained") for p in loaded.config.untrained()]
    vocab = facts.vocab_size or published_vocabulary(loaded.config)
    ranks = site.node.ranks
    if ranks is None:
        problems.append(missing(site, "node.gpus", "the GPUs of a node", "4"))
        problems += check_directives(site, request, request.queue)
        return Planned(plan=None, problems=(*problems, *check_model(loaded, site, vocab)))
    queue = choose_queue(loaded, site, request, ranks, vocab)
    problems += check_directives(site, request, queue)
    nodes = choose_nodes(loaded, site, request, queue, ranks, vocab, facts.hostfile)
    problems += check_hosts(site, facts, nodes.value, ranks)
    walltime = choose_walltime(site, queue, request, nodes.value or 1)
    problems += [decision.problem for decision in (nodes, walltime) if decision.problem is not None]
    problems += [*check_model(loaded, site, vocab), *check_launch(loaded, site, request, ranks, nodes.value)]
    layout, batch, wrong = solve_layout(loaded, site, (nodes.value or 1) * ranks, vocab)
    problems += wrong
    notes = [*loaded.notes, *(decision.reason for decision in (nodes, walltime) if decision.reason)]
    notes += [*software_notes(site, request), *extra_notes(loaded, site, request, facts)]
    notes += [*width_note(loaded.config), *optimizer_note(loaded.config)]
    notes += [*default_notes(loaded, site, request, account, queue), *unknown_notes(site, loaded, request, facts)]
    outline = None
    if layout is not None and batch is not None and nodes.value is not None:
        notes += batch_note(loaded.config, layout, batch) + pipeline_note(layout, batch)
        outline = make_outline(loaded.config, site, nodes.value, ranks, layout, batch, queue, walltime.value, vocab)
    if outline is not None:
        wrong, told = check_memory(loaded, site, outline)
        problems, notes = problems + wrong, notes + told
    if layout is None or batch is None or nodes.value is None or any(problem.kind == "anywhere" for problem in problems):
        return Planned(plan=None, problems=tuple(problems), notes=tuple(notes), outline=outline)
    plan = _assemble(loaded, site, request, nodes.value, ranks, layout, batch, account, queue, walltime.value, gpu_ids, facts)
    notes += [*stage_notes(site, plan.software), *plugin_notes(plan.software, plan.env)]
    return Planned(plan=plan, problems=tuple(problems), notes=tuple(notes), outline=outline)


def with_slots(site: Site, facts: Facts) -> Site:
    """The site with as many ranks a node as its hosts have slots, where the GPUs of a node are not known."""
    if facts.hostfile is None or not facts.hostfile.hosts or site.node.gpus is not None:
        return site
    slots = min(host.slots for host in facts.hostfile.hosts)
    shown = {"gpus": 0, "cpu_ranks": slots} if site.here and not facts.machine.gpu_ids else {"gpus": slots}
    return site.model_copy(update={"node": site.node.model_copy(update=shown)})


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
    python = {"python": machine.python} if site.way is None else {}
    runtime = {"runtime": site.container.runtime or machine.runtime}
    return (
        site.model_copy(
            update={
                "node": node.model_copy(update=filled),
                "software": site.software.model_copy(update=python),
                "container": site.container.model_copy(update=runtime),
            }
        ),
        machine.gpu_ids[:gpus],
    )


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
    facts: Facts,
) -> Plan:
    gpus = site.node.gpus or 0
    cores = max(1, site.node.cores // ranks) if site.node.cores is not None else None
    known = queue_of(site, queue)
    env = _env(site, nodes, gpus, cores)
    software = choose_software(loaded.config, site, request, facts, dict(env))
    step = Step(
        nodes=nodes,
        ranks_per_node=ranks,
        cores_per_rank=cores,
        cpus_per_rank=cores and cores * site.node.cpus_per_core,
        cpu_masks=site.node.cpu_masks,
        gpus_per_node=gpus,
        gpus_visible=site.gpus_visible,
        gpu_ids=gpu_ids,
        node_rank=request.node_rank,
        env=tuple(dict.fromkeys((*_exported(env, software), *request.exports))),
        launcher_args=split_args((*site.launcher_args, *loaded.config.own.neox_hpc.launcher_args, *request.launcher_args)),
        container=software.container,
        python=software.python,
        module="model.train",
        module_args=(Shell("$run/run.json") if request.joins is None else f"{request.joins}/run.json",),  # as the script names it
    )
    return Plan(
        name=request.name,
        job_name=choose_job_name(request, SCHEDULERS[site.scheduler]),
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
        queue=known.partition if known and known.partition is not None else queue,
        counts=known.counts if known else "nodes",
        walltime_s=walltime_s,
        directives=(
            *site.directives,
            *(known.directives if known else ()),
            *(site.container.directives if software.container else ()),
            *request.directives,
        ),
        after=request.after,
        array=request.array,
        exclude=request.exclude,
        early_signal=request.early_signal,
        requeue=request.requeue,
        hostfile=choose_hostfile(loaded, site, request, facts.hostfile),
        master_addr=request.master_addr,
        master_port=request.master_port,
        env=env,
        software=software,
        joins=request.joins,
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
        nccl = gpus and site.node.accelerator != "xpu"
        for name in ("GLOO_SOCKET_IFNAME", *(("NCCL_SOCKET_IFNAME",) if nccl else ())):
            chosen[name] = EnvValue(value=site.network.interface)
    for name, values in site.env.items():
        for value in values:
            if value.applies(nodes):
                chosen[name] = value
    return tuple(chosen.items())


def _exported(env: tuple[tuple[str, EnvValue], ...], software: Software) -> tuple[str, ...]:
    """Names of what the ranks need: the job's variables, those that job.sh sets, and the paths that modules change."""
    ours = ("MASTER_ADDR", "MASTER_PORT", "NEOX_HPC_ATTEMPT_DIR", "PYTHONDONTWRITEBYTECODE")
    modules = ("PATH", "LD_LIBRARY_PATH") if software.modules else ()
    return tuple(dict.fromkeys((*(name for name, _ in (*env, *software.env)), *ours, *modules, *software.stage_variables)))


def _run_file(loaded: Loaded, site: Site, request: Request, world: int, device: Literal["cpu", "gpu"]) -> RunFile:
    return RunFile(
        name=request.name,
        world_size=world,
        device=device,
        config=with_absolute_paths(loaded.config, cwd=request.cwd, run_dir=request.joins or request.run_dir),
        origin=Origin(
            neox_hpc=request.neox_hpc,
            site=site.name,
            user=request.user,
            git_commit=request.git_commit,
            config_files=loaded.files,
        ),
    )
