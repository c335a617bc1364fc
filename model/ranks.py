"""Which rank this process is, and which device it has, whatever launcher started it.

Standard library only: it runs before the first heavy import.  Changes when a launcher does.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """A process's place in the job."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int | None = None
    """Ranks on this node, where the launcher tells."""


ALONE = Ranks(rank=0, world_size=1, local_rank=0, local_world_size=1)
"""A process that no launcher started."""


@dataclass(frozen=True, kw_only=True)
class Variables:
    """What one launcher calls a rank's numbers; of several names the first that is set counts."""

    launcher: str
    rank: tuple[str, ...]
    world_size: tuple[str, ...]
    local_rank: tuple[str, ...]
    local_world_size: tuple[str, ...] = ()


LAUNCHERS = (
    Variables(
        launcher="torchrun",
        rank=("RANK",),
        world_size=("WORLD_SIZE",),
        local_rank=("LOCAL_RANK",),
        local_world_size=("LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
    ),
    Variables(
        launcher="jsrun",
        rank=("JSM_NAMESPACE_RANK",),
        world_size=("JSM_NAMESPACE_SIZE",),
        local_rank=("JSM_NAMESPACE_LOCAL_RANK",),
        local_world_size=("JSM_NAMESPACE_LOCAL_SIZE",),
    ),
    Variables(
        launcher="Open MPI",
        rank=("OMPI_COMM_WORLD_RANK",),
        world_size=("OMPI_COMM_WORLD_SIZE",),
        local_rank=("OMPI_COMM_WORLD_LOCAL_RANK",),
        local_world_size=("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    Variables(
        launcher="MVAPICH2",
        rank=("MV2_COMM_WORLD_RANK",),
        world_size=("MV2_COMM_WORLD_SIZE",),
        local_rank=("MV2_COMM_WORLD_LOCAL_RANK",),
        local_world_size=("MV2_COMM_WORLD_LOCAL_SIZE",),
    ),
    Variables(
        launcher="Flux",
        rank=("FLUX_TASK_RANK",),
        world_size=("FLUX_JOB_SIZE",),
        local_rank=("FLUX_TASK_LOCAL_ID",),
    ),
    Variables(
        launcher="PALS",
        rank=("PALS_RANKID", "PMI_RANK"),
        world_size=("PMI_SIZE", "WORLD_SIZE"),  # PMIx has no variable for it: job.sh exports it
        local_rank=("PALS_LOCAL_RANKID", "PMI_LOCAL_RANK"),
        local_world_size=("PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE"),
    ),
    Variables(
        launcher="Hydra",
        rank=("PMI_RANK", "PMIX_RANK"),
        world_size=("PMI_SIZE",),
        local_rank=("MPI_LOCALRANKID",),
        local_world_size=("MPI_LOCALNRANKS",),
    ),
    Variables(
        launcher="srun",
        rank=("SLURM_PROCID",),
        world_size=("SLURM_STEP_NUM_TASKS",),  # SLURM_NTASKS is the job's, and stands in a batch script beside SLURM_PROCID=0
        local_rank=("SLURM_LOCALID",),
    ),
)
"""The innermost launcher counts: each stands before those that it can be started by, and whose variables it then inherits.

A Flux instance or an mpirun may run under srun, an mpirun under Flux (whose batch script has no FLUX_TASK_*), torchrun under all of
them.  Sources: torchrun and DeepSpeed's launch.py; IBM JSM; Open MPI FAQ; MVAPICH2 guide; flux-environment(7); PALS mpiexec(1);
MPICH Hydra wiki; srun(1) OUTPUT ENVIRONMENT VARIABLES.
"""


def read_ranks(environ: Mapping[str, str]) -> Ranks:
    """The place that the launcher gave this process; rank 0 of 1 where none did.

    Raises:
        ValueError: a launcher set some of its variables but not all, or the numbers contradict each other.
    """
    return find_ranks(environ) or ALONE


def find_ranks(environ: Mapping[str, str]) -> Ranks | None:
    """As :func:`read_ranks`, and ``None`` where no launcher started this process."""
    incomplete = ""
    for launcher in LAUNCHERS:
        numbers = (launcher.rank, launcher.world_size, launcher.local_rank, launcher.local_world_size)
        rank, world, local, local_world = (_first(environ, names) for names in numbers)
        if rank is None or (world is None and launcher.launcher == "srun"):  # a batch script, outside of srun
            continue
        if world is None or local is None:
            lacking = launcher.world_size if world is None else launcher.local_rank
            what = "world size" if world is None else "local rank"
            incomplete = incomplete or f"{launcher.launcher} set a rank and no {what} ({' or '.join(lacking)})"
            continue
        if not (0 <= rank < world and 0 <= local <= rank):
            raise ValueError(f"{launcher.launcher}: rank {rank} of {world}, local rank {local}, cannot be")
        return Ranks(rank=rank, world_size=world, local_rank=local, local_world_size=local_world)
    if incomplete:
        raise ValueError(incomplete)
    return None


def likely_rank(environ: Mapping[str, str]) -> int:
    """This process's number for a message, 0 where that cannot be told."""
    try:
        return read_ranks(environ).rank
    except ValueError:
        return 0


def set_ranks(environ: MutableMapping[str, str], ranks: Ranks) -> None:
    """Write the standard variables; a single process without a launcher meets itself on this host."""
    environ.update(RANK=str(ranks.rank), WORLD_SIZE=str(ranks.world_size), LOCAL_RANK=str(ranks.local_rank))
    if ranks.world_size == 1:
        environ.setdefault("MASTER_ADDR", "127.0.0.1")
        environ.setdefault("MASTER_PORT", "0")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environ.get(name)]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} not set: rank {ranks.rank} of {ranks.world_size} does not know where to meet the others"
        )


def choose_index(ranks: Ranks, visible: int) -> int:
    """Which of the devices that this process sees is its own: that of its local rank, or 0 where it sees one of several.

    A process may see more devices than its node has ranks: the others stay idle.

    Raises:
        ValueError: it sees several, and still too few; the message has both numbers.
    """
    least = ranks.local_rank + 1
    needed = max(least, ranks.local_world_size or least)
    if visible == 1:
        return 0  # of its own: the launcher hides the others
    if visible < needed:
        raise ValueError(
            f"{needed} ranks on this node, and this process sees {visible} GPUs: start as many ranks on a node as it has GPUs"
        )
    return ranks.local_rank


def tell_device(environ: MutableMapping[str, str], index: int) -> None:
    """DeepSpeed takes the device from LOCAL_RANK, and Open MPI's variable would come before it."""
    environ["LOCAL_RANK"] = str(index)
    environ.pop("OMPI_COMM_WORLD_LOCAL_RANK", None)


def filter_devices_once(environ: MutableMapping[str, str]) -> None:
    """Two lists of the node's own device numbers hide devices twice on ROCm: rewrite the second one to what the first leaves.

    ROCR_VISIBLE_DEVICES (Slurm) comes first, HIP numbers what is left from 0 on, and HIP_ or CUDA_VISIBLE_DEVICES (Flux sets the
    latter) picks among those.  Source: ROCm documentation, "GPU isolation techniques".

    Raises:
        ValueError: the second list names a device that the first one hides.
    """
    outer = [text.strip() for text in environ.get("ROCR_VISIBLE_DEVICES", "").split(",") if text.strip()]
    if not outer:
        return
    left = {str(number) for number in range(len(outer))}
    for name in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        inner = [text.strip() for text in environ.get(name, "").split(",") if text.strip()]
        if set(inner) <= left:
            continue
        hidden = [device for device in inner if device not in outer]
        if hidden:
            raise ValueError(
                f"{name}={environ[name]} names devices that ROCR_VISIBLE_DEVICES={','.join(outer)} hides: set one of them"
            )
        environ[name] = ",".join(str(outer.index(device)) for device in inner)


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    for name in names:
        if (text := environ.get(name)) is not None:
            if not text.isdigit():
                raise ValueError(f"{name}={text!r} is no rank number")
            return int(text)
    return None
