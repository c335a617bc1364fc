"""model/ranks.py: the rank and its device, whatever launcher started the process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from model.mpi import ask_mpi, find_place
from model.ranks import ALONE, Ranks, choose_index, filter_devices_once, find_ranks, read_ranks, set_ranks, tell_device

Environ = Mapping[str, str]


def numbered(rank: str, size: str, local: str, local_size: str = "") -> Callable[[Ranks], dict[str, str]]:
    """What a launcher sets, from the names of its variables."""

    def environ(place: Ranks) -> dict[str, str]:
        names = {rank: place.rank, size: place.world_size, local: place.local_rank, local_size: place.local_world_size}
        return {name: str(number) for name, number in names.items() if name}

    return environ


LAUNCHERS: dict[str, Callable[[Ranks], dict[str, str]]] = {
    "torchrun": numbered("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "deepspeed.launcher.launch": numbered("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE"),
    "srun": numbered("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    "mpich": numbered("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "pals with Cray's PMI": numbered("PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"),
    "pals with PMIx": numbered("PALS_RANKID", "WORLD_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),
    "openmpi": numbered(*(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))),
    "mvapich": numbered(*(f"MV2_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))),
    "jsrun": numbered(*(f"JSM_NAMESPACE_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))),
    "flux": numbered("FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID"),
}
TELLS_NO_LOCAL_SIZE = {"srun", "flux"}

NODE = [Ranks(rank=4 + local, world_size=8, local_rank=local, local_world_size=4) for local in range(4)]
"""The second of two nodes of four ranks."""


def environs(name: str) -> list[tuple[Ranks, dict[str, str]]]:
    return [(place, LAUNCHERS[name](place)) for place in NODE]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_each_launcher_is_understood(name: str) -> None:
    for place, environ in environs(name):
        local_size = None if name in TELLS_NO_LOCAL_SIZE else 4
        assert read_ranks(environ) == Ranks(rank=place.rank, world_size=8, local_rank=place.local_rank, local_world_size=local_size)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_where_all_gpus_are_visible_a_rank_takes_that_of_its_local_rank(name: str) -> None:
    assert [choose_index(read_ranks(environ), visible=4) for _, environ in environs(name)] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_where_one_gpu_is_visible_it_is_the_ranks_own(name: str) -> None:
    for place, environ in environs(name):
        ranks = read_ranks(environ)
        index = choose_index(ranks, visible=1)
        set_ranks(environ | {"MASTER_ADDR": "n", "MASTER_PORT": "1"}, ranks)
        tell_device(environ, index)
        assert (index, environ["LOCAL_RANK"]) == (0, "0")  # for DeepSpeed, which takes its device from there
        assert "OMPI_COMM_WORLD_LOCAL_RANK" not in environ
        assert ranks.local_rank == place.local_rank


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize("visible", [0, 2, 3])
def test_any_smaller_number_of_gpus_is_refused_with_both_numbers(name: str, visible: int) -> None:
    ranks = read_ranks(environs(name)[3][1])
    with pytest.raises(ValueError, match=f"^4 ranks on this node, and this process sees {visible} GPUs"):
        choose_index(ranks, visible)


def test_a_rank_that_knows_its_neighbours_sees_at_once_that_they_have_no_gpu() -> None:
    with pytest.raises(ValueError, match="4 ranks on this node, and this process sees 2"):
        choose_index(NODE[0], visible=2)


def test_a_single_process_may_leave_gpus_idle() -> None:
    assert choose_index(ALONE, visible=8) == 0


# Launchers within launchers ------------------------------------------------------------------------------------------------------

INNER, OUTER = Ranks(rank=3, world_size=4, local_rank=1, local_world_size=2), Ranks(rank=1, world_size=2, local_rank=0)


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        ("openmpi", "srun"),
        ("mpich", "srun"),
        ("mvapich", "srun"),
        ("flux", "srun"),
        ("openmpi", "flux"),
        *(
            (inner, outer)
            for inner in ("torchrun", "deepspeed.launcher.launch")
            for outer in LAUNCHERS
            if outer[0:4] not in ("torc", "deep")
        ),
    ],
)
def test_the_innermost_launcher_counts(inner: str, outer: str) -> None:
    outside = LAUNCHERS[outer](OUTER)
    assert read_ranks(outside | LAUNCHERS[inner](INNER)).rank == 3


def test_srun_that_serves_pmi_is_still_srun() -> None:
    """--mpi=pmi2 and --mpi=pmix add a rank of their own, and no local one."""
    srun = LAUNCHERS["srun"](INNER)
    assert read_ranks(srun | {"PMI_RANK": "3", "PMI_SIZE": "4"}).local_rank == 1
    assert read_ranks(srun | {"PMIX_RANK": "3"}).local_rank == 1


def test_a_batch_script_without_a_task_is_a_single_process() -> None:
    assert read_ranks({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}) == ALONE
    seen = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2"}  # in Slurm 22.05
    assert read_ranks(seen) == ALONE
    assert find_ranks({}) is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, r"torchrun set a rank and no local rank \(LOCAL_RANK\)"),
        ({"PMIX_RANK": "0"}, r"Hydra set a rank and no world size \(PMI_SIZE\)"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "rank 2 of 2"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "rank 0 of 2, local rank 1"),
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK='x'"),
    ],
)
def test_numbers_that_cannot_be_are_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_ranks(environ)


def test_several_ranks_without_a_meeting_point_are_refused() -> None:
    with pytest.raises(ValueError, match="MASTER_ADDR and MASTER_PORT"):
        set_ranks({}, NODE[0])


# ROCm's two lists of devices -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rocr", "cuda", "left"),
    [
        ("2,3", "2,3", "0,1"),  # the node's own numbers, twice
        ("2,3", "3", "1"),
        ("2,3", "1", "1"),  # counted among what is left already
        ("0,1,2,3", "3", "3"),
        ("6", "6", "0"),
        ("", "6", "6"),
    ],
)
def test_devices_are_hidden_once(rocr: str, cuda: str, left: str) -> None:
    environ = {"ROCR_VISIBLE_DEVICES": rocr, "CUDA_VISIBLE_DEVICES": cuda}
    filter_devices_once(environ)
    assert environ == {"ROCR_VISIBLE_DEVICES": rocr, "CUDA_VISIBLE_DEVICES": left}


def test_lists_of_devices_that_have_nothing_in_common_are_refused() -> None:
    with pytest.raises(ValueError, match=r"HIP_VISIBLE_DEVICES=5 .* ROCR_VISIBLE_DEVICES=2,3"):
        filter_devices_once({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "5"})


# MPI, where no variable tells --------------------------------------------------------------------------------------------------


class World:
    """Rank 3 of 4 on the second of two nodes, as mpi4py tells it."""

    def __init__(self, rank: int = 3, size: int = 4) -> None:
        self.rank, self.size = rank, size

    def Get_rank(self) -> int:
        return self.rank

    def Get_size(self) -> int:
        return self.size

    def Split_type(self, kind: object) -> World:
        assert kind == "shared"
        return World(1, 2)

    def bcast(self, text: str, root: int) -> str:
        assert root == 0 and text
        return "first"


@pytest.fixture
def mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = SimpleNamespace(MPI=SimpleNamespace(COMM_WORLD=World(), COMM_TYPE_SHARED="shared"))
    monkeypatch.setitem(sys.modules, "mpi4py", module)


@pytest.mark.usefixtures("mpi")
def test_mpi_tells_a_rank_its_place() -> None:
    assert ask_mpi({}) == Ranks(rank=3, world_size=4, local_rank=1, local_world_size=2)


@pytest.mark.usefixtures("mpi")
@pytest.mark.parametrize(
    ("given", "meets"),
    [
        ({}, {"MASTER_ADDR": "first", "MASTER_PORT": "29500"}),
        ({"MASTER_ADDR": "n1-ib", "MASTER_PORT": "10007"}, {"MASTER_ADDR": "n1-ib", "MASTER_PORT": "10007"}),
    ],
)
def test_mpi_never_replaces_the_meeting_point_of_the_job(given: dict[str, str], meets: dict[str, str]) -> None:
    environ = dict(given)
    ask_mpi(environ)
    assert environ == meets


def test_mpi_that_is_not_there_is_an_error_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ValueError, match=r"deepspeed_mpi .* pip install mpi4py"):
        ask_mpi({})


@pytest.mark.usefixtures("mpi")
@pytest.mark.parametrize(
    ("environ", "asked", "rank"),
    [
        ({}, False, 0),
        ({}, True, 3),
        ({"PMIX_RANK": "3"}, True, 3),  # a number without a world: PMIx
        (LAUNCHERS["openmpi"](Ranks(rank=1, world_size=2, local_rank=1, local_world_size=2)), True, 1),
    ],
)
def test_mpi_is_asked_where_no_launcher_tells_and_the_configuration_wants_it(
    environ: dict[str, str], asked: bool, rank: int
) -> None:
    assert find_place(dict(environ), mpi=asked).rank == rank


def test_an_mpi_that_knows_of_no_other_rank_is_not_believed_against_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every rank would train alone: mpi4py loads the MPI that it finds first."""
    alone: Any = SimpleNamespace(MPI=SimpleNamespace(COMM_WORLD=World(0, 1), COMM_TYPE_SHARED="shared"))
    monkeypatch.setitem(sys.modules, "mpi4py", alone)
    with pytest.raises(ValueError, match="Hydra set a rank and no world size"):
        find_place({"PMIX_RANK": "3"}, mpi=True)
