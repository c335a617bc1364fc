"""Each launcher's argv, whole."""

from __future__ import annotations

import base64
import json

import pytest

from neox_hpc.launchers import LAUNCHERS, NOTES, Shell, Step
from neox_hpc.launchers.local import local
from neox_hpc.launchers.srun import core_mask, srun


def step(**changes: object) -> Step:
    given = {"nodes": 1, "ranks_per_node": 2, "python": "/env/python", "module": "model.train", "module_args": ("/r/run.json",)}
    return Step(**(given | changes))  # type: ignore[arg-type]


def test_srun_starts_a_task_a_rank_in_blocks() -> None:
    assert srun(step(nodes=3, ranks_per_node=8, cores_per_rank=7, launcher_args=("--mpi=none",))) == [
        "srun",
        "--nodes=3",
        "--ntasks=24",
        "--ntasks-per-node=8",
        "--cpus-per-task=7",
        "--distribution=block",
        "--kill-on-bad-exit=1",
        "--mpi=none",
        "/env/python",
        "-u",
        "-m",
        "model.train",
        "/r/run.json",
    ]


def test_srun_does_not_ask_for_cores_that_are_not_known() -> None:
    assert not [word for word in srun(step()) if "cpu" in word]


def test_srun_masks_are_those_that_lumi_prints_for_its_gpus() -> None:
    """docs.lumi-supercomputer.eu, "Distribution and binding options", GPU binding; read 2026-08."""
    cores = ("49-55", "57-63", "17-23", "25-31", "1-7", "9-15", "33-39", "41-47")
    printed = (
        "0x00fe000000000000,0xfe00000000000000,0x0000000000fe0000,0x00000000fe000000,"
        "0x00000000000000fe,0x000000000000fe00,0x000000fe00000000,0x0000fe0000000000"
    )
    [bound] = [word for word in srun(step(cpu_masks=cores)) if word.startswith("--cpu-bind=mask_cpu:")]
    assert [int(mask, 16) for mask in bound.partition(":")[2].split(",")] == [int(mask, 16) for mask in printed.split(",")]


@pytest.mark.parametrize(("cores", "mask"), [("0", "0x1"), ("1-3,8", "0x10e"), ("64", "0x10000000000000000")])
def test_core_lists_become_masks(cores: str, mask: str) -> None:
    assert core_mask(cores) == mask


def test_local_is_deepspeeds_launcher_of_one_node() -> None:
    world = base64.urlsafe_b64encode(b'{"localhost": [0, 1]}').decode()
    assert local(step(master_port="10007", master_addr="127.0.0.1")) == [
        "/env/python",
        "-u",
        "-m",
        "deepspeed.launcher.launch",
        f"--world_info={world}",
        "--master_addr",
        "127.0.0.1",
        "--master_port",
        "10007",
        "--quiet",
        "--no_local_rank",
        "--module",
        "model.train",
        "/r/run.json",
    ]


@pytest.mark.parametrize(("ids", "slots"), [(("2", "3"), [2, 3]), (("GPU-a", "GPU-b"), ["GPU-a", "GPU-b"])])
def test_local_gives_its_ranks_the_devices_of_the_plan(ids: tuple[str, ...], slots: list[object]) -> None:
    [info] = [word for word in local(step(gpu_ids=ids)) if word.startswith("--world_info=")]
    assert json.loads(base64.urlsafe_b64decode(info.partition("=")[2])) == {"localhost": slots}
    assert NOTES["local"](step(gpu_ids=ids)) == f'world_info is {{"localhost": {json.dumps(slots)}}}'


@pytest.mark.parametrize("name", LAUNCHERS)
def test_container_stands_inside_the_launcher_and_around_the_command(name: str) -> None:
    words = LAUNCHERS[name](step(container=("apptainer", "exec", "x.sif")))
    at = words.index("apptainer")
    assert words[at : at + 4] == ["apptainer", "exec", "x.sif", "/env/python"]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_command_is_the_module_and_its_arguments_at_the_end(name: str) -> None:
    assert LAUNCHERS[name](step(module_args=("a b", "$c")))[-3:] == ["model.train", "a b", "$c"]


def test_address_and_port_are_left_to_the_jobs_shell_unless_given() -> None:
    words = local(step())
    assert [word for word in words if isinstance(word, Shell)] == ["$MASTER_ADDR", "$MASTER_PORT"]
