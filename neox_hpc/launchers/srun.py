"""Slurm's srun: one task a rank.  Source: srun(1)."""

from __future__ import annotations

from neox_hpc.launchers.interface import Step, cores_of


def srun(step: Step) -> list[str]:
    """``srun … [container] python -u -m MODULE``.

    --cpus-per-task stands here as well as in the directives: srun of Slurm 22.05 to 23.02 does not inherit it from the job.
    --kill-on-bad-exit: one failed rank ends the others, instead of leaving them in a collective until the time limit.
    """
    cores = [f"--cpus-per-task={step.cores_per_rank}"] if step.cores_per_rank else []
    masks = [f"--cpu-bind=mask_cpu:{','.join(map(core_mask, step.cpu_masks))}"] if step.cpu_masks else []
    return [
        "srun",
        f"--nodes={step.nodes}",
        f"--ntasks={step.nodes * step.ranks_per_node}",
        f"--ntasks-per-node={step.ranks_per_node}",
        *cores,
        *masks,
        "--distribution=block",  # neighbouring ranks on one node: tensor parallelism is the fastest-moving axis
        "--kill-on-bad-exit=1",
        *step.launcher_args,
        *step.container,
        *(step.python, "-u", "-m", step.module),
        *step.module_args,
    ]


def core_mask(cores: str) -> str:
    """``'1-3,8'`` -> ``'0x10e'``: bit n stands for core n."""
    return hex(sum(1 << core for core in cores_of(cores)))
