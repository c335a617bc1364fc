"""Containers: the argv of each runtime, and what a plan makes of an image.  The real Apptainer is in test_apptainer.py."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from model import ranks
from neox_hpc.containers import CONTAINERS, RANK_VARIABLES, Bind, Container, bind_words, is_fetched, mount_text
from neox_hpc.identity import read_image
from neox_hpc.launchers import Shell
from neox_hpc.plan import Plan
from neox_hpc.probe import Facts, Machine
from neox_hpc.render import quote, render_script
from neox_hpc.site import Site
from neox_hpc.words import expanding, joined
from tests.desk import Desk, desk
from tests.planning import TWO_CORES, plan, planned, site, slurm, wrongs

__all__ = ["desk"]

IMAGE = "/images/neox.sif"
PLAIN = Container(
    image=IMAGE,
    accelerator="cuda",
    binds=(Bind(path="/data"), Bind(path=Shell("$run/code"), read_only=True), Bind(path="/opt", inside="/hostopt")),
    workdir=Shell("$run/code"),
    args=("--fakeroot",),
)


def apptainer_site(*sets: str, runtime: str = "apptainer") -> Site:
    """A Slurm cluster with a container runtime and no environment."""
    return site("slurm", "node.gpus=4", "node.accelerator=cuda", f"container.runtime={runtime}", *sets)


# argv ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["apptainer", "singularity"])
def test_apptainer_and_singularity_exec_an_image(runtime: str) -> None:
    assert CONTAINERS[runtime](PLAIN) == (
        *(runtime, "exec", "--nv"),
        *("--bind", "/data", "--bind", "$run/code:$run/code:ro", "--bind", "/opt:/hostopt"),
        *("--pwd", "$run/code", "--fakeroot", IMAGE),
    )


def test_docker_runs_an_image_as_the_user_with_what_is_named() -> None:
    container = dataclasses.replace(PLAIN, image="neox:1", args=(), exported=("NCCL_NET", "RANK"), env=(("A", "1,2 3"),))
    words = CONTAINERS["docker"](container)
    names = [after for word, after in pairwise(words) if word == "--env"]
    assert words[-1] == "neox:1"
    assert names == ["HOME=/tmp", "USER", "NCCL_NET", *RANK_VARIABLES, *names[3 + len(RANK_VARIABLES) :]]
    assert names[-1] == "A=1,2 3" and "WANDB_API_KEY" in names
    assert [text for text in words if text.startswith("type=bind")] == [
        "type=bind,source=/data,target=/data",
        "type=bind,source=$run/code,target=$run/code,ro",
        "type=bind,source=/opt,target=/hostopt",
    ]
    for pair in (("--gpus", "all"), ("--network", "host"), ("--ipc", "host"), ("--user", "$(id -u):$(id -g)"), ("--pull", "never")):
        assert pair in set(pairwise(words))


@pytest.mark.parametrize(
    ("runtime", "accelerator", "words"),
    [
        ("apptainer", "cuda", ["--nv"]),
        ("singularity", "rocm", ["--rocm"]),
        ("apptainer", "cpu", []),
        ("apptainer", "xpu", []),
        (
            "docker",
            "rocm",
            ["--device", "/dev/kfd", "--device", "/dev/dri", "--group-add", "video", "--security-opt", "seccomp=unconfined"],
        ),
        ("docker", "cpu", []),
    ],
)
def test_gpus_come_in_by_the_accelerators_own_options(runtime: str, accelerator: str, words: list[str]) -> None:
    without = CONTAINERS[runtime](dataclasses.replace(PLAIN, accelerator=None))
    found = list(CONTAINERS[runtime](dataclasses.replace(PLAIN, accelerator=accelerator)))
    for word in without:
        found.remove(word)
    assert found == words


@pytest.mark.parametrize("runtime", CONTAINERS)
def test_a_sites_own_gpu_options_take_the_place_of_the_usual_ones(runtime: str) -> None:
    assert "--nv" not in CONTAINERS[runtime](dataclasses.replace(PLAIN, gpu=()))
    assert "--nvccli" in CONTAINERS[runtime](dataclasses.replace(PLAIN, gpu=("--nv", "--nvccli")))


@pytest.mark.parametrize("runtime", CONTAINERS)
def test_no_runtime_cleans_the_environment(runtime: str) -> None:
    assert not {"--cleanenv", "--containall", "-e", "-C"} & set(CONTAINERS[runtime](PLAIN))


def test_a_file_of_the_image_is_sourced_before_the_command() -> None:
    tail = CONTAINERS["apptainer"](dataclasses.replace(PLAIN, init="/host/adapt.sh"))[-5:]
    assert tail == (IMAGE, "bash", "-c", '. "$0" && exec "$@"', "/host/adapt.sh")


def test_that_line_runs_the_file_and_then_the_command(tmp_path: Path) -> None:
    (tmp_path / "in it.sh").write_text("export SEEN=yes\n")
    line = CONTAINERS["apptainer"](dataclasses.replace(PLAIN, init=str(tmp_path / "in it.sh")))[-4:]
    done = subprocess.run([*line, "sh", "-c", 'echo "$SEEN $1"', "x", "a b"], capture_output=True, text=True, check=True)
    assert done.stdout == "yes a b\n"


def test_docker_hands_in_every_variable_by_which_a_rank_learns_its_place() -> None:
    read = {name for found in ranks.LAUNCHERS for names in dataclasses.astuple(found)[1:] for name in names}
    assert read - set(RANK_VARIABLES) == set()


@pytest.mark.parametrize(
    ("bind", "words"),
    [
        (Bind(path="/a b\\"), ("--bind", "/a b\\")),
        (Bind(path="/a", read_only=True), ("--bind", "/a:/a:ro")),
        (Bind(path="/a", inside="/b"), ("--bind", "/a:/b")),
        (Bind(path="/a:b,c"), ("--mount", 'type=bind,"source=/a:b,c","target=/a:b,c"')),
        (Bind(path="/a", inside="/b:c", read_only=True), ("--mount", "type=bind,source=/a,target=/b:c,ro")),
    ],
)
def test_apptainers_binds_are_mounts_where_a_path_holds_what_parts_them(bind: Bind, words: tuple[str, str]) -> None:
    assert bind_words(bind) == words


@pytest.mark.parametrize(
    ("path", "field"), [("/a b", "source=/a b"), ("/a,b", '"source=/a,b"'), ('/a"b', '"source=/a""b"'), ("/a:b", "source=/a:b")]
)
def test_dockers_mounts_are_fields_of_csv(path: str, field: str) -> None:
    import csv

    text = mount_text(Bind(path=path, inside="/x"))
    assert text == f"type=bind,{field},target=/x"
    assert next(csv.reader([text])) == ["type=bind", f"source={path}", "target=/x"]


@pytest.mark.parametrize(
    ("image", "fetched"), [("docker://a/b:1", True), ("oras://x", True), ("/a/b.sif", False), ("b.sif", False), ("a:1", False)]
)
def test_images_that_would_be_fetched_are_told_from_files(image: str, fetched: bool) -> None:
    assert is_fetched(image) == fetched


@pytest.mark.parametrize("text", ["plain", "it's", 'a "b"', "$HOME", "`id`", "back\\slash", "two\nlines", "ünï", ""])
def test_parts_of_a_word_arrive_as_they_were_beside_a_part_of_the_shells(text: str) -> None:
    word = joined(text, Shell("${part}"), text)
    done = subprocess.run(["sh", "-c", f"printf %s {quote(word)}"], capture_output=True, check=True, env={"part": "a  b"})
    assert done.stdout.decode() == f"{text}a  b{text}"


def test_a_word_without_a_part_of_the_shells_is_text() -> None:
    assert not isinstance(joined("$a", "b"), Shell) and not isinstance(expanding("$a"), Shell)
    assert expanding("${A}/$B") == "${A:-}/\\$B"


# Plans -----------------------------------------------------------------------------------------------------------------


def container_of(job: Plan) -> str:
    return " ".join(job.step.container)


@pytest.mark.parametrize("runtime", CONTAINERS)
def test_the_container_stands_between_the_launcher_and_the_images_python(runtime: str) -> None:
    image = "neox:1" if runtime == "docker" else IMAGE
    script = render_script(plan(apptainer_site(runtime=runtime), container=image))
    [launch] = re.findall(r"^srun .*?&$", script, re.MULTILINE | re.DOTALL)
    line = launch.replace(" \\\n ", "")
    program = {"docker": "docker run"}.get(runtime, f"{runtime} exec")
    assert re.search(rf"--kill-on-bad-exit=1 --label {program} .* {image} python3 -u -m model\.train \"\$run/run\.json\" &$", line)


def test_per_node_launchers_have_one_container_around_deepspeeds_launcher() -> None:
    job = plan(site("local", "container.runtime=apptainer"), container=IMAGE)
    assert f"{IMAGE} python3 -u -m deepspeed.launcher.launch" in render_script(job).replace(" \\\n ", "")


def test_run_code_data_and_outputs_are_given_to_the_container_each_once() -> None:
    job = plan(apptainer_site("node.local_disk=/local/${USER}"), container=IMAGE, keys={"load": "/old/run", "save": "/ckpt"})
    binds = [after for word, after in pairwise(job.step.container) if word == "--bind"]
    assert binds == ["/home/user/data", "/old/run", "/ckpt", "$run", "/local/${USER:-}", "$run/code:$run/code:ro"]
    assert 'mkdir -p /ckpt || die "cannot write to "/ckpt' in render_script(job)


def test_a_path_with_links_is_given_under_both_names() -> None:
    real = {"/home/user/data": "/lustre/1/data", "/scratch/runs/small": "/lustre/2/small"}
    job = plan(apptainer_site(), container=IMAGE, facts=Facts(real=real))
    assert "--bind /lustre/1/data --bind /lustre/2/small --bind /home/user/data --bind $run --bind" in container_of(job)


def test_a_run_directory_whose_name_parts_binds_is_written_out() -> None:
    job = plan(site("local", "container.runtime=apptainer"), container=IMAGE, run_dir="/r/a,b")
    mounts = '--mount type=bind,"source=/r/a,b","target=/r/a,b" --mount type=bind,"source=/r/a,b/code","target=/r/a,b/code",ro'
    assert f"{mounts} --pwd $run/code" in container_of(job)


def test_sites_binds_variables_and_options_reach_the_runtime() -> None:
    sets = (
        'container.binds=["/opt","/run/${USER}:/here:ro"]',
        'container.args=["--fakeroot"]',
        "container.env.LD_LIBRARY_PATH=/a:${X},b",
    )
    job = plan(apptainer_site(*sets), container=IMAGE)
    assert container_of(job).endswith(f"--bind /opt --bind /run/${{USER:-}}:/here:ro --pwd $run/code --fakeroot {IMAGE}")
    script = render_script(job)
    assert 'export APPTAINERENV_LD_LIBRARY_PATH="/a:${X:-},b"\n' in script
    assert "export PYTHONNOUSERSITE=1\nexport PYTHONPATH=''\nexport APPTAINER_NO_EVAL=1\n" in script


def test_a_containers_modules_take_the_place_of_the_sites() -> None:
    sets = ('modules.load=["pytorch"]', 'container.use=["/appl/modules"]', 'container.modules=["bindings"]')
    script = render_script(plan(apptainer_site(*sets), container=IMAGE))
    assert "module use /appl/modules || exit\nmodule load bindings || exit\n" in script and "pytorch" not in script


def test_docker_is_not_given_the_nodes_own_library_path() -> None:
    sets = ("env.LD_LIBRARY_PATH=/x", "env.NCCL_NET=IB")
    words = plan(apptainer_site(*sets, runtime="docker"), container="neox:1").step.container
    assert "NCCL_NET" in words and "LD_LIBRARY_PATH" not in words


def test_an_image_is_looked_for_from_the_submit_directory() -> None:
    assert plan(apptainer_site(), container="images/../x.sif").step.container[-1] == "/home/user/x.sif"
    assert plan(apptainer_site(runtime="docker"), container="x:1").step.container[-1] == "x:1"


def test_the_sites_image_is_used_unless_another_or_none_is_asked_for() -> None:
    where = apptainer_site("container.image=/site.sif")
    assert plan(where).step.container[-1] == "/site.sif"
    assert plan(where, container=IMAGE).step.container[-1] == IMAGE
    none = planned(where, asked={"container": "none"})
    assert none.plan is not None and (none.plan.step.container, none.plan.step.python) == ((), "MISSING_SOFTWARE")


def test_an_image_that_is_asked_for_goes_before_the_sites_environment() -> None:
    job = plan(slurm("container.runtime=apptainer"), container=IMAGE)
    assert (job.step.container[0], job.step.python) == ("apptainer", "python3")
    assert plan(slurm("container.runtime=apptainer"), container="none").step.python == "/opt/env/bin/python"


# Wrong here ------------------------------------------------------------------------------------------------------------


def here(where: Site, image: str, facts: Facts = TWO_CORES) -> list[str]:
    found = planned(where, asked={"container": image}, facts=facts)
    assert found.plan is not None
    return list(wrongs(found, "here"))


def test_an_absent_image_is_wrong_here() -> None:
    absent = Facts(exists={IMAGE: False})
    assert here(apptainer_site(), IMAGE, absent) == [
        f"--container: no such image here: {IMAGE} / a relative path counts from /home/user; correct it, or make the image"
    ]
    assert here(apptainer_site(), IMAGE) == []


def test_an_image_that_would_be_fetched_is_refused_with_the_command_that_fetches_it() -> None:
    [problem] = here(apptainer_site(), "docker://ghcr.io/a/neox:1.2")
    assert "would be fetched by every rank when the job starts" in problem
    assert "apptainer pull neox-1.2.sif docker://ghcr.io/a/neox:1.2; then --container neox-1.2.sif" in problem


def test_an_empty_name_is_no_image() -> None:
    [problem] = wrongs(planned(apptainer_site(), asked={"container": ""}))
    assert problem == "--container: no image is named / write the path of an image, or none"


def test_a_site_without_a_known_runtime_renders_and_is_refused() -> None:
    found = planned(slurm(), asked={"container": IMAGE})
    assert found.plan is not None and found.plan.step.python == "MISSING_SOFTWARE"
    [problem] = wrongs(found, "here")
    assert problem.startswith(
        "--container: no container runtime of the site slurm is known / write --site-set container.runtime=NAME"
    )


@pytest.mark.parametrize("image", ["/a/b.sif", "./b", "b.sif", "Upper", "a b"])
def test_docker_takes_the_name_of_an_image(image: str) -> None:
    [problem] = wrongs(planned(apptainer_site(runtime="docker"), asked={"container": image}))
    assert problem.startswith(f"--container: {image!r} is not the name of a Docker image / ")


@pytest.mark.parametrize("image", ["neox", "neox:1.2", "ghcr.io/a/neox:x", "host:5000/a/b:1", f"a@sha256:{'0' * 64}"])
def test_names_of_docker_images_are_taken(image: str) -> None:
    assert wrongs(planned(apptainer_site(runtime="docker"), asked={"container": image})) == []


def test_this_machines_runtime_is_the_one_on_path() -> None:
    facts = Facts(machine=Machine(cores=2, python="/p", runtime="singularity"))
    assert plan(site("local"), facts=facts, container=IMAGE).step.container[0] == "singularity"
    assert plan(site("local", "container.runtime=apptainer"), facts=facts, container=IMAGE).step.container[0] == "apptainer"
    [problem] = wrongs(planned(site("local"), asked={"container": IMAGE}), "here")
    assert problem.startswith("--container: no container runtime of the site local is known")


# The receipt -----------------------------------------------------------------------------------------------------------


def test_a_sif_is_known_by_the_number_in_its_header(tmp_path: Path) -> None:
    """The first 64 bytes of an image that Apptainer 1.4.5 built."""
    header = b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\x0001\x0002\0" + bytes.fromhex("548c3e0da5ff40fd960288" + "0e48918030")
    image = tmp_path / "x.sif"
    image.write_bytes(header + b"data")
    stat = image.stat()
    assert read_image(str(image)) == {
        "image_bytes": 68,
        "image_mtime": stat.st_mtime,
        "image_id": "548c3e0da5ff40fd9602880e48918030",
    }


def test_another_image_file_is_known_by_size_and_time_and_a_name_or_directory_by_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.sqsh").write_bytes(b"hsqs")
    assert set(read_image(str(tmp_path / "x.sqsh"))) == {"image_bytes", "image_mtime"}
    assert read_image(str(tmp_path)) == read_image("neox:1.2") == {}


# The command -----------------------------------------------------------------------------------------------------------

RECORDER = """#!/bin/sh
printf '%s\\0' "$@" >"$RECORD/argv"
env -0 >"$RECORD/env"
exit 3
"""


@pytest.mark.parametrize("shell", ["bash", "dash"])
@pytest.mark.parametrize("name", ["run", "a b's $HOME `id`", 'say "x"', "a:b,c\\d", "ünï(x2)*"])
def test_paths_and_values_reach_the_runtime_as_they_are(tmp_path: Path, shell: str, name: str) -> None:
    run, image = tmp_path / name, str(tmp_path / name / "x.sif")
    for folder in ("code", "logs"):
        (run / folder).mkdir(parents=True)
    (tmp_path / "apptainer").write_text(RECORDER)
    (tmp_path / "apptainer").chmod(0o755)
    job = plan(site("local", "container.runtime=apptainer"), container=image, run_dir=str(run), keys={"save": f"/tmp/{name}"})
    outer = dataclasses.replace(job.software, folders=(), env=(*job.software.env, ("APPTAINERENV_EVIL", name)))
    (tmp_path / "job.sh").write_text(render_script(dataclasses.replace(job, software=outer)))
    environ = {"PATH": f"{tmp_path}:{os.defpath}", "RECORD": str(tmp_path)}
    done = subprocess.run([shell, str(tmp_path / "job.sh")], env=environ, capture_output=True, text=True, timeout=20)
    assert done.returncode == 3, done.stderr
    arrived = (tmp_path / "argv").read_text().split("\0")[:-1]
    assert arrived[: len(job.step.container) - 1] == [word.replace("$run", str(run)) for word in job.step.container[1:]]
    assert arrived[arrived.index("--pwd") + 1] == f"{run}/code" and image in arrived
    assert f"\0APPTAINERENV_EVIL={name}\0" in f"\0{(tmp_path / 'env').read_text()}"


def test_a_dry_run_shows_the_container_and_submit_refuses_an_absent_image(desk: Desk) -> None:
    words = ("submit", "-s", "local", "--site-set", "container.runtime=apptainer", "--container", "x.sif")
    shown = desk(*words, "--dry-run", "my.yml")
    assert (shown.code, f"{desk.cwd}/x.sif python3 -u -m deepspeed" in shown.out.replace(" \\\n ", "")) == (0, True)
    assert f"note: software: image {desk.cwd}/x.sif, run by apptainer\n" in shown.err
    refused = desk(*words, "my.yml")
    assert refused.code == 2 and f"--container: no such image here: {desk.cwd}/x.sif" in refused.err
