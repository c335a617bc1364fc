"""What DeepSpeed is told: its configuration as a pure function of ours."""

from __future__ import annotations

from typing import Any

from model.config import BatchSizes, RunConfig


def deepspeed_settings(config: RunConfig, batch: BatchSizes) -> dict[str, Any]:
    """DeepSpeed's configuration.

    bf16 accumulates and reduces in fp32 (data_types.grad_accum_dtype).  At ZeRO-0 in fp32 DeepSpeed does not clip: we do,
    because its own norm counts replicated parameters on one stage only (model/engine/norm.py).  An optimizer on the CPU stays
    torch's: DeepSpeed's own would be compiled in the job.
    """
    own_clipping = config.zero_stage == 0
    zero = config.deepspeed.zero_optimization
    settings: dict[str, Any] = {
        "train_batch_size": batch.train,
        "train_micro_batch_size_per_gpu": batch.micro,
        "gradient_accumulation_steps": batch.accumulation,
        "gradient_clipping": 0.0 if own_clipping else config.optimization.gradient_clipping,
        "zero_optimization": zero.passed_on() | {"stage": config.zero_stage},
        "steps_per_print": config.deepspeed.steps_per_print,
        "wall_clock_breakdown": config.deepspeed.wall_clock_breakdown,
    }
    if zero.offloads_optimizer:
        settings["zero_force_ds_cpu_optimizer"] = False
    if config.precision == "bfloat16":
        settings |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    if config.precision == "fp16":
        fp16 = config.deepspeed.fp16
        settings["fp16"] = {"enabled": True} | ({} if fp16 is None else fp16.passed_on())
    return settings
