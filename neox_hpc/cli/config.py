"""``neox-hpc config``: what YAML files amount to, and which keys there are.

Changes when what is shown of a configuration does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from neox_hpc import __version__
from neox_hpc.cli.prepare import print_notes
from neox_hpc.cli.show import print_json, print_table
from neox_hpc.cli.surroundings import git_commit, user_name
from neox_hpc.request import run_name
from neox_hpc.run_paths import with_absolute_paths
from neox_hpc.settings import Checked, Loaded, check_files, load_config
from neox_hpc.share import share
from neox_hpc.shipped import FOLDER, Header, list_shipped, read_header
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
    print_notes(loaded.notes)
    if as_json:
        click.echo(write_run(_run_file(loaded)), nl=False)
        return
    rows = [(key, place, json.dumps(_plain(value))) for key, value, place in _keys(loaded) if everything or place]
    print_table(("KEY", "WRITTEN AT", "VALUE"), rows)


@config.command()
@click.argument("configs", nargs=-1, required=True, metavar="CONFIG.yml...")
@click.option("-d", "--conf-dir", help="Directory that relative CONFIG paths count from.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key.")
@click.option("--fragment", is_flag=True, help="The files are a part of a configuration; other files bring the rest.")
def check(configs: tuple[str, ...], conf_dir: str | None, sets: tuple[str, ...], fragment: bool) -> None:
    """Check files that are one configuration together: names, types, rules between keys.

    \b
    A file without any of num_layers, hidden_size, num_attention_heads, seq_length, max_position_embeddings is taken as a
    part, and its notes say so.  What needs a site (nodes, limits, data files) is checked by `neox-hpc submit --dry-run`.

    \b
    Examples:
      neox-hpc config check configs/20B.yml
      neox-hpc config check -d configs 125M local_setup
      neox-hpc config check --fragment my_tracker.yml
    """
    checked = check_files(configs, fragment=fragment, conf_dir=conf_dir, sets=sets)
    print_notes(checked.notes)
    click.echo(_verdict(checked))


@config.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
@click.option("--markdown", is_flag=True, help="The page docs/models.md: parameters, published figures, sources.")
def list_all(as_json: bool, markdown: bool) -> None:
    """Every configuration that is shipped: each works by this name from any directory.

    \b
    Examples:
      neox-hpc config list
      neox-hpc submit --site local --dry-run pythia/160M.yml local_setup.yml
      neox-hpc config list --json | jq -r '.[].name'
    """
    found = {name: (path, read_header(path.read_text(encoding="utf-8"))) for name, path in list_shipped().items()}
    if markdown:
        click.echo(_models_page({name: header for name, (_, header) in found.items()}), nl=False)
    elif as_json:
        rows = [{"name": name, "file": path, "title": said.title, "needs": said.needs} for name, (path, said) in found.items()]
        print_json(rows)
    else:
        print_table(("NAME", "WHAT", "NEEDS"), [(name, header.title, header.needs) for name, (_, header) in found.items()])


@config.command()
def schema() -> None:
    """A JSON Schema of configuration files, for editors.

    \b
    Example:
      neox-hpc config schema > neox.schema.json
      then, as the first line of a file:  # yaml-language-server: $schema=neox.schema.json
    """
    from neox_hpc.vocabulary import catalogue

    print_json(catalogue().json_schema())


@config.command()
@click.option("--status", type=click.Choice(["live", "passed", "retired", "runtime", "planned"]), help="Only these.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
@click.option("--markdown", is_flag=True, help="The page docs/keys.md.")
def keys(status: str | None, as_json: bool, markdown: bool) -> None:
    """Every key: its status, type, default and meaning; the count of each status at the end.

    \b
    Examples:
      neox-hpc config keys
      neox-hpc config keys --status live
      neox-hpc config keys --json | jq '.keys[] | select(.section == "data") | .key'
    """
    from neox_hpc.vocabulary import catalogue

    source = catalogue()
    if markdown:
        click.echo(source.page(), nl=False)
        return
    rows = [row for row in source.rows() if status is None or row.status.name == status.upper()]
    counts = {known.value: number for known, number in source.counts().items()}
    if as_json:
        print_json({"counts": counts, "keys": [row.to_json() for row in rows]})
        return
    shown = [(row.key, row.status.value, row.type, _default(row), row.doc) for row in rows]
    print_table(("KEY", "STATUS", "TYPE", "DEFAULT", "MEANING"), shown)
    total = sum(counts.values())
    click.echo(f"{total} keys of GPT-NeoX: " + ", ".join(f"{number} {name}" for name, number in counts.items()), err=True)


def _models_page(headers: dict[str, Header]) -> str:
    from neox_hpc.models_page import Model, page

    folder, models, parts = share(FOLDER), [], []
    for name, header in headers.items():
        if check_files([name], cwd=folder).whole:
            models.append(Model(name=name, header=header, config=load_config([name], cwd=folder).config))
        else:
            parts.append((name, header))
    return page(models, parts)


def _verdict(checked: Checked) -> str:
    verdict = f"{', '.join(checked.files)}: fine" + ("" if checked.whole else ", as a part of a configuration")
    if not checked.untrained:
        return verdict
    lines = [f"  {problem.where}: {problem.wrong}; {problem.fix}" for problem in checked.untrained]
    return "\n".join([f"{verdict}, and would not train yet:", *lines])


def _default(row: Any) -> str:
    return "required" if row.required else "" if row.type == "section" or row.default is None else json.dumps(row.default)


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
