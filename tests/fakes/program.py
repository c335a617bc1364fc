"""The fakes as programs: what a name on PATH does, and how it gets there.

A fake finds its machine by the directory that is written into it, for the environment that it runs in is the real program's to set.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.fakes.engine import Line, Refused, read_line, read_table
from tests.fakes.flux_run import flux_run
from tests.fakes.hydra import impi, mvapich
from tests.fakes.jsrun import jsrun
from tests.fakes.machine import Machine, read_machine, write_machine
from tests.fakes.pals import pals
from tests.fakes.ranks import Launch, start
from tests.fakes.srun import srun

LAUNCHERS: dict[str, tuple[str, Callable[[Line, Machine, Mapping[str, str]], Launch]]] = {
    # our launcher's name: the program's name on PATH, and what it makes of its command line
    "jsrun": ("jsrun", jsrun),
    "pals": ("mpiexec", pals),
    "impi": ("mpirun", impi),
    "mvapich": ("mpirun", mvapich),
    "srun": ("srun", srun),
    "flux": ("flux run", flux_run),
}
TABLE_OF = {"flux": "flux-run"}
"""Where a launcher's table has another name."""


def place(launcher: str, words: list[str], machine: Machine, environ: Mapping[str, str]) -> Launch:
    """What a launcher makes of the words after its name.

    Raises:
        Refused: as the real one would refuse.
    """
    table = read_table(TABLE_OF.get(launcher, launcher))
    return LAUNCHERS[launcher][1](read_line(table, words), machine, environ)


def install(folder: Path, machine: Machine, *fakes: str) -> None:
    """Put fakes on a PATH."""
    folder.mkdir(exist_ok=True)
    machine.home.mkdir(exist_ok=True)
    write_machine(machine)
    checkout = Path(__file__).parents[2]
    for fake in fakes:
        name = (LAUNCHERS[fake][0] if fake in LAUNCHERS else fake).partition(" ")[0]
        path = folder / name
        lines = (
            f"#!{sys.executable} -I",
            "import sys",
            f"sys.path.insert(0, {str(checkout)!r})",
            "from tests.fakes.program import main",
            f"main({fake!r}, {str(machine.home)!r})",
        )
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o755)


def main(fake: str, home: str) -> None:
    """Be a program, and exit as it does."""
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    machine = read_machine(Path(home))
    try:
        status = run(fake, sys.argv[1:], machine, os.environ)
    except Refused as refused:
        print(refused.message, file=sys.stderr)
        status = refused.status
    sys.stdout.flush()
    os._exit(status)  # threads of a rank that is stuck shall not keep us


def run(fake: str, words: list[str], machine: Machine, environ: Mapping[str, str]) -> int:
    """A program's work; its exit status."""
    if fake == "flux" and words[:1] == ["run"]:
        return start(machine, place("flux", words[1:], machine, environ))
    if fake in LAUNCHERS and fake != "flux":
        return start(machine, place(fake, words, machine, environ))
    raise Refused(f"{fake}: no such command")
