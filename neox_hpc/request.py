"""What was asked for: the command line, and what step 1 read of the user's surroundings.

Changes when a command line can say more.
"""

from __future__ import annotations

import os.path
import re
from dataclasses import dataclass
from typing import get_args

from neox_hpc.schedulers import After, Chain, Condition, EarlySignal


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for on the command line, and what step 1 read of the user's surroundings."""

    name: str
    name_is_given: bool = True
    """Else it is a configuration file's."""
    run_dir: str
    """Absolute; chosen before planning, so that a dry run and the submit after it give the same bytes."""
    cwd: str
    """Directory of the submit command."""
    user: str = ""
    git_commit: str = ""
    neox_hpc: str = ""
    """Version."""
    nodes: int | None = None
    walltime_s: int | None = None
    account: str | None = None
    user_account: tuple[str, str] | None = None
    """Place and account in the user's own configuration."""
    environment_account: tuple[str, str] | None = None
    """Variable and account, where the scheduler reads one."""
    environment_hostfile: str | None = None
    """DLTS_HOSTFILE, where GPT-NeoX looks for hosts that no scheduler gives."""
    queue: str | None = None
    container: str | None = None
    """Image, or `none`."""
    software_place: str | None = None
    """Where the user's own configuration says what the ranks run in, if it does."""
    directives: tuple[str, ...] = ()
    """Of the command line, as they stand."""
    after: tuple[After, ...] = ()
    array: Chain | None = None
    exclude: str | None = None
    """Nodes, as the scheduler writes several."""
    early_signal: EarlySignal | None = None
    requeue: bool = False
    """Start the script again after a node failure."""
    launcher_args: tuple[str, ...] = ()
    """Texts of --launcher-args, as they were written."""
    master_addr: str | None = None
    master_port: int | None = None
    """Where ranks meet, where that was said."""
    launched: bool = False
    """Hosts and launcher were chosen by the keys of the section launch."""
    node_rank: int | None = None
    """Which of the hosts this one is, where every node is started by itself."""
    joins: str | None = None
    """The run directory of the first node, whose training this one joins."""
    exports: tuple[str, ...] = ()
    """Further variables of this shell that ranks on all hosts get; only `launch` runs the job in this shell."""


def read_after(text: str) -> After:
    """``4711``, ``4711:any`` or ``4711:notok``.

    Raises:
        ValueError: no such condition.
    """
    job_id, _, condition = text.partition(":")
    known = {word: word for word in get_args(Condition)}
    if (condition or "ok") not in known:
        raise ValueError(f"{text!r} has no known condition: write JOB, JOB:any or JOB:notok")
    return After(job_id=job_id, condition=known[condition or "ok"])


def read_array(text: str) -> Chain:
    """``1-5%1``.

    Raises:
        ValueError: it is not, or several tasks would run at once.
    """
    found = re.fullmatch(r"(\d{1,6})-(\d{1,6})(?:%(\d+))?", text)
    if found is None or int(found[1]) >= int(found[2]):
        raise ValueError(f"{text!r} is no range of tasks: write 1-5%1")
    if found[3] != "1":
        raise ValueError(f"tasks of {text!r} would train in one run directory at once: write {found[1]}-{found[2]}%1")
    return Chain(first=int(found[1]), last=int(found[2]))


def read_early_signal(text: str) -> EarlySignal:
    """``USR1@300``, ``SIGUSR1@300``.

    Raises:
        ValueError: it is not.
    """
    found = re.fullmatch(r"(?:SIG)?([A-Z][A-Z0-9]*)@([1-9]\d{0,4})", text)
    if found is None:
        raise ValueError(f"{text!r} is no signal and seconds: write USR1@300")
    return EarlySignal(signal=found[1], seconds=int(found[2]))


def run_name(name: str | None, config_files: tuple[str, ...]) -> str:
    """``--name``, else the first configuration file's name without its ending."""
    return name or (os.path.splitext(os.path.basename(config_files[0]))[0] if config_files else "run")
