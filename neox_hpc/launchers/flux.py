"""Flux: ``flux run`` inside a batch job.

Source: flux-core 4a5e79f (2026-08-18), doc/man1/flux-run.rst and
doc/man1/common/{job-param-perres,job-shell-options,job-standard-io}.rst.
"""

from __future__ import annotations

from neox_hpc.launchers.interface import Owned, Step

_RANKS = "write --nodes, or --site-set node.gpus=N"

OWNED = Owned(
    flags={
        **dict.fromkeys(("-N", "--nodes"), "write --nodes"),
        **dict.fromkeys(
            ("-n", "--ntasks", "--tasks-per-node", "--tasks-per-core", "-g", "--gpus-per-task", "--gpus-per-node"), _RANKS
        ),
        **dict.fromkeys(
            ("-c", "--cores-per-task", "--cores", "cpu-affinity", "-ocpu-affinity"), "write --site-set node.cpu_masks=[...]"
        ),
        **dict.fromkeys(("gpu-affinity", "-ogpu-affinity"), "write --site-set gpus_visible=one"),
        **dict.fromkeys(("--exclusive", "-x"), "remove it: the nodes are the job's own"),
        **dict.fromkeys(("-l", "--label-io"), "remove it: lines carry their rank"),
        **dict.fromkeys(("--env", "--env-remove", "--env-file"), "write env: in the site file"),
        **dict.fromkeys(("exit-on-error", "-oexit-on-error"), "remove it: a failed rank ends the others"),
    },
    glued=True,
)


def flux(step: Step) -> list[str]:
    """``flux run`` over whole nodes; the environment goes along as a whole.

    ``gpu-affinity`` sets CUDA_VISIBLE_DEVICES alone, which ROCm honours; off, every rank sees all devices.
    ``exit-on-error``: one failed rank ends the others at once; the default only begins a timer of 30 s.
    """
    even = "per-task" if step.cores_per_rank else "off"
    affinity = f"map:{';'.join(step.cpu_masks)}" if step.cpu_masks else even
    return [
        *("flux", "run"),
        f"--nodes={step.nodes}",
        f"--tasks-per-node={step.ranks_per_node}",
        "--exclusive",
        *("-o", f"cpu-affinity={affinity}"),
        *("-o", f"gpu-affinity={'per-task' if step.gpus_visible == 'one' else 'off'}"),
        *("-o", "exit-on-error"),
        "--label-io",
        *step.launcher_args,
        *step.command,
    ]
