"""How fast the quickstart's model trains on this machine, through the product's own entry point."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = 120
WARM_UP = 20


def measure_training(folder: Path) -> dict[str, str]:
    """Median tokens/s over the steps after the first ones, one rank with two threads and two ranks with one each."""
    _run([sys.executable, "-m", "model.data.prepare", "stdlib", "-d", str(folder / "data" / "stdlib")])
    rows = {}
    for ranks, threads in ((1, 2), (2, 1)):
        run_dir = folder / f"ranks{ranks}"
        run_dir.mkdir()
        show = [sys.executable, "-m", "neox_hpc", "config", "show", "--json", str(ROOT / "configs" / "quickstart.yml")]
        sets = ["--set", f"train_iters={STEPS}", "--set", "eval_iters=0", "--set", f"save={run_dir}/checkpoints"]
        (run_dir / "run.json").write_text(_run([*show, *sets], cwd=folder), encoding="utf-8")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "-m", "model.train"]
        _run([*torchrun, str(run_dir / "run.json")], OMP_NUM_THREADS=str(threads))
        metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        speeds = [line["tokens_per_s"] for line in metrics if "tokens_per_s" in line][WARM_UP:]
        quarter = statistics.quantiles(speeds, n=4)
        name = f"quickstart model, tokens/s, ranks x threads {ranks} x {threads}, median (quartiles)"
        rows[name] = f"{statistics.median(speeds):.0f} ({quarter[0]:.0f} to {quarter[2]:.0f})"
    return rows


def _run(command: list[str], cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=600, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return done.stdout
