"""``neox-hpc launch`` through pretended launchers, on two hosts: inside the jobs of their schedulers, or with a hostfile."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts
from tests.fakes.test_jobs import BY_HAND, QUEUED, SMALL, Desk, Pretended, desk, losses, reference

pytestmark = [pytest.mark.cluster, pytest.mark.full]
__all__ = ["reference"]

CHECKOUT = str(Path(__file__).parents[2])
PRETENDED = {
    **{name: QUEUED[name] for name in ("pals", "jsrun", "flux")},
    "srun": BY_HAND,
    **{
        name: Pretended(site="mpi", shape="cluster", programs=(name,), sets=(f"launcher={name}", "node.cores=32"))
        for name in ("impi", "mvapich")
    },
}


def job_of(launcher: str, here: Desk) -> tuple[str, Mapping[str, str], list[str]]:
    """Where the command is given, the variables of the job that it is given in, and further words."""
    (here.cwd / "nodes").write_text("node1\nnode2\n")
    (here.cwd / "slots").write_text("batch1\n" + "node1\n" * 42 + "node2\n" * 42)
    (here.cwd / "instance").write_text(json.dumps({"hosts": ["node1", "node2"], "jobid": "ƒ1"}))
    jobs: dict[str, tuple[str, Mapping[str, str]]] = {
        "pals": ("node1", {"PBS_JOBID": "7.pbs", "PBS_NODEFILE": str(here.cwd / "nodes")}),
        "jsrun": ("node3", {"LSB_JOBID": "7", "LSB_DJOB_HOSTFILE": str(here.cwd / "slots"), "TMPDIR": ""}),
        "flux": ("node1", {"FLUX_URI": f"local://{here.cwd / 'instance'}"}),
        "srun": ("node1", {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]"}),
    }
    (here.cwd / "hosts").write_text("node1 slots=2\nnode2 slots=2\n")
    if launcher not in jobs:
        return "node1", {}, ["-H", "hosts", "--launcher", launcher, "--no_ssh_check"]
    return (*jobs[launcher], [])


@pytest.mark.parametrize("launcher", PRETENDED)
def test_four_ranks_on_two_hosts_train_what_one_trains(
    launcher: str, three_hosts: Hosts, tmp_path: Path, reference: list[float]
) -> None:
    here = desk(PRETENDED[launcher], three_hosts, tmp_path)
    host, environ, more = job_of(launcher, here)
    sets = [word for text in (*SMALL, *here.pretended.sets) for word in ("--site-set", text)]
    words = ["launch", "train", "-d", ".", "tiny", "-s", here.pretended.site, *sets, *more]
    argv = [sys.executable, "-m", "neox_hpc", *words]
    if "TMPDIR" in environ:  # jsrun does not start with it
        argv = ["env", "-u", "TMPDIR", *argv]
    done = here.on(host, argv, environ={"PYTHONPATH": CHECKOUT, "OMP_NUM_THREADS": "1", **environ}, timeout_s=300)
    assert done.code == 0, done
    assert losses(here.cwd / "runs/tiny") == pytest.approx(reference, rel=1e-5)
    assert [(rank["rank"], rank["host"]) for rank in here.placed()] == [(0, "node1"), (1, "node1"), (2, "node2"), (3, "node2")]
