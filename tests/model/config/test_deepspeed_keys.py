"""DeepSpeed's keys: what is refused, and with which reason; what is read as another key."""

from __future__ import annotations

from typing import Any

import pytest

from model.config import RunConfig, translate
from tests.model.config.test_run_config import SMALL, problems_of

ZERO_1 = {"stage": 1}
ZERO_3 = {"stage": 3}
WARMUP = {"type": "WarmupDecayLR", "params": {"total_num_steps": 9}}

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    # what DeepSpeed has no more, or what something here takes the place of
    ({"amp": {"enabled": True}}, "amp", "DeepSpeed 0.19.8 has it no more; write precision"),
    ({"sparse_gradients": True}, "sparse_gradients", "has it no more"),
    ({"elasticity": {"enabled": True}}, "elasticity", "write train_batch_size"),
    ({"compression_training": {"layer_reduction": {}}}, "compression_training", "has it no more"),
    ({"checkpoint": {"tag_validation": "Fail"}}, "checkpoint", "slices fit any layout"),
    ({"autotuning": {"enabled": True}}, "autotuning", "DeepSpeed's launcher"),
    ({"fp16": {"enabled": True, "auto_cast": True}}, "fp16.auto_cast", "token numbers"),
    ({"data_types": {"param_dtype": "bf16"}}, "data_types.param_dtype", "write precision"),
    ({"flops_profiler": {"output_file": "a.txt"}}, "flops_profiler.output_file", "log of the run"),
    # NVMe
    ({"zero_optimization": ZERO_3 | {"offload_param": {"device": "nvme"}}}, "zero_optimization.offload_param.device", "async_io"),
    (
        {"zero_optimization": ZERO_1 | {"offload_optimizer": {"device": "cpu", "nvme_path": "/nvme"}}},
        "zero_optimization.offload_optimizer.nvme_path",
        "NVMe is left out",
    ),
    # stages
    (
        {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}},
        "zero_optimization",
        "partitions nothing",
    ),
    ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "zero_optimization", "offload_param needs stage 3"),
    ({"zero_optimization": {"stage": 2, "zero_quantized_weights": True}}, "zero_optimization", "needs stage 3"),
    ({"zero_optimization": {"stage": 1, "zero_hpz_partition_size": 2}}, "zero_optimization", "needs stage 3"),
    (
        {"model_parallel_size": 2, "zero_optimization": ZERO_3 | {"zero_hpz_partition_size": 2}},
        "zero_optimization.zero_hpz_partition_size",
        "model_parallel_size is 2",
    ),
    (
        {"model_parallel_size": 2, "zero_optimization": ZERO_3 | {"zero_quantized_gradients": True}},
        "zero_optimization.zero_quantized_gradients",
        "model_parallel_size is 2",
    ),
    ({"flops_profiler": {"enabled": True}, "zero_optimization": ZERO_3}, "flops_profiler", "twice under ZeRO-3"),
    ({"flops_profiler": {"enabled": True}, "pipe_parallel_size": 2}, "flops_profiler", "pipeline engine"),
    # precision and division
    ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types.grad_accum_dtype", "fp32 gradients are not added up in bf16"),
    (
        {"precision": "bfloat16", "data_types": {"grad_accum_dtype": "fp16"}},
        "data_types.grad_accum_dtype",
        "write fp32 or bf16",
    ),
    ({"precision": "bfloat16", "fp16_lm_cross_entropy": True}, "fp16_lm_cross_entropy", "the precision is bfloat16"),
    ({"prescale_gradients": True, "gradient_predivide_factor": 2.0}, "prescale_gradients", "keep one"),
    ({"prescale_gradients": True, "zero_optimization": ZERO_1}, "prescale_gradients", "reduce_scatter: false"),
    (
        {"gradient_predivide_factor": 2.0, "zero_optimization": ZERO_3 | {"reduce_scatter": False}},
        "gradient_predivide_factor",
        "not multiplied back",
    ),
    ({"gradient_predivide_factor": 2.0, "precision": "bfloat16"}, "gradient_predivide_factor", "reduce_scatter: false"),
    # schedules
    ({"scheduler": WARMUP, "lr_decay_style": "cosine"}, "lr_decay_style", "scheduler puts DeepSpeed's in its place"),
    ({"scheduler": WARMUP, "min_lr": 1e-5}, "min_lr", "scheduler puts DeepSpeed's in its place"),
    ({"scheduler": {"type": "WarmupDecayLR"}}, "scheduler", "needs total_num_steps"),
    ({"scheduler": {"type": "WarmupLR", "params": {"total_num_steps": 9}}}, "scheduler", "WarmupLR has no total_num_steps"),
    ({"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": "1e-3"}}}, "scheduler", "write 1.0e-4"),
    ({"scheduler": {"type": "WarmupLR", "params": {"warmup_type": "cosine"}}}, "scheduler", "write log or linear"),
    # keys that stand elsewhere
    ({"deepspeed_extra_args": {"train_batch_size": 8}}, "deepspeed_extra_args.train_batch_size", "unknown key"),
    ({"deepspeed_extra_args": {"torch_autocast": {}}}, "deepspeed_extra_args.torch_autocast", "unknown key"),
    ({"activation_checkpointing": {"partition": True}}, "activation_checkpointing", "has no partition"),
]


@pytest.mark.parametrize(("keys", "key", "reason"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_key_that_would_be_idle_or_wrong_is_refused_with_the_reason(keys: dict[str, Any], key: str, reason: str) -> None:
    found = problems_of(**keys)
    assert set(found) == {key}
    assert reason in found[key]


@pytest.mark.parametrize(
    "keys",
    [
        {"gradient_predivide_factor": 2.0},
        {"prescale_gradients": True, "zero_optimization": ZERO_1 | {"reduce_scatter": False}},
        {"model_parallel_size": 2, "zero_optimization": ZERO_3 | {"zero_hpz_partition_size": 1}},
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "none"}}},
        {"fp16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}},
        {"scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 0, "cycle_max_lr": 1.0e-3, "cycle_momentum": False}}},
    ],
)
def test_what_deepspeed_can_do_trains(keys: dict[str, Any]) -> None:
    assert RunConfig.from_keys(SMALL | keys).untrained() == ()


def test_a_further_key_of_deepspeed_that_has_a_name_here_is_read_as_that() -> None:
    """GPT-NeoX's own configs/19M.yml has comms_logger there."""
    keys = SMALL | {"deepspeed_extra_args": {"comms_logger": {"enabled": True}, "memory_breakdown": True}}
    config = RunConfig.from_keys(keys).deepspeed
    assert config.comms_logger is not None
    assert config.comms_logger.enabled
    assert config.deepspeed_extra_args is not None
    assert config.deepspeed_extra_args.passed_on() == {"memory_breakdown": True}
    assert [note.keys for note in translate(keys).notes] == [("deepspeed_extra_args.comms_logger",)]


def test_deepspeeds_activation_checkpointing_is_read_as_gpt_neoxs_keys() -> None:
    section = {
        "partition_activations": True,
        "cpu_checkpointing": True,
        "contiguous_memory_optimization": True,
        "synchronize_checkpoint_boundary": True,
        "profile": True,
        "number_checkpoints": 4,
    }
    translated = translate(SMALL | {"activation_checkpointing": section})
    assert translated.values == SMALL | {
        "partition_activations": True,
        "checkpoint_in_cpu": True,
        "contiguous_checkpointing": True,
        "synchronize_each_layer": True,
        "profile_backward": True,
    }
    assert "checkpoint_in_cpu: true" in translated.notes[0].text
