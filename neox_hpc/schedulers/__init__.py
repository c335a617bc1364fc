"""The schedulers by name; a site file names one."""

from neox_hpc.schedulers.flux import Flux
from neox_hpc.schedulers.interface import (
    RUN_NAME,
    After,
    Chain,
    Condition,
    EarlySignal,
    HostSource,
    JobState,
    JobStatus,
    Pattern,
    Scheduler,
    asked,
)
from neox_hpc.schedulers.local import Local
from neox_hpc.schedulers.lsf import Lsf, LsfCsm
from neox_hpc.schedulers.pbs import Pbs
from neox_hpc.schedulers.slurm import Slurm

SCHEDULERS: dict[str, Scheduler] = {
    "slurm": Slurm(),
    "pbs": Pbs(),
    "lsf": Lsf(),
    "lsf-csm": LsfCsm(),
    "flux": Flux(),
    "local": Local(),
}

__all__ = [
    "RUN_NAME",
    "SCHEDULERS",
    "After",
    "Chain",
    "Condition",
    "EarlySignal",
    "HostSource",
    "JobState",
    "JobStatus",
    "Pattern",
    "Scheduler",
    "asked",
]
