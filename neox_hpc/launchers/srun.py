"""Slurm's srun: one task a rank.  Source: srun(1), https://slurm.schedmd.com/srun.html, read 2026-08."""

from __future__ import annotations

from neox_hpc.launchers.interface import Owned, Step, core_mask

OWNED = Owned(
    flags={
        "-N": "write --nodes",
        "--nodes": "write --nodes",
        "-n": "write --nodes",
        "--ntasks": "write --nodes",
        "--ntasks-per-node": "write --site-set node.gpus=N",
        "-c": "write --site-set node.cores=N",
        "--cpus-per-task": "write --site-set node.cores=N",
        "-m": "remove it: ranks of a node are neighbours",
        "--distribution": "remove it: ranks of a node are neighbours",
        "-K": "remove it: a failed rank ends the others",
        "--kill-on-bad-exit": "remove it: a failed rank ends the others",
        "--gpus-per-task": "write --site-set gpus_visible=one",
        "--gpu-bind": "write --site-set gpus_visible=one",
        "--export": "write env: in the site file",
        "-l": "remove it: lines carry their rank",
        "--label": "remove it: lines carry their rank",
    },
    with_masks={"--cpu-bind": "change node.cpu_masks in the site file"},
    glued=True,
    abbreviates=True,
)


def srun(step: Step) -> list[str]:
    """``srun … [container] python -u -m MODULE``.

    --cpus-per-task stands here as well as in the directives: srun of Slurm 22.05 to 23.02 does not inherit it from the job.
    --kill-on-bad-exit: one failed rank ends the others, instead of leaving them in a collective until the time limit.
    The environment goes along as a whole (--export=ALL is the default), and a step sees all GPUs of its job.
    """
    cores = [f"--cpus-per-task={step.cpus_per_rank or step.cores_per_rank}"] if step.cores_per_rank else []
    masks = [f"--cpu-bind=mask_cpu:{','.join(map(core_mask, step.cpu_masks))}"] if step.cpu_masks else []
    one_gpu = ["--gpus-per-task=1"] if step.gpus_visible == "one" and step.gpus_per_node else []
    return [
        "srun",
        f"--nodes={step.nodes}",
        f"--ntasks={step.ranks}",
        f"--ntasks-per-node={step.ranks_per_node}",
        *cores,
        *masks,
        *one_gpu,
        "--distribution=block",  # neighbouring ranks on one node: tensor parallelism is the fastest-moving axis
        "--kill-on-bad-exit=1",
        "--label",
        *step.launcher_args,
        *step.command,
    ]
