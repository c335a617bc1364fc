"""What a launcher is asked to start; its answer is an argv."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class Shell(str):
    """A word that the job's shell expands (``$MASTER_PORT``): rendered in double quotes, never escaped."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One parallel start: how many ranks where, and what each of them runs.

    In a job script address and port are :class:`Shell` words; a caller that knows them gives the values.
    """

    nodes: int
    ranks_per_node: int
    cores_per_rank: int | None = None
    cpu_masks: tuple[str, ...] | None = None
    """Cores of each local rank ('49-55'), in the order of the GPUs."""
    gpu_ids: tuple[str, ...] = ()
    """Devices of the node that the ranks use, where the launcher picks them."""
    master_addr: str = Shell("$MASTER_ADDR")
    master_port: str = Shell("$MASTER_PORT")
    launcher_args: tuple[str, ...] = ()
    container: tuple[str, ...] = ()
    """The argv that the command is put behind; empty without a container."""
    python: str
    module: str
    module_args: tuple[str, ...] = ()


def cores_of(text: str) -> list[int]:
    """The cores of ``'49-55'`` or ``'0-3,8'``."""
    ends = (part.partition("-") for part in text.split(","))
    return [core for first, _, last in ends for core in range(int(first), int(last or first) + 1)]


Launcher = Callable[[Step], list[str]]
LauncherNote = Callable[[Step], str]
