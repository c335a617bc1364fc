"""Flux's ``flux run`` inside a batch job: tasks on the nodes of the instance.

Sources: ``tables/flux-run.yml``, flux-shell-options(7), flux-environment(7).
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path
from string import Template

from tests.fakes.engine import Line, Refused
from tests.fakes.machine import Machine, Shape, cores_in
from tests.fakes.ranks import Launch, Placed, block, locals_of

NO_ROOM = "0.026s: job.exception ƒ1 type=alloc severity=0 unsatisfiable request"


def instance_of(environ: Mapping[str, str]) -> dict[str, object]:
    """The instance that FLUX_URI leads to: its hosts and its job id.

    Raises:
        Refused: there is none.
    """
    uri = environ.get("FLUX_URI", "")
    if not uri.startswith("local://"):
        raise Refused("flux-run: ERROR: Unable to connect to Flux: ENOENT: No such file or directory")
    return dict(json.loads(Path(uri.removeprefix("local://")).read_text()))


def flux_run(line: Line, machine: Machine, environ: Mapping[str, str]) -> Launch:
    """Where the tasks go.

    Raises:
        Refused: outside of an instance; more than it has.
    """
    instance = instance_of(environ)
    hosts = list(map(str, instance["hosts"]))  # type: ignore[call-overload]
    nodes = line.number("nodes", 0)
    if nodes > len(hosts):
        raise Refused(NO_ROOM)
    total = line.number("ntasks", line.number("tasks-per-node", 1) * (nodes or 1))
    if nodes > total:
        raise Refused("flux-run: ERROR: node count must not be greater than task count")
    used = hosts[: nodes or 1]
    per_host = -(-total // len(used))
    cores = line.number("cores-per-task", 1)
    gpus = line.number("gpus-per-task", 0) * per_host or line.number("gpus-per-node", 0)
    if per_host * cores > len(machine.shape.cores) or gpus > machine.shape.gpus:
        raise Refused(NO_ROOM)
    whole = "exclusive" in line or (nodes > 0 and "ntasks" not in line)
    given = machine.shape.cores if whole else machine.shape.cores[: per_host * cores]
    gpus = machine.shape.gpus if whole else gpus
    places = _cyclic(used, total) if line.text("taskmap").startswith("cyclic") else block(used, per_host, total)
    options = dict(text.partition("=")[::2] for text in line.all("setopt"))
    placed = []
    for rank, host, local in places:
        here = locals_of(places, host)
        env = variables(rank, total, local, len(used), environ["FLUX_URI"], options.get("pmi", "simple"))
        env |= devices(options.get("gpu-affinity", "on"), gpus, local, here)
        placed.append(
            Placed(
                rank=rank,
                host=host,
                local=local,
                cores=bound(options.get("cpu-affinity", "on"), machine.shape, given, local, here),
                env=env,
            )
        )
    inherited = environment(line, environ)
    return Launch(
        ranks=tuple(placed),
        command=line.rest,
        environment=lambda rank: inherited,
        label=(lambda rank: f"{rank}: ") if "label-io" in line else None,
        cwd=line.text("cwd") or None,
        ends_all="exit-on-error" in options,
    )


def bound(option: str, shape: Shape, given: tuple[int, ...], local: int, here: int) -> tuple[int, ...] | None:
    """cpu-affinity: on is everything that the job has on the node, per-task an even part of that, map: what is written."""
    kind = option.split(",")[-1] if option.startswith(("verbose,", "dry-run,")) and ":" not in option else option
    kind = kind.removeprefix("verbose,").removeprefix("dry-run,")
    if kind == "off":
        return None
    if kind == "on":
        return given
    if kind == "per-task":
        share, more = divmod(len(given), here)
        start = local * share + min(local, more)
        return given[start : start + share + (local < more)]
    if not kind.startswith("map:"):
        raise Refused(f"flux-shell[0]: FATAL: affinity: invalid option: {option}")
    entries = kind.removeprefix("map:").split(";")
    text = entries[local % len(entries)]
    cores = tuple(bit for bit in range(512) if int(text, 16) >> bit & 1) if text.startswith("0x") else cores_in(text)
    if not set(cores) <= set(given):
        raise Refused(f"flux-shell[0]: FATAL: affinity: map: {text} has cores that the job does not have")
    return cores


def devices(option: str, gpus: int, local: int, here: int) -> dict[str, str]:
    """gpu-affinity sets CUDA_VISIBLE_DEVICES and no other vendor's variable."""
    if option == "off" or not gpus:
        return {}
    ids = list(range(gpus))
    if option == "per-task":
        share = max(1, gpus // here)
        ids = ids[local * share : (local + 1) * share]
    elif option.startswith("map:"):
        entries = option.removeprefix("map:").split(";")
        ids = list(cores_in(entries[local % len(entries)]))
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, ids)), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def variables(rank: int, total: int, local: int, nodes: int, uri: str, pmi: str) -> dict[str, str]:
    """flux-environment(7), JOB ENVIRONMENT; PMI_FD is left out, for there is no PMI server."""
    values = {
        "FLUX_JOB_ID": "ƒ1",
        "FLUX_JOB_SIZE": total,
        "FLUX_JOB_NNODES": nodes,
        "FLUX_TASK_RANK": rank,
        "FLUX_TASK_LOCAL_ID": local,
        "FLUX_URI": uri,
        **({} if pmi in ("off", "none") else {"PMI_RANK": rank, "PMI_SIZE": total, "PMI_SPAWNED": 0}),
    }
    return {name: str(value) for name, value in values.items()}


def environment(line: Line, environ: Mapping[str, str]) -> dict[str, str]:
    """The own environment under the rules of --env, --env-remove and --env-file (common/job-env-rules.rst)."""
    kept = dict(environ)
    for rule in [*(f"-{text}" for text in line.all("env-remove")), *line.all("env")]:
        if rule.startswith("-"):
            kept = {name: value for name, value in kept.items() if not fnmatch.fnmatchcase(name, rule[1:])}
        elif "=" in rule:
            name, _, value = rule.partition("=")
            kept[name] = Template(value).substitute({**environ, **kept})
        else:
            kept |= {name: value for name, value in environ.items() if fnmatch.fnmatchcase(name, rule) and name not in kept}
    return kept


def _cyclic(hosts: list[str], total: int) -> list[tuple[int, str, int]]:
    return [(rank, hosts[rank % len(hosts)], rank // len(hosts)) for rank in range(total)]
