"""HPE Cray PALS' mpiexec: ranks in blocks on the hosts of a file.

Source: ``tables/pals.yml``; the variables from HPE's pals.h (2018-2023): there is no PALS_SIZE.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from tests.fakes.engine import Line, Refused
from tests.fakes.machine import Machine, Shape, cores_in
from tests.fakes.ranks import Launch, Placed, block, locals_of, read_names


def pals(line: Line, machine: Machine, environ: Mapping[str, str]) -> Launch:
    """Where the ranks go.

    Raises:
        Refused: a host that is none, more than a node has.
    """
    hosts = hosts_of(line, machine, environ)
    total = line.number("np", 1)
    per_host = line.number("ppn", 0) or -(-total // len(hosts))
    if total > per_host * len(hosts):
        raise Refused(f"mpiexec: {total} ranks do not fit on {len(hosts)} nodes with {per_host} each")
    places = block(hosts, per_host, total)
    apid = f"{environ.get('PBS_JOBID', 'local')}-{os.getpid()}"
    placed = [
        Placed(
            rank=rank,
            host=host,
            local=local,
            cores=bound(line, machine.shape, local),
            env=variables(
                line.text("pmi", machine.policy.get("pmi", "cray")),
                line,
                rank,
                total,
                local,
                locals_of(places, host),
                hosts.index(host),
                apid,
            ),
        )
        for rank, host, local in places
    ]
    inherited = passed_on(line, environ)
    return Launch(
        ranks=tuple(placed),
        command=line.rest,
        environment=lambda rank: inherited,
        label=(lambda rank: f"{placed[rank].host} {rank}: ") if "label" in line and "no-label" not in line else None,
        cwd=line.text("wdir") or None,
        ends_all="no-abort-on-failure" not in line,
    )


def hosts_of(line: Line, machine: Machine, environ: Mapping[str, str]) -> list[str]:
    """The hosts as they are named: every one must be a bare name that the machine has."""
    if "hosts" in line:
        names = line.text("hosts").split(",")
    elif "hostfile" in line or "PBS_NODEFILE" in environ:
        names = read_names(Path(line.text("hostfile") or environ["PBS_NODEFILE"]), "mpiexec")
    else:
        names = [machine.nodes[0].name]
    found = []
    for name in names:
        try:
            found.append(machine.host(name).name if re.fullmatch(r"[\w.-]+", name) else machine.host(""))
        except KeyError:
            raise Refused(f"mpiexec: Host list contains invalid entry: {name}") from None
    return [str(name) for name in found]


def bound(line: Line, shape: Shape, local: int) -> tuple[int, ...] | None:
    """The cores of the rank with that number on its node; a rank may not have one that the system keeps."""
    kind, _, sets = line.text("cpu-bind", "core").removeprefix("verbose,").partition(":")
    depth = line.number("depth", 1)
    if kind == "none":
        return None
    if kind in ("depth", "core", "thread"):
        start = local * depth
        cores = shape.cores[start : start + depth]
        if len(cores) < depth:
            raise Refused("mpiexec: not enough CPUs for the ranks of a node")
        return cores
    if kind in ("numa", "socket"):
        return shape.sockets[local % len(shape.sockets)]
    wanted = sets.split(":") if kind == "list" else sets.split(",")
    text = wanted[local % len(wanted)]
    named = cores_in(text) if kind == "list" else tuple(bit for bit in range(512) if int(text, 16) >> bit & 1)
    known = {core + thread * _threads_apart(shape) for core in shape.cores for thread in range(shape.threads_per_core)}
    if not set(named) <= known:
        raise Refused(f"mpiexec: CPU binding {text} names CPUs that the application may not use")
    return tuple(core for core in named if core in shape.cores)


def variables(protocol: str, line: Line, rank: int, size: int, local: int, local_size: int, node: int, apid: str) -> dict[str, str]:
    """What PALS sets; PMI's sizes come with its own PMI only (users on Aurora, where it is pmix, miss them)."""
    own = {
        "PALS_APID": apid,
        "PALS_RANKID": rank,
        "PALS_NODEID": node,
        "PALS_LOCAL_RANKID": local,
        "PALS_LOCAL_SIZE": local_size,
        "PALS_DEPTH": line.number("depth", 1),
    }
    pmi = {
        "cray": {"PMI_RANK": rank, "PMI_SIZE": size, "PMI_LOCAL_RANK": local, "PMI_LOCAL_SIZE": local_size, "PMI_JOBID": apid},
        "pmix": {"PMIX_RANK": rank, "PMIX_NAMESPACE": apid, "PMI_RANK": rank, "PMI_LOCAL_RANK": local},
        "none": {},
    }
    return {name: str(value) for name, value in {**own, **pmi[protocol]}.items()}


def passed_on(line: Line, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of mpiexec, or a part of it, and --env over that."""
    if "envlist" in line:
        kept = {name: environ[name] for name in line.text("envlist").split(",") if name in environ}
    else:
        kept = {} if "envnone" in line else dict(environ)
    for values in line.given.get("env", ()):
        name, _, value = values[0].partition("=") if len(values) == 1 else (values[0], "", values[1])
        kept[name] = value
    return kept


def _threads_apart(shape: Shape) -> int:
    """From the first hardware thread of a core to its second: Linux numbers the first threads of all cores before the others."""
    return max(core for socket in shape.sockets for core in socket) + 1
