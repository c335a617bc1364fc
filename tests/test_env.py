"""``neox-hpc env create``: real environments, built by a real pip from small wheels that stand in for torch and the others."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from neox_hpc.env import OTHERS, TORCH, Venv
from neox_hpc.render import render_venv
from neox_hpc.share import share
from neox_hpc.site import UNFINISHED, Site
from tests.desk import Desk, Said, desk
from tests.planning import site

__all__ = ["desk"]

ROOT = Path(__file__).resolve().parent.parent
WHEELS = {
    "torch": ("2.13.0",),
    "deepspeed": ("0.19.8",),
    "numpy": ("1.30.0", "9.9.0"),
    "tokenizers": ("0.23.3",),
    "safetensors": ("0.8.0",),
}
LAUNCHES = {"deepspeed": {"launcher/__init__.py": "", "launcher/launch.py": "import sys; print('launched in', sys.prefix)\n"}}


def write_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> None:
    """A wheel by the rules of https://packaging.python.org/en/latest/specifications/binary-distribution-format/"""
    info = f"{name}-{version}.dist-info"
    texts = {
        **{f"{name}/{path}": text for path, text in {"__init__.py": f"__version__ = {version!r}\n", **files}.items()},
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in texts.items():
            wheel.writestr(path, text)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a site file, wheels and constraints."""
    folder = tmp_path_factory.mktemp("it's a shop")
    (folder / "wheels").mkdir()
    for name, versions in WHEELS.items():
        for version in versions:
            write_wheel(folder / "wheels", name, version, LAUNCHES.get(name, {}))
    (folder / "pins.txt").write_text("numpy<9\n")
    (folder / "disk").mkdir()
    lines = ["extends: local", f'software: {{constraints: "{folder}/pins.txt"}}', f'node: {{local_disk: "{folder}/disk"}}']
    (folder / "here.yml").write_text("\n".join([*lines, "stage: {env: node_local}"]) + "\n")
    return folder


def run(cwd: Path, *words: str, **environ: str) -> Said:
    """A command line as a process of its own: what it starts prints too."""
    own = {"PYTHONPATH": str(ROOT), "HOME": str(cwd), "PIP_CONFIG_FILE": os.devnull}
    argv = [sys.executable, "-m", "neox_hpc", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, cwd=cwd, env={**os.environ, **own, **environ})
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def built(shop: Path) -> Said:
    """From a shell with packages of its own, whose user installs with --user."""
    (shop / "theirs").mkdir()
    with zipfile.ZipFile(shop / "wheels" / "numpy-1.30.0-py3-none-any.whl") as wheel:
        wheel.extractall(shop / "theirs")
    theirs = {"PYTHONPATH": f"{ROOT}:{shop}/theirs", "PIP_USER": "1"}
    return run(shop, "env", "create", "-s", "./here.yml", "--wheels", "wheels", "--path", "my env", **theirs)


def test_an_environment_holds_what_the_ranks_need_at_the_pinned_versions(shop: Path, built: Said) -> None:
    assert built.code == 0, built.err
    program = (
        "import torch, deepspeed, numpy, tokenizers, safetensors as s; print(torch.__version__, numpy.__version__, s.__version__)"
    )
    python = shop / "my env" / "bin" / "python"
    assert subprocess.run([python, "-c", program], capture_output=True, text=True).stdout == "2.13.0 1.30.0 0.8.0\n"


def test_its_lock_lists_what_is_installed_and_its_hash_is_printed(shop: Path, built: Said) -> None:
    lock = shop / "my env" / "neox-hpc.lock"
    lines = lock.read_text().splitlines()
    assert lines == sorted(lines) and {"torch==2.13.0", "deepspeed==0.19.8", "numpy==1.30.0"} < set(lines)
    assert any(line.startswith("pip==") for line in lines)
    assert f"sha256 {hashlib.sha256(lock.read_bytes()).hexdigest()}" in built.out
    assert not (shop / "my env" / UNFINISHED).exists()


def test_the_steps_are_shown_while_they_run(built: Said) -> None:
    assert [line[:14] for line in built.out.splitlines() if line.startswith("neox-hpc: ")] == [
        f"neox-hpc: {n}/3 " for n in (1, 2, 3)
    ]


def test_the_line_that_it_prints_makes_every_job_of_the_site_use_it(shop: Path, built: Said, desk: Desk) -> None:
    [line] = re.findall(r"in ~/\.config/neox-hpc/config\.yml:  (.*)", built.out)
    config = Path.home() / ".config/neox-hpc/config.yml"
    config.parent.mkdir(parents=True)
    config.write_text(f"{line}\n")
    said = desk("submit", "-s", str(shop / "here.yml"), "--json", "my.yml")
    assert said.code == 0, said.err
    desk.wait_for("done")
    receipt = json.loads((Path(said.facts["run_dir"]) / "receipt.json").read_text())
    assert receipt["software"] == {
        "is": f"virtual environment {shop / 'my env'}",
        "lock_sha256": hashlib.sha256((shop / "my env" / "neox-hpc.lock").read_bytes()).hexdigest(),
    }
    assert f"launched in {shop}/disk/neox-hpc-" in desk("logs", "my").out and list((shop / "disk").iterdir()) == []
    assert desk("status", "my", "--json").facts["software"] == receipt["software"]
    shown = f"software  virtual environment {shop / 'my env'}  ({receipt['software']['lock_sha256'][:12]})"
    assert shown in desk("status", "my").out


def test_its_archive_is_whole_where_the_site_copies_environments_to_the_nodes(shop: Path, built: Said) -> None:
    with tarfile.open(shop / "my env.tar") as archive:
        names = set(archive.getnames())
    assert {"./bin/python", "./pyvenv.cfg", "./neox-hpc.lock"} < names and f"./{UNFINISHED}" not in names


def test_an_environment_is_never_built_over_something(shop: Path, built: Said) -> None:
    again = run(shop, "env", "create", "-s", "./here.yml", "--wheels", "wheels", "--path", "my env")
    assert again.code == 1 and f"neox-hpc: {shop}/my env exists already\n  fix: give another --path" in again.err


def test_a_build_that_fails_tells_the_way_round_the_network_and_is_not_taken_for_whole(shop: Path, tmp_path: Path) -> None:
    nowhere = {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
        "PIP_DEFAULT_TIMEOUT": "1",
        "no_proxy": "127.0.0.1",
    }
    words = ("env", "create", "-s", str(shop / "here.yml"))
    first, second = run(tmp_path, *words, **nowhere), run(tmp_path, *words)
    assert first.code == 1 and "without network: on a machine with network" in first.err
    [line] = [line.strip() for line in first.err.splitlines() if "pip wheel --wheel-dir wheels" in line]
    assert all(word in line for word in ("--constraint pins.txt", TORCH, "deepspeed==0.19.8")), line
    assert second.code == 1 and f"{tmp_path}/envs/here is half-built\n  fix: remove it" in second.err
    assert (tmp_path / "envs" / "here" / UNFINISHED).exists() and not (tmp_path / "envs" / "here" / "neox-hpc.lock").exists()


# The script ------------------------------------------------------------------------------------------------------------


def venv(where: Site, **more: Any) -> Venv:
    return Venv(**({"site": where, "path": "/envs/e", "constraints": "/c.txt"} | more))


def test_a_dry_run_prints_the_script_and_builds_nothing(shop: Path, desk: Desk) -> None:
    said = desk("env", "create", "-s", str(shop / "here.yml"), "--path", "new", "--dry-run")
    assert said.code == 0 and said.out.startswith("#!/bin/bash\n") and f"env={desk.cwd}/new\n" in said.out
    assert not (desk.cwd / "new").exists()


def test_packages_are_the_products_extra_and_pins_are_its_constraints(desk: Desk) -> None:
    [extra] = re.findall(r"^train = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert [word.strip().strip('"') for word in extra.split(", ")] == [TORCH, *OTHERS]
    assert share("constraints.txt").read_text() == (ROOT / "constraints.txt").read_text()
    assert f"--constraint {share('constraints.txt')} {TORCH}\n" in desk("env", "create", "-s", "local", "--dry-run").out


def test_torch_comes_from_the_sites_index_or_not_at_all_and_the_others_do_not_look_there() -> None:
    lines = [
        line for line in render_venv(venv(site("slurm", "software.index_url=https://x/rocm"))).splitlines() if line[:4] == "get "
    ]
    assert [line.partition(" #")[0] for line in lines] == [
        f"get --no-deps --index-url https://x/rocm {TORCH}",
        f"get --extra-index-url https://x/rocm --constraint /c.txt {TORCH}",
        f"get --constraint /c.txt {' '.join(map(shlex.quote, OTHERS))}",
    ]


def test_wheels_for_a_machine_without_network_are_fetched_the_same_way() -> None:
    torch, rest = venv(site("slurm", "software.index_url=https://x/r")).fetching
    assert torch == f"python3 -m pip wheel --wheel-dir wheels --no-deps --index-url https://x/r {TORCH}"
    assert "--extra-index-url https://x/r --find-links wheels --constraint c.txt" in rest and all(name in rest for name in OTHERS)


@pytest.mark.parametrize("accelerator", ["rocm", "xpu"])
def test_a_machine_for_which_pips_own_torch_is_not_built_needs_an_index(desk: Desk, accelerator: str) -> None:
    sets = ("--site-set", "node.gpus=4", "--site-set", f"node.accelerator={accelerator}")
    said = desk("env", "create", "-s", "slurm", *sets)
    assert said.code == 2 and f"the torch of pip's own index is not built for {accelerator}" in said.err
    assert not (desk.cwd / "envs").exists()


def test_processors_that_pips_own_index_has_no_torch_for_need_another(desk: Desk) -> None:
    said = desk("env", "create", "-s", "summit")
    assert said.code == 2 and "pip's own index has no torch for ppc64le" in said.err
    assert "no torch for" not in desk("env", "create", "-s", "summit", "--wheels", "absent").err


@pytest.mark.parametrize("dialect", ["bash", "sh"])
def test_shellcheck_finds_nothing_in_it(dialect: str, tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here: apt-get install shellcheck")
    where = site("slurm", "modules.init=/m.sh", 'modules.use=["/a b"]', 'modules.load=["py"]', "software.index_url=https://x")
    for name, recipe in (("a", venv(where)), ("b", venv(site("slurm"), wheels="/w w"))):
        (tmp_path / f"{name}.sh").write_text(render_venv(recipe))
    found = subprocess.run(["shellcheck", f"--shell={dialect}", *tmp_path.glob("*.sh")], capture_output=True, text=True)
    assert re.findall(r"SC(?!1091)\d+ .*", found.stdout) == []


def script_said(tmp_path: Path, where: Site, **files: str) -> str:
    """What the script says on a machine with these programs."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    script = render_venv(venv(where, path=str(tmp_path / "env")))
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert done.returncode == 1 and not (tmp_path / "env").exists()
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ["a b's", "$HOME", "`touch here`", 'say "x"', "back\\slash", "two\nlines", "%s ünï", "-n"])
def test_an_evil_path_arrives_and_nothing_in_it_runs(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    script = render_venv(venv(site("slurm"), path=str(tmp_path / name)))
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr.startswith(f"neox-hpc: {tmp_path / name} exists already\n")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_old_python_is_refused_by_its_name(tmp_path: Path) -> None:
    said = script_said(tmp_path, site("slurm"), python3='#!/bin/sh\n[ "$1" = --version ] && echo Python 3.6.8\nexit 1\n')
    assert f"neox-hpc: {tmp_path}/python3 is Python 3.6.8, and 3.10 or newer is needed\n  fix: name a module" in said


def test_a_python_without_venv_is_refused(tmp_path: Path) -> None:
    said = script_said(tmp_path, site("slurm"), python3="#!/bin/sh\ncase $2 in *ensurepip*) exit 1 ;; esac\n")
    assert "cannot make environments\n  fix: apt-get install python3-venv" in said


def test_the_sites_modules_are_loaded_before_python_is_looked_for(tmp_path: Path) -> None:
    old, init = "#!/bin/sh\nexit 1\n", f'module() {{ echo "module $*"; cp "{tmp_path}/old" "{tmp_path}/python3"; }}\n'
    where = site("slurm", f"modules.init={tmp_path}/init", 'modules.use=["/soft"]', 'modules.load=["cray-python"]')
    said = script_said(tmp_path, where, old=old, init=init)
    assert said.startswith("module use /soft\nmodule load cray-python\n") and f"{tmp_path}/python3 is " in said


def test_constraints_and_wheels_that_are_not_there_are_named_together(desk: Desk) -> None:
    said = desk("env", "create", "-s", "local", "--site-set", "software.constraints=/nowhere", "--wheels", "none")
    assert said.code == 2
    assert (
        "software.constraints: no such file here: /nowhere" in said.err
        and f"--wheels: no such directory: {desk.cwd}/none" in said.err
    )
