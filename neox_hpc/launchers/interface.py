"""What a launcher is asked to start; its answer is an argv.

Changes when launchers need to know more of a job.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


class Shell(str):
    """A word that the job's shell expands (``$MASTER_PORT``): rendered in double quotes, never escaped."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One parallel start: how many ranks where, and what each of them runs.

    In a job script address, port and files are :class:`Shell` words; a caller that knows them gives the values.
    """

    nodes: int
    ranks_per_node: int
    cores_per_rank: int | None = None
    cpus_per_rank: int | None = None
    """The same as the scheduler counts them; absent: as cores."""
    cpu_masks: tuple[str, ...] | None = None
    """Cores of each local rank ('49-55'), in the order of the GPUs."""
    gpus_per_node: int = 0
    """Devices that a node shows; 0: the ranks compute on the CPU."""
    gpus_visible: Literal["all", "one"] = "all"
    """Whether a rank sees all devices of its node, or one that the launcher gives it."""
    gpu_ids: tuple[str, ...] = ()
    """Devices of the node that the ranks use, where the launcher picks them."""
    master_addr: str = Shell("$MASTER_ADDR")
    master_port: str = Shell("$MASTER_PORT")
    hostfile: str = Shell("$hostfile")
    """``NAME slots=N`` a line: Open MPI's and DeepSpeed's form."""
    nodefile: str = Shell("$nodefile")
    """A name a line: the form of Hydra, PALS and pdsh."""
    rankfile: str = Shell("$rankfile")
    """``rank R=NAME slot=CORES`` a line, where a map of cores needs one: Open MPI's form."""
    node_rank: int | None = None
    """Which of the nodes this one is, where every node is started by itself; absent: the launcher starts all of them."""
    env: tuple[str, ...] = ()
    """Names of the exported variables that ranks need.  Their values stay in the environment: an argv can be seen by everyone."""
    launcher_args: tuple[str, ...] = ()
    container: tuple[str, ...] = ()
    """The argv that the command is put behind; empty without a container."""
    python: str
    module: str
    module_args: tuple[str, ...] = ()
    program: tuple[str, ...] = ()
    """What runs in place of container, Python and module, with one rank a node: a program that is no training."""

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def command(self) -> list[str]:
        """What every rank runs, where the launcher starts ranks."""
        return list(self.program) or [*self.container, self.python, "-u", "-m", self.module, *self.module_args]


Launcher = Callable[[Step], list[str]]
LauncherNote = Callable[[Step], str]


@dataclass(frozen=True, kw_only=True)
class Owned:
    """The flags of a launcher that the plan decides, and how its options are read.  A fact of the launcher's manual page."""

    flags: Mapping[str, str]
    """Flag -> what to write instead."""
    with_masks: Mapping[str, str] = field(default_factory=dict)
    """Those that the plan decides only where the site has a map of cores."""
    glued: bool = False
    """A value may stick to a one-letter option: ``-N4``."""
    abbreviates: bool = False
    """A long option may be cut short: ``--ntask=4`` (getopt_long does so)."""
    bare: bool = False
    """Long options take one dash or two: ``-ppn``, ``--ppn``."""


def refused_args(args: Sequence[str], owned: Owned, *, masks: bool) -> Iterator[tuple[str, str]]:
    """Those arguments that contradict the plan, each with what to write instead; ``masks``: the site has a map of cores."""
    flags = {**owned.flags, **(owned.with_masks if masks else {})}
    for word in args:
        for flag, instead in flags.items():
            if _is(word, flag, owned):
                yield word, instead
                break


def _is(word: str, flag: str, owned: Owned) -> bool:
    name = word.partition("=")[0]
    if name == flag or (owned.bare and name.startswith("-") and name.lstrip("-") == flag.lstrip("-")):
        return True
    if owned.glued and re.fullmatch(r"-\w", flag):
        return re.match(rf"{flag}\S", word) is not None
    return owned.abbreviates and flag.startswith("--") and len(name) > 4 and name.startswith("--") and flag.startswith(name)


def cores_of(text: str) -> list[int]:
    """The cores of ``'49-55'`` or ``'0-3,8'``."""
    ends = (part.partition("-") for part in text.split(","))
    return [core for first, _, last in ends for core in range(int(first), int(last or first) + 1)]


def core_mask(cores: str) -> str:
    """``'1-3,8'`` -> ``'0x10e'``: bit n stands for core n."""
    return hex(sum(1 << core for core in cores_of(cores)))


def split_args(texts: Sequence[str]) -> tuple[str, ...]:
    """The words of texts as a shell would part them: ``'-o mpibind=off'`` is two.

    Raises:
        ValueError: a text has a quote that is not closed, or does not begin with a dash.
    """
    for text in texts:
        if not text.startswith("-") or "\0" in text:
            raise ValueError(f"{text!r} is no argument: write e.g. '--mpi=none' or '-o mpibind=off'")
    try:
        return tuple(word for text in texts for word in shlex.split(text))
    except ValueError as error:
        raise ValueError(f"{' '.join(texts)!r} has {str(error).lower()}: close the quote") from None
