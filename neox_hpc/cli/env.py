"""``neox-hpc env``: the Python environment that jobs of a machine run in.

Changes when what can be done with an environment does.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import click

from neox_hpc import proc
from neox_hpc.cli.show import print_facts
from neox_hpc.env import Venv
from neox_hpc.errors import Failure, Problem, UserError
from neox_hpc.identity import lock_sha256
from neox_hpc.render import render_venv
from neox_hpc.share import share
from neox_hpc.site_files import load_site
from neox_hpc.user_config import FILE


@click.group()
def env() -> None:
    """The Python environment (torch, DeepSpeed) that jobs of a machine run in."""


@env.command()
@click.option("-s", "--site", "name", required=True, help="The machine: a name (neox-hpc sites list) or a site file.")
@click.option(
    "--site-set", "sets", multiple=True, metavar="FACT=VALUE", help="Override a fact: --site-set 'modules.load=[\"python\"]'"
)
@click.option("-p", "--path", help="Where to build it; default: envs/SITE here.")
@click.option("--wheels", help="Directory of wheels, for a machine without network (pip wheel --wheel-dir makes one elsewhere).")
@click.option("--dry-run", is_flag=True, help="Print the script that builds it; build nothing.")
def create(name: str, sets: tuple[str, ...], path: str | None, wheels: str | None, dry_run: bool) -> int:
    """Build the environment with the site's modules, package index and pinned versions.

    \b
    Run it where jobs find the directory later: a login node, on a shared file system.  A build that was interrupted is refused
    by submit, and by the next `env create`.  What was installed is in the environment's neox-hpc.lock; its hash goes into the
    receipt of every job.

    \b
    Examples:
      neox-hpc env create --site ./mysite.yml --path /project/abc/env
      neox-hpc env create --site ./mysite.yml --dry-run | less
    """
    site, cwd = load_site(name, sets), Path.cwd()
    venv = Venv(
        site=site,
        path=os.path.normpath(cwd / (path or f"envs/{site.name}")),
        constraints=site.software.constraints or str(share("constraints.txt")),
        wheels=os.path.normpath(cwd / wheels) if wheels is not None else None,
    )
    script = render_venv(venv)
    if dry_run:
        click.echo(script, nl=False)
        return 0
    _check(venv)
    modules = site.modules.load or site.modules.use
    status = proc.show(["bash", *(["-l"] if modules else []), "-c", script])  # `module` is a function of login shells
    if status != 0:
        raise Failure(f"no environment was built (exit status {status})")
    _print_built(venv)
    return 0


def _check(venv: Venv) -> None:
    problems = []
    if not Path(venv.constraints).is_file():
        where, fix = f"{venv.site.file}  software.constraints", "correct it, or write --site-set software.constraints=null"
        problems.append(Problem(where, f"no such file here: {venv.constraints}", fix))
    if venv.wheels is not None and not Path(venv.wheels).is_dir():
        problems.append(Problem("--wheels", f"no such directory: {venv.wheels}", "make one: python3 -m pip wheel --wheel-dir"))
    if venv.lacks_wheel:
        wrong = f"not known for {venv.site.name}, and pip's own index has no torch for {venv.site.node.arch}"
        fix = "write --site-set software.index_url=URL of one that has; or build torch there, and --wheels DIRECTORY"
        problems.append(Problem(f"{venv.site.file}  software.index_url", wrong, fix))
    if venv.lacks_index:
        wrong = f"not known for {venv.site.name}, and the torch of pip's own index is not built for {venv.site.node.accelerator}"
        fix = "write --site-set software.index_url=https://download.pytorch.org/whl/NAME (pytorch.org/get-started has the names)"
        problems.append(Problem(f"{venv.site.file}  software.index_url", wrong, fix))
    if problems:
        raise UserError(problems)


def _print_built(venv: Venv) -> None:
    name, path = venv.site.name, venv.path
    click.echo(f"{click.style(path, bold=True)} is ready")
    print_facts(
        [
            ("lock", f"{venv.lock}  sha256 {lock_sha256(path)}"),
            ("use", f"neox-hpc submit --site {shlex.quote(venv.site.given)} --site-set software.venv={shlex.quote(path)} …"),
            (
                "keep",
                f"in ~/{FILE}:  sites: {{{name}: {{venv: {json.dumps(path, ensure_ascii=False)}}}}}",
            ),  # a text of JSON is one of YAML
        ]
    )
