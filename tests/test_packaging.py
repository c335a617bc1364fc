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


def run(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{installed}:/usr/bin:/bin", "HOME": str(cwd)}
    return subprocess.run(
        [installed / "neox-hpc", *arguments], capture_output=True, text=True, timeout=60, cwd=cwd, env=environment
    )


def test_nothing_heavy_is_installed(installed: Path) -> None:
    names = subprocess.run(
        [installed / "pip", "list", "--format=freeze"], capture_output=True, text=True, timeout=60
    ).stdout.lower()
    assert "neox-hpc" in names
    assert not [name for name in ("torch", "deepspeed", "numpy", "tokenizers") if f"{name}==" in names]


def test_help_has_every_verb(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "--help")
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in ("submit", "status", "logs", "cancel", "sites", "config"))


def test_a_dry_run_renders_without_torch_from_the_wheels_own_files(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "submit", "--site", "local", "--dry-run", "quickstart")
    if done.returncode:  # a configuration is a path; the shipped ones lie in the wheel
        package = subprocess.run(
            [installed / "python", "-c", "import neox_hpc.share as s; print(s.share('configs'))"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        config = Path(package.stdout.strip()) / "quickstart.yml"
        assert config.is_relative_to(installed.parent)
        done = run(installed, tmp_path, "submit", "--site", "local", "--dry-run", str(config))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash")
    assert os.listdir(tmp_path) == []


def test_an_extra_that_is_missing_names_the_pip_command(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "plot", "nowhere")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
