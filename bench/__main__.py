"""``python -m bench``: measure, print, and keep the results with the machine's description."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from bench.control_plane import measure_control_plane
from bench.training import measure_training

RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> dict[str, str | int]:
    """What the numbers were measured on."""
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "torch": version("torch"),
        "deepspeed": version("deepspeed"),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "load_at_start": f"{os.getloadavg()[0]:.2f}",
    }


def main() -> int:
    """Run every measurement."""
    facts = machine()
    with tempfile.TemporaryDirectory() as folder:
        rows = {**measure_control_plane(Path(folder)), **measure_training(Path(folder))}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "last.json").write_text(json.dumps({"machine": facts, "results": rows}, indent=1) + "\n", encoding="utf-8")
    lines = [f"Machine: {', '.join(f'{name} {value}' for name, value in facts.items())}", "", "| what | result |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    text = "\n".join(lines) + "\n"
    (RESULTS / "last.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def _commit() -> str:
    try:
        said = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=RESULTS.parent)
    except OSError:
        return "unknown"
    return said.stdout.strip() or "unknown"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main())
