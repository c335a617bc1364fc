"""The wheel, installed with the control plane's dependencies only, outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of an environment that holds the wheel and what it depends on, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(build, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr
    environment = folder / "environment"
    venv.create(environment, with_pip=True)
    (wheel,) = folder.glob("*.whl")
    pip = [environment / "bin" / "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", str(wheel)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return environment / "bin"


def run(program: Path, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """As a user does who has nothing of the checkout in the environment."""
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(cwd)}
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, cwd=cwd, env=environment)


def shared(installed: Path, name: str) -> Path:
    """A folder of data as the installed package finds it."""
    program = f"from neox_hpc.share import share; print(share({name!r}))"
    return Path(run(installed / "python", "-c", program, cwd=installed).stdout.strip())


def test_nothing_heavy_is_installed(installed: Path, tmp_path: Path) -> None:
    listed = run(installed / "pip", "list", "--format=freeze", cwd=tmp_path).stdout.lower()
    names = {line.partition("==")[0] for line in listed.splitlines()}
    assert "neox-hpc" in names
    assert not names & {"torch", "deepspeed", "triton", "numpy", "tokenizers", "safetensors", "matplotlib"}


def test_help_has_every_verb(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "neox-hpc", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in ("submit", "status", "logs", "cancel", "sites", "config"))


@pytest.mark.parametrize("name", ["sites", "configs", "containers"])
def test_every_file_of_a_shared_folder_is_in_the_wheel(installed: Path, name: str) -> None:
    folder = shared(installed, name)
    assert folder.is_relative_to(installed.parent)
    there = [path.relative_to(ROOT) for path in (ROOT / name).rglob("*") if path.is_file()]
    assert there
    assert [path for path in there if not (folder.parent / path).is_file()] == []


def test_the_pinned_versions_are_in_the_wheel(installed: Path) -> None:
    assert shared(installed, "constraints.txt").read_text() == (ROOT / "constraints.txt").read_text()


def test_a_dry_run_renders_without_torch_from_the_wheels_own_files(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "neox-hpc", "submit", "--site", "local", "--dry-run", "quickstart.yml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash")
    assert os.listdir(tmp_path) == []


def test_an_extra_that_is_missing_names_the_pip_command(installed: Path, tmp_path: Path) -> None:
    program = "from pathlib import Path; from neox_hpc.plot import draw_png; draw_png([])"
    done = run(installed / "python", "-c", program, cwd=tmp_path)
    assert "pip install 'neox-hpc[plot]'" in done.stderr


def test_a_foreign_model_package_in_the_environment_is_refused(installed: Path, tmp_path: Path) -> None:
    """``model`` is a common name: someone else's, found first, may not be taken for ours."""
    foreign = tmp_path / "theirs" / "model"
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").write_text("")
    config = shared(installed, "configs") / "quickstart.yml"
    command = [
        "/usr/bin/env",
        f"PYTHONPATH={foreign.parent}",
        installed / "neox-hpc",
        "submit",
        "--site",
        "local",
        "--dry-run",
        config,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 2
    assert str(foreign) in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""
