"""The launchers by name; a site file names one.  Each is a pure function from a step to an argv."""

from neox_hpc.launchers.interface import Launcher, LauncherNote, Shell, Step, cores_of
from neox_hpc.launchers.local import local, local_note
from neox_hpc.launchers.srun import srun

LAUNCHERS: dict[str, Launcher] = {"srun": srun, "local": local}

NOTES: dict[str, LauncherNote] = {"local": local_note}
"""What a reader of the argv would wonder about; most need no word."""

__all__ = ["LAUNCHERS", "NOTES", "Launcher", "LauncherNote", "Shell", "Step", "cores_of"]
