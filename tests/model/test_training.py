"""Training: against a plain loop in torch, over precisions and layouts, through interruptions."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import load_weights
from model.config import RunConfig, read_run
from model.data.loader import open_data
from model.failure import LOST
from model.gpt import GPT
from model.parallel.parameters import global_parameters
from tests.model.tiny import KEYS, curve, write_tiny_run
from tests.ranks import RankPool

CASE = "tests.model.cases_training:train"
REFUSAL = "tests.model.cases_training:refusal"
LAYOUTS: dict[str, dict[str, Any]] = {
    "fp32 ZeRO-0": {},
    "fp32 ZeRO-1": {"zero_optimization": {"stage": 1}},
    "fp32 tensor 2": {"model_parallel_size": 2},
    "fp32 tensor 2 ZeRO-1": {"model_parallel_size": 2, "zero_optimization": {"stage": 1}},
    "bf16": {"precision": "bfloat16"},
    "fp16": {"fp16": {"enabled": True, "initial_scale_power": 26, "loss_scale_window": 4, "hysteresis": 1}},
}
FP16 = torch.ops.mkldnn._is_mkldnn_fp16_supported()
NO_FP16 = "this CPU has no fp16 arithmetic; on one that has (avx512_fp16): make test"


def plain_torch(run_file: Path) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of the same run in a plain loop: one process, torch's AdamW and clipping, no DeepSpeed."""
    config = read_run(run_file).config
    batch = config.batch_sizes(config.layout(1))
    data = open_data(config, batch, run_file.parent / "plain-index", build=True)
    model = GPT(config, 512)
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    params = config.optimization.optimizer.params
    decayed = [{"params": decay}, {"params": plain, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(decayed, betas=params.betas, eps=params.eps, weight_decay=0.1)
    losses, norms = [], []
    for step in range(20):
        for group in optimizer.param_groups:
            group["lr"] = config.schedule.rate(step)
        loss = model(data.train.batch(step, 0))
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimization.gradient_clipping)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, norms


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name.startswith("fp32")])
def test_two_ranks_follow_a_plain_loop_in_torch(tmp_path: Path, two_ranks: RankPool, layout: str) -> None:
    run_file = write_tiny_run(tmp_path / "run", hidden_dropout=0.0, save=None, train_micro_batch_size_per_gpu=2, **LAYOUTS[layout])
    two_ranks.run(CASE, run_file)
    losses, norms = plain_torch(write_tiny_run(tmp_path / "plain", hidden_dropout=0.0, save=None))
    assert losses[0] - losses[-1] > 0.5
    assert curve(tmp_path / "run") == pytest.approx(losses, rel=2e-5)
    assert curve(tmp_path / "run", "grad_norm") == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_interrupted_run_continues_with_the_same_losses_bit_for_bit(tmp_path: Path, two_ranks: RankPool, layout: str) -> None:
    if layout == "fp16" and not FP16:
        pytest.skip(NO_FP16)
    two_ranks.run(CASE, write_tiny_run(tmp_path / "whole", **LAYOUTS[layout]))
    two_ranks.run(CASE, write_tiny_run(tmp_path / "cut", exit_interval=7, **LAYOUTS[layout]))
    assert len(curve(tmp_path / "cut")) == 7
    two_ranks.run(CASE, write_tiny_run(tmp_path / "cut", **LAYOUTS[layout]))
    for key in ("loss", "grad_norm", "lr"):
        assert curve(tmp_path / "cut", key) == curve(tmp_path / "whole", key)
    assert curve(tmp_path / "cut", "validation_loss")[-2:] == curve(tmp_path / "whole", "validation_loss")


@pytest.mark.parametrize(
    ("layout", "network"),
    [
        ("fp32 ZeRO-0", {}),
        ("fp32 ZeRO-1", {}),
        ("fp32 tensor 2 ZeRO-1", {"activation": "swiglu", "intermediate_size": 192, "norm": "rmsnorm", "use_qk_layernorm": True}),
    ],
)
def test_a_checkpoint_continues_at_another_layout(
    tmp_path: Path, rank_pool: Callable[[int], RankPool], layout: str, network: dict[str, Any]
) -> None:
    keys = {"hidden_dropout": 0.0} | network
    rank_pool(1).run(CASE, write_tiny_run(tmp_path / "whole", **keys))
    rank_pool(2).run(CASE, write_tiny_run(tmp_path / "first", exit_interval=7, **keys, **LAYOUTS[layout]))
    load = str(tmp_path / "first" / "checkpoints")
    for other in ("fp32 ZeRO-1", "fp32 tensor 2"):
        run_dir = tmp_path / other
        rank_pool(2).run(CASE, write_tiny_run(run_dir, load=load, **keys, **LAYOUTS[other]))
        assert curve(run_dir) == pytest.approx(curve(tmp_path / "whole")[7:], rel=2e-5)
    rank_pool(1).run(CASE, write_tiny_run(tmp_path / "one", load=load, **keys))
    assert curve(tmp_path / "one") == pytest.approx(curve(tmp_path / "whole")[7:], rel=2e-5)


def test_bf16_follows_fp32(tmp_path: Path, two_ranks: RankPool) -> None:
    for precision in ("fp32", "bfloat16"):
        two_ranks.run(CASE, write_tiny_run(tmp_path / precision, precision=precision, save=None))
    full, half = curve(tmp_path / "fp32"), curve(tmp_path / "bfloat16")
    assert full[0] - full[-1] > 0.5
    assert half[0] - half[-1] > 0.5
    assert half == pytest.approx(full, rel=0.01)
    assert half != full


@pytest.mark.skipif(not FP16, reason=NO_FP16)
def test_fp16_follows_fp32_and_skips_steps_that_overflow(tmp_path: Path, two_ranks: RankPool) -> None:
    for name, scale_power in (("kept", 10), ("skipped", 26)):
        fp16 = {"enabled": True, "initial_scale_power": scale_power, "hysteresis": 1}
        two_ranks.run(CASE, write_tiny_run(tmp_path / name, fp16=fp16, save=None))
    two_ranks.run(CASE, write_tiny_run(tmp_path / "fp32", save=None))
    assert sum(curve(tmp_path / "kept", "skipped")) == 0
    assert curve(tmp_path / "kept") == pytest.approx(curve(tmp_path / "fp32"), rel=0.01)
    skipped, scales = curve(tmp_path / "skipped", "skipped"), curve(tmp_path / "skipped", "loss_scale")
    assert 0 < sum(skipped) < 15
    assert scales[-1] == 2 ** (26 - sum(skipped))


@pytest.mark.skipif(not FP16, reason=NO_FP16)
def test_fp16_that_overflows_at_every_step_stops(tmp_path: Path, two_ranks: RankPool) -> None:
    keys = {"fp16": {"enabled": True, "loss_scale": 2.0**40}, "train_iters": 60, "save": None}
    said = two_ranks.run(REFUSAL, write_tiny_run(tmp_path / "run", **keys))
    assert said[0].startswith("step 50: the fp16 gradient overflowed 50 steps in a row")
    assert said[1] == ""


def test_gradient_accumulation_equals_one_large_micro_batch(tmp_path: Path, two_ranks: RankPool) -> None:
    for micro in (1, 4):
        run_dir = tmp_path / str(micro)
        two_ranks.run(CASE, write_tiny_run(run_dir, train_micro_batch_size_per_gpu=micro, hidden_dropout=0.0, save=None))
    assert curve(tmp_path / "1") == pytest.approx(curve(tmp_path / "4"), rel=2e-5)


def test_recomputing_activations_changes_nothing(tmp_path: Path, two_ranks: RankPool) -> None:
    for recompute in (False, True):
        keys = {"checkpoint_activations": recompute, "checkpoint_num_layers": 2, "save": None}
        two_ranks.run(CASE, write_tiny_run(tmp_path / str(recompute), **keys))
    assert curve(tmp_path / "True") == curve(tmp_path / "False")


def test_finetune_begins_at_step_0_with_the_loaded_weights(tmp_path: Path, two_ranks: RankPool) -> None:
    two_ranks.run(CASE, write_tiny_run(tmp_path / "first", hidden_dropout=0.0))
    load = str(tmp_path / "first" / "checkpoints")
    two_ranks.run(CASE, write_tiny_run(tmp_path / "second", load=load, finetune=True, hidden_dropout=0.0, train_iters=3))
    assert len(curve(tmp_path / "second")) == 3
    assert curve(tmp_path / "second")[0] < curve(tmp_path / "first")[0] - 0.5
    assert curve(tmp_path / "second", "lr")[0] == read_run(tmp_path / "second" / "run.json").config.schedule.rate(0)


def test_a_run_is_tested_at_its_last_step_and_stops_at_multiples_of_exit_interval(tmp_path: Path, two_ranks: RankPool) -> None:
    run_file = write_tiny_run(tmp_path / "run", split="8,1,1", train_iters=5, exit_interval=2)
    for steps, tested in ((2, 0), (4, 0), (5, 1)):
        two_ranks.run(CASE, run_file)
        assert len(curve(tmp_path / "run")) == steps
        assert len(curve(tmp_path / "run", "test_loss")) == tested


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path, two_ranks: RankPool) -> None:
    keys = {"checkpoint_factor": 2, "extra_save_iters": [3], "keep_last_n_checkpoints": 2, "train_iters": 9}
    two_ranks.run(CASE, write_tiny_run(tmp_path / "run", **keys))
    save = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in save.iterdir()) == ["global_step8", "global_step9", "latest"]
    assert (save / "latest").read_text() == "global_step9\n"


def test_step_0_can_be_saved_and_is_where_a_run_begins(tmp_path: Path, two_ranks: RankPool) -> None:
    run_file = write_tiny_run(tmp_path / "run", extra_save_iters=[0, 1], train_iters=2)
    two_ranks.run(CASE, run_file)
    save = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in save.glob("global_step*")) == ["global_step0", "global_step1", "global_step2"]
    first = {parameter.global_name: parameter for parameter in global_parameters(GPT(read_run(run_file).config, 512))}
    for name, weight in load_weights(save / "global_step0").items():
        assert torch.equal(weight, first[name].detach())


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(tmp_path: Path, two_ranks: RankPool) -> None:
    keys = {"optimizer": {"type": "Adam", "params": {"lr": 1e30}}, "gradient_clipping": 0.0, "save": None}
    said = "".join(two_ranks.run(REFUSAL, write_tiny_run(tmp_path / "run", **keys)))
    assert re.match(r"step \d+: the (loss|norm of the gradient) is (nan|inf): the \w+ .+ is the first .+\n  fix: lower the", said)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"model_parallel_size": 2, "zero_optimization": {"stage": 1}},
        {"pipe_parallel_size": 2},
        {"zero_optimization": {"stage": 3}},
        {"precision": "bfloat16", "zero_optimization": {"stage": 2}},
    ],
    ids=["ZeRO-0", "tensor 2, ZeRO-1", "pipe 2", "ZeRO-3", "bf16, ZeRO-2"],
)
def test_the_layer_that_first_gives_no_number_is_named_and_the_checkpoint_before_it_stays(
    tmp_path: Path, two_ranks: RankPool, keys: dict[str, Any]
) -> None:
    run_file = write_tiny_run(tmp_path / "run", checkpoint_factor=2, hidden_dropout=0.0, gradient_accumulation_steps=2, **keys)
    said = two_ranks.run("tests.model.cases_training:refusal_with_infinity", run_file, 1, 3)
    assert re.match(r"step 3: the (loss|norm of the gradient) is (nan|inf): ", "".join(said))
    assert "the output of layers.1 is the first that is not finite, in micro-batch 2\n" in "".join(said)
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").glob("global_step*"))] == ["global_step2"]
    assert len(curve(tmp_path / "run")) == 2


@pytest.mark.parametrize("keys", [{}, {"pipe_parallel_size": 2}], ids=["one stage", "two stages"])
def test_a_loss_that_overflows_in_the_head_is_named(tmp_path: Path, two_ranks: RankPool, keys: dict[str, Any]) -> None:
    run_file = write_tiny_run(tmp_path / "run", checkpoint_factor=2, hidden_dropout=0.0, gradient_accumulation_steps=2, **keys)
    said = "".join(two_ranks.run("tests.model.cases_training:refusal_with_infinity", run_file, None, 3))
    assert re.match(
        r"step 3: the (loss|norm of the gradient) is (nan|inf): the loss is the first that is not finite, in micro-", said
    )
    assert "in micro-batch 2\n" in said
    assert len(curve(tmp_path / "run")) == 2


def test_stages_with_partitioned_gradients_are_refused_by_the_training_too(tmp_path: Path, two_ranks: RankPool) -> None:
    run_file = write_tiny_run(tmp_path / "run", pipe_parallel_size=2, zero_optimization={"stage": 2})
    assert "zero_optimization.stage 2 cannot be combined with 2 pipeline stages\n  fix: " in two_ranks.run(REFUSAL, run_file)[0]


def test_a_load_directory_without_a_checkpoint_is_an_error(tmp_path: Path, two_ranks: RankPool) -> None:
    said = two_ranks.run(REFUSAL, write_tiny_run(tmp_path / "run", load=str(tmp_path)))
    assert said == [f"load: {tmp_path} holds no checkpoint\n  fix: name a directory that a run saved to, or remove load", ""]


def test_a_checkpoint_of_another_model_is_an_error_that_names_the_parameter(tmp_path: Path, two_ranks: RankPool) -> None:
    two_ranks.run(CASE, write_tiny_run(tmp_path / "first", train_iters=2))
    load = str(tmp_path / "first" / "checkpoints")
    said = two_ranks.run(REFUSAL, write_tiny_run(tmp_path / "second", load=load, hidden_size=32))[0]
    assert "embedding.word_embeddings.weight has shape [512, 64], this model's has [512, 32]" in said


# Processes, as a launcher starts them --------------------------------------------------------------------------------------


def start(run_file: Path, rank: int = 0, world: int = 1, port: int = 0, **environment: str) -> subprocess.Popen[str]:
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "model.train", str(run_file)]
    environ = os.environ | ranks | meeting | environment
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def start_two(run_file: Path, attempt: Path, **environment: str) -> list[subprocess.Popen[str]]:
    attempt.mkdir()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return [start(run_file, rank, 2, port, NEOX_HPC_ATTEMPT_DIR=str(attempt), **environment) for rank in (0, 1)]


def without_compilers(directory: Path) -> str:
    """A PATH whose compilers fail, and leave a word in ``directory``/called."""
    directory.mkdir()
    for name in ("c++", "g++", "clang++", "ninja", "nvcc", "hipcc"):  # importing deepspeed asks gcc whether libaio is there
        (directory / name).write_text(f'#!/bin/sh\necho "$0 $*" >>{directory}/called\nexit 1\n')
        (directory / name).chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


def test_a_killed_rank_ends_the_others_and_the_run_continues_bit_for_bit(tmp_path: Path, two_ranks: RankPool) -> None:
    """No compiler is called on the way, and nothing is left in /dev/shm."""
    keys: dict[str, Any] = {"train_iters": 60, "checkpoint_factor": 3}
    path, in_dev_shm = without_compilers(tmp_path / "bin"), set(os.listdir("/dev/shm"))
    run_dir = tmp_path / "cut"
    run_file = write_tiny_run(run_dir, **keys)
    ranks = start_two(run_file, tmp_path / "1", PATH=path)
    metrics = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while (not metrics.exists() or metrics.read_text().count("\n") < 8) and time.monotonic() < deadline:
        time.sleep(0.01)
    ranks[1].send_signal(signal.SIGKILL)
    assert ranks[0].communicate(timeout=30)[0] and ranks[0].returncode == 1
    ranks[1].communicate()
    assert (tmp_path / "1" / "rank0.error").read_text().startswith(LOST)

    again = start_two(run_file, tmp_path / "2", PATH=path)
    outputs = [rank.communicate(timeout=120)[0] for rank in again]
    assert [rank.returncode for rank in again] == [0, 0], outputs
    assert f"loaded {run_dir}/checkpoints/global_step" in outputs[0]
    two_ranks.run(CASE, write_tiny_run(tmp_path / "whole", **keys))
    assert curve(run_dir) == curve(tmp_path / "whole")
    assert not (tmp_path / "bin" / "called").exists()
    assert set(os.listdir("/dev/shm")) <= in_dev_shm
    names = {p.global_name for p in global_parameters(GPT(RunConfig.from_keys(KEYS), 512))}
    assert set(load_weights(run_dir / "checkpoints" / "global_step60")) == names


def test_a_rank_that_hangs_ends_the_others_within_the_time_out(tmp_path: Path) -> None:
    """In a pipeline, where ranks wait for each other in point-to-point exchanges as well."""
    keys = {"train_iters": 5000, "pipe_parallel_size": 2, "save": None, "neox_hpc": {"collective_timeout_minutes": 0.2}}
    run_dir = tmp_path / "run"
    ranks = start_two(write_tiny_run(run_dir, **keys), tmp_path / "1")
    metrics = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while (not metrics.exists() or metrics.read_text().count("\n") < 3) and time.monotonic() < deadline:
        time.sleep(0.01)
    ranks[1].send_signal(signal.SIGSTOP)
    try:
        output = ranks[0].communicate(timeout=60)[0]
    finally:
        ranks[1].kill()
        ranks[1].communicate()
    assert ranks[0].returncode == 1
    assert (tmp_path / "1" / "rank0.error").read_text().startswith(LOST), output


def test_a_mistake_of_the_user_ends_with_2_and_without_a_traceback(tmp_path: Path) -> None:
    attempt = tmp_path / "attempt"
    attempt.mkdir()
    process = start(write_tiny_run(tmp_path / "run", data_path=str(tmp_path / "absent")), NEOX_HPC_ATTEMPT_DIR=str(attempt))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "absent.idx: no such token file" in output
    assert "Traceback" not in output
    assert (attempt / "rank0.error").read_text().startswith(f"data_path: {tmp_path}/absent.idx: no such token file")


def test_keys_that_do_not_train_yet_are_refused_before_anything_is_imported(tmp_path: Path) -> None:
    process = start(write_tiny_run(tmp_path / "run", norm="te_rmsnorm", moe_num_experts=2))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "norm:" in output and "moe_num_experts:" in output
