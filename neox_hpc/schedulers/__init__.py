"""The schedulers by name; a site file names one."""

from neox_hpc.schedulers.interface import JobState, JobStatus, Pattern, Scheduler
from neox_hpc.schedulers.local import Local
from neox_hpc.schedulers.slurm import Slurm

SCHEDULERS: dict[str, Scheduler] = {"slurm": Slurm(), "local": Local()}

__all__ = ["SCHEDULERS", "JobState", "JobStatus", "Pattern", "Scheduler"]
