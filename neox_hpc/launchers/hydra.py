"""Hydra, the process manager of MPICH, and its relatives in Intel MPI and MVAPICH.

Sources: mpiexec(1) of MPICH 4 and the help of its -bind-to; Intel MPI Library Developer Reference 2021.14, "Global Hydra Options"
and "Process Pinning"; MVAPICH2 2.3 User Guide, sections 5.2.2 and 6.5; read 2026-11.

The environment goes along as a whole (-genvall): Hydra hands it to its proxies as it is, values never stand in an argv.
"""

from __future__ import annotations

from neox_hpc.launchers.interface import Owned, Step, core_mask, cores_of

_RANKS = "write --nodes, or --site-set node.gpus=N"
_HOSTS = "remove it: the job writes the list of its own nodes"
_BIND = "write --site-set node.cpu_masks=[...], or node.cores=N"

ABORT = 'trap : USR1; "$@" || { status=$?; [ -z "${PMI_FD-}" ] || echo "cmd=abort exitcode=$status" >&"$PMI_FD"; exit "$status"; }'
"""What a rank that fails tells Hydra, in PMI's words (version 1, "abort"): of a program that speaks no PMI, as torch's, Hydra waits
for the end of all ranks and says nothing.  The shell outlives a signal that is meant for the rank: Hydra sends it to both."""

OWNED = Owned(
    flags={
        **dict.fromkeys(("-n", "-np", "-ppn", "-perhost", "-grr", "-rr"), _RANKS),
        **dict.fromkeys(("-f", "-hostfile", "-machinefile", "-machine", "-hosts", "-host"), _HOSTS),
        **dict.fromkeys(("-bind-to", "-binding", "-map-by", "-membind"), _BIND),
        **dict.fromkeys(
            ("-genvall", "-genvnone", "-genvlist", "-genvexcl", "-envall", "-envnone", "-envlist"), "write env: in the site file"
        ),
        **dict.fromkeys(("-l", "-prepend-rank"), "remove it: lines carry their rank"),
    },
    bare=True,
)


def mpich(step: Step) -> list[str]:
    """``mpiexec … [container] python -u -m MODULE``."""
    return ["mpiexec", *_placement(step), *_binding(step), *_rest(step)]


def impi(step: Step) -> list[str]:
    """``mpirun`` of Intel MPI: its processes are pinned by variables of its own.

    ``auto:compact`` shares the node's cores out in their order.
    """
    if step.cpu_masks:
        pin = ["-genv", "I_MPI_PIN_DOMAIN", f"[{','.join(map(core_mask, step.cpu_masks))}]"]
    elif step.cores_per_rank:
        pin = ["-genv", "I_MPI_PIN_DOMAIN", "auto:compact"]
    else:
        pin = ["-genv", "I_MPI_PIN", "0"]
    return ["mpirun", *_placement(step), *pin, *_rest(step)]


def mvapich(step: Step) -> list[str]:
    """``mpirun`` of MVAPICH2.

    Hydra binds; the library would bind once more by its own rule when a rank calls MPI_Init (mpi4py does).
    """
    return ["mpirun", *_placement(step), *_binding(step), *("-genv", "MV2_ENABLE_AFFINITY", "0"), *_rest(step)]


def _placement(step: Step) -> list[str]:
    return ["-f", step.nodefile, "-n", str(step.ranks), "-ppn", str(step.ranks_per_node), "-genvall"]


def _binding(step: Step) -> list[str]:
    if step.cpu_masks:
        return ["-bind-to", "user:" + ",".join("+".join(map(str, cores_of(mask))) for mask in step.cpu_masks)]
    if step.cores_per_rank:
        return ["-bind-to", f"core:{step.cores_per_rank}"]
    return ["-bind-to", "none"]


def _rest(step: Step) -> list[str]:
    return ["-prepend-rank", *step.launcher_args, "sh", "-c", ABORT, "sh", *step.command]
