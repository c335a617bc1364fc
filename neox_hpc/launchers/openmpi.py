"""Open MPI's mpirun, 4 and 5.

Sources: mpirun(1) of Open MPI 4.1 (Debian 12) and 5.0 (docs.open-mpi.org, "mpirun"), read 2026-11.
Every flag here is known to both.
"""

from __future__ import annotations

from neox_hpc.launchers.interface import Owned, Step

_RANKS = "write --nodes, or --site-set node.gpus=N"
_HOSTS = "remove it: the job writes the hostfile from its own nodes"
_BIND = "write --site-set node.cpu_masks=[...], or node.cores=N"

OWNED = Owned(
    flags={
        **dict.fromkeys(("-n", "--n", "-np", "--np", "-c", "-N", "--npernode", "-npernode", "--ppr", "-pernode"), _RANKS),
        **dict.fromkeys(("-hostfile", "-machinefile", "-host", "-H"), _HOSTS),
        **dict.fromkeys(("-map-by", "-bind-to", "-rankfile", "-rf", "-rank-by", "-cpus-per-proc"), _BIND),
        **dict.fromkeys(("-tag-output",), "remove it: lines carry their rank"),
        "-x": "write env: in the site file",
    },
    bare=True,
)


def openmpi(step: Step) -> list[str]:
    """``mpirun … [container] python -u -m MODULE``.

    -x takes names only: mpirun reads the values from its own environment.  What is not named does not reach nodes that are
    entered by ssh.  A map of cores needs a rankfile, which the job writes (templates/launch/openmpi.sh.j2).
    """
    if step.cpu_masks:
        place = ["--rankfile", step.rankfile]
    elif step.cores_per_rank:
        place = ["--map-by", f"ppr:{step.ranks_per_node}:node:PE={step.cores_per_rank}", "--bind-to", "core"]
    else:
        place = ["--map-by", f"ppr:{step.ranks_per_node}:node", "--bind-to", "none"]
    return [
        "mpirun",
        *("-n", str(step.ranks)),
        *("--hostfile", step.hostfile),
        *place,
        "--tag-output",  # 5 calls it --output tag, which 4 does not know
        *(word for name in step.env for word in ("-x", name)),
        *step.launcher_args,
        *step.command,
    ]
