"""Hydra's mpirun in two dressings, MVAPICH's and Intel MPI's: ranks in blocks on the hosts of a file, their environment by name.

Sources: ``tables/mvapich.yml``, ``tables/impi.yml``; the variables from MPICH's src/pm/hydra/proxy/pmip_cb.c (PMI_RANK,
MPI_LOCALRANKID …; no PMI_FD here, for there is no process manager behind it) and the MVAPICH2 user guide (MV2_COMM_WORLD_*).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.fakes.engine import Line, Refused
from tests.fakes.machine import Machine, Shape, cores_in
from tests.fakes.ranks import Launch, Placed, block, locals_of, read_names

LOGIN = ("HOME", "USER", "LOGNAME", "SHELL", "LANG")
"""What a remote shell gives a rank whatever mpirun passes on; PATH is the system's own."""

Binding = Callable[[Line, Shape, int, int, Mapping[str, str]], "tuple[int, ...] | None"]


def mvapich(line: Line, machine: Machine, environ: Mapping[str, str]) -> Launch:
    """MVAPICH: its own rank variables beside Hydra's; cores by -bind-to or MV2_CPU_MAPPING."""
    return _launch(line, machine, environ, _bound_by_mvapich, "MV2_COMM_WORLD")


def impi(line: Line, machine: Machine, environ: Mapping[str, str]) -> Launch:
    """Intel MPI: cores by I_MPI_PIN variables, which mpirun reads and ranks inherit."""
    return _launch(line, machine, environ, _bound_by_intel, "")


def _launch(line: Line, machine: Machine, environ: Mapping[str, str], bind: Binding, prefix: str) -> Launch:
    hosts = hosts_of(line, machine, environ)
    per_host = line.number("ppn", line.number("perhost", 1))
    total = line.number("np", per_host * len(hosts))
    places = block(hosts, per_host, total)
    given = passed_on(line, environ)
    placed = []
    for rank, host, local in places:
        here = locals_of(places, host)
        env = {"PMI_RANK": rank, "PMI_SIZE": total, "MPI_LOCALRANKID": local, "MPI_LOCALNRANKS": here}
        if prefix:
            numbers = {"RANK": rank, "SIZE": total, "LOCAL_RANK": local, "LOCAL_SIZE": here}
            env |= {f"{prefix}_{name}": number for name, number in numbers.items()}
        cores = bind(line, machine.shape, local, here, {**environ, **given})
        placed.append(
            Placed(rank=rank, host=host, local=local, cores=cores, env={name: str(number) for name, number in env.items()})
        )
    starter = os.uname().nodename  # ranks beside mpirun are its children, the others a remote shell's
    return Launch(
        ranks=tuple(placed),
        command=line.rest,
        environment=lambda rank: {**(environ if rank.host == starter else remote_shell(environ)), **given},
        label=(lambda rank: f"[{rank}] ") if "prepend-rank" in line else None,
        cwd=line.text("wdir") or line.text("gwdir") or None,
        ends_all="disable-auto-cleanup" not in line,
    )


def hosts_of(line: Line, machine: Machine, environ: Mapping[str, str]) -> list[str]:
    """The hosts in their order, each once.

    Raises:
        Refused: a host that is none; another program's form of a host file.
    """
    file = line.text("hostfile") or line.text("machinefile")
    if file:
        names = [_host_of_line(text) for text in read_names(Path(file), "mpirun")]
    elif "hosts" in line or "hostlist" in line or "machines" in line:
        names = (line.text("hosts") or line.text("hostlist") or line.text("machines")).split(",")
    elif "PBS_NODEFILE" in environ:
        names = read_names(Path(environ["PBS_NODEFILE"]), "mpirun")
    else:
        names = [machine.nodes[0].name]
    try:
        return list(dict.fromkeys(machine.host(name.partition(":")[0]).name for name in names))
    except KeyError as error:
        raise Refused(f"ssh: Could not resolve hostname {error.args[0]}: Name or service not known", 255) from None


def _host_of_line(text: str) -> str:
    """``host`` or ``host:ranks``; of further words Hydra knows ``binding=`` alone (process_mfile_token)."""
    name, *tokens = text.split()
    for token in tokens:
        if not token.startswith("binding="):
            raise Refused(
                "[mpiexec@login] process_mfile_token (ui/mpich/utils.c): "
                f"token {token.partition('=')[0]} not supported at this time\n"
                "[mpiexec@login] mfile_fn (ui/mpich/utils.c): error parsing hostfile",
                255,
            )
    return name


def passed_on(line: Line, environ: Mapping[str, str]) -> dict[str, str]:
    """What ranks are given of mpirun's own variables, and what the command line sets."""
    named = line.text("genvlist") or line.text("envlist")
    if named:
        kept = {name: environ[name] for name in named.split(",") if name in environ}
    elif "genvnone" in line or "envnone" in line:
        kept = {}
    else:
        hidden = (line.text("genvexcl") or line.text("envexcl")).split(",")
        kept = {name: value for name, value in environ.items() if name not in hidden}
    for values in (*line.given.get("genv", ()), *line.given.get("env", ())):
        name, _, value = values[0].partition("=") if len(values) == 1 else (values[0], "", values[1])
        kept[name] = value
    return kept


def remote_shell(environ: Mapping[str, str]) -> dict[str, str]:
    """What a shell on another host starts with."""
    return {name: environ[name] for name in LOGIN if name in environ} | {"PATH": "/usr/local/bin:/usr/bin:/bin"}


def _bound_by_mvapich(line: Line, shape: Shape, local: int, here: int, environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """-bind-to user:0+1,2+3; else MV2_CPU_MAPPING=0-1:2-3 (MVAPICH2 user guide, "User defined CPU mapping")."""
    kind, _, detail = line.text("bind-to", "").partition(":")
    if kind == "user":
        return _named(detail.split(",")[local % len(detail.split(","))].replace("+", ","), shape)
    if kind and kind != "none":
        return _evenly(kind, int(detail or 1), shape, local)
    if mapping := environ.get("MV2_CPU_MAPPING"):
        return _named(mapping.split(":")[local % len(mapping.split(":"))], shape)
    return None


def _bound_by_intel(line: Line, shape: Shape, local: int, here: int, environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """I_MPI_PIN_DOMAIN=[masks] or a name, I_MPI_PIN_PROCESSOR_LIST; else an even share of the node; I_MPI_PIN=0: none.

    Source: Developer Reference, "Environment Variables for Process Pinning".
    """
    if environ.get("I_MPI_PIN", "1").lower() in ("0", "no", "off", "disable"):
        return None
    domain = environ.get("I_MPI_PIN_DOMAIN", "auto").removesuffix(":compact")
    if masks := re.fullmatch(r"\[(.*)\]", domain):
        chosen = masks[1].split(",")[local % len(masks[1].split(","))]
        return _named(",".join(str(bit) for bit in range(512) if int(chosen, 16) >> bit & 1), shape)
    if processors := environ.get("I_MPI_PIN_PROCESSOR_LIST"):
        return (cores_in(processors)[local],)
    if domain in ("socket", "numa", "core"):
        return _evenly(domain, 1, shape, local)
    share = len(shape.cores) // here
    return shape.cores[local * share : (local + 1) * share]


def _named(text: str, shape: Shape) -> tuple[int, ...]:
    cores = cores_in(text)
    if not set(cores) <= set(shape.cores):
        raise Refused(f"[proxy:0:0] unable to bind to {text}: no such cores", 255)
    return cores


def _evenly(kind: str, number: int, shape: Shape, local: int) -> tuple[int, ...]:
    if kind in ("socket", "numa"):
        return shape.sockets[local % len(shape.sockets)]
    start = local * number % len(shape.cores)
    return shape.cores[start : start + number]
