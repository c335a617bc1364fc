"""``python -m bench``: measure, print, and keep the results with the machine's description."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from bench.control_plane import measure_control_plane
from bench.machine import RESULTS, machine
from bench.training import measure_training


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


if __name__ == "__main__":
    sys.exit(main())
