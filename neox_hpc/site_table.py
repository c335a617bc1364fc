"""docs/sites.md: every shipped machine, what was verified of it and how, what is not known.  Pure.

Changes when the page does.
"""

from __future__ import annotations

from collections.abc import Sequence

from neox_hpc.site import Site
from neox_hpc.site_facts import open_facts

PAGE_COMMAND = "neox-hpc sites list --markdown > docs/sites.md"

_HEAD = f"""\
# The machines

Written by `{PAGE_COMMAND}` from `sites/*.yml`; a test keeps it true. `neox-hpc sites show NAME` has every
fact with its source and date.

How a profile came to be:

- *run for real*: jobs of it ran, in the tests or here;
- *from documentation*: written from the site's own pages. Its scripts are rendered and checked, and its scheduler and launcher are
  played by programs that refuse what the manuals refuse; no job of it has run on the machine;
- *community*: written from what users publish, because the site's pages could not be read; otherwise the same.

What is not known is never guessed: the plan names it, and the profile says which command tells it. If you use one of these
machines, the most useful change is a fact with its source, or *run for real*.
"""


def page(sites: Sequence[Site]) -> str:
    """The whole page; the sites in the order given."""
    rows = [_row(site) for site in sites]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (_COLUMNS, ("---",) * len(_COLUMNS), *rows))
    return f"{_HEAD}\n{table}\n\n## What is not known\n\n{''.join(map(_unknown, sites))}"


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


def _container(site: Site) -> str:
    return site.container.runtime or ""


def _unknown(site: Site) -> str:
    facts = open_facts(site)
    return f"- `{site.name}`: {', '.join(facts)}\n" if facts else ""
