"""The launchers by name; a site file names one.  Each is a pure function from a step to an argv."""

from neox_hpc.launchers.interface import Launcher, Shell, Step
from neox_hpc.launchers.local import local
from neox_hpc.launchers.srun import srun

LAUNCHERS: dict[str, Launcher] = {"srun": srun, "local": local}

__all__ = ["LAUNCHERS", "Launcher", "Shell", "Step"]
