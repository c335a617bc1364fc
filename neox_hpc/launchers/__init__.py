"""The launchers by name; a site file names one.  Each is a pure function from a step to an argv."""

from neox_hpc.launchers import flux, hydra, jsrun, openmpi, pals, pernode, srun
from neox_hpc.launchers.interface import Launcher, LauncherNote, Owned, Shell, Step, cores_of, refused_args, split_args

LAUNCHERS: dict[str, Launcher] = {
    "srun": srun.srun,
    "jsrun": jsrun.jsrun,
    "flux": flux.flux,
    "openmpi": openmpi.openmpi,
    "mpich": hydra.mpich,
    "pals": pals.pals,
    "impi": hydra.impi,
    "mvapich": hydra.mvapich,
    "pdsh": pernode.pdsh,
    "local": pernode.local,
}

OWNED: dict[str, Owned] = {
    "srun": srun.OWNED,
    "jsrun": jsrun.OWNED,
    "flux": flux.OWNED,
    "openmpi": openmpi.OWNED,
    "mpich": hydra.OWNED,
    "pals": pals.OWNED,
    "impi": hydra.OWNED,
    "mvapich": hydra.OWNED,
    "pdsh": pernode.OWNED_PDSH,
    "local": pernode.OWNED_LOCAL,
}
"""Flags that the plan decides."""

PER_NODE = frozenset({"pdsh", "local"})
"""They start DeepSpeed's launcher once a node, which starts the ranks; the others start the ranks."""
MAPS_CORES = frozenset({"srun", "flux", "openmpi", "mpich", "pals", "impi", "mvapich"})
"""They bind ranks to a map of cores; jsrun gives each the same number in a row, the others bind nothing."""
GIVES_ONE_GPU = frozenset({"srun", "jsrun", "flux"})
"""They can show each rank one device only."""

NEEDS_JOB_OF: dict[str, tuple[str, ...]] = {"srun": ("slurm",), "jsrun": ("lsf-csm", "lsf"), "flux": ("flux",)}
"""They belong to their schedulers; the others start ranks in a job of any.  Source: srun(1), jsrun(1), flux-run(1)."""

NOTES: dict[str, LauncherNote] = {"local": pernode.local_note}
"""What a reader of the argv would wonder about; most need no word."""

__all__ = [
    "GIVES_ONE_GPU",
    "LAUNCHERS",
    "MAPS_CORES",
    "NEEDS_JOB_OF",
    "NOTES",
    "OWNED",
    "PER_NODE",
    "Launcher",
    "LauncherNote",
    "Owned",
    "Shell",
    "Step",
    "cores_of",
    "refused_args",
    "split_args",
]
