"""What needs a rank: tiny trainings, and what DeepSpeed understands.  Called in the session's pool of one rank."""

from __future__ import annotations

import contextlib
import io
import json
import re
from enum import Enum
from pathlib import Path
from typing import Any
from unittest import mock

import torch.distributed as dist

from model.config import RunConfig, RunFile, write_run
from model.config.deepspeed_sections import CommsLogger, FlopsProfiler
from model.config.keys import Section, Status, status_of
from model.engine.cpu_adam import load_operation
from model.engine.settings import deepspeed_settings
from model.gpt import GPT
from model.parallel.groups import make_groups
from tests.model.cases_engine import make_trainer
from tests.model.cases_training import train
from tests.model.networks import VOCAB, small_batch, small_config
from tests.model.tiny import KEYS as TINY


def train_here(folder: Path, keys: dict[str, Any]) -> dict[str, Any]:
    """Train in ``folder``: what was written (metrics without times, names of checkpoints) and said (without times)."""
    folder.mkdir(parents=True, exist_ok=True)
    run_file = folder / "run.json"
    if dist.get_rank() == 0:
        run_file.write_text(write_run(RunFile(name="tiny", device="cpu", config=RunConfig.from_keys(keys))))
    dist.barrier()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        train(run_file)
    dist.barrier()  # the first rank writes
    return {
        "metrics": [_untimed(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()],
        "checkpoints": sorted(path.name for path in folder.glob("**/global_step*")),
        "lines": len(re.findall(r"^\s*step +\d+/", said.getvalue(), re.MULTILINE)),
        "said": said.getvalue(),
    }


def files_of_a_run(folder: Path, keys: dict[str, Any]) -> list[str]:
    """The files that a training leaves in ``folder``, of JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    run_file = folder / "run.json"
    run_file.write_text(write_run(RunFile(name="tiny", device="cpu", config=RunConfig.from_keys(keys))))
    with contextlib.redirect_stdout(io.StringIO()):
        train(run_file)
    return sorted(path.name for path in folder.glob("*.json*"))


def train_or_say_why_not(folder: Path, keys: dict[str, Any]) -> Any:
    """The metrics, or the refusal."""
    try:
        return train_here(folder, keys)["metrics"]
    except ValueError as error:
        return str(error).replace(str(folder), "")


def refused_operation(keys: dict[str, Any]) -> str:
    """Why CPUAdam's operation cannot be had."""
    from deepspeed.ops.op_builder.builder import OpBuilder

    with mock.patch.dict(OpBuilder._loaded_ops, clear=True):
        try:
            load_operation(RunConfig.from_keys(TINY | keys).own.neox_hpc.cpu_adam_op)
        except ValueError as error:
            return str(error)
    raise AssertionError("it is there")


def _untimed(line: dict[str, Any]) -> dict[str, Any]:
    timed = ("step_time_s", "tokens_per_s", "tflops_per_rank")
    return {key: True if key == "mfu" else value for key, value in line.items() if key not in timed}


def deepspeed_understands(keys: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's own configuration object, made from what the engine is handed."""
    from deepspeed.runtime.config import DeepSpeedConfig

    config = RunConfig.from_keys(keys)
    theirs = DeepSpeedConfig(deepspeed_settings(config, config.batch_sizes(config.layout(1))))
    return {
        "steps_per_print": theirs.steps_per_print,
        "wall_clock_breakdown": theirs.wall_clock_breakdown,
        "bf16.enabled": bool(theirs.bfloat16_config.enabled),
        "dump_state": theirs.dump_state,
        "prescale_gradients": theirs.prescale_gradients,
        "gradient_predivide_factor": theirs.gradient_predivide_factor,
        "communication_data_type": _SHORT.get(str(theirs.communication_data_type)),
        "data_types": {"grad_accum_dtype": theirs.grad_accum_dtype},
        "data_types.grad_accum_dtype": theirs.grad_accum_dtype,
        "scheduler": {"type": theirs.scheduler_name, "params": theirs.scheduler_params},
        "scheduler.type": theirs.scheduler_name,
        "scheduler.params": theirs.scheduler_params,
        "log_level": theirs.log_level,
        "deepspeed_extra_args.log_level": theirs.log_level,
        "deepspeed_extra_args.memory_breakdown": theirs.memory_breakdown,
        "deepspeed_extra_args.disable_python_gc": theirs.disable_python_gc,
        "deepspeed_extra_args.timers": {"throughput": theirs.timers_config.model_dump()},
        **_plain_fields("flops_profiler", theirs.flops_profiler_config, FlopsProfiler),
        **_plain_fields("comms_logger", getattr(theirs.comms_config, "comms_logger", None), CommsLogger),
        **_fields("fp16", theirs.float16_config),
        **_fields("zero_optimization", theirs.zero_config),
    }


_SHORT = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}


def _plain_fields(name: str, theirs: Any, ours: type[Section]) -> dict[str, Any]:
    """The attributes of one of DeepSpeed's sections that are keys of ours, and all of them together."""
    passed = [key for key, field in ours.model_fields.items() if status_of(field) is Status.PASSED]
    values = {key: getattr(theirs, key, None) for key in passed}
    return {name: values} | {f"{name}.{key}": value for key, value in values.items()}


def _fields(name: str, section: Any) -> dict[str, Any]:
    """The fields of one of DeepSpeed's sections and of the sections in it, dotted, under the names that a file has."""
    found: dict[str, Any] = {}
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        dotted = f"{name}.{field.alias or key}"
        found[dotted] = value.value if isinstance(value, Enum) else value
        if hasattr(type(value), "model_fields"):
            found[dotted] = value.model_dump(mode="json", exclude_unset=True)
            found |= _fields(dotted, value)
    return found


def stream(keys: dict[str, Any]) -> tuple[int, ...]:
    """The shape of what the second block is given."""
    config = small_config(**keys)
    layout = config.layout(dist.get_world_size())
    groups = make_groups(layout, dist.get_rank(), sequence_parallel=config.parallelism.sequence_parallel)
    network = GPT(config, VOCAB, groups)
    shapes: list[tuple[int, ...]] = []
    network.layers[2].register_forward_pre_hook(lambda block, given: shapes.append(tuple(given[0].x.shape)))
    network(small_batch())
    return shapes[0]


def recomputation(keys: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The function that recomputes, and the settings of DeepSpeed's."""
    from deepspeed.runtime.activation_checkpointing import checkpointing

    trainer = make_trainer(keys)
    names = ("PARTITION_ACTIVATIONS", "CONTIGUOUS_CHECKPOINTING", "CPU_CHECKPOINT", "SYNCHRONIZE", "PROFILE_TIME")
    again: Any = trainer.model.recompute
    return again.func.__name__, {name: getattr(checkpointing, name) for name in names}
