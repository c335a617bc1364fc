"""How fast one process trains on this machine, beside others' implementations of the same network and the ceiling of its products.

    python -m bench.train --shape 14M --dtype bf16 --rounds 5 --mode eager

Every contestant is a process of its own; they take turns, a round each, so that a disturbance of the machine meets all of them.
A speed is the median over rounds (lowest to highest), a ratio the median of the rounds' ratios; memory is the process's peak.
bench/requirements.txt says how to install litgpt; without it the others are compared.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.machine import RESULTS, machine

MODES = ("eager", "compiled")
WARM_UP = 2
SECONDS = 1.5
"""A turn is as many steps as take about this long: short, because a shared machine's speed changes within a minute."""

TARGETS = {
    ("14M", "fp32"): {"ratio": 1.35, "share": 0.75, "memory": 0.5},
    ("14M", "bf16"): {"ratio": 1.25, "share": 0.60, "memory": 0.5},
    ("70M", "fp32"): {"ratio": 1.08, "share": 0.75, "memory": 0.9},
    ("70M", "bf16"): {"ratio": 1.3, "share": 0.60, "memory": 0.9},
}


class Worker:
    """A contestant's process: it trains some steps when told to."""

    def __init__(self, name: str, shape: str, dtype: str, threads: int) -> None:
        self.name = name
        command = [sys.executable, "-m", "bench.train", "--worker", name, "--shape", shape, "--dtype", dtype]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.first = self._answer()
        """Its first step: how long it took (compilation too) and the loss."""

    def turn(self, steps: int) -> dict[str, float]:
        """Seconds a step by the clock and of the processor, loss of the last one, and peak memory."""
        assert self._process.stdin is not None
        print(steps, file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}")
        return json.loads(line)


def work(name: str, shape: str, dtype: str) -> None:
    """A worker's life."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer

    from bench.contestants import DTYPES, SHAPES, make

    training = make(name, SHAPES[shape], DTYPES[dtype])
    steps = 1
    while True:
        begin, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            loss = training.step()
        facts = {"seconds": (time.perf_counter() - begin) / steps, "cpu_s": (time.process_time() - cpu) / steps}
        print(json.dumps(facts | {"loss": loss, "peak_mib": _peak_mib()}), file=out, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        steps = int(line)


def measure(shape: str, dtype: str, modes: list[str], rounds: int, threads: int) -> dict[str, Any]:
    """Every contestant of a cell."""
    from bench.contestants import CONTESTANTS, SHAPES

    there = [who for who in CONTESTANTS if who == "ours" or importlib.util.find_spec(who)]
    names = [f"{who} {mode}" for mode in modes for who in there] + ["products"]
    workers, absent = [], {}
    for name in names:
        try:
            workers.append(Worker(name, shape, dtype, threads))
        except RuntimeError as error:  # torch's compiler cannot build every network in every number format
            absent[name] = str(error)
            print(f"left out: {error}; what it said is above", file=sys.stderr)
    for worker in workers:
        worker.turn(WARM_UP)
    turns: dict[str, list[dict[str, float]]] = {worker.name: [] for worker in workers}
    steps = {worker.name: max(1, round(SECONDS / worker.turn(1)["seconds"])) for worker in workers}
    loads = []
    for number in range(rounds):
        loads.append(os.getloadavg()[0])
        for worker in workers if number % 2 == 0 else reversed(workers):
            turns[worker.name].append(worker.turn(steps[worker.name]))
    for worker in workers:
        worker.close()
    tokens = SHAPES[shape].tokens
    return {
        "machine": machine(),
        "rounds": rounds,
        "threads": threads,
        "load": loads,
        "absent": absent,
        "contestants": {
            worker.name: {
                "tokens_per_s": [tokens / turn["seconds"] for turn in turns[worker.name]],
                "tokens_per_cpu_s": [tokens / turn["cpu_s"] for turn in turns[worker.name]],
                "peak_mib": turns[worker.name][-1]["peak_mib"],
                "first_step_s": worker.first["seconds"],
                "first_loss": worker.first["loss"],
            }
            for worker in workers
        },
    }


def rows_of(title: str, cell: dict[str, Any]) -> list[str]:
    """A cell's part of the table."""
    everyone = cell["contestants"]
    speed = {name: statistics.median(facts["tokens_per_s"]) for name, facts in everyone.items()}
    best = max((name for name in everyone if name.split()[0] not in ("ours", "products")), key=lambda name: speed[name])
    shape, dtype, *_ = title.split()
    target = TARGETS[shape, dtype]
    lines = []
    for name, facts in everyone.items():
        ratio, share = (_ratio(facts, everyone[other], "tokens_per_s") for other in (best, "products"))
        cpu_ratio, cpu_share = (_ratio(facts, everyone[other], "tokens_per_cpu_s") for other in (best, "products"))
        beside = everyone.get(f"transformers {name.split()[-1]}", everyone.get("transformers eager"))
        memory = facts["peak_mib"] / beside["peak_mib"] if name != "products" and beside else None
        goal = target if name.startswith("ours") else {}
        spread = f"{min(facts['tokens_per_s']):.0f} to {max(facts['tokens_per_s']):.0f}"
        cells = [title, f"**{name}**" if goal else name, f"{speed[name]:.0f} ({spread})"]
        if name == "products":
            cells += ["", "1.00", "", "", ""]
        else:
            cells += [_against(ratio, goal.get("ratio"), "≥"), _against(share, goal.get("share"), "≥")]
            cells += [f"{cpu_ratio:.2f}, {cpu_share:.2f}"]
            cells += [f"{facts['peak_mib']:.0f} MiB, " + _against(memory, goal.get("memory"), "≤"), f"{facts['first_step_s']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def write(cells: dict[str, Any]) -> str:
    """Keep the cells, those of earlier runs too, and show all of them."""
    path = RESULTS / "train.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = dict(sorted((kept | cells).items()))
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# Training one process on CPUs",
        "",
        "6 layers, hidden 128/512, 4/8 heads, vocabulary 50304, sequence 512, micro-batch 4/2, untied; bf16 with fp32 masters;",
        "one fused AdamW; `python -m bench.train`.  Tokens/s: median (lowest to highest) of rounds in which contestants take",
        "turns.  Best peer: the fastest of the others in the cell.  Ceiling: the products with the network's matrices, forward and",
        "backward, alone; attention and everything else is not in it, and on CPUs without bf16 units its bf16 products are",
        "imitated in software, where ours go through fp32.  Memory: the process's peak, and its ratio to transformers' in the",
        "same mode (eager, where torch cannot compile that).  In brackets: targets.",
        "",
        "By processor time: the same two ratios of the processor's seconds, which other programs on the machine disturb less.",
        "",
        "| cell | who | tokens/s | of the best peer | of the ceiling | by processor time | memory | first step, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, cell in kept.items():
        lines += rows_of(name, cell)
    lines.append("")
    for name, cell in kept.items():
        facts = ", ".join(f"{key} {value}" for key, value in cell["machine"].items())
        loads = f"load {min(cell['load']):.1f} to {max(cell['load']):.1f}"
        lines.append(f"- {name}: {cell['threads']} threads, {cell['rounds']} rounds, {loads}; {facts}")
        lines += [f"  - left out, see the error that it printed: {why}" for why in cell.get("absent", {}).values()]
    text = "\n".join(lines) + "\n"
    (RESULTS / "train.md").write_text(text, encoding="utf-8")
    return text


def main() -> int:
    """Measure the cells that are asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("14M", "70M"), action="append", help="may be repeated; all when absent")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), action="append", help="may be repeated; both when absent")
    parser.add_argument("--mode", choices=MODES, action="append", help="may be repeated; both when absent")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each contestant; as many as cores when absent")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    shapes, dtypes = asked.shape or ["14M", "70M"], asked.dtype or ["fp32", "bf16"]
    if asked.worker:
        work(asked.worker, shapes[0], dtypes[0])
        return 0
    for shape in shapes:
        for dtype in dtypes:
            cell = measure(shape, dtype, asked.mode or list(MODES), asked.rounds, asked.threads)
            name = f"{shape} {dtype}" + ("" if asked.threads == os.cpu_count() else f" threads={asked.threads}")
            print(write({name: cell}), flush=True)
    return 0


def _ratio(facts: dict[str, Any], other: dict[str, Any], key: str) -> float:
    return statistics.median(a / b for a, b in zip(facts[key], other[key], strict=True))


def _against(value: float | None, goal: float | None, sign: str) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" + ("" if goal is None else f" ({sign} {goal:.2f})")


def _peak_mib() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
