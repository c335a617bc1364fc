"""docs/sites.md: every shipped machine, what was verified of it and how, what is not known.  Pure.

Changes when the page does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from neox_hpc.site import Site
from neox_hpc.site_facts import open_facts

PAGE_COMMAND = "neox-hpc sites list --markdown > docs/sites.md"

_HEAD = f"""\
# The machines

Written by `{PAGE_COMMAND}` from `sites/*.yml`; a test keeps it true. `neox-hpc sites show NAME` has every
fact with its source and date.

How a profile came to be:

- *run for real*: jobs of it ran, in the tests or here;
- *from documentation*: written from the site's own pages; no job of it has run on the machine;
- *community*: written from what users publish, because the site's pages could not be read; no job of it has run on the machine.

What is not known is never guessed: the plan names it, and the profile says which command tells it. If you use one of these
machines, the most useful change is a fact with its source, or *run for real*.
"""


def page(sites: Sequence[Site]) -> str:
    """The whole page; the sites in the order given."""
    table = _table(_COLUMNS, map(_row, sites))
    return f"{_HEAD}\n{table}\n\n{_verified(sites)}\n## What is not known\n\n{''.join(map(_unknown, sites))}"


_COLUMNS = ("site", "machine", "profile", "scheduler, launcher", "node", "CPU", "types", "container", "queues")


def _row(site: Site) -> tuple[str, ...]:
    node = site.node
    shape = f"{node.gpus} x {node.gpu_name or node.accelerator}" if node.gpus else "to be given"
    if node.gpus and node.gpu_memory_gib:
        shape += f", {node.gpu_memory_gib:g} GiB"
    cores = f"{node.cores} cores" if node.cores else "cores to be given"
    queues = ", ".join(f"{name}{'' if queue.bins else ' (limits unknown)'}" for name, queue in (site.queues or {}).items())
    return (
        f"`{site.name}`",
        f"[{site.title}]({site.url})" if site.url else site.title,
        site.status or "",
        f"{site.scheduler}, {site.launcher}",
        "read from the machine" if site.here else shape,
        "read from the machine" if site.here else f"{node.arch or ''} {cores}".strip(),
        ", ".join(node.dtypes or ()),
        _container(site),
        queues,
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ("---",) * len(columns), *rows))


def _container(site: Site) -> str:
    return site.container.runtime or ""


How = Literal["run", "pretended", "rendered"]
"""The program itself ran in the tests; a stand-in for it did, which refuses what its manual refuses; nothing did."""

VERIFIED: dict[str, How] = {
    **dict.fromkeys(("slurm", "local", "srun", "openmpi", "mpich", "pdsh", "apptainer"), "run"),
    **dict.fromkeys(("pbs", "lsf", "lsf-csm", "flux", "jsrun", "pals", "impi", "mvapich"), "pretended"),
    **dict.fromkeys(("singularity", "docker"), "rendered"),
}
"""Scheduler, launcher or runtime -> how far the tests of this repository go with it.  (Flux is both of the first two.)"""

_SAID: dict[How, str] = {"run": "run for real in the tests", "pretended": "against a pretended one", "rendered": "rendered only"}

_VERIFIED_HEAD = """\
## What was verified of each, and how

No job of ours has run on a machine whose profile is not *run for real*. What its parts were tested with, on hosts of the tests:

- *run for real in the tests*: the program itself (Slurm, Open MPI, MPICH, pdsh, Apptainer), with small trainings on two hosts; not
  the machine's version of it, nor its configuration;
- *against a pretended one*: whole jobs with a stand-in that knows the options of the program's manual and refuses all others;
- *rendered only*: the command is written and compared with the manual; nothing has started it.

Every job's script is rendered for every site, with a container and without one, and read by bash and ShellCheck. Maps of cores are
computed from what the site's pages say of cores and GPUs; on which cores a rank ran there was not seen.
"""


def _verified(sites: Iterable[Site]) -> str:
    columns = ("site", "profile", "scheduler", "launcher", "container", "staging", "map of cores")
    return f"{_VERIFIED_HEAD}\n{_table(columns, map(_how, sites))}\n"


def _how(site: Site) -> tuple[str, ...]:
    runtime = site.container.runtime
    return (
        f"`{site.name}`",
        site.status or "",
        *(f"{name}: {_SAID[VERIFIED[name]]}" for name in (site.scheduler, site.launcher)),
        f"{runtime}: {_SAID[VERIFIED[runtime]]}" if runtime else "none known",
        _staging(site) or "none",
        "computed, not seen" if site.node.cpu_masks else "none",
    )


def _staging(site: Site) -> str:
    """Slurm's own sbcast copies; without it a start by the launcher."""
    copied = [kind for kind, place in site.stage.model_dump().items() if place]
    by = "sbcast" if site.scheduler == "slurm" else site.launcher
    how = VERIFIED[site.scheduler if site.scheduler == "slurm" else site.launcher]
    return f"{', '.join(copied)} by {by}: {_SAID[how]}" if copied else ""


def _unknown(site: Site) -> str:
    facts = open_facts(site)
    return f"- `{site.name}`: {', '.join(facts)}\n" if facts else ""
