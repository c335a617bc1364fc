"""The fakes as programs: what a name on PATH does, and how it gets there.

A fake finds its machine by the directory that is written into it, for the environment that it runs in is the real program's to set.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.fakes import flux, lsf, pbs
from tests.fakes.engine import Line, Refused, read_line, read_table
from tests.fakes.flux_run import flux_run
from tests.fakes.hydra import impi, mvapich
from tests.fakes.jsrun import jsrun
from tests.fakes.machine import Machine, read_machine, write_machine
from tests.fakes.pals import pals
from tests.fakes.ranks import Launch, start
from tests.fakes.srun import show_hostnames, srun

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
QUEUES: dict[str, Callable[[Line, Machine, Mapping[str, str]], int]] = {
    # a command, of which all words may be its name; its table has the same name with dashes
    "qsub": pbs.qsub,
    "qstat": pbs.qstat,
    "qdel": pbs.qdel,
    "qsig": pbs.qsig,
    "pbsnodes": pbs.pbsnodes,
    "bsub": lsf.bsub,
    "bjobs": lsf.bjobs,
    "bkill": lsf.bkill,
    "bqueues": lsf.bqueues,
    "scontrol show hostnames": show_hostnames,
    "flux batch": flux.batch,
    "flux jobs": flux.jobs,
    "flux cancel": flux.cancel,
    "flux job kill": flux.kill,
    "flux hostlist": flux.hostlist,
    "flux getattr": flux.getattr_,
    "flux resource list": flux.resource_list,
}


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
        path = folder / (LAUNCHERS[fake][0] if fake in LAUNCHERS else fake).partition(" ")[0]
        lines = (
            f"#!{sys.executable} -I",
            "import sys",
            f"sys.path.insert(0, {str(checkout)!r})",
            "from tests.fakes.program import main",
            f"main({fake.partition(' ')[0]!r}, {str(machine.home)!r})",
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
    if fake in LAUNCHERS and fake != "flux":
        return start(machine, place(fake, words, machine, environ))
    if fake == "flux" and words[:1] == ["run"]:
        return start(machine, place("flux", words[1:], machine, environ))
    for command, work in QUEUES.items():
        name = command.split()
        if name[0] == fake and words[: len(name) - 1] == name[1:]:
            return work(read_line(read_table(command.replace(" ", "-")), words[len(name) - 1 :]), machine, environ)
    raise Refused(f"{fake}: `{' '.join(words[:1])}' is not a {fake} command.  See '{fake} --help'")
