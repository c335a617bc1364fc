"""Each launcher's argv, whole, against the lines that manuals and sites print; the flags that the plan owns."""

from __future__ import annotations

import base64
import json
import shlex
from typing import Any

import pytest

from neox_hpc.launchers import (
    GIVES_ONE_GPU,
    LAUNCHERS,
    MAPS_CORES,
    NOTES,
    OWNED,
    PER_NODE,
    Shell,
    Step,
    refused_args,
    split_args,
)
from neox_hpc.launchers.hydra import ABORT
from neox_hpc.launchers.interface import core_mask

COMMAND = ["/env/python", "-u", "-m", "model.train", "/r/run.json"]
PER_RANK = [name for name in LAUNCHERS if name not in PER_NODE]
FILES = {
    "hostfile": "/r/hostfile",
    "nodefile": "/r/nodefile",
    "rankfile": "/r/rankfile",
    "master_addr": "n1",
    "master_port": "10007",
}
ABORTING = ("sh", "-c", ABORT, "sh")
QUARTERS = ("24-31", "16-23", "8-15", "0-7")
"""Polaris: GPU 0 is nearest to the last cores (ALCF, docs/polaris/hardware-overview, 2026-08-19)."""


def step(**changes: Any) -> Step:
    given = {"nodes": 1, "ranks_per_node": 2, "python": "/env/python", "module": "model.train", "module_args": ("/r/run.json",)}
    return Step(**(given | FILES | changes))


def argv(name: str, **changes: Any) -> list[str]:
    return LAUNCHERS[name](step(**changes))


def line(text: str, *before: str) -> list[str]:
    """A command line as a shell would part it, and the training behind it."""
    return [*shlex.split(text), *before, *COMMAND]


def test_srun_starts_a_task_a_rank_in_blocks() -> None:
    assert argv("srun", nodes=3, ranks_per_node=8, cores_per_rank=7, launcher_args=("--mpi=none",)) == line(
        "srun --nodes=3 --ntasks=24 --ntasks-per-node=8 --cpus-per-task=7 --distribution=block --kill-on-bad-exit=1 --label"
        " --mpi=none"
    )


def test_srun_does_not_ask_for_cores_that_are_not_known() -> None:
    assert not [word for word in argv("srun") if "cpu" in word]


def test_srun_masks_are_those_that_lumi_prints_for_its_gpus() -> None:
    """docs.lumi-supercomputer.eu, "Distribution and binding options", GPU binding; read 2026-08."""
    cores = ("49-55", "57-63", "17-23", "25-31", "1-7", "9-15", "33-39", "41-47")
    printed = (
        "0x00fe000000000000,0xfe00000000000000,0x0000000000fe0000,0x00000000fe000000,"
        "0x00000000000000fe,0x000000000000fe00,0x000000fe00000000,0x0000fe0000000000"
    )
    [bound] = [word for word in argv("srun", cpu_masks=cores) if word.startswith("--cpu-bind=mask_cpu:")]
    assert [int(mask, 16) for mask in bound.partition(":")[2].split(",")] == [int(mask, 16) for mask in printed.split(",")]


def test_srun_parts_gpus_only_where_the_site_says_so() -> None:
    assert not [word for word in argv("srun", gpus_per_node=2) if "gpu" in word]
    assert "--gpus-per-task=1" in argv("srun", gpus_per_node=2, gpus_visible="one")


@pytest.mark.parametrize(("cores", "mask"), [("0", "0x1"), ("1-3,8", "0x10e"), ("64", "0x10000000000000000")])
def test_core_lists_become_masks(cores: str, mask: str) -> None:
    assert core_mask(cores) == mask


def test_jsrun_puts_all_of_a_node_in_one_set_as_olcf_does() -> None:
    """olcf/ai-training-series, ai_at_scale/multinode-job.lsf, 2024-09-27; bound 7 cores a rank instead of 1."""
    assert argv("jsrun", nodes=2, ranks_per_node=6, cores_per_rank=7, gpus_per_node=6) == line(
        "jsrun --nrs=2 --rs_per_host=1 --tasks_per_rs=6 --cpu_per_rs=42 --gpu_per_rs=6 --bind=packed:7 --launch_distribution=packed"
        " --latency_priority=gpu-cpu --stdio_mode=prepended --exit_on_error=1"
    )


def test_jsrun_gives_a_rank_a_set_of_its_own_where_it_is_to_see_one_gpu() -> None:
    """Summit User Guide: jsrun -n12 -r6 -a1 -g1 -c7."""
    words = argv("jsrun", nodes=2, ranks_per_node=6, cores_per_rank=7, gpus_per_node=6, gpus_visible="one")
    assert words[1:6] == ["--nrs=12", "--rs_per_host=6", "--tasks_per_rs=1", "--cpu_per_rs=7", "--gpu_per_rs=1"]


def test_jsrun_without_known_cores_takes_all_and_binds_none() -> None:
    words = argv("jsrun")
    assert "--cpu_per_rs=ALL_CPUS" in words and "--bind=none" in words and "--gpu_per_rs=0" in words


def test_flux_runs_over_whole_nodes() -> None:
    """flux-run(1); the map's form is that of taskset lists parted by semicolons (flux-shell options, cpu-affinity)."""
    assert argv("flux", nodes=2, ranks_per_node=4, cores_per_rank=8, gpus_per_node=4, cpu_masks=QUARTERS) == line(
        "flux run --nodes=2 --tasks-per-node=4 --exclusive -o 'cpu-affinity=map:24-31;16-23;8-15;0-7' -o gpu-affinity=off"
        " -o exit-on-error --label-io"
    )


@pytest.mark.parametrize(
    ("changes", "affinity"),
    [({}, "off"), ({"cores_per_rank": 8}, "per-task"), ({"cores_per_rank": 8, "gpus_visible": "one"}, "per-task")],
)
def test_flux_without_a_map_shares_the_cores_out_evenly_if_they_are_known(changes: dict[str, Any], affinity: str) -> None:
    words = argv("flux", **changes)
    assert f"cpu-affinity={affinity}" in words
    assert f"gpu-affinity={'per-task' if 'gpus_visible' in changes else 'off'}" in words


def test_open_mpi_is_told_names_of_variables_and_no_values() -> None:
    assert argv("openmpi", nodes=2, ranks_per_node=4, env=("NCCL_NET", "MASTER_ADDR")) == line(
        "mpirun -n 8 --hostfile /r/hostfile --map-by ppr:4:node --bind-to none --tag-output -x NCCL_NET -x MASTER_ADDR"
    )


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"cores_per_rank": 7}, "--map-by ppr:2:node:PE=7 --bind-to core"),
        ({"cores_per_rank": 7, "cpu_masks": ("1-7", "9-15")}, "--rankfile /r/rankfile"),
    ],
)
def test_open_mpi_binds_to_cores(changes: dict[str, Any], place: str) -> None:
    assert argv("openmpi", **changes) == line(f"mpirun -n 2 --hostfile /r/hostfile {place} --tag-output")


def test_mpich_binds_by_the_map_in_hydras_own_form() -> None:
    """The help of MPICH's -bind-to: user:0+2,1+4,3,2."""
    assert argv("mpich", ranks_per_node=4, cpu_masks=("0,2", "1,4", "3", "2")) == line(
        "mpiexec -f /r/nodefile -n 4 -ppn 4 -genvall -bind-to user:0+2,1+4,3,2 -prepend-rank", *ABORTING
    )


def test_mvapich_is_bound_by_hydra_and_not_by_its_library_again() -> None:
    assert argv("mvapich", nodes=2, cores_per_rank=8) == line(
        "mpirun -f /r/nodefile -n 4 -ppn 2 -genvall -bind-to core:8 -genv MV2_ENABLE_AFFINITY 0 -prepend-rank", *ABORTING
    )


@pytest.mark.parametrize(
    ("changes", "pin"),
    [
        # Developer Reference, "Interoperability with OpenMP": a list of masks in brackets
        ({"cores_per_rank": 4, "cpu_masks": ("0-3", "4-7")}, "-genv I_MPI_PIN_DOMAIN [0xf,0xf0]"),
        ({"cores_per_rank": 4}, "-genv I_MPI_PIN_DOMAIN auto:compact"),
        ({}, "-genv I_MPI_PIN 0"),
    ],
)
def test_intel_mpi_is_pinned_by_domains(changes: dict[str, Any], pin: str) -> None:
    assert argv("impi", nodes=2, **changes) == line(f"mpirun -f /r/nodefile -n 4 -ppn 2 -genvall {pin} -prepend-rank", *ABORTING)


def test_pals_binds_as_alcf_writes_it() -> None:
    """ALCF, docs/polaris/queueing-and-running-jobs/using-gpus.md: --cpu-bind list:24-31:16-23:8-15:0-7; read 2026-08-19."""
    assert argv("pals", nodes=2, ranks_per_node=4, cores_per_rank=8, cpu_masks=QUARTERS) == line(
        "mpiexec -n 8 --ppn 4 --hostfile /r/nodefile --cpu-bind list:24-31:16-23:8-15:0-7 --envall --label --line-buffer"
    )


def test_pals_without_a_map_parts_the_cores_by_depth() -> None:
    """ALCF, docs/running-jobs: mpiexec -n NTOT --ppn 4 --depth=8 --cpu-bind depth."""
    words = argv("pals", cores_per_rank=8)
    assert words[words.index("--depth=8") :][:3] == ["--depth=8", "--cpu-bind", "depth"]


def test_local_is_deepspeeds_launcher_of_one_node() -> None:
    world = base64.urlsafe_b64encode(b'{"localhost": [0, 1]}').decode()
    assert argv("local") == [
        *("/env/python", "-u", "-m", "deepspeed.launcher.launch"),
        f"--world_info={world}",
        *("--master_addr", "n1", "--master_port", "10007", "--quiet", "--no_local_rank", "--module", "model.train", "/r/run.json"),
    ]


@pytest.mark.parametrize(("ids", "slots"), [(("2", "3"), [2, 3]), (("GPU-a", "GPU-b"), ["GPU-a", "GPU-b"])])
def test_local_gives_its_ranks_the_devices_of_the_plan(ids: tuple[str, ...], slots: list[object]) -> None:
    [info] = [word for word in argv("local", gpu_ids=ids) if word.startswith("--world_info=")]
    assert json.loads(base64.urlsafe_b64decode(info.partition("=")[2])) == {"localhost": slots}
    assert NOTES["local"](step(gpu_ids=ids)) == f'world_info is {{"localhost": {json.dumps(slots)}}}'


def far_command(words: list[str]) -> list[str]:
    """The words of the command that pdsh's far shell has evaluated."""
    at = words.index("ranks")
    assert words[at - 2 : at] == ["sh", "$node_sh"]
    texts = [word.replace('\\"', '"').replace("\\$", "$") if isinstance(word, Shell) else word for word in words[at + 1 :]]
    return shlex.split(" ".join(shlex.split(" ".join(texts))))


def test_pdsh_starts_deepspeeds_launcher_once_a_node() -> None:
    words = argv("pdsh", nodes=2, launcher_args=("-l", "ada"))
    assert words[: words.index("sh")] == shlex.split("pdsh -R ssh -S -b -f 2 -w ^/r/nodefile -l ada")
    assert far_command(words) == shlex.split(
        "/env/python -u -m deepspeed.launcher.launch --world_info=$world_info --master_addr n1 --master_port 10007 --node_rank=%n"
        " --quiet --no_local_rank --module model.train /r/run.json"
    )


@pytest.mark.parametrize("name", LAUNCHERS)
def test_container_stands_inside_the_launcher_and_around_the_command(name: str) -> None:
    words = argv(name, container=("apptainer", "exec", "x.sif"))
    words = far_command(words) if name == "pdsh" else words
    at = words.index("apptainer")
    assert words[at : at + 4] == ["apptainer", "exec", "x.sif", "/env/python"]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_command_is_the_module_and_its_arguments_at_the_end(name: str) -> None:
    words = argv(name, module_args=("a b", "$c", "it's"))
    assert (far_command(words) if name == "pdsh" else words)[-4:] == ["model.train", "a b", "$c", "it's"]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_no_launcher_is_told_a_value_of_the_environment(name: str) -> None:
    added = set(argv(name, env=("SOME_NAME",))) - set(argv(name))
    assert added <= {"-x", "SOME_NAME"}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_arguments_of_the_user_come_after_ours_and_before_the_command(name: str) -> None:
    words = argv(name, launcher_args=("--first=1", "--second"))
    at = words.index("--first=1")
    assert words[at + 1] == "--second"
    assert [*words[:at], *words[at + 2 :]] == argv(name)


@pytest.mark.parametrize("name", sorted(MAPS_CORES - {"openmpi"}))
def test_a_map_of_cores_changes_the_argv_where_the_launcher_can_follow_it(name: str) -> None:
    assert argv(name, cores_per_rank=8, cpu_masks=("8-15", "0-7")) != argv(name, cores_per_rank=8, cpu_masks=("0-7", "8-15"))


@pytest.mark.parametrize("name", sorted(set(LAUNCHERS) - MAPS_CORES))
def test_a_map_of_cores_changes_nothing_where_it_cannot(name: str) -> None:
    assert argv(name, cores_per_rank=8, cpu_masks=("8-15", "0-7")) == argv(name, cores_per_rank=8)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_gpus_are_parted_by_those_that_can(name: str) -> None:
    gpus = {"gpus_per_node": 2, "cores_per_rank": 8}
    assert (argv(name, **gpus, gpus_visible="one") != argv(name, **gpus)) == (name in GIVES_ONE_GPU)


def test_address_and_port_are_left_to_the_jobs_shell_unless_given() -> None:
    words = LAUNCHERS["local"](Step(nodes=1, ranks_per_node=2, python="/env/python", module="model.train"))
    assert [word for word in words if isinstance(word, Shell)] == ["$MASTER_ADDR", "$MASTER_PORT"]


# Arguments of the user -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PER_RANK)
def test_every_flag_that_we_write_is_owned(name: str) -> None:
    """Repeating one of our own flags would contradict or double it."""
    full = argv(name, nodes=2, cores_per_rank=8, gpus_per_node=2, cpu_masks=("0-7", "8-15"))
    bare = argv(name, nodes=2, cores_per_rank=8, gpus_per_node=2)
    free = {"-genv", "--latency_priority=gpu-cpu", "--line-buffer", "-o", "-x"}  # may be given once more, or only tune
    for words in (full, bare):
        ours = [
            word
            for word in words[1 : words.index("sh" if "sh" in words else "/env/python")]
            if word.startswith("-") and word not in free
        ]
        assert ours
        assert [word for word in ours if not list(refused_args([word], OWNED[name], masks=True))] == []


@pytest.mark.parametrize(
    ("name", "word", "fix"),
    [
        ("srun", "-N4", "write --nodes"),
        ("srun", "--ntask=4", "write --nodes"),
        ("srun", "--nodes=4", "write --nodes"),
        ("openmpi", "-np", "write --nodes, or --site-set node.gpus=N"),
        ("mpich", "--ppn", "write --nodes, or --site-set node.gpus=N"),
        ("flux", "cpu-affinity=off", "write --site-set node.cpu_masks=[...]"),
        ("jsrun", "-a6", "write --nodes, or --site-set node.gpus=N"),
    ],
)
def test_a_flag_of_the_plan_is_refused_with_the_option_to_use(name: str, word: str, fix: str) -> None:
    assert list(refused_args(["--verbose", word], OWNED[name], masks=False)) == [(word, fix)]


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("srun", "--mpi=pmix"),
        ("srun", "--nice"),
        ("openmpi", "--mca"),
        ("mpich", "-nolocal"),
        ("flux", "-omem-bind=x"),
        ("pals", "-v"),
    ],
)
def test_other_flags_pass(name: str, word: str) -> None:
    assert list(refused_args([word], OWNED[name], masks=True)) == []


def test_a_binding_of_ones_own_is_refused_only_beside_a_map() -> None:
    assert not list(refused_args(["--cpu-bind=cores"], OWNED["srun"], masks=False))
    assert list(refused_args(["--cpu-bind=cores"], OWNED["srun"], masks=True))


def test_texts_are_parted_as_a_shell_parts_them() -> None:
    assert split_args(["-o mpibind=off", "--smpiargs='-disable gpu_hooks'"]) == (
        "-o",
        "mpibind=off",
        "--smpiargs=-disable gpu_hooks",
    )


@pytest.mark.parametrize(
    ("text", "wrong"), [("hostname", "is no argument"), ("-x 'a", "no closing quotation"), ("-a\0b", "is no argument")]
)
def test_a_text_that_is_no_argument_is_refused(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        split_args([text])
