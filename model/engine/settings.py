"""What DeepSpeed is told: its configuration as a pure function of ours."""

from __future__ import annotations

from typing import Any

from model.config import BatchSizes, RunConfig
from model.config.keys import Section, Status, status_of


def deepspeed_settings(config: RunConfig, batch: BatchSizes) -> dict[str, Any]:
    """DeepSpeed's configuration.

    bf16 accumulates and reduces in fp32 (data_types.grad_accum_dtype).  At ZeRO-0 in fp32 DeepSpeed does not clip: we do,
    because its own norm counts replicated parameters on one stage only (model/engine/norm.py).
    """
    own_clipping = config.zero_stage == 0
    zero = config.deepspeed.zero_optimization.passed_on() | {"stage": config.zero_stage}
    settings: dict[str, Any] = {
        "train_batch_size": batch.train,
        "train_micro_batch_size_per_gpu": batch.micro,
        "gradient_accumulation_steps": batch.accumulation,
        "gradient_clipping": 0.0 if own_clipping else config.optimization.gradient_clipping,
        "zero_optimization": zero,
        "steps_per_print": config.deepspeed.steps_per_print,
        "wall_clock_breakdown": config.deepspeed.wall_clock_breakdown,
    }
    if config.precision == "bfloat16":
        settings |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    if config.precision == "fp16":
        fp16 = config.deepspeed.fp16
        settings["fp16"] = {"enabled": True} | ({} if fp16 is None else _passed(fp16))
    return settings


def _passed(section: Section) -> dict[str, Any]:
    """The keys of a section that are DeepSpeed's."""
    fields = type(section).model_fields.items()
    return {name: getattr(section, name) for name, field in fields if status_of(field) is Status.PASSED}
