"""IBM's jsrun (Job Step Manager): ranks in resource sets.

Sources: OLCF user documentation, "Job Launcher (jsrun)" (2745903, 2026-07-22); the script ai_at_scale/multinode-job.lsf
of OLCF's AI training series (2024-09-27).
"""

from __future__ import annotations

from neox_hpc.launchers.interface import Owned, Step

_SETS = "write --nodes, or --site-set node.gpus=N"
_BIND = "write --site-set node.cores=N"
_RANKED = "remove it: lines carry their rank"

OWNED = Owned(
    flags={
        **dict.fromkeys(("-n", "--nrs", "-r", "--rs_per_host", "-a", "--tasks_per_rs", "-p", "--np", "-g", "--gpu_per_rs"), _SETS),
        **dict.fromkeys(("-c", "--cpu_per_rs", "-b", "--bind"), _BIND),
        **dict.fromkeys(("-d", "--launch_distribution"), "remove it: ranks of a node are neighbours"),
        **dict.fromkeys(("-e", "--stdio_mode"), _RANKED),
        **dict.fromkeys(("-X", "--exit_on_error"), "remove it: a failed rank ends the others"),
        **dict.fromkeys(("-E", "--env"), "write env: in the site file"),
    },
    glued=True,
)


def jsrun(step: Step) -> list[str]:
    """One resource set a node with all its cores and GPUs, or one a rank where a rank is to see one GPU.

    Ranks of one set see all of its GPUs; ``packed:C`` gives each C cores in a row, so rank and GPU lie in the same socket.  The
    environment of the job goes along as a whole; -E would only add to it.
    """
    one = step.gpus_visible == "one" and step.gpus_per_node > 0
    sets, tasks = (step.ranks_per_node, 1) if one else (1, step.ranks_per_node)
    if step.cores_per_rank:
        cores, bind = str(step.cores_per_rank * tasks), f"packed:{step.cores_per_rank}"
    else:
        cores, bind = "1" if one else "ALL_CPUS", "none"  # all of a host's are there for one set only
    return [
        "jsrun",
        f"--nrs={step.nodes * sets}",
        f"--rs_per_host={sets}",
        f"--tasks_per_rs={tasks}",
        f"--cpu_per_rs={cores}",
        f"--gpu_per_rs={1 if one else step.gpus_per_node}",
        f"--bind={bind}",
        "--launch_distribution=packed",  # neighbouring ranks in one resource set
        "--latency_priority=gpu-cpu",
        "--stdio_mode=prepended",
        "--exit_on_error=1",
        *step.launcher_args,
        *step.command,
    ]
