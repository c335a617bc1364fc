"""Which rank this process is, whatever launcher started it.  Standard library only: it runs before the first heavy import."""

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


LAUNCHERS: tuple[tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    # name, rank, world size, local rank, local world size: the first variable that is set counts
    ("torchrun", ("RANK",), ("WORLD_SIZE",), ("LOCAL_RANK",), ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")),
    ("jsrun", ("JSM_NAMESPACE_RANK",), ("JSM_NAMESPACE_SIZE",), ("JSM_NAMESPACE_LOCAL_RANK",), ("JSM_NAMESPACE_LOCAL_SIZE",)),
    (
        "Open MPI",
        ("OMPI_COMM_WORLD_RANK",),
        ("OMPI_COMM_WORLD_SIZE",),
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    (
        "MVAPICH2",
        ("MV2_COMM_WORLD_RANK",),
        ("MV2_COMM_WORLD_SIZE",),
        ("MV2_COMM_WORLD_LOCAL_RANK",),
        ("MV2_COMM_WORLD_LOCAL_SIZE",),
    ),
    ("Flux", ("FLUX_TASK_RANK",), ("FLUX_JOB_SIZE",), ("FLUX_TASK_LOCAL_ID",), ()),
    (
        "PALS",
        ("PALS_RANKID", "PMI_RANK"),
        ("PALS_SIZE", "PMI_SIZE"),
        ("PALS_LOCAL_RANKID", "PMI_LOCAL_RANK"),
        ("PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE"),
    ),
    ("Hydra", ("PMI_RANK", "PMIX_RANK"), ("PMI_SIZE",), ("MPI_LOCALRANKID",), ("MPI_LOCALNRANKS",)),
    ("srun", ("SLURM_PROCID",), ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), ("SLURM_LOCALID",), ()),
)
"""Sources: torchrun and DeepSpeed's launch.py; IBM JSM; Open MPI FAQ; MVAPICH2 guide; flux-environment(7); PALS mpiexec(1);
MPICH Hydra wiki; srun(1) OUTPUT ENVIRONMENT VARIABLES.  srun stands last: an mpirun inside an allocation inherits its variables."""


def read_ranks(environ: Mapping[str, str]) -> Ranks:
    """The place that the launcher gave this process; rank 0 of 1 where none did.

    Raises:
        ValueError: a launcher set some of its variables but not all, or the numbers contradict each other.
    """
    incomplete = ""
    for name, *variables in LAUNCHERS:
        rank, world, local, local_world = (_first(environ, names) for names in variables)
        if rank is None or world is None:
            continue
        if local is None:
            incomplete = incomplete or f"{name} set a rank and a world size but no local rank ({' or '.join(variables[2])})"
            continue
        if not (0 <= rank < world and 0 <= local <= rank):
            raise ValueError(f"{name}: rank {rank} of {world}, local rank {local}, cannot be")
        return Ranks(rank=rank, world_size=world, local_rank=local, local_world_size=local_world)
    if incomplete:
        raise ValueError(incomplete)
    return Ranks(rank=0, world_size=1, local_rank=0, local_world_size=1)


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


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    for name in names:
        if (text := environ.get(name)) is not None:
            if not text.isdigit():
                raise ValueError(f"{name}={text!r} is no rank number")
            return int(text)
    return None
