"""``neox-hpc sites``: the machines that can be named.

Changes when what is shown of a site does, or another verb is about machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neox_hpc.cli.show import print_json, print_table
from neox_hpc.decisions import count
from neox_hpc.errors import NeoxHpcError, Problem, UserError
from neox_hpc.share import share
from neox_hpc.site import Site, show_walltime
from neox_hpc.site_facts import check_site, check_sources, iter_facts, open_facts, source_of
from neox_hpc.site_files import file_schema, list_sites, load_site, own_folder

if TYPE_CHECKING:
    from neox_hpc.site_detect import Found

ASK_TIMEOUT_S = 30.0


@click.group()
def sites() -> None:
    """The known machines.  A machine of your own is a file in ~/.config/neox-hpc/sites/, or any path given to --site."""


@sites.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
@click.option("--markdown", is_flag=True, help="The page docs/sites.md: the shipped machines and how each was verified.")
def list_all(as_json: bool, markdown: bool) -> None:
    """Every site that --site takes by name.

    \b
    Examples:
      neox-hpc sites list
      neox-hpc sites list --json | jq -r '.[].name'
    """
    if markdown:
        from neox_hpc.site_table import page

        click.echo(page([load_site(path) for path in list_sites(Path("/nonexistent")).values()]), nl=False)
        return
    found = [(name, str(path), _load(name)) for name, path in list_sites().items()]
    if as_json:
        rows = [(name, file, site.title if site else None, site.status if site else None) for name, file, site in found]
        print_json([dict(zip(("name", "file", "title", "status"), row, strict=True)) for row in rows])
        return
    print_table(
        ("SITE", "SCHEDULER", "LAUNCHER", "PROFILE", "WHAT", "FILE"), [_row(name, file, site) for name, file, site in found]
    )


@sites.command()
@click.argument("name")
@click.option("--site-set", "sets", multiple=True, metavar="FACT=VALUE", help="Override a fact: --site-set node.gpus=4")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
def show(name: str, sets: tuple[str, ...], as_json: bool) -> None:
    """Every fact of a site, with its source; what is not known is marked, with the command that tells it.

    \b
    Examples:
      neox-hpc sites show slurm
      neox-hpc sites show ./mysite.yml --json
    """
    site = load_site(name, sets)
    if as_json:
        print_json(site.model_dump(mode="json"))
        return
    rows = [(fact, _shown(value), source_of(site, fact)) for fact, value in iter_facts(site) if value is not None]
    rows += [(fact, "not known", f"find: {site.find[fact]}" if fact in site.find else "") for fact in open_facts(site)]
    print_table(("FACT", "VALUE", "SOURCE"), rows)


@sites.command()
@click.argument("names", nargs=-1, metavar="[NAME|PATH]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
def check(names: tuple[str, ...], as_json: bool) -> int:
    """Check site files: keys, values, arguments of scheduler and launcher, and a source for every fact (in a file of your own a
    note).  Without a name: every site that can be named.

    \b
    Examples:
      neox-hpc sites check slurm
      neox-hpc sites check ~/.config/neox-hpc/sites/lab.yml
    """
    found = {name: _check(name) for name in names or list_sites()}
    if as_json:
        print_json(
            {
                name: [_entry(p) for p in checked.problems] + [_entry(p, "note") for p in checked.notes]
                for name, checked in found.items()
            }
        )
    else:
        for name, checked in found.items():
            for problem in checked.problems:
                click.echo(str(problem), err=True)
            if checked.notes:
                facts = ", ".join(problem.where.rpartition("  ")[2] for problem in checked.notes)
                click.echo(f"note: {name} gives no source of {facts}", err=True)
            click.echo(f"{name}: {count(len(checked.problems), 'problem') if checked.problems else checked.summary}")
    return 2 if any(checked.problems for checked in found.values()) else 0


@sites.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
def detect(as_json: bool) -> int:
    """The name of the machine that this one is, by the signs in the site files; exit code 1 where no sign is seen.

    \b
    Example:
      neox-hpc submit --site "$(neox-hpc sites detect)" my.yml
    """
    found = detect_here()
    if as_json:
        print_json({"site": found.site, "sign": found.sign} if found else {"site": None, "sign": None})
    elif found:
        click.echo(found.site)
        click.echo(found.sign, err=True)
    else:
        click.echo("no known machine: `neox-hpc sites new NAME` writes a first file for it", err=True)
    return 0 if found else 1


def detect_here() -> Found | None:
    """The machine that this one is; sites of the user's own before shipped ones."""
    from neox_hpc.cli.surroundings import look_around
    from neox_hpc.site_detect import detect_site

    own = own_folder(Path.home())
    ordered = sorted(list_sites().items(), key=lambda named: named[1].parent != own)
    return detect_site((site for name, _ in ordered if (site := _load(name)) is not None), look_around())


@sites.command()
def schema() -> None:
    """A JSON Schema of site files, for editors.

    \b
    Example:
      neox-hpc sites schema > site.schema.json
      then, as the first line of a file:  # yaml-language-server: $schema=site.schema.json
    """
    print_json(file_schema())


@sites.command()
@click.argument("name")
@click.option("--scheduler", help="Ask this one: slurm, pbs, lsf or flux; default: the one whose commands are here.")
@click.option("--stdout", is_flag=True, help="Print the file instead of writing it.")
def new(name: str, scheduler: str | None, stdout: bool) -> None:
    """A first site file of a machine, from what its scheduler's commands tell here.

    \b
    It is written to ~/.config/neox-hpc/sites/NAME.yml, or refused if that exists.  What is not told is null in it;
    `neox-hpc sites show NAME` lists those facts with the commands that tell them.

    \b
    Examples:
      neox-hpc sites new lab
      neox-hpc sites new lab --scheduler slurm --stdout
    """
    from neox_hpc.cli.surroundings import now_utc
    from neox_hpc.site_draft import write_draft
    from neox_hpc.user_config import write_own_site

    path = own_folder(Path.home()) / f"{name}.yml"
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or not name[0].isalnum():
        raise UserError(
            Problem("NAME", f"{name!r} cannot be a site's name", "use letters, digits and _.-, a letter or digit first")
        )
    chosen = _scheduler_here(scheduler)
    told, silent = _ask(chosen)
    text = write_draft(name, chosen, told, now_utc()[:10], silent)
    if stdout:
        click.echo(text, nl=False)
        return
    write_own_site(path, text)
    click.echo(f"{path}: look at every line; `neox-hpc sites check {name}` says what is missing")


def _scheduler_here(named: str | None) -> str:
    import shutil

    from neox_hpc.site_draft import SOURCES

    if named is not None and named not in SOURCES:
        raise UserError(Problem("--scheduler", f"{named!r} cannot be asked", f"write one of {', '.join(SOURCES)}"))
    here = [name for name, source in SOURCES.items() if shutil.which(source.program)]
    if named is None and not here:
        programs = ", ".join(source.program for source in SOURCES.values())
        raise UserError(Problem("--scheduler", f"none of {programs} is on PATH here", "run it on a login node of the machine"))
    return named or here[0]


def _ask(scheduler: str) -> tuple[Any, list[str]]:
    """What a scheduler's commands tell, and the commands that gave no answer.

    Raises:
        UserError: none of them did.
    """
    import shlex

    from neox_hpc import proc
    from neox_hpc.site_draft import SOURCES

    source, answers, silent = SOURCES[scheduler], {}, []
    for key, command in source.commands.items():
        try:
            answers[key] = proc.run(command, timeout_s=ASK_TIMEOUT_S)
        except NeoxHpcError as error:
            silent.append(f"{shlex.join(command)}: {str(error).splitlines()[0]}")
    if not answers:
        raise UserError(Problem(line, "no answer", "run it on a login node of the machine") for line in silent)
    return source.parse(answers), silent


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What is found of a site file."""

    problems: tuple[Problem, ...] = ()
    notes: tuple[Problem, ...] = ()
    """Facts without a source, in a file that is not shipped."""
    summary: str = ""
    """One line about a site that is right."""


def _check(name: str) -> Checked:
    from neox_hpc.checks import check_arguments

    try:
        site = load_site(name)
    except UserError as error:
        return Checked(problems=error.problems)
    shipped, unsourced = Path(site.file).parent == share("sites"), tuple(check_sources(site))
    problems = (*check_site(site), *check_arguments(site), *(unsourced if shipped else ()))
    known = [fact for fact, value in iter_facts(site) if value is not None]
    left = f"; to be given: {', '.join(open_facts(site))}" if open_facts(site) else ""
    sourced = "each with its source" if not unsourced else f"{len(known) - len(unsourced)} of them with their source"
    return Checked(problems=problems, notes=() if shipped else unsourced, summary=f"{count(len(known), 'fact')}, {sourced}{left}")


def _entry(problem: Problem, kind: str = "problem") -> dict[str, str]:
    return {"where": problem.where, "wrong": problem.wrong, "fix": problem.fix, "kind": kind}


def _load(name: str) -> Site | None:
    try:
        return load_site(name)
    except UserError:
        return None


def _row(name: str, file: str, site: Site | None) -> tuple[str, ...]:
    if site is None:
        return name, "", "", "", f"damaged: neox-hpc sites show {name}", file
    return name, site.scheduler, site.launcher, site.status or "own", site.title, file


def _shown(value: Any) -> str:
    """A fact on one line."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    if isinstance(value, dict) and "max_nodes" in value and "walltime" in value:
        limits = [show_walltime(value["walltime"]) if value["walltime"] else "", _node_hours(value.get("node_hours"))]
        least = f", {show_walltime(value['min_walltime'])} or more" if value.get("min_walltime") else ""
        return f"{value.get('min_nodes', 1)}-{value['max_nodes']} nodes: {' and '.join(filter(None, limits))}{least}"
    if isinstance(value, dict) and "value" in value:
        many, few = value.get("min_nodes", 1), value.get("max_nodes")
        return value["value"] + (f" (from {many} nodes)" if many > 1 else "") + (f" (to {few})" if few else "")
    if isinstance(value, dict):
        return " ".join(f"{key}={_shown(inner)}" for key, inner in value.items() if inner is not None)
    return str(value)


def _node_hours(hours: float | None) -> str:
    return "" if hours is None else f"{hours:g} node-hours"
