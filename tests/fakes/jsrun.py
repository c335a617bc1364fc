"""IBM's jsrun: resource sets on the hosts of an LSF job, tasks in the resource sets.

Source: ``tables/jsrun.yml``; the numbers in the Summit user guide's examples are a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.engine import Line, Refused
from tests.fakes.machine import Machine, Shape
from tests.fakes.ranks import Launch, Placed, read_names

NO_ROOM = "ERROR: Not enough resources available to schedule job."
"""As radical-cybertools/radical.pilot#1783 shows it."""


@dataclass(frozen=True, kw_only=True)
class ResourceSet:
    host: str
    cores: tuple[int, ...]
    gpus: tuple[int, ...]


def jsrun(line: Line, machine: Machine, environ: Mapping[str, str]) -> Launch:
    """Where the tasks go.

    Raises:
        Refused: outside of a job; with TMPDIR set; more than a node has.
    """
    if "LSB_JOBID" not in environ:
        raise Refused("Error: It is only possible to use js commands within a job allocation unless CSM is running")
    if "TMPDIR" in environ:  # Summit user guide, "Known Issues": TMPDIR breaks JSM; its words are not documented
        raise Refused("Error: Remote JSM server is not responding on host " + (machine.launch_node or machine.nodes[0]).name)
    inherited = _inherited(line, environ)
    hosts = hosts_of_job(machine, environ)
    sets = resource_sets(line, machine.shape, hosts)
    tasks = tasks_of(line, sets)
    names = [sets[index].host for index, _ in tasks]
    placed = []
    for rank, (index, number) in enumerate(tasks):
        cores = bound(line, sets[index], number, machine.shape)
        local = names[:rank].count(names[rank])
        env = variables(rank, len(tasks), local, names.count(names[rank]), environ["LSB_JOBID"])
        env |= _devices(sets[index], machine.shape) | _threads(cores, machine.shape, environ)
        placed.append(Placed(rank=rank, host=names[rank], local=local, cores=cores, env=env))
    return Launch(
        ranks=tuple(placed),
        command=line.rest,
        environment=lambda rank: inherited,
        label=(lambda rank: f"{rank}: ") if line.text("stdio_mode").startswith("prepend") else None,
        cwd=line.text("chdir") or None,
    )


def hosts_of_job(machine: Machine, environ: Mapping[str, str]) -> list[str]:
    """The job's compute hosts: the launch node has no resources."""
    names = read_names(Path(environ["LSB_DJOB_HOSTFILE"]), "jsrun")
    known = {node.name for node in machine.nodes}
    return [name for name in dict.fromkeys(names) if name in known]


def resource_sets(line: Line, shape: Shape, hosts: list[str]) -> list[ResourceSet]:
    """Every resource set, host by host."""
    cpus = _amount(line.text("cpu_per_rs", "1"), "ALL_CPUS", len(shape.cores))
    gpus = _amount(line.text("gpu_per_rs", "0"), "ALL_GPUS", shape.gpus)
    most = _sets_of_node(shape, cpus, gpus)
    per_host = line.number("rs_per_host", len(most))
    if line.text("nrs") == "ALL_HOSTS":
        wanted = len(hosts) * line.number("rs_per_host", 1)
        per_host = line.number("rs_per_host", 1)
    else:
        wanted = line.number("nrs", line.number("np", per_host * len(hosts)))
    if per_host > len(most) or wanted > per_host * len(hosts):
        raise Refused(NO_ROOM)
    everywhere = [ResourceSet(host=host, cores=cores, gpus=devices) for host in hosts for cores, devices in most[:per_host]]
    return everywhere[:wanted]


def tasks_of(line: Line, sets: list[ResourceSet]) -> list[tuple[int, int]]:
    """Resource set and number in it, in the order of the ranks."""
    total = line.number("np", line.number("tasks_per_rs", 1) * len(sets))
    per_set = -(-total // len(sets))
    kind, _, width = line.text("launch_distribution", "packed").partition(":")
    block = {"packed": per_set, "cyclic": 1}.get(kind) or int(width)
    turns = [
        (index, number)
        for turn in range(0, per_set, block)
        for index in range(len(sets))
        for number in range(turn, min(turn + block, per_set))
    ]
    return turns[:total]


def bound(line: Line, resources: ResourceSet, number: int, shape: Shape) -> tuple[int, ...] | None:
    """What the task of that number in its resource set is bound to."""
    kind, _, width = line.text("bind", "packed:1").partition(":")
    if kind == "none":
        return None
    if kind == "rs":
        return resources.cores
    cores = resources.cores
    if kind.startswith("proportional"):  # tasks spread evenly over the sockets of the set
        parts = [tuple(core for core in cores if core in socket) for socket in shape.sockets]
        parts = [part for part in parts if part]
        per_part = -(-line.number("tasks_per_rs", 1) // len(parts))
        cores, number = parts[number // per_part], number % per_part
    each = int(width.removeprefix("smt:") or "1")
    start = number * each
    if start + each > len(cores):
        raise Refused(NO_ROOM)
    return cores[start : start + each]


def variables(rank: int, size: int, local: int, local_size: int, job: str) -> dict[str, str]:
    """What JSM sets: its own names, and Open MPI's for Spectrum MPI.

    Sources: olcf/ai-training-series (OMPI_COMM_WORLD_*), Lightning's LSFEnvironment (JSM_NAMESPACE_*), PMIx (PMIX_RANK).
    """
    numbers = {"RANK": rank, "SIZE": size, "LOCAL_RANK": local, "LOCAL_SIZE": local_size}
    return {
        **{f"JSM_NAMESPACE_{name}": str(number) for name, number in numbers.items()},
        **{f"OMPI_COMM_WORLD_{name}": str(number) for name, number in numbers.items()},
        "OMPI_COMM_WORLD_NODE_RANK": str(local),
        "PMIX_RANK": str(rank),
        "PMIX_NAMESPACE": job,
    }


def _amount(text: str, everything: str, total: int) -> int:
    return total if text == everything else int(text)


def _sets_of_node(shape: Shape, cpus: int, gpus: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """As many sets as a node holds: cores beside the set's GPUs, on as few sockets as can be."""
    free, devices, found = list(shape.cores), list(range(shape.gpus)), []
    while len(free) >= cpus and len(devices) >= gpus:
        chosen = tuple(devices[:gpus])
        beside = [shape.socket_of_gpu(gpu) for gpu in chosen] if chosen else list(shape.sockets)
        rooms = [[core for core in free if core in socket] for socket in dict.fromkeys(beside)]
        whole = next((room for room in rooms if len(room) >= cpus), None)
        room = whole or [core for room in rooms for core in room]
        if len(room) < cpus:
            room = free  # cores beside no GPU of the set are better than none
        cores = tuple(room[:cpus])
        free = [core for core in free if core not in cores]
        devices = devices[gpus:]
        found.append((cores, chosen))
    return found


def _devices(resources: ResourceSet, shape: Shape) -> dict[str, str]:
    """A task sees the devices of its set, counted from 0 (sites' observation with -g1: one device, number 0)."""
    return {shape.gpu_variable: ",".join(str(number) for number in range(len(resources.gpus)))} if resources.gpus else {}


def _threads(cores: tuple[int, ...] | None, shape: Shape, environ: Mapping[str, str]) -> dict[str, str]:
    """OpenMP's places, and its number of threads where none is set (Summit user guide, "Controlling Number of Threads")."""
    if cores is None:
        return {}
    smt = shape.threads_per_core
    places = {"OMP_PLACES": ",".join(f"{{{core * smt}:{smt}}}" for core in cores)}
    return places if "OMP_NUM_THREADS" in environ else {**places, "OMP_NUM_THREADS": str(len(cores) * smt)}


def _inherited(line: Line, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of jsrun, less -D, and -E over it."""
    hidden = line.all("env_no_propagate")
    kept = {name: value for name, value in environ.items() if name not in hidden}
    for text in (*line.all("env"), *line.all("env_eval")):
        name, equals, value = text.partition("=")
        if not equals and name not in environ:  # radical-cybertools/radical.pilot#1901
            raise Refused(f"Error: environment variable {name} is not set")
        kept[name] = value if equals else environ[name]
    return kept
