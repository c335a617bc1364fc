"""The program that samples, as a user calls it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from model import generate
from model.config import RunConfig, RunFile, write_run
from model.gpt import GPT
from model.parallel.parameters import global_parameters

ROOT = Path(__file__).resolve().parents[2]
FIELDS = ["context", "text", "length", "finished", "message", "duration_seconds"]
KEYS: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "seq_length": 40,
    "max_position_embeddings": 40,
    "pos_emb": "rotary",
    "tokenizer_type": "CharLevelTokenizer",
    "train_micro_batch_size_per_gpu": 1,
    "train_iters": 1,
    "temperature": 1.0,
    "maximum_tokens": 12,
    "num_samples": 3,
}

Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run(**keys)`` writes a run.json; its checkpoint holds untrained weights."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)

    def write(**keys: Any) -> Path:
        config = RunConfig.from_keys(KEYS | keys)
        weights = {p.global_name: p.detach() for p in global_parameters(GPT(config, 512))}
        monkeypatch.setattr(generate, "newest_checkpoint", lambda place, say: place if place == tmp_path else None)
        monkeypatch.setattr(generate, "load_weights", lambda place: weights)
        path = tmp_path / "run.json"
        path.write_text(write_run(RunFile(name="tiny", device="cpu", config=config)))
        return path

    return write


def samples_of(run_file: Path, *arguments: str, file: str = "samples.txt") -> list[dict[str, Any]]:
    assert generate.main([str(run_file), "--checkpoint", str(run_file.parent), *arguments]) == 0
    return [json.loads(line) for line in (run_file.parent / file).read_text().splitlines()]


def test_unconditional_samples_have_gpt_neox_s_fields(run: Run) -> None:
    samples = samples_of(run())
    assert [list(sample) for sample in samples] == [FIELDS] * 3
    assert {sample["context"] for sample in samples} == {""}
    assert all(sample["length"] == 12 or sample["finished"] for sample in samples)


def test_the_same_seed_gives_the_same_text_and_another_seed_another(run: Run) -> None:
    texts = [[s["text"] for s in samples_of(run(), "--set", f"seed={seed}")] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_every_prompt_of_the_file_gets_its_samples_in_order(run: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("def f\n\n  x = \nab\n")
    samples = samples_of(
        run(sample_input_file="prompts.txt", num_samples=2), "--set", "sample_output_file=out.jsonl", file="out.jsonl"
    )
    assert [sample["context"] for sample in samples] == ["def f", "def f", "  x = ", "  x = ", "ab", "ab"]
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_a_context_that_leaves_no_room_is_said_in_the_message(run: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("x" * 35 + "\n" + "x" * 45 + "\n")
    near, beyond = samples_of(run(sample_input_file="prompts.txt", num_samples=1, seed=3))
    assert (near["length"], near["message"]) == (5, "stopped after 40 tokens in all: seq_length is 40")
    assert (beyond["length"], beyond["text"]) == (0, "")
    assert "seq_length is 40" in beyond["message"]


@pytest.mark.parametrize("precision", ["fp32", "bfloat16"])
def test_sampling_runs_in_the_precision_of_the_run(run: Run, precision: str) -> None:
    assert len(samples_of(run(precision=precision))) == 3


@pytest.mark.parametrize(
    ("keys", "arguments", "message"),
    [
        ({}, ["--set", "temperature"], "--set temperature: no value"),
        ({}, ["--set", "temprature=1"], "temprature: unknown key\n  fix: did you mean temperature?"),
        ({}, ["--set", "norm=te_rmsnorm"], "norm: te_rmsnorm does not train yet"),
        ({}, ["--checkpoint", "nowhere"], "no checkpoint in .*nowhere\n  fix: train first"),
        ({"sample_input_file": "absent.txt"}, [], "absent.txt cannot be read"),
        ({"text_gen_type": "input-file"}, [], "sample_input_file is not given"),
        ({"sample_output_file": "no/such/folder"}, [], "no/such/folder cannot be written"),
        (
            {"intermediate_size": 64},
            ["--set", "intermediate_size=65"],
            r"linear1.weight is \[64, 32\] in the weights, \[65, 32\] here",
        ),
    ],
)
def test_a_user_s_mistake_is_told_in_one_message(
    run: Run, keys: dict[str, Any], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file = run(**keys)
    assert generate.main([str(run_file), "--checkpoint", str(run_file.parent), *arguments]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert re.search(message, error), error


def test_more_ranks_than_tensor_parallelism_needs_are_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file = run()
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert generate.main([str(run_file), "--checkpoint", str(run_file.parent)]) == 2
    assert (
        "2 ranks, and a model is cut over model_parallel_size 1 x pipe_parallel_size 1\n  fix: start one rank"
        in capsys.readouterr().err
    )


def test_sampling_needs_no_deepspeed(tmp_path: Path) -> None:
    (tmp_path / "deepspeed.py").write_text("raise ImportError('deepspeed is not there')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", "model.generate", "absent.json"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "absent.json: cannot be read" in done.stderr
