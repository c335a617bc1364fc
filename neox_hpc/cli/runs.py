"""The RUN argument: how a verb gets the run that the user means.

Changes when how runs are named on the command line does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from neox_hpc.registry import find_run, read_registry, registry_file
from neox_hpc.rundir import Far, RunDir

if TYPE_CHECKING:
    from neox_hpc.far import FarMachine
    from neox_hpc.jobs import Hosts

    ParamType = click.ParamType[RunDir]
else:
    ParamType = click.ParamType  # no generic before click 8.3


class RunParameter(ParamType):
    """A run: the path of its directory, its name, or its job id."""

    name = "run"

    def convert(self, value: str | RunDir, param: click.Parameter | None, ctx: click.Context | None) -> RunDir:
        return value if isinstance(value, RunDir) else find_run(value, file=registry_file(os.environ), cwd=Path.cwd())

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        names = dict.fromkeys(entry.name for entry in read_registry(registry_file(os.environ)))
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def newest_run() -> RunDir:
    """The run that was submitted last.

    Raises:
        UserError: there is none.
    """
    return find_run(None, file=registry_file(os.environ), cwd=Path.cwd())


def all_hosts() -> Hosts:
    """This machine, and others once a run is on one of them."""
    from neox_hpc.jobs import Hosts

    return Hosts(os.environ, _reach)


def _reach(far: Far) -> FarMachine:
    from neox_hpc.cli.far import machine

    return machine(far.host, far.ssh)


def refresher(run: RunDir, hosts: Hosts, wanted: Mapping[str, int | str]) -> Callable[[], None] | None:
    """What brings the files of a run on another machine here; nothing for a run of this one."""
    return None if run.far is None else lambda: hosts.refresh(run, wanted)
