"""``neox-hpc config``: what YAML files amount to.

Changes when what is shown of a configuration does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from neox_hpc import __version__
from neox_hpc.cli.show import print_table
from neox_hpc.cli.surroundings import git_commit, user_name
from neox_hpc.plan import run_name
from neox_hpc.run_paths import with_absolute_paths
from neox_hpc.settings import Loaded, load_config
from neox_hpc.vocabulary import Origin, RunFile, write_run


@click.group()
def config() -> None:
    """The configuration that YAML files amount to."""


@config.command()
@click.argument("configs", nargs=-1, required=True, metavar="CONFIG.yml...")
@click.option("-d", "--conf-dir", help="Directory that relative CONFIG paths count from.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key.")
@click.option("--all", "everything", is_flag=True, help="The keys that keep their defaults, too.")
@click.option("--json", "as_json", is_flag=True, help="A run.json: what model.train reads.")
def show(configs: tuple[str, ...], conf_dir: str | None, sets: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Every key that is set, its value, and where it was written.

    \b
    Examples:
      neox-hpc config show configs/quickstart.yml
      neox-hpc config show -d configs 125M local_setup --set train_iters=10 --all
      neox-hpc config show --json configs/quickstart.yml > run.json; torchrun --nproc_per_node 2 -m model.train run.json
    """
    loaded = load_config(configs, conf_dir=conf_dir, sets=sets)
    if as_json:
        click.echo(write_run(_run_file(loaded)), nl=False)
        return
    rows = [(key, json.dumps(_plain(value)), place) for key, value, place in _keys(loaded) if everything or place]
    print_table(("KEY", "VALUE", "WRITTEN AT"), rows)


def _run_file(loaded: Loaded) -> RunFile:
    """For a training that is started by hand: this directory is the run directory."""
    cwd = Path.cwd()
    origin = Origin(neox_hpc=__version__, user=user_name(), git_commit=git_commit(cwd), config_files=loaded.files)
    config = with_absolute_paths(loaded.config, cwd=str(cwd), run_dir=str(cwd))
    return RunFile(name=run_name(None, loaded.files), world_size=None, device=None, config=config, origin=origin)


def _keys(loaded: Loaded) -> list[tuple[str, Any, str]]:
    return [(key, value, _place(loaded, key)) for key, value in loaded.config.keys().items()]


def _place(loaded: Loaded, key: str) -> str:
    """Where a key was written, or the first of the keys in it."""
    return next((place for written, place in loaded.places.items() if written == key or written.startswith(f"{key}.")), "")


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value
