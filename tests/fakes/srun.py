"""Slurm's srun on a machine whose nodes keep cores for the system, as HPE Cray's at Oak Ridge and in Kajaani do.

Real Slurm runs in tests/cluster; its nodes have no cores to keep and no masks to check.  Source: ``tables/srun.yml``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from tests.fakes.engine import Line, Refused
from tests.fakes.machine import Machine, Shape
from tests.fakes.ranks import Launch, Placed, block, locals_of

NO_ROOM = "srun: error: Unable to create step for job {job}: More processors requested than permitted"
OUTSIDE = (
    "slurmstepd: error: Unable to satisfy cpu bind request\n"
    "srun: error: {host}: task launch failed: Unable to satisfy cpu bind request"
)


def srun(line: Line, machine: Machine, environ: Mapping[str, str]) -> Launch:
    """Where the tasks of a step go.

    Raises:
        Refused: outside of a job; more than its nodes have; a mask with a core that the system keeps.
    """
    job = environ.get("SLURM_JOB_ID")
    if job is None:
        raise Refused("srun: error: Unable to allocate resources: Invalid account or account/partition combination specified")
    hosts = hosts_of(line, environ)
    total = line.number("ntasks", line.number("ntasks-per-node", 1) * len(hosts))
    per_host = line.number("ntasks-per-node", -(-total // len(hosts)))
    cpus = line.number("cpus-per-task", 1)
    if per_host * cpus > len(machine.shape.cores) or total > per_host * len(hosts):
        raise Refused(NO_ROOM.format(job=job))
    places = spread(line, hosts, per_host, total)
    placed = []
    for rank, host, local in places:
        cores = bound(line, machine.shape, local, cpus, locals_of(places, host), host)
        env = variables(rank, total, local, hosts.index(host), len(hosts), hosts, cpus, "cpus-per-task" in line)
        env |= devices(line, machine.shape, local)
        placed.append(Placed(rank=rank, host=host, local=local, cores=cores, env=env))
    inherited = exported(line, environ)
    width = len(str(total - 1))
    return Launch(
        ranks=tuple(placed),
        command=line.rest,
        environment=lambda rank: inherited,
        label=(lambda rank: f"{rank:0{width}d}: ") if "label" in line else None,
        cwd=line.text("chdir") or None,
        ends_all="kill-on-bad-exit" in line and line.text("kill-on-bad-exit", "1") != "0",
    )


def hosts_of(line: Line, environ: Mapping[str, str]) -> list[str]:
    """The step's nodes."""
    of_job = list(hostnames(environ.get("SLURM_JOB_NODELIST", "")))
    wanted = int(line.text("nodes", str(len(of_job))).partition("-")[0])
    if wanted > len(of_job):
        raise Refused(f"srun: error: Only allocated {len(of_job)} nodes asked for {wanted}")
    return of_job[:wanted]


def hostnames(text: str) -> Iterator[str]:
    """``n[1-2,4],m`` one by one."""
    for part in re.findall(r"[^,\[]+(?:\[[^\]]*\])?", text):
        prefix, _, ranges = part.rstrip("]").partition("[")
        if not ranges:
            yield prefix
        for piece in filter(None, ranges.split(",")):
            first, _, last = piece.partition("-")
            yield from (f"{prefix}{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1))


def show_hostnames(line: Line, machine: Machine, environ: Mapping[str, str]) -> int:
    """``scontrol show hostnames``: a name a line."""
    for text in line.rest or (environ.get("SLURM_JOB_NODELIST", ""),):
        print("\n".join(hostnames(text)))
    return 0


def spread(line: Line, hosts: list[str], per_host: int, total: int) -> list[tuple[int, str, int]]:
    """Block by block, or one a node in turn."""
    if not line.text("distribution", "block").startswith("cyclic"):
        return block(hosts, per_host, total)
    return [(rank, hosts[rank % len(hosts)], rank // len(hosts)) for rank in range(total)]


def bound(line: Line, shape: Shape, local: int, cpus: int, here: int, host: str) -> tuple[int, ...] | None:
    """What a task is bound to.

    Source: srun(1), --cpu-bind; masks count only when the step has every CPU of the node, which is taken for granted here.
    """
    for text in re.split(r",(?![\dA-Fa-fx])", line.text("cpu-bind", "cores")):
        kind, _, detail = text.partition(":")
        kind = kind.partition("=")[0].lower()
        if kind in ("v", "verbose", "q", "quiet"):
            continue
        if kind in ("none", "no"):
            return None
        if kind in ("rank", "core", "cores", "thread", "threads"):
            return shape.cores[local * cpus : (local + 1) * cpus]
        if kind in ("socket", "sockets", "ldom", "ldoms", "rank_ldom"):
            return shape.sockets[local % len(shape.sockets)]
        if kind not in ("mask_cpu", "map_cpu") or not detail:
            raise Refused(
                f'srun: error: unrecognized --cpu-bind argument "{text}"\nsrun: fatal: Failed to parse --cpu-bind= values.'
                if kind not in ("mask_cpu", "map_cpu")
                else f'srun: error: missing list for "--cpu-bind={kind}:<list>"\nsrun: fatal: Failed to parse --cpu-bind= values.'
            )
        return _listed(kind, detail.split(","), shape, local, host)
    return shape.cores[local * cpus : (local + 1) * cpus]


def _listed(kind: str, wanted: list[str], shape: Shape, local: int, host: str) -> tuple[int, ...]:
    text = wanted[local % len(wanted)]
    cores = (int(text, 0),) if kind == "map_cpu" else tuple(bit for bit in range(512) if int(text, 16) >> bit & 1)
    if not cores or not set(cores) <= set(shape.cores):
        raise Refused(OUTSIDE.format(host=host))
    return cores


def devices(line: Line, shape: Shape, local: int) -> dict[str, str]:
    """The GPUs that a task sees: all that the step has, or with --gpus-per-task its own, counted from 0 (constrained devices)."""
    if per_task := line.text("gpus-per-task").rpartition(":")[2]:
        if (local + 1) * int(per_task) > shape.gpus:
            raise Refused("srun: error: Unable to create step for job: Invalid generic resource (gres) specification")
        number = int(per_task)
    elif per_node := line.text("gpus-per-node").rpartition(":")[2]:
        if int(per_node) > shape.gpus:
            raise Refused("srun: error: Unable to create step for job: Invalid generic resource (gres) specification")
        number = 1 if line.text("gpu-bind").endswith("closest") else int(per_node)
    else:
        number = shape.gpus  # the job's
    return {shape.gpu_variable: ",".join(map(str, range(number)))} if number else {}


def variables(
    rank: int, total: int, local: int, node: int, nodes: int, hosts: list[str], cpus: int, cpus_given: bool
) -> dict[str, str]:
    """What srun sets for a task: srun(1), OUTPUT ENVIRONMENT VARIABLES."""
    values = {
        "SLURM_PROCID": rank,
        "SLURM_LOCALID": local,
        "SLURM_NODEID": node,
        "SLURM_NTASKS": total,
        "SLURM_NPROCS": total,
        "SLURM_STEP_NUM_TASKS": total,
        "SLURM_STEP_NUM_NODES": nodes,
        "SLURM_STEP_NODELIST": ",".join(hosts),
        "SLURM_STEP_ID": 0,
        "SLURM_STEPID": 0,
        "SLURMD_NODENAME": hosts[node],
        **({"SLURM_CPUS_PER_TASK": cpus} if cpus_given else {}),
    }
    return {name: str(value) for name, value in values.items()}


def exported(line: Line, environ: Mapping[str, str]) -> dict[str, str]:
    """--export, else SLURM_EXPORT_ENV: ALL, NONE (then only SLURM_* and what a login gives), or names.

    A listed value gives way to the same variable of srun's own environment when ALL stands before it; a comma ends it
    (src/srun/launch.c, src/common/env.c: find_quote_token).
    """
    text = line.text("export", environ.get("SLURM_EXPORT_ENV", "ALL"))
    words = text.split(",")
    ours = {name: value for name, value in environ.items() if name.startswith(("SLURM_", "SPANK_"))}
    listed = dict(word.partition("=")[::2] for word in words if "=" in word)
    if "ALL" in words:
        return {**listed, **environ}
    if words == ["NONE"]:
        return ours
    return {**ours, **{name: environ[name] for name in words if name in environ}, **listed}
