"""What the quickstart promises, and whether a run keeps it.  Decides only; numbers come from files that the commands wrote.

Changes when the promises do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neox_hpc.errors import Failure
from neox_hpc.metrics import read_metrics
from neox_hpc.rundir import RunDir

UNIGRAM_SHARE = 0.65
SAMPLE_WORDS = 200
DISTINCT_WORDS = 60
KNOWN_SHARE = 0.90
LONGER = 1.5
"""A second quickstart trains this many times as long as the first, from its checkpoints on."""


@dataclass(frozen=True)
class Promise:
    """One measured number and the bound it must keep."""

    what: str
    measured: str
    bound: str
    kept: bool


def check_loss(loss: float, baselines: Mapping[str, Any]) -> tuple[Promise, ...]:
    """The held-out loss (nats per token) against what counting single tokens and pairs reaches."""
    unigram, bigram = float(baselines["unigram_entropy"]), float(baselines["bigram_loss"])
    limit = UNIGRAM_SHARE * unigram
    return (
        Promise(
            "held-out loss", f"{loss:.3f}", f"at most {UNIGRAM_SHARE} x unigram entropy {unigram:.3f} = {limit:.3f}", loss <= limit
        ),
        Promise("held-out loss", f"{loss:.3f}", f"below the add-one bigram model's {bigram:.3f}", loss < bigram),
    )


def check_sample(facts: Mapping[str, Any]) -> tuple[Promise, ...]:
    """The words of a generated text against the corpus."""
    words, distinct, share = int(facts["words"]), int(facts["distinct"]), float(facts["share"])
    return (
        Promise("words sampled", str(words), f"at least {SAMPLE_WORDS}", words >= SAMPLE_WORDS),
        Promise("distinct words", str(distinct), f"at least {DISTINCT_WORDS}", distinct >= DISTINCT_WORDS),
        Promise("words that occur in the corpus", f"{share:.1%}", f"at least {KNOWN_SHARE:.0%}", share >= KNOWN_SHARE),
    )


def held_out_loss(run: RunDir) -> float:
    """The newest validation loss.

    Raises:
        Failure: the run has none.
    """
    losses = [line["validation_loss"] for line in read_metrics(run.metrics) if "validation_loss" in line]
    if not losses:
        raise Failure(f"{run.metrics}: holds no validation loss")
    return float(losses[-1])


def join_samples(lines: Sequence[str]) -> str:
    """The generated texts, one after the other.

    Raises:
        Failure: no line holds one.
    """
    texts = [json.loads(line)["text"] for line in lines if line.strip()]
    if not texts:
        raise Failure("no text was generated")
    return "\n\n".join(texts) + "\n"


def continuation(runs: Sequence[RunDir]) -> tuple[RunDir, int] | None:
    """The newest run that has a checkpoint, and the steps of the run that continues it."""
    for run in runs:
        steps = run.plan.get("train_iters")
        if (run.path / "checkpoints" / "latest").exists() and isinstance(steps, int):
            return run, int(steps * LONGER)
    return None


def shown_path(path: Path, cwd: Path) -> str:
    """As a user would write it: relative to here where it lies below."""
    return str(path.relative_to(cwd)) if path.is_relative_to(cwd) else str(path)
