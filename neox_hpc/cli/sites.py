"""``neox-hpc sites``: the machines that can be named.

Changes when what is shown of a site does.
"""

from __future__ import annotations

from typing import Any

import click

from neox_hpc.cli.show import print_json, print_table
from neox_hpc.errors import UserError
from neox_hpc.site import Site, list_sites, load_site


@click.group()
def sites() -> None:
    """The known machines.  A machine of your own is a file in ~/.config/neox-hpc/sites/, or any path given to --site."""


@sites.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
def list_all(as_json: bool) -> None:
    """Every site that --site takes by name."""
    found = [(name, str(path), _load(name)) for name, path in list_sites().items()]
    if as_json:
        print_json([{"name": name, "file": file, "title": site.title if site else None} for name, file, site in found])
        return
    print_table(("SITE", "SCHEDULER", "LAUNCHER", "WHAT", "FILE"), [_row(name, file, site) for name, file, site in found])


@sites.command()
@click.argument("name")
@click.option("--site-set", "sets", multiple=True, metavar="FACT=VALUE", help="Override a fact: --site-set node.gpus=4")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
def show(name: str, sets: tuple[str, ...], as_json: bool) -> None:
    """Every fact of a site, with its source; what is not known is marked.

    \b
    Examples:
      neox-hpc sites show slurm
      neox-hpc sites show ./mysite.yml --json
    """
    site = load_site(name, sets)
    if as_json:
        print_json(site.model_dump(mode="json"))
        return
    rows = [(fact, value, _source(site, fact)) for fact, value in _facts(site.model_dump(mode="json", exclude={"sources", "find"}))]
    print_table(("FACT", "VALUE", "SOURCE"), rows)


def _load(name: str) -> Site | None:
    try:
        return load_site(name)
    except UserError:
        return None


def _row(name: str, file: str, site: Site | None) -> tuple[str, ...]:
    if site is None:
        return name, "", "", f"damaged: neox-hpc sites show {name}", file
    return name, site.scheduler, site.launcher, site.title, file


def _facts(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(values, dict) and values:
        return [fact for key, value in values.items() for fact in _facts(value, f"{prefix}.{key}" if prefix else key)]
    if values is None:
        return [(prefix, "not known")]
    if values in ((), [], {}, ""):
        return []
    return [(prefix, ", ".join(map(str, values)) if isinstance(values, (list, tuple)) else str(values))]


def _source(site: Site, fact: str) -> str:
    """The source of a fact, or of the section it stands in."""
    parts = fact.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((site.sources[name] for name in names if name in site.sources), "")
