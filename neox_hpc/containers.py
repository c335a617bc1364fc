"""What stands between the launcher and the ranks' command: the argv of a container's runtime, one pure function each.

Changes when a runtime is added, or its options change.  The launcher stands outside and the container inside, so a rank's variables
come from outside: nothing here cleans the environment.

Sources: apptainer-exec(1) 1.4, read 2026-11-21; SingularityCE's user guide 4.1, which has the same options under the same names;
docker-run(1) of Docker 27; for the options beside GPUs NVIDIA's "Running PyTorch" (shared memory, locked memory) and AMD's "Running
ROCm Docker containers" (devices, group).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from neox_hpc.launchers import Shell
from neox_hpc.words import joined

RANK_VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
    *("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_LOCAL_SIZE"),
    *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    *("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    *("FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID"),
    *("PALS_RANKID", "PALS_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),
    *("PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE", "PMIX_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    *("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_LOCALID"),
)
"""How launchers tell a rank its place; model/ranks.py reads them, and a test compares."""
DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""How they tell it its GPUs."""
TOKENS = ("WANDB_API_KEY", "COMET_API_KEY", "HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""What secrets.env may hold that a training uses.  Docker is given names; the values stay in the environment."""


@dataclass(frozen=True, kw_only=True)
class Bind:
    """A path of the node that the container sees."""

    path: str
    inside: str = ""
    """Where; empty: at the same path."""
    read_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Container:
    """One start of a container."""

    image: str
    accelerator: str | None = None
    """Of the node: cuda, rocm, xpu, cpu."""
    gpu: tuple[str, ...] | None = None
    """Options that bring the GPUs in; None: the runtime's usual ones."""
    binds: tuple[Bind, ...] = ()
    """In this order: a later one may lie inside an earlier one."""
    exported: tuple[str, ...] = ()
    """Variables of the job that the ranks need, for a runtime that hands in only what is named."""
    env: tuple[tuple[str, str], ...] = ()
    """Variables that are set inside only."""
    workdir: str
    args: tuple[str, ...] = ()
    init: str | None = None
    """A file of the image (or of a bind) that is sourced before the command."""


Runtime = Callable[[Container], tuple[str, ...]]


def apptainer(container: Container) -> tuple[str, ...]:
    """``apptainer exec … IMAGE``; the environment comes in by itself, and ``env`` by the variables of :func:`inner_variables`."""
    return _exec("apptainer", container)


def singularity(container: Container) -> tuple[str, ...]:
    """``singularity exec … IMAGE``."""
    return _exec("singularity", container)


def docker(container: Container) -> tuple[str, ...]:
    """``docker run … IMAGE``: nothing of the job comes in by itself.

    The user is the job's, so that files of the run are; it has no home in the image, hence HOME.  --init: a first process ignores
    TERM unless it has asked for it.  --pull never: nothing is fetched at job start.
    """
    usual = {
        "cuda": ("--gpus", "all"),
        "rocm": ("--device", "/dev/kfd", "--device", "/dev/dri", "--group-add", "video", "--security-opt", "seccomp=unconfined"),
        "xpu": ("--device", "/dev/dri"),
    }
    names = dict.fromkeys((*container.exported, *RANK_VARIABLES, *DEVICES, *TOKENS))
    return (
        *("docker", "run", "--rm", "--init", "--pull", "never"),
        *("--network", "host", "--ipc", "host", "--ulimit", "memlock=-1", "--ulimit", "stack=67108864"),
        *("--user", Shell("$(id -u):$(id -g)"), "--env", "HOME=/tmp", "--env", "USER"),
        *_gpu(container, usual),
        *(word for bind in container.binds for word in ("--mount", mount_text(bind))),
        *(word for name in names for word in ("--env", name)),
        *(word for name, value in container.env for word in ("--env", joined(name, "=", value))),
        *("--workdir", container.workdir, "--entrypoint", ""),
        *container.args,
        container.image,
        *_entry(container),
    )


CONTAINERS: dict[str, Runtime] = {"apptainer": apptainer, "singularity": singularity, "docker": docker}
"""Name -> the argv that a command is put behind."""

INNER_PREFIX = {"apptainer": "APPTAINERENV_", "singularity": "SINGULARITYENV_"}
"""A variable with this prefix outside is one without it inside.  --env would part its values at commas."""
NO_EVAL = {"apptainer": "APPTAINER_NO_EVAL", "singularity": "SINGULARITY_NO_EVAL"}
"""Set to 1: the values of those variables are text.  Without it a shell in the container reads them: $HOME and `id` in them are
evaluated there (seen with Apptainer 1.4.5).  Versions before 1.1 and 3.10, which always evaluate, pass it over."""


def is_fetched(image: str) -> bool:
    """Whether a runtime would fetch an image of this name when the ranks start (``docker://…``, ``oras://…``)."""
    return re.match(r"[a-z][a-z0-9+.-]*://", image) is not None


def bind_words(bind: Bind) -> tuple[str, str]:
    """``--bind SRC[:DEST[:ro]]``; ``--mount`` where a path holds what parts those (its escapes fail in DEST, seen with 1.4.5)."""
    if re.search(r'[:,"\n]', bind.path + bind.inside) and not isinstance(bind.path, Shell):
        return "--mount", mount_text(bind)
    if bind.read_only:
        return "--bind", joined(bind.path, ":", bind.inside or bind.path, ":ro")
    return "--bind", joined(bind.path, ":", bind.inside) if bind.inside else bind.path


def mount_text(bind: Bind) -> str:
    """``type=bind,source=SRC,target=DEST[,ro]``, for all three: fields of CSV, quoted where they must be."""
    fields = [_field("source=", bind.path), ",", _field("target=", bind.inside or bind.path)]
    return joined("type=bind,", *fields, *([",ro"] if bind.read_only else []))


def _exec(program: str, container: Container) -> tuple[str, ...]:
    return (
        *(program, "exec"),
        *_gpu(container, {"cuda": ("--nv",), "rocm": ("--rocm",)}),
        *(word for bind in container.binds for word in bind_words(bind)),
        *("--pwd", container.workdir),
        *container.args,
        container.image,
        *_entry(container),
    )


def _gpu(container: Container, usual: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    return usual.get(container.accelerator or "", ()) if container.gpu is None else container.gpu


def _entry(container: Container) -> tuple[str, ...]:
    """What runs a file before the command; its own arguments are the command."""
    return ("bash", "-c", '. "$0" && exec "$@"', container.init) if container.init is not None else ()


def _field(name: str, path: str) -> str:
    if isinstance(path, Shell) or not re.search(r'[",\n]', path):
        return joined(name, path)
    return '"{}{}"'.format(name, path.replace('"', '""'))
