"""Metrics, throughput, the failure of a rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.config import ConfigError, RunConfig, step_flops
from model.data.batch import Batch
from model.failure import LOST, report_failure
from model.gpt import GPT
from model.monitor.console import step_line
from model.monitor.metrics import MetricsFile
from tests.model.tiny import KEYS

SELECTIVE = {"checkpoint_activations": True, "neox_hpc": {"recompute_granularity": "selective"}}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"intermediate_size": 96},
        {"activation": "swiglu", "intermediate_size": 96},
        {"num_kv_heads": 2},
        {"checkpoint_activations": True},
        SELECTIVE,
    ],
    ids=str,
)
def test_the_flops_formula_counts_the_matrix_products(keys: dict[str, Any]) -> None:
    config = RunConfig.from_keys(KEYS | {"scaled_upper_triang_masked_softmax_fusion": False} | keys)
    model = GPT(config, 512)
    tokens = torch.randint(0, 512, (4, 33))
    batch = Batch(tokens_BS=tokens[:, :-1], labels_BS=tokens[:, 1:], loss_mask_BS=torch.ones(4, 32), sample_B=torch.arange(4))
    with FlopCounterMode(display=False) as counter:
        model(batch).backward()
    assert step_flops(config, 4, 512, recomputed=True) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_metrics_beyond_the_step_that_a_run_begins_from_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, begin_step=0)
    for step in range(1, 6):
        first.write({"step": step, "loss": 1.0 / step})
    first.close()
    path.write_text(path.read_text() + '{"step": 6, "lo')  # killed while writing
    again = MetricsFile(path, begin_step=3)
    again.write({"step": 4, "loss": float("nan")})
    again.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["loss"] is None


def test_a_step_is_one_readable_line() -> None:
    metrics = {
        "step": 5,
        "loss": 2.0,
        "lr": 0.001,
        "grad_norm": 0.5,
        "step_time_s": 0.25,
        "tokens_per_s": 1024.4,
        "tflops_per_rank": 0.1,
    }
    expected = "step   5/100 | loss 2.0000 | lr 1.000e-03 | grad norm 0.500 | 250 ms | 1024 tokens/s | 0.100 TFLOP/s per rank"
    assert step_line(metrics, 100) == expected


def test_our_own_errors_have_no_traceback_and_others_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEOX_HPC_ATTEMPT_DIR", str(tmp_path))
    with pytest.raises(ConfigError) as ours:
        RunConfig.from_keys({"num_layerz": 1})
    assert report_failure(ours.value, 3) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert (tmp_path / "rank3.error").read_text().startswith("num_layerz: unknown key")
    with pytest.raises(RuntimeError) as torchs:
        torch.ones(2) @ torch.ones(3)
    assert report_failure(torchs.value, 4) == 1
    assert "[rank 4] error: RuntimeError" in capsys.readouterr().err
    assert "Traceback" in (tmp_path / "rank4.error").read_text()


def test_a_collective_that_broke_off_points_at_the_other_ranks_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError("[/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [10.0.0.1]: Connection reset by peer")
    assert report_failure(error, 0) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"[rank 0] error: {LOST}")
    assert "Connection reset by peer" in said
    assert "Traceback" not in said


def test_the_first_error_of_a_rank_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEOX_HPC_ATTEMPT_DIR", str(tmp_path))
    for text in ("first", "second"):
        report_failure(RuntimeError(text), 0)
    assert (tmp_path / "rank0.error").read_text().startswith("RuntimeError: first")
