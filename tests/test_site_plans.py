"""What a site's facts do to a plan: devices, images, queues, accounts; and what no shipped machine can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from neox_hpc.launchers import LAUNCHERS
from neox_hpc.plan import Planned, make_plan
from neox_hpc.probe import Facts, read_image_arch
from neox_hpc.render import render_script
from neox_hpc.schedulers import SCHEDULERS
from neox_hpc.settings import load_config
from neox_hpc.share import share
from neox_hpc.site import Arch, Site
from neox_hpc.site_files import list_sites, load_site
from tests.planning import TWO_CORES, plan, planned, request, site, slurm, wrongs
from tests.test_architecture import GENERIC_SITES

SHIPPED = list_sites(Path("/nonexistent"))
NOT_TOLD = ("node.gpus=8", "node.accelerator=cuda", "node.cores=64")
"""What the user of a generic site says."""
CONFIGS = ("125M.yml", "20B.yml", "pythia/160M.yml", "quickstart.yml")
"""One of each shape of job; tests/test_shipped.py has them all, on one site."""
CANNOT = {
    ("local", "125M.yml"): "a CPU computes no fp16",
    ("local", "pythia/160M.yml"): "a CPU computes no fp16",
    ("local", "20B.yml"): "two ranks hold no cut into eight",
    ("summit", "20B.yml"): "16 GiB do not hold an eighth of 20B",
    ("summit", "quickstart.yml"): "8 sequences a step cannot be dealt to 6 ranks",
    ("aurora", "quickstart.yml"): "8 sequences a step cannot be dealt to 12 ranks",
}


def machine(tmp_path: Path, text: str, accelerator: str = "cuda") -> Site:
    (tmp_path / "lab.yml").write_text(f"extends: slurm\nnode: {{gpus: 4, accelerator: {accelerator}, cores: 64}}\n{text}")
    return load_site("lab.yml", cwd=tmp_path)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_configuration_has_a_plan_but_where_the_machine_truly_cannot(name: str) -> None:
    """Generic sites are told the GPUs of a node; nothing else is given, no account, queue, walltime or number of nodes."""
    where = load_site(SHIPPED[name], NOT_TOLD if name in GENERIC_SITES - {"local"} else ())
    files = {config: load_config([config], cwd=share("configs")) for config in CONFIGS}
    found = {config: make_plan(file, where, request(name="job"), TWO_CORES) for config, file in files.items()}
    assert {config for config in CONFIGS if found[config].plan is None} == {config for at, config in CANNOT if at == name}


# Devices ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "where"),
    [({"precision": "bfloat16"}, "small.yml:14  precision"), ({"bf16": {"enabled": True}}, "small.yml:14  bf16")],
)
def test_bf16_on_devices_without_it_is_refused_with_what_they_have(keys: dict[str, Any], where: str) -> None:
    volta = slurm('node.dtypes=["fp32", "fp16"]', "node.gpu_name=V100")
    wrong = "V100 of slurm do not compute in bf16 (they do in fp32, fp16) / write precision: fp16, or choose another site"
    assert wrongs(planned(volta, keys=keys)) == [f"{where}: {wrong}"]
    for precision in ("fp16", "fp32"):
        assert planned(volta, keys={"precision": precision}).plan is not None
    assert planned(slurm('node.dtypes=["fp32", "bf16"]'), keys=keys).plan is not None
    assert planned(slurm(), keys=keys).plan is not None  # not known: not refused


def test_types_of_a_gpu_are_known_by_its_name_where_the_site_does_not_say_them() -> None:
    named = slurm("node.gpu_name=tesla_v100")
    [wrong] = wrongs(planned(named, keys={"precision": "bfloat16"}))
    assert "tesla_v100 of slurm do not compute in bf16 (they do in fp32, fp16)" in wrong
    said = slurm("node.gpu_name=tesla_v100", 'node.dtypes=["fp32", "bf16"]')
    assert planned(said, keys={"precision": "bfloat16"}).plan is not None


# Cores ------------------------------------------------------------------------------------------------------------------------


def test_a_rank_asks_for_all_threads_of_its_cores_where_the_scheduler_counts_those() -> None:
    threads = ("node.cores=64", "node.threads_per_core=2", "node.scheduler_cpus=threads")
    found = plan(slurm(*threads[1:]))
    assert "--cpus-per-task=32" in SCHEDULERS["slurm"].directives(found)  # WarpX's script for Perlmutter: 4 ranks x 32
    assert "--cpus-per-task=32" in LAUNCHERS["srun"](found.step)
    assert dict(found.env)["OMP_NUM_THREADS"].value == "16"
    assert "--cpus-per-task=16" in SCHEDULERS["slurm"].directives(plan(slurm("node.threads_per_core=2")))


# Plug-ins ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "asked", "note"),
    [
        ("frontier", {"nodes": 2, "container": "/i.sif"}, "NCCL_NET=OFI is a plug-in that image /i.sif in apptainer must bring"),
        ("frontier", {"nodes": 1, "container": "/i.sif"}, None),
        ("frontier", {"nodes": 2}, None),  # its module brings it
        ("alps", {"nodes": 2}, "NCCL_NET=AWS Libfabric is a plug-in that Python /env/bin/python must bring"),
        ("alps", {"nodes": 1}, None),
        ("polaris", {"nodes": 2, "queue": "debug"}, None),  # it is on LD_LIBRARY_PATH
    ],
)
def test_a_network_by_a_plug_in_is_told_where_the_site_does_not_bring_it(
    name: str, asked: dict[str, Any], note: str | None
) -> None:
    where = load_site(SHIPPED[name], ("software.python=/env/bin/python",))
    notes = [text for text in planned(where, asked={"account": "abc", **asked}).notes if text.startswith("network: NCCL_NET")]
    assert (note in notes[0]) if note else notes == []


def test_devices_without_16_bit_are_given_fp32() -> None:
    [wrong] = wrongs(planned(slurm('node.dtypes=["fp32"]'), keys={"precision": "fp16"}))
    assert "write precision: fp32" in wrong


def test_a_job_on_devices_that_cannot_train_yet_renders_and_is_not_submitted(tmp_path: Path) -> None:
    found = planned(machine(tmp_path, "network: {interface: hsn0}\n", accelerator="xpu"))
    assert found.plan is not None
    assert "the job renders, and this version cannot train on them" in "\n".join(wrongs(found, "here"))
    assert "NCCL_SOCKET_IFNAME" not in dict(found.plan.env) and "GLOO_SOCKET_IFNAME" in dict(found.plan.env)


SIF = b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\x0001\0%s\0"
"""The first 48 bytes of an image, but for its architecture; as Apptainer 1.3 writes them (a test in tests/cluster compares)."""


@pytest.mark.parametrize(
    ("code", "arch"), [(b"02", "x86_64"), (b"04", "aarch64"), (b"06", "ppc64le"), (b"00", None), (b"11", None)], ids=str
)
def test_an_image_tells_what_it_is_built_for(tmp_path: Path, code: bytes, arch: str | None) -> None:
    (tmp_path / "x.sif").write_bytes(SIF % code + bytes(1000))
    assert read_image_arch(str(tmp_path / "x.sif")) == arch
    assert len(SIF % code) == 48
    for other in ("absent", "."):
        assert read_image_arch(str(tmp_path / other)) is None
    (tmp_path / "y").write_bytes(b"squashfs")
    assert read_image_arch(str(tmp_path / "y")) is None


RUNTIME = "container: {runtime: apptainer}\n"


def in_image(where: Site, arch: Arch | None) -> Planned:
    return planned(where, asked={"container": "/x.sif"}, facts=Facts(exists={"/x.sif": True}, image_arch=arch))


@pytest.mark.parametrize("nodes", ["aarch64", "ppc64le"])
def test_an_x86_image_is_refused_where_the_nodes_are_others(tmp_path: Path, nodes: str) -> None:
    (tmp_path / "arm.yml").write_text(f"extends: lab.yml\nnode: {{arch: {nodes}}}\n")
    machine(tmp_path, RUNTIME)
    where = load_site("arm.yml", cwd=tmp_path)
    found = in_image(where, "x86_64")
    assert wrongs(found)[0].startswith(
        f"--container: /x.sif is built for x86_64, and the nodes of arm are {nodes} / build it on a node"
    )
    assert found.plan is None
    fits: Arch = "aarch64" if nodes == "aarch64" else "ppc64le"
    assert in_image(where, fits).plan is not None
    unseen = in_image(where, None)
    assert unseen.plan is not None
    assert f"image: the nodes of arm are {nodes}; what the image is built for cannot be seen from here" in unseen.notes
    assert not [note for note in in_image(where, fits).notes if note.startswith("image: ")]


def test_the_architecture_of_an_image_that_is_no_file_can_be_said(tmp_path: Path) -> None:
    where = machine(tmp_path, "container: {runtime: docker, image: neox, arch: x86_64}\n")
    assert planned(where).plan is not None
    arm = load_site("lab.yml", ["node.arch=aarch64"], cwd=tmp_path)
    assert wrongs(planned(arm))[0].startswith(
        f"{arm.file}  container.image: neox is built for x86_64, and the nodes of lab are aarch64"
    )


def test_arguments_for_containers_are_written_for_containers_only(tmp_path: Path) -> None:
    where = machine(tmp_path, "container: {runtime: apptainer, directives: [--mem-per-cpu=1G]}\n")
    asked = {"container": "/x.sif"}
    for found, times in ((planned(where, asked=asked, facts=Facts(exists={"/x.sif": True})), 1), (planned(where), 0)):
        assert found.plan is not None and found.plan.directives.count("--mem-per-cpu=1G") == times


def test_a_map_of_rows_is_one_that_jsrun_follows(tmp_path: Path) -> None:
    text = "extends: summit\n"
    (tmp_path / "a.yml").write_text(text)
    (tmp_path / "b.yml").write_text(text + 'node: {cpu_masks: ["0-6", "7-13", "14-20", "22-28", "29-35", "36,38-42"]}\n')
    followed, other = (planned(load_site(f"{name}.yml", cwd=tmp_path)).notes for name in "ab")
    assert not [note for note in followed if "not followed" in note]
    assert [note for note in other if "not followed" in note]


# Queues -----------------------------------------------------------------------------------------------------------------------

QUEUES = """
default_queue: [prod, small]
queues:
  prod: {bins: [{min_nodes: 10, max_nodes: 99, walltime: 6h}]}
  small: {bins: [{max_nodes: 10, walltime: 1h}]}
  long: {bins: [{max_nodes: 4, walltime: 72h}]}
  debug: {bins: [{max_nodes: 4, node_hours: 1.5}]}
"""


@pytest.mark.parametrize(
    ("asked", "queue", "walltime_s"),
    [
        ({}, "small", 3600),
        ({"nodes": 9}, "small", 3600),
        ({"nodes": 10}, "prod", 21600),
        ({"nodes": 10, "walltime_s": 1800}, "prod", 1800),
        ({"nodes": 2, "queue": "long"}, "long", 259200),
        ({"nodes": 1, "queue": "debug"}, "debug", 5400),
        ({"nodes": 4, "queue": "debug"}, "debug", 1350),
    ],
)
def test_the_first_default_queue_that_takes_the_job_is_taken(
    tmp_path: Path, asked: dict[str, Any], queue: str, walltime_s: int
) -> None:
    found = planned(machine(tmp_path, QUEUES), asked=asked)
    assert found.plan is not None, wrongs(found)
    assert (found.plan.queue, found.plan.walltime_s) == (queue, walltime_s)
    assert ("queue: small, the default of lab (prod, small: the first that takes the job)" in found.notes) == (queue == "small")


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        (
            {"nodes": 2, "walltime_s": 7200},
            "--nodes: queue prod takes no job of 2 nodes / it takes 10 to 99 nodes: change --nodes or --queue; --queue long takes",
        ),
        (
            {"nodes": 3, "walltime_s": 3600, "queue": "debug"},
            "--time: 01:00:00 is beyond the 00:30:00 of queue debug for 3 nodes (1.5 node-hours) / write --time 00:30:00 or less; "
            "--queue small or long takes such a job",
        ),
        ({"nodes": 100}, "--nodes: queue prod takes no job of 100 nodes / it takes 10 to 99 nodes: change --nodes or --queue"),
    ],
)
def test_a_job_that_no_default_queue_takes_is_told_which_would(tmp_path: Path, asked: dict[str, Any], problem: str) -> None:
    [wrong] = wrongs(planned(machine(tmp_path, QUEUES), asked=asked))
    assert wrong.startswith(problem)


def test_a_queue_that_gives_out_gpus_is_asked_for_gpus(tmp_path: Path) -> None:
    (tmp_path / "lab.yml").write_text(
        "extends: pbs\nnode: {gpus: 4, accelerator: cuda, cores: 64}\nqueues: {by-gpu: {counts: gpus}, by-node: {}}\n"
    )
    where = load_site("lab.yml", cwd=tmp_path)
    for queue, select in (("by-gpu", "#PBS -l select=4\n"), ("by-node", "#PBS -l select=1:ncpus=64:mpiprocs=4:ngpus=4\n")):
        found = planned(where, asked={"queue": queue, "nodes": 1})
        assert found.plan is not None and select in render_script(found.plan)


def test_gpus_one_by_one_may_be_in_one_node_and_nodes_are_apart() -> None:
    def resources(queue: str) -> list[str]:
        found = planned(site("sophia", "node.gpus=4"), asked={"queue": queue, "nodes": 1, "account": "a", "walltime_s": 3600})
        assert found.plan is not None
        return [line for line in render_script(found.plan).splitlines() if line.startswith(("#PBS -l select", "#PBS -l place"))]

    assert resources("by-gpu") == ["#PBS -l select=4"]
    assert resources("by-node") == ["#PBS -l select=1:mpiprocs=4:ngpus=4", "#PBS -l place=scatter"]


def test_a_job_too_short_for_its_queue_is_told_which_takes_it(tmp_path: Path) -> None:
    bins = "[{max_nodes: 2, min_walltime: 5m, walltime: 1h}]"
    where = machine(tmp_path, f"queues: {{debug: {{bins: {bins}}}, long: {{bins: [{{max_nodes: 2, walltime: 9h}}]}}}}\n")
    short, right = (planned(where, asked={"queue": "debug", "nodes": 1, "walltime_s": seconds}) for seconds in (299, 300))
    wrong = "queue debug takes no job of 00:04:59, which is shorter than 00:05:00"
    assert wrongs(short) == [f"--time: {wrong} / write --time 00:05:00 or more; --queue long takes such a job"]
    assert wrongs(right) == []


def test_where_no_limit_is_known_the_default_is_told_to_be_short() -> None:
    [note] = [note for note in planned(slurm()).notes if note.startswith("walltime:")]
    assert "may be minutes" in note and "--time 2h" in note
    assert not [note for note in planned(slurm(), asked={"walltime_s": 60}).notes if note.startswith("walltime:")]


def test_a_queue_that_is_a_quality_of_service_alone_names_no_partition(tmp_path: Path) -> None:
    text = "default_queue: regular\nqueues: {regular: {partition: '', directives: [--qos=regular]}}\n"
    found = planned(machine(tmp_path, text))
    assert found.plan is not None and "#SBATCH --qos=regular\n" in render_script(found.plan)
    assert "--partition" not in render_script(found.plan)


def test_one_default_queue_is_taken_as_it_is(tmp_path: Path) -> None:
    found = planned(machine(tmp_path, QUEUES.replace("[prod, small]", "prod")), asked={"nodes": 2})
    assert "--nodes: queue prod takes no job of 2 nodes" in wrongs(found)[0]


# Accounts ---------------------------------------------------------------------------------------------------------------------

FORM = "needs_account: true\naccount_form: {regex: '.+_g', words: an account that ends in _g}\n"


def accounts(found: Planned) -> list[str]:
    return [line for line in wrongs(found, "here") if "software" not in line]


def test_an_account_of_another_form_is_told_before_the_job_is(tmp_path: Path) -> None:
    where = machine(tmp_path, FORM)
    assert accounts(planned(where, asked={"account": "m1234"})) == [
        "--account: 'm1234' is no account that lab takes such jobs from / give an account that ends in _g"
    ]
    assert accounts(planned(where, asked={"account": "m1234_g"})) == []
    assert accounts(planned(where, asked={"account": "m1234_gpu"})) != []
    assert len(accounts(planned(where))) == 1  # none given: said once
    found = planned(where, asked={"user_account": ("~/config.yml:2", "m1234")})
    assert accounts(found)[0].startswith("~/config.yml:2: ") and found.plan is not None


def test_nothing_is_read_of_this_machine_for_another() -> None:
    assert planned(slurm(), facts=Facts()).plan is not None
