"""What the ranks run in: a Python, an environment or a module of the machine; who says so, and what the job does with it."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from neox_hpc.errors import UserError
from neox_hpc.probe import Facts
from neox_hpc.render import render_script
from neox_hpc.site import UNFINISHED, ContainerRuntime, Modules, Software, Stage
from neox_hpc.site_files import load_site
from neox_hpc.user_config import FILE
from tests.desk import Desk, desk
from tests.planning import plan, planned, site, wrongs

__all__ = ["desk"]

ROOT = Path(__file__).resolve().parent.parent
BARE = ("slurm", "node.gpus=4")


def script(*sets: str) -> str:
    return render_script(plan(site(*BARE, *sets)))


def run_of(text: str, tail: str, *, module: str = 'echo "module $*"') -> str:
    """What the lines of a script from its first module or export to its secrets leave behind, told by ``tail``."""
    begin, end = text.index("export SLURM_EXPORT_ENV=ALL"), text.index("\nsecrets=")
    program = f"module() {{ {module}; }}\n{text[begin:end]}\n{tail}"
    return subprocess.run(["sh", "-c", program], capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"}).stdout


def test_a_virtual_environments_bin_comes_first_on_path() -> None:
    text = script("software.venv=/envs/my env")
    assert run_of(text, 'echo "$PATH $VIRTUAL_ENV"') == "/envs/my env/bin:/usr/bin:/bin /envs/my env\n"
    assert "'/envs/my env/bin/python' -u -m model.train" in text.replace(" \\\n ", "")


def test_a_conda_environment_is_activated_without_conda(tmp_path: Path) -> None:
    prefix = tmp_path / "con da's"
    scripts = prefix / "etc" / "conda" / "activate.d"
    scripts.mkdir(parents=True)
    (scripts / "libs.sh").write_text('export PROJ_DATA="$CONDA_PREFIX/share/proj"\nunset NOT_THERE; echo $NOT_THERE\n')
    text = script(f"software.conda={prefix}")
    assert run_of(text, 'echo "$PATH $PROJ_DATA"').splitlines()[-1] == f"{prefix}/bin:/usr/bin:/bin {prefix}/share/proj"
    assert f"{shlex.quote(f'{prefix}/bin/python')} -u -m model.train" in text.replace(" \\\n ", "")


def test_a_conda_environment_without_activation_scripts_is_one_too(tmp_path: Path) -> None:
    assert run_of(script(f"software.conda={tmp_path}"), "echo $CONDA_PREFIX") == f"{tmp_path}\n"


def test_a_module_is_loaded_after_the_sites_own_and_brings_python3() -> None:
    text = script('modules.use=["/soft/modulefiles"]', 'modules.load=["cuda"]', "software.module=pytorch/2.9")
    assert run_of(text, "") == "module use /soft/modulefiles\nmodule load cuda\nmodule load pytorch/2.9\n"
    assert "--kill-on-bad-exit=1 --label python3 -u -m model.train" in text.replace(" \\\n ", "")


PAGE = (ROOT / "docs/software.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
def test_the_examples_of_the_page_are_sites(tmp_path: Path, block: str) -> None:
    (tmp_path / "x.yml").write_text(block)
    assert load_site("./x.yml", cwd=tmp_path).scheduler in ("slurm", "pbs")


def test_the_page_names_every_fact_of_software_containers_and_stage() -> None:
    facts = {name for section in (Software, ContainerRuntime, Stage) for name in section.model_fields}
    assert {name for name in facts if not re.search(rf"\b{name}\b", PAGE)} == set()


EVIL = ["a b's", "$HOME", "`touch here`", 'say "x"', "a;touch here", "back\\slash", "two\nlines", "*", "ünï(x2)#", "-n", "x" * 4096]


@pytest.mark.parametrize("name", EVIL)
def test_evil_names_of_environments_and_modules_arrive_and_nothing_in_them_runs(tmp_path: Path, name: str) -> None:
    for way, variable in (("venv", "VIRTUAL_ENV"), ("conda", "CONDA_PREFIX")):
        where = site(*BARE).model_copy(update={"software": Software(**{way: f"/{name}"})})
        assert run_of(render_script(plan(where)), f'printf "%s|%s" "${variable}" "$PATH"') == f"/{name}|/{name}/bin:/usr/bin:/bin"
    where = site(*BARE).model_copy(update={"software": Software(module=name), "modules": Modules(use=(name,))})
    told = run_of(render_script(plan(where)), 'printf "%s|" "$@"', module='for w; do printf "%s|" "$w"; done')
    assert told.startswith(f"use|{name}|load|{name}|")
    assert not (Path.cwd() / "here").exists()


# Who says so -----------------------------------------------------------------------------------------------------------


def test_a_lower_layers_way_gives_way_to_an_upper_ones(tmp_path: Path) -> None:
    (tmp_path / "low.yml").write_text("extends: slurm\nsoftware: {module: pytorch, index_url: https://x}\n")
    (tmp_path / "up.yml").write_text("extends: ./low.yml\nsoftware: {venv: /v}\n")
    low, up = load_site("./low.yml", cwd=tmp_path), load_site("./up.yml", cwd=tmp_path)
    assert (low.way, up.way) == (("software", "module"), ("software", "venv"))
    assert up.software.module is None and up.software.index_url == "https://x"
    assert load_site("./up.yml", ["container.image=/i.sif"], cwd=tmp_path).way == ("container", "image")
    assert load_site("./up.yml", ["node.gpus=2"], cwd=tmp_path).software.venv == "/v"


def test_two_ways_of_one_layer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yml").write_text("extends: slurm\nsoftware: {venv: /v}\ncontainer: {image: /i.sif}\n")
    with pytest.raises(UserError, match=r"software\.venv and container\.image both say what the ranks run in"):
        load_site("./x.yml", cwd=tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("software: {venv: env}", "software.venv: 'env' is not an absolute path\n  fix: write the whole path"),
        ("software: {conda: ~/c}", "software.conda: '~/c' is not an absolute path"),
        ("container: {image: x.sif}", "container.image 'x.sif' is not an absolute path"),
        ("container: {runtime: podman}", "container.runtime: unknown container runtime 'podman'\n  fix: write one of apptainer,"),
        ("container: {runtim: docker}", "container.runtim: unknown key\n  fix: did you mean runtime?"),
        ("container: {binds: [opt]}", "container.binds: 'opt' is no bind\n  fix: write /path, /path:/inside or /path:/inside:ro"),
        ("container: {binds: ['/a:/b:rx']}", "container.binds: '/a:/b:rx' is no bind"),
        (
            "container: {args: [--cleanenv]}",
            "container.args: --cleanenv drops the variables that tell a rank its place\n  fix: remove it",
        ),
        ("container: {args: ['--pwd=/x']}", "container.args: --pwd is set by the plan\n  fix: remove it"),
        ("container: {args: ['--pwd /x']}", "container.args: --pwd is set by the plan\n  fix: remove it"),
        ("container: {args: [fakeroot]}", "container.args: 'fakeroot' is no argument"),
        ('container: {gpu: "--nv \'x"}', 'container.gpu: "--nv \'x" has no closing quotation\n  fix: close the quote'),
        ("container: {env: {'A; touch /x': b}}", "container.env: 'A; touch /x' is no name of an environment variable"),
        ("container: none", "container: expected key: value, got 'none'"),
    ],
)
def test_wrong_software_is_refused_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "x.yml").write_text(f"extends: slurm\n{text}\n")
    with pytest.raises(UserError) as caught:
        load_site("./x.yml", cwd=tmp_path)
    assert problem in str(caught.value)


def own(desk: Desk, text: str) -> None:
    path = Path.home() / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def dry(desk: Desk, *words: str) -> tuple[str, str]:
    said = desk("submit", "-s", "slurm", "--site-set", "node.gpus=4", *words, "--dry-run", "my.yml")
    assert said.code == 0, said.err
    return said.out.replace(" \\\n ", ""), said.err


def test_the_users_own_file_says_it_and_the_command_line_says_it_better(desk: Desk) -> None:
    own(desk, "sites:\n  slurm:\n    venv: /mine\n")
    out, err = dry(desk)
    assert "/mine/bin/python -u -m model.train" in out
    assert "note: software: /mine, from ~/.config/neox-hpc/config.yml:3\n" in err
    out, err = dry(desk, "--site-set", "software.python=/other")
    assert "/other -u -m model.train" in out and "/mine" not in out + err


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("python: /p", "/p -u"),
        ("conda: /c", "/c/bin/python -u"),
        ("module: torch", "python3 -u"),
        ("container: /i.sif", "/i.sif python3 -u"),
    ],
)
def test_every_way_can_be_the_users_own(desk: Desk, written: str, line: str) -> None:
    own(desk, f"sites: {{slurm: {{{written}}}}}\n")
    assert f" {line} -m model.train" in dry(desk, "--site-set", "container.runtime=apptainer")[0]


def test_a_wrong_value_of_the_users_file_is_named_with_its_line(desk: Desk) -> None:
    own(desk, "sites:\n  slurm: {venv: mine}\n")
    said = desk("submit", "-s", "slurm", "--dry-run", "my.yml")
    assert said.code == 2 and "~/.config/neox-hpc/config.yml:2  software.venv: 'mine' is not an absolute path" in said.err
    own(desk, "sites:\n  slurm: {venv: /a, conda: /b}\n")
    said = desk("submit", "-s", "slurm", "--dry-run", "my.yml")
    assert said.code == 2 and "config.yml:2  sites.slurm.conda: venv and conda both say what the ranks run in" in said.err


# Wrong here ------------------------------------------------------------------------------------------------------------


def test_a_job_without_software_is_shown_and_not_submitted(desk: Desk) -> None:
    words = ("submit", "-s", "slurm", "--site-set", "node.gpus=4")
    shown, refused = desk(*words, "--dry-run", "my.yml"), desk(*words, "my.yml")
    assert (shown.code, "MISSING_SOFTWARE -u -m model.train" in shown.out.replace(" \\\n ", "")) == (0, True)
    assert (refused.code, refused.out) == (2, "")
    for said in (shown, refused):
        assert said.err.count("software") == 2  # its place, and --site-set
        assert "`neox-hpc env create --site slurm` builds one\n" in said.err


def test_an_image_is_proposed_where_software_is_missing_and_a_runtime_is_known() -> None:
    [known] = wrongs(planned(site(*BARE, "container.runtime=apptainer")), "here")
    [unknown] = wrongs(planned(site(*BARE)), "here")
    assert known == f"{unknown}; --container IMAGE needs none"


def test_commands_name_a_site_as_it_was_given(desk: Desk) -> None:
    (desk.cwd / "it's").mkdir()
    (desk.cwd / "it's/mine.yml").write_text("extends: slurm\n")
    said = desk("submit", "-s", "it's/mine.yml", "--site-set", "node.gpus=4", "--dry-run", "my.yml")
    [command] = re.findall(r"`neox-hpc (env create [^`]*)`", said.err)
    assert shlex.split(command) == ["env", "create", "--site", "it's/mine.yml"]
    said = desk("submit", "-s", "it's/mine.yml", "--dry-run", "my.yml")
    assert "or keep it in it's/mine.yml" in said.err and "extends:" not in said.err


@pytest.mark.parametrize(
    ("fact", "python"), [("python=/p/python", "/p/python"), ("venv=/v", "/v/bin/python"), ("conda=/c", "/c/bin/python")]
)
def test_software_that_is_not_there_is_wrong_here(fact: str, python: str) -> None:
    [problem] = wrongs(planned(site(*BARE, f"software.{fact}"), facts=Facts(exists={python: False})), "here")
    assert f"software.{fact.partition('=')[0]}: no such file here: {python} / write --site-set software." in problem


def test_a_half_built_environment_is_wrong_here_and_its_rebuild_is_told() -> None:
    facts = Facts(exists={"/v/bin/python": True, f"/v/{UNFINISHED}": True})
    [problem] = wrongs(planned(site(*BARE, "software.venv=/v"), facts=facts), "here")
    assert "software.venv: /v is half-built" in problem and "rm -r /v; neox-hpc env create --site slurm --path /v" in problem
