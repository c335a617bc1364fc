"""What only a GPU can show; ``make test-gpu`` runs it where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from model.config import Layout, RunConfig, RunFile, write_run
from model.config.architecture import InitMethod
from model.gpt import GPT
from model.kernels.activations import flash_attn_swiglu
from model.parallel import loss
from model.parallel.groups import Groups, one_rank
from model.parallel.parameters import global_parameters, local_slice
from tests.model.networks import VOCAB, small_config
from tests.model.tiny import KEYS, curve, write_tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: make test-gpu on a machine with one"),
]
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bfloat16"},
    "fp16": {"fp16": {"enabled": True, "initial_scale_power": 12}},
    "fp16 that overflows at first": {"fp16": {"enabled": True, "initial_scale_power": 26, "hysteresis": 1}},
    "fp16 ZeRO-2": {"fp16": {"enabled": True, "initial_scale_power": 12}, "zero_optimization": {"stage": 2}},
    "bf16 ZeRO-3": {"precision": "bfloat16", "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}},
    "bf16 offloaded": {
        "precision": "bfloat16",
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
    },
}


def train(run_dir: Path, **changes: Any) -> None:
    run_dir.mkdir(parents=True)
    keys = KEYS | {"data_path": str(write_tokens(run_dir)), "split": "9,1,0", "save": str(run_dir / "checkpoints")} | changes
    (run_dir / "run.json").write_text(write_run(RunFile(name="gpu", device="gpu", config=RunConfig.from_keys(keys))))
    environ = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-m", "model.train", str(run_dir / "run.json")], env=environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_gpu_learns_in_every_precision_and_stage(tmp_path: Path, precision: str) -> None:
    train(tmp_path / "run", **PRECISIONS[precision])
    losses = curve(tmp_path / "run")
    assert losses[0] - losses[-1] > 0.5


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "Adam": {},
    "8-bit Adam": {"use_bnb_optimizer": True},
    "8-bit Adam, ZeRO-1": {"use_bnb_optimizer": True, "zero_optimization": {"stage": 1}},
    "SGD": {"optimizer": {"type": "sgd", "params": {"lr": 0.1, "momentum": 0.9}}},
    "Lion, ZeRO-1": {"optimizer": {"type": "lion", "params": {"lr": 1e-3}}, "zero_optimization": {"stage": 1}},
    "MADGRAD, ZeRO-3": {"optimizer": {"type": "madgrad_wd", "params": {"lr": 0.01}}, "zero_optimization": {"stage": 3}},
    "SM3": {"optimizer": {"type": "sm3", "params": {"lr": 0.01, "momentum": 0.9}}, "weight_decay": 0.0},
    "1-bit Adam": {"optimizer": {"type": "onebitadam", "params": {"lr": 1e-3, "eps": 1e-4, "freeze_step": 15}}},
    "Muon": {"optimizer": {"type": "muon", "params": {"lr": 0.01, "eps": 1e-4}}},
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_gpu_follows_a_cpu_in_fp32(tmp_path: Path, optimizer: str) -> None:
    train(tmp_path / "gpu", hidden_dropout=0.0, use_cpu_initialization=True, **OPTIMIZERS[optimizer])
    text = (tmp_path / "gpu" / "run.json").read_text().replace(str(tmp_path / "gpu"), str(tmp_path / "cpu"))
    (tmp_path / "cpu").mkdir()
    write_tokens(tmp_path / "cpu")
    (tmp_path / "cpu" / "run.json").write_text(json.dumps(json.loads(text) | {"device": "cpu"}))
    subprocess.run([sys.executable, "-m", "model.train", str(tmp_path / "cpu" / "run.json")], check=True, timeout=300)
    assert curve(tmp_path / "gpu") == pytest.approx(curve(tmp_path / "cpu"), rel=1e-3 if optimizer == "Adam" else 1e-2)


@pytest.mark.parametrize("method", get_args(InitMethod))
def test_weights_that_a_gpu_draws_are_the_same_on_every_layout_and_not_those_of_a_cpu(method: str) -> None:
    keys: dict[str, Any] = {"init_method": method, "output_layer_init_method": method}
    device, layout = torch.device("cuda"), Layout(world_size=2, tensor=2)
    wholes = {p.global_name: p for p in global_parameters(GPT(small_config(**keys), VOCAB, device=device))}
    cut = small_config(**keys, model_parallel_size=2)
    for rank in range(2):
        for p in global_parameters(GPT(cut, VOCAB, Groups(layout=layout, rank=rank), device=device)):
            assert torch.equal(p, local_slice(p, wholes[p.global_name].detach())), p.global_name
    other = GPT(small_config(**keys, use_cpu_initialization=True), VOCAB, device=device)
    matrices = [p for p in global_parameters(other) if p.dim() == 2]
    assert not any(torch.equal(p, wholes[p.global_name]) for p in matrices)
    for p in matrices:
        assert p.detach().std().item() == pytest.approx(wholes[p.global_name].detach().std().item(), rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_loss_of_a_gpu_and_its_gradients_are_those_of_a_cpu_in_fp64(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_GPU", 100 * 5000)
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(3, 63, 64, generator=generator), 0.5 * torch.randn(5000, 64, generator=generator)
    labels, mask = torch.randint(0, 5000, (3, 63), generator=generator), (torch.rand(3, 63, generator=generator) > 0.2).float()
    x, weight = (t.to(dtype) for t in (x, weight))
    here = [t.double().requires_grad_() for t in (x, weight)]
    there = [t.cuda().requires_grad_() for t in (x, weight)]
    values = [
        loss.head_loss(*given, labels.to(given[0].device), mask.to(given[0].device), one_rank(), z_loss=0.1)
        for given in (here, there)
    ]
    for value in values:
        value.backward()
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    assert values[1].item() == pytest.approx(values[0].item(), rel=tolerance)
    for expected, found in zip(here, there, strict=True):
        difference = (found.grad.cpu().double() - expected.grad).abs().max() / expected.grad.abs().max()
        assert float(difference) < tolerance


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_flash_attn_s_swiglu_is_the_plain_one(precision: torch.dtype) -> None:
    pytest.importorskip("flash_attn", reason="pip install flash-attn")
    x_2F = torch.randn(63, 2 * 96, device="cuda", dtype=precision, requires_grad=True)
    value_F, gate_F = x_2F.chunk(2, dim=-1)
    found_F, expected_F = flash_attn_swiglu(x_2F), torch.nn.functional.silu(gate_F) * value_F
    torch.testing.assert_close(found_F, expected_F)
    gradients = (torch.autograd.grad(y_F.square().sum(), x_2F)[0] for y_F in (found_F, expected_F))
    torch.testing.assert_close(*gradients)
