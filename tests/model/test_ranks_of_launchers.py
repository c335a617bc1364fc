"""model/ranks.py: the rank, whatever launcher started the process."""

from __future__ import annotations

import pytest

from model.ranks import Ranks, read_ranks, set_ranks

SRUN = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, (2, 4, 0, 2)),
        (SRUN, (5, 8, 1, None)),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "6"}, (5, 6, 1, None)),
        (OPEN_MPI, (3, 4, 1, 2)),
        ({"JSM_NAMESPACE_RANK": "7", "JSM_NAMESPACE_SIZE": "12", "JSM_NAMESPACE_LOCAL_RANK": "1"}, (7, 12, 1, None)),
        ({"FLUX_TASK_RANK": "6", "FLUX_JOB_SIZE": "8", "FLUX_TASK_LOCAL_ID": "2"}, (6, 8, 2, None)),
        ({"PMI_RANK": "9", "PMI_SIZE": "16", "PMI_LOCAL_RANK": "1", "PALS_LOCAL_RANKID": "1"}, (9, 16, 1, None)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, (1, 2, 1, 2)),
        ({}, (0, 1, 0, 1)),
    ],
)
def test_each_launcher_is_understood(environ: dict[str, str], expected: tuple[int, int, int, int | None]) -> None:
    ranks = read_ranks(environ)
    assert (ranks.rank, ranks.world_size, ranks.local_rank, ranks.local_world_size) == expected


def test_the_launcher_inside_an_allocation_wins_over_the_allocation() -> None:
    assert read_ranks(SRUN | OPEN_MPI).rank == 3
    assert read_ranks(SRUN | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}).world_size == 2


def test_a_batch_script_without_a_task_is_a_single_process() -> None:
    assert read_ranks({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}) == Ranks(rank=0, world_size=1, local_rank=0, local_world_size=1)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "no local rank"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "rank 2 of 2"),
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK='x'"),
    ],
)
def test_numbers_that_cannot_be_are_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_ranks(environ)


def test_several_ranks_without_a_meeting_point_are_refused() -> None:
    with pytest.raises(ValueError, match="MASTER_ADDR and MASTER_PORT"):
        set_ranks({}, read_ranks(SRUN))
