"""What DeepSpeed is told: its configuration as a pure function of ours."""

from __future__ import annotations

from typing import Any

from model.config import BatchSizes, RunConfig


def deepspeed_settings(config: RunConfig, batch: BatchSizes) -> dict[str, Any]:
    """DeepSpeed's configuration.

    At ZeRO-0 in fp32 DeepSpeed does not clip: we do, because its own norm counts replicated parameters on one stage only
    (model/engine/norm.py).  An optimizer on the CPU stays torch's: DeepSpeed's own would be compiled in the job.
    """
    keys = config.deepspeed
    zero, schedule, extra = keys.zero_optimization, config.optimization.scheduler, keys.deepspeed_extra_args
    settings: dict[str, Any] = keys.passed_on() | {
        "train_batch_size": batch.train,
        "train_micro_batch_size_per_gpu": batch.micro,
        "gradient_accumulation_steps": batch.accumulation,
        "gradient_clipping": 0.0 if config.zero_stage == 0 else config.optimization.gradient_clipping,
        "zero_optimization": zero.passed_on() | {"stage": config.zero_stage},
    }
    if config.parallelism.sequence_parallel:  # a stage's tensor ranks send different shares: there is nothing to split
        settings["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False}
    if zero.offloads_optimizer:
        settings["zero_force_ds_cpu_optimizer"] = False
    if not config.optimizer.known_to_deepspeed:
        settings["zero_allow_untested_optimizer"] = True  # tests/model/options compares each with its formula
    if schedule is not None:
        settings["scheduler"] = schedule.passed_on()
    if keys.comms_logger is not None and not keys.comms_logger.enabled:
        del settings["comms_logger"]  # DeepSpeed logs as soon as the section is there
    if shows_deepspeeds_log(config):
        settings["log_level"] = "info"  # DeepSpeed shows warnings only
    return settings | _precision(config) | ({} if extra is None else extra.passed_on())


def shows_deepspeeds_log(config: RunConfig) -> bool:
    """Something was asked for that DeepSpeed writes to its log."""
    keys = config.deepspeed
    return keys.dump_state or (keys.comms_logger is not None and keys.comms_logger.enabled and keys.comms_logger.verbose)


def _precision(config: RunConfig) -> dict[str, Any]:
    """bf16 adds up and reduces gradients in fp32, unless it is told otherwise: DeepSpeed would round the sum to bf16 to send it."""
    keys = config.deepspeed
    if config.precision == "fp16":
        return {"fp16": {"enabled": True} | ({} if keys.fp16 is None else keys.fp16.passed_on())}
    if config.precision == "fp32":
        return {}
    types = {"grad_accum_dtype": "fp32"} | ({} if keys.data_types is None else keys.data_types.passed_on())
    reduced = keys.communication_data_type or types["grad_accum_dtype"]
    return {"bf16": {"enabled": True}, "data_types": types, "communication_data_type": reduced}
