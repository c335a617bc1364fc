"""HPE's PALS mpiexec, the launcher of Cray systems under PBS.

Sources: ALCF user guides 7d04a3f (2026-08-19), the pages of its PBS machines on running jobs: -n, --ppn, --depth,
--cpu-bind, --hostfile, --env, --envall; mpiexec(1) of HPE Cray PALS as NCAR's and ALCF's job scripts use it: --label,
--line-buffer.
"""

from __future__ import annotations

from neox_hpc.launchers.interface import Owned, Step

_RANKS = "write --nodes, or --site-set node.gpus=N"
_HOSTS = "remove it: the job writes the list of its own nodes"
_BIND = "write --site-set node.cpu_masks=[...], or node.cores=N"

OWNED = Owned(
    flags={
        **dict.fromkeys(("-n", "-np", "-ppn"), _RANKS),
        **dict.fromkeys(("-hostfile", "-hosts", "-hostlist", "-host"), _HOSTS),
        **dict.fromkeys(("-d", "-depth", "-cpu-bind"), _BIND),
        **dict.fromkeys(("-envall", "-envnone", "-envlist"), "write env: in the site file"),
        **dict.fromkeys(("-l", "-label"), "remove it: lines carry their rank"),
    },
    bare=True,
)


def pals(step: Step) -> list[str]:
    """``mpiexec … [container] python -u -m MODULE``.

    In a list of cores a colon stands between ranks; a comma would join cores of one rank.  PALS binds no GPUs of NVIDIA or AMD.
    """
    if step.cpu_masks:
        bind = ["--cpu-bind", f"list:{':'.join(step.cpu_masks)}"]
    elif step.cores_per_rank:
        bind = [f"--depth={step.cores_per_rank}", "--cpu-bind", "depth"]
    else:
        bind = ["--cpu-bind", "none"]
    return [
        "mpiexec",
        *("-n", str(step.ranks)),
        *("--ppn", str(step.ranks_per_node)),
        *("--hostfile", step.nodefile),
        *bind,
        "--envall",
        *("--label", "--line-buffer"),
        *step.launcher_args,
        *step.command,
    ]
