"""How long a user waits for the control plane: whole processes, cold, beside an empty Python; and rendering alone."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROUNDS = 10
ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "125M.yml"
LARGE = ROOT / "configs" / "20B.yml"
LARGEST = ("--site", "frontier", "--nodes", "1024", "--set", "train_batch_size=8192")
SLURM = ("--site", "slurm", "--site-set", "node.gpus=4", "--site-set", "node.accelerator=cuda", "--site-set", "node.cores=64")


def measure_control_plane(folder: Path) -> dict[str, str]:
    """Minimum of ten of each command, in turn, so that a busy moment falls on all of them."""
    entry = (sys.executable, "-m", "neox_hpc")
    dry_run = (*entry, "submit", *SLURM, "--dry-run", str(CONFIG))
    commands = {
        "python -c pass": (sys.executable, "-c", "pass"),
        "neox-hpc --help": (*entry, "--help"),
        "neox-hpc submit --site slurm --dry-run 125M.yml": dry_run,
        "neox-hpc submit --site slurm --dry-run --nodes 9472": (*dry_run, "--nodes", "9472"),
        "neox-hpc submit --site frontier --dry-run 20B.yml": (*entry, "submit", "--site", "frontier", "--dry-run", str(LARGE)),
        "neox-hpc plan --site frontier --nodes 1024 --auto 175B.yml": (*entry, "plan", *LARGEST, "--auto", "175B.yml"),
    }
    best = dict.fromkeys(commands, float("inf"))
    for _ in range(ROUNDS):
        for name, command in commands.items():
            best[name] = min(best[name], _seconds(lambda command=command: _run(command, folder)))
    rows = {f"{name}, cold, minimum of {ROUNDS}": f"{seconds:.3f} s" for name, seconds in best.items()}
    return rows | {"plan and render 125M, warm, minimum of 10": f"{_warm_render() * 1000:.1f} ms"}


def _warm_render() -> float:
    """One plan and render in this process, everything imported."""
    from neox_hpc.cli.prepare import Asked, prepare

    asked = Asked(
        configs=(str(CONFIG),),
        site="slurm",
        site_sets=SLURM[3::2],
    )
    return min(_seconds(lambda: prepare(asked, cwd=ROOT)) for _ in range(ROUNDS))


def _run(command: tuple[str, ...], folder: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
