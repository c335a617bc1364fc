"""``neox-hpc sites``: the machines that can be named.

Changes when what is shown of a site does.
"""

from __future__ import annotations

from typing import Any

import click

from neox_hpc.cli.show import print_json, print_table
from neox_hpc.errors import Problem, UserError
from neox_hpc.site import Site, check_site, iter_facts, list_sites, load_site, show_walltime, source_of


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
    rows = [(fact, _shown(value), source_of(site, fact)) for fact, value in iter_facts(site)]
    print_table(("FACT", "VALUE", "SOURCE"), rows)


@sites.command()
@click.argument("names", nargs=-1, metavar="[NAME|PATH]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
def check(names: tuple[str, ...], as_json: bool) -> int:
    """Check site files: keys, values, and a source for every fact.  Without a name: every site that can be named.

    \b
    Examples:
      neox-hpc sites check slurm
      neox-hpc sites check ~/.config/neox-hpc/sites/lab.yml
    """
    found = {name: _check(name) for name in names or list_sites()}
    if as_json:
        print_json({name: [{"where": p.where, "wrong": p.wrong, "fix": p.fix} for p in told] for name, (_, told) in found.items()})
    else:
        for name, (summary, problems) in found.items():
            for problem in problems:
                click.echo(str(problem), err=True)
            click.echo(f"{name}: {summary}" if not problems else f"{name}: {len(problems)} problems")
    return 2 if any(problems for _, problems in found.values()) else 0


def _check(name: str) -> tuple[str, tuple[Problem, ...]]:
    """One line about a site that is right, and its problems."""
    try:
        site = load_site(name)
    except UserError as error:
        return "", error.problems
    facts = dict(iter_facts(site))
    known, open_facts = [f for f, v in facts.items() if v is not None], [f for f, v in facts.items() if v is None]
    left = f"; to be given: {', '.join(open_facts)}" if open_facts and not site.here else ""
    return f"{len(known)} facts, each with its source{left}", tuple(check_site(site))


def _load(name: str) -> Site | None:
    try:
        return load_site(name)
    except UserError:
        return None


def _row(name: str, file: str, site: Site | None) -> tuple[str, ...]:
    if site is None:
        return name, "", "", f"damaged: neox-hpc sites show {name}", file
    return name, site.scheduler, site.launcher, site.title, file


def _shown(value: Any) -> str:
    """A fact on one line."""
    if value is None:
        return "not known"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    if isinstance(value, dict) and "walltime" in value:
        return f"{value.get('min_nodes', 1)}-{value['max_nodes']} nodes: {show_walltime(value['walltime'])}"
    if isinstance(value, dict) and "value" in value:
        many, few = value.get("min_nodes", 1), value.get("max_nodes")
        return value["value"] + (f" (from {many} nodes)" if many > 1 else "") + (f" (to {few})" if few else "")
    return str(value)
