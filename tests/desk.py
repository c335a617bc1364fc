"""A user's desk for tests of the command: a home and a working directory of their own, and stand-ins for programs on PATH.

Changes when what the command reads of its surroundings does.  Programs are faked, never our own functions.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from neox_hpc.cli import run_command_line

CONFIG = """\
num_layers: 2
hidden_size: 64
num_attention_heads: 2
seq_length: 128
max_position_embeddings: 128
pos_emb: rotary
train_micro_batch_size_per_gpu: 4
train_iters: 20
data_path: data/train
save: checkpoints
checkpoint_factor: 10
tokenizer_type: CharLevelTokenizer
"""

TRAINS = """\
i=1
while [ $i -le 20 ]; do
  facts='"lr": 0.001, "tokens_per_s": 1000.0, "step_time_s": 0.1'
  echo "{\\"step\\": $i, \\"loss\\": $((40 - i)).5, $facts}" >>"$run/metrics.jsonl"
  i=$((i + 1))
done
echo '{"step": 20, "validation_loss": 19.25}' >>"$run/metrics.jsonl"
echo "trained"
"""
"""Ranks that train at once."""

FAILS = """\
echo 'step 3: the loss is nan' >"$NEOX_HPC_ATTEMPT_DIR/rank1.error"
sleep 0.02
printf 'rank 1 is gone\\nTraceback…\\n' >"$NEOX_HPC_ATTEMPT_DIR/rank0.error"
echo "a cascade of other people's tracebacks"
exit 1
"""
"""Rank 1 fails, rank 0 follows."""


@dataclass(frozen=True)
class Said:
    """What a command line printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def facts(self) -> Any:
        """The JSON document on stdout."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Desk:
    """``desk("submit", …)`` runs a command line, in this process, in ``desk.cwd``."""

    cwd: Path
    programs: Path
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *argv: str) -> Said:
        self.capsys.readouterr()
        code = run_command_line(list(argv))
        captured = self.capsys.readouterr()
        return Said(code, captured.out, captured.err)

    def program(self, name: str, body: str) -> Path:
        """A program of that name on PATH: a shell script that logs its arguments in calls.log."""
        path = self.programs / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>"{self.programs}/calls.log"\n{body}\n')
        path.chmod(0o755)
        return path

    @property
    def calls(self) -> list[str]:
        """Every call of a stand-in."""
        log = self.programs / "calls.log"
        return log.read_text().splitlines() if log.exists() else []

    def ranks(self, body: str) -> str:
        """``--site-set`` for a Python whose ranks do this; ``$run`` is the run directory."""
        path = self.programs / "python"
        path.write_text(f'#!/bin/sh\nfor last; do :; done\nrun=$(dirname "$last")\n{body}\n')
        path.chmod(0o755)
        return f"software.python={path}"

    def submit_local(self, body: str, *more: str) -> Said:
        """Submit the desk's configuration on this machine, its ranks doing ``body``."""
        return self("submit", "-s", "local", "--site-set", self.ranks(body), *more, "my.yml")

    def wait_for(self, state: str, run: str = "my", limit_s: float = 20.0) -> Any:
        """The facts of a run once it is in a state."""
        deadline = time.monotonic() + limit_s
        while (facts := self("status", run, "--json").facts)["state"] != state:
            assert time.monotonic() < deadline, f"{run} is {facts}, not {state}"
            time.sleep(0.05)
        return facts


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Desk:
    """A configuration ``my.yml`` with its data, in an empty home."""
    home, cwd, programs = tmp_path / "home", tmp_path / "work", tmp_path / "bin"
    for folder in (home, cwd / "data", programs):
        folder.mkdir(parents=True)
    for name in ("train.bin", "train.idx"):
        (cwd / "data" / name).write_bytes(b"")
    (cwd / "my.yml").write_text(CONFIG)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(cwd)
    return Desk(cwd=cwd, programs=programs, capsys=capsys)
