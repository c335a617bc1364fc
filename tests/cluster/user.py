"""A user at the login node, who types ``neox-hpc …``.

Changes when what such a user needs to know about the cluster does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.slurm import Slurm
from tests.desk import Said

POLL_S = 0.3


@dataclass(frozen=True, kw_only=True)
class User:
    """``user("status", …)`` runs a command line in the user's working directory, as a process of its own on the login node."""

    slurm: Slurm
    cwd: Path
    checkout: Path

    def __call__(self, *argv: str, environ: Mapping[str, str] | None = None, timeout_s: float = 60.0) -> Said:
        own = {"HOME": str(self.slurm.user_home), "XDG_STATE_HOME": "", "PYTHONPATH": str(self.checkout)}
        said = self.slurm.on_login_node(
            [sys.executable, "-m", "neox_hpc", *argv], timeout_s=timeout_s, cwd=self.cwd, environ={**own, **(environ or {})}
        )
        return Said(said.returncode, said.stdout, said.stderr)

    def submit(
        self,
        *more: str,
        python: str = sys.executable,
        environ: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
        ranks: int = 1,
        verb: str = "submit",
    ) -> Said:
        """Submit ``tiny.yml`` to two nodes with so many ranks each: the open facts of the generic Slurm site are given."""
        facts = {
            "node.gpus": "0",
            "node.cpu_ranks": str(ranks),
            "node.cores": str(ranks),
            "network.interface": "eth0",  # of the nodes; their other one is the loopback
            "software.python": python,
        }
        sets = [word for fact, value in facts.items() for word in ("--site-set", f"{fact}={value}")]
        return self(verb, "--site", "slurm", *sets, "--nodes", "2", *more, "tiny.yml", environ=environ, timeout_s=timeout_s)

    def python(self, name: str, lines: str) -> str:
        """For ``submit(python=…)``: a Python before which every rank runs these lines of shell."""
        path = self.cwd / name
        path.write_text(f'#!/bin/sh\n{lines}\nexec "{sys.executable}" "$@"\n')
        path.chmod(0o755)
        return str(path)

    def wait_for(self, run: str, state: str, *, step: int = 0, limit_s: float = 60.0) -> Any:
        """The facts of a run once it is in a state and has taken that many steps."""
        deadline = time.monotonic() + limit_s
        while (facts := self("status", run, "--json").facts)["state"] != state or (facts["step"] or 0) < step:
            log = Path(facts["log"])
            assert time.monotonic() < deadline, f"not {state} at step {step} but {facts}\n{log.read_text() if log.exists() else ''}"
            time.sleep(POLL_S)
        return facts

    def wait_until(self, happened: Callable[[], bool], *, limit_s: float = 30.0) -> None:
        """Until something is so."""
        deadline = time.monotonic() + limit_s
        while not happened():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(POLL_S)
