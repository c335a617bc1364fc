"""``neox-hpc hostfile``: the hosts of a running job, for programs that want a hostfile.

Changes when what is printed of them does.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from neox_hpc.errors import Problem, UserError
from neox_hpc.hostfile import parse_hostfile
from neox_hpc.jobs import read_hosts
from neox_hpc.schedulers import SCHEDULERS
from neox_hpc.site import Site
from neox_hpc.site_files import load_site


@click.command()
@click.option("-s", "--site", "name", help="The machine: its scheduler, and how many ranks a node runs.")
@click.option("--slots", type=click.IntRange(min=1), help="Ranks of a node; default: the site's.")
@click.option("--file", type=click.Path(path_type=Path), help="Check a hostfile, and print its hosts.")
def hostfile(name: str | None, slots: int | None, file: Path | None) -> None:
    """Print NAME slots=N for every host of the job that this runs in; outside of one, of the file DLTS_HOSTFILE, or the site's.

    The job's own script writes the same to logs/ATTEMPT/hostfile; this is for other programs, in an allocation or a pod.

    \b
    Examples:
      neox-hpc hostfile --slots 4 > hostfile && export DLTS_HOSTFILE=$PWD/hostfile
      neox-hpc hostfile --site ./mysite.yml
      neox-hpc hostfile --file /job/hostfile
    """
    site = load_site(name) if name is not None else None
    job = _names(site) if file is None else None
    given = file or (_file(site) if job is None else None)
    if given is not None and slots is not None:
        raise UserError(Problem("--slots", f"{given} says how many slots each host has", "remove it, or correct the file"))
    for host, number in _of_file(given) if given is not None else _of_job(site, job, slots):
        click.echo(f"{host} slots={number}")


def _names(site: Site | None) -> list[str] | None:
    """The hosts of the job that this runs in: of the site's scheduler, or of any."""
    asked = [SCHEDULERS[site.scheduler]] if site is not None else SCHEDULERS.values()
    return next((names for scheduler in asked if (names := read_hosts(scheduler, os.environ)) is not None), None)


def _file(site: Site | None) -> Path | None:
    """Outside of a job: where GPT-NeoX looks for hosts, else the site's own file."""
    named = os.environ.get("DLTS_HOSTFILE") or (site.hostfile if site is not None else None)
    return Path(named) if named else None


def _of_file(path: Path) -> list[tuple[str, int]]:
    try:
        found = parse_hostfile(path.read_text(encoding="utf-8", errors="replace"), str(path))
    except OSError as error:
        raise UserError(Problem(str(path), f"cannot be read: {error.strerror}", "give another with --file")) from None
    if found.problems:
        raise UserError(found.problems)
    return [(host.name, host.slots) for host in found.hosts]


def _of_job(site: Site | None, hosts: list[str] | None, slots: int | None) -> list[tuple[str, int]]:
    if hosts is None:
        where = site.scheduler if site is not None else "any scheduler"
        fix = "run it inside an allocation, or name a file: --file, DLTS_HOSTFILE"
        raise UserError(Problem("hostfile", f"this is no job of {where}", fix))
    ranks = slots or (site.node.ranks if site is not None else None)
    if ranks is None:
        raise UserError(Problem("--slots", "how many ranks a node runs is not known", "write --slots N, or --site NAME"))
    return [(host, ranks) for host in hosts]
