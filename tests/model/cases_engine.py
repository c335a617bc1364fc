"""Cases of the engine tests, called on the ranks."""

from __future__ import annotations

import contextlib
import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.nn import functional

from model.checkpoint import save_checkpoint
from model.checkpoint.manifest import read_manifest
from model.config import RunConfig
from model.engine.fragments import fragments_of, progress_of, restore_progress
from model.engine.reports import show_collectives
from model.engine.schedule import restore_schedule, set_rate
from model.engine.settings import deepspeed_settings
from model.engine.start import join_ranks
from model.engine.trainer import Trainer
from model.failure import FailedElsewhere
from model.gpt import GPT
from model.parallel.groups import make_groups
from tests.model.networks import small_batch
from tests.ranks import TIMEOUT

INTERNALS: dict[str, tuple[str, ...]] = {
    "DeepSpeedZeroOptimizer": (
        "optimizer",
        "single_partition_of_fp32_groups",
        "parallel_partitioned_bit16_groups",
        "bit16_groups_flat",
        "real_dp_process_group",
        "nccl_start_alignment_factor",
        "allgather_bucket_size",
        "_hp_optimizer_states_linked",
        "_lazy_init_hp_params_optimizer_state",
        "loss_scaler",
        "cur_scale",
        "_global_grad_norm",
        "overflow",
    ),
    "DeepSpeedZeroOptimizer_Stage3": (
        "optimizer",
        "fp32_partitioned_groups_flat",
        "fp16_partitioned_groups_flat",
        "grad_position",
        "get_param_id",
        "_get_param_partition_rank",
        "_unflatten_partitioned_parameters",
        "checkpoint_event_prologue",
        "checkpoint_event_epilogue",
        "loss_scaler",
        "cur_scale",
        "_global_grad_norm",
        "overflow",
    ),
    "BF16_Optimizer": (  # and _global_grad_norm, from its first step on
        "optimizer",
        "fp32_groups_flat_partition",
        "update_lp_params",
        "_hp_optimizer_states_linked",
        "_lazy_init_hp_params_optimizer_state",
    ),
}
"""Every name of DeepSpeed 0.19.8 that model/engine/fragments.py and trainer.py rely on, beside the addresses below."""


def make_trainer(keys: dict[str, Any]) -> Trainer:
    join_ranks(torch.device("cpu"), "gloo", TIMEOUT)
    config = RunConfig.from_keys(keys)
    groups = make_groups(config.layout(dist.get_world_size()), dist.get_rank())
    return Trainer(GPT(config, 512, groups), config, config.batch_sizes(groups.layout), groups, torch.device("cpu"))


def missing_names(keys: dict[str, Any]) -> tuple[str, list[str]]:
    """The kind of DeepSpeed's optimizer, and which of the names above it lacks."""
    trainer = make_trainer(keys)
    optimizer = trainer.engine.optimizer
    kind = type(optimizer).__name__
    missing = [name for name in INTERNALS[kind] if not hasattr(optimizer, name)]
    for parameter in trainer.engine.module.parameters():
        if kind == "DeepSpeedZeroOptimizer_Stage3":
            sub_group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
            flat = optimizer.fp32_partitioned_groups_flat[sub_group]
            missing += [f"ds_shape of {parameter}"] * (math.prod(parameter.ds_shape) > 2 * length)
            missing += [f"the place of {parameter}"] * (offset + length > flat.numel())
            continue
        mapping = parameter._hp_mapping
        if mapping is not None:
            addresses = (mapping.hp_fragment_address, mapping.lp_fragment_address)
            numbers = [mapping.param_group_index, *(number for address in addresses for number in (address.start, address.numel))]
            missing += [f"a number in {mapping}"] * (not all(isinstance(number, int) for number in numbers))
    return kind, missing


def pieces(keys: dict[str, Any]) -> list[tuple[str, int, int, int]]:
    """Name, start, length and size of the shard, of every fragment of this rank."""
    found = fragments_of(make_trainer(keys).engine, RunConfig.from_keys(keys))
    return [(f.parameter.global_name, f.start, f.length, math.prod(f.shard_shape)) for f in found]


def gradient_types(keys: dict[str, Any]) -> tuple[str, str]:
    """In what DeepSpeed adds gradients up, and in what ranks send them."""
    engine = make_trainer(keys).engine
    short = {torch.float32: "fp32", torch.bfloat16: "bf16"}
    return short[engine.get_data_types()[1]], short[engine.communication_data_type]


def collectives_shown(keys: dict[str, Any]) -> str:
    """What is printed at the end of a run about DeepSpeed's collectives."""
    from deepspeed.comm import comm

    said = io.StringIO()
    try:
        make_trainer(keys)
        with contextlib.redirect_stdout(said):
            show_collectives(RunConfig.from_keys(keys))
    finally:
        comm.comms_logger.enabled = False  # else for all later runs of this process
    return said.getvalue()


def rates(keys: dict[str, Any], steps: int, at: int) -> tuple[list[tuple[float, Any]], list[tuple[float, Any]]]:
    """Learning rate and decays of every step, and of those from ``at`` on of a run that begins there.  Our own rate: step + 0.5."""
    return _rates(keys, range(steps)), _rates(keys, range(at, steps))


def _rates(keys: dict[str, Any], steps: range) -> list[tuple[float, Any]]:
    with mock.patch.object(functional, "linear", functional.linear):  # ZeRO-3 puts its own there, for good
        engine = make_trainer(keys).engine
        restore_schedule(engine, steps.start)
        found = []
        for step in steps:
            rate = set_rate(engine, step + 0.5)
            found.append((rate, engine.optimizer.param_groups[0]["betas"]))
            for _ in range(engine.gradient_accumulation_steps()):
                engine.backward(engine(small_batch()))
                engine.step()
    return found


def loss_scales(keys: dict[str, Any], overflows: str, cut: int) -> list[float | str]:
    """The loss scale after every step, by DeepSpeed's scaler with the settings that it is given; ``x`` is a step that overflows.

    After ``cut`` steps a new scaler takes over what a checkpoint keeps.
    """
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.fp16.loss_scaler import CreateLossScaler

    config = RunConfig.from_keys(keys)
    told = DeepSpeedConfig(deepspeed_settings(config, config.batch_sizes(config.layout(dist.get_world_size())))).float16_config

    def engine() -> Any:
        scaler = CreateLossScaler(torch.half, told.loss_scale, told.loss_scale == 0, told.dynamic_loss_scale_args())
        optimizer = SimpleNamespace(loss_scaler=scaler, optimizer=SimpleNamespace(state={}))
        return SimpleNamespace(optimizer=optimizer, fp16_enabled=lambda: True)

    current = engine()
    scales: list[float | str] = []
    for number, step in enumerate(overflows):
        if number == cut:
            progress, current = progress_of(current), engine()
            restore_progress(current, current.optimizer.optimizer, progress)
        try:
            current.optimizer.loss_scaler.update_scale(step == "x")
        except Exception as error:  # noqa: BLE001 (DeepSpeed raises no other)
            return [*scales, f"stopped: {error}"]
        scales.append(current.optimizer.loss_scaler.loss_scale)
    return scales


def stored_names(keys: dict[str, Any], folder: Path) -> list[str]:
    """The parameters of a checkpoint of a stage whose embedding is a copy of the first stage's, marked as DeepSpeed marks it."""
    trainer = make_trainer(keys)
    for parameter in trainer.engine.module.parameters():
        parameter.ds_pipe_replicated = parameter.global_name.startswith("embedding")
    groups = make_groups(RunConfig.from_keys(keys).layout(dist.get_world_size()), dist.get_rank())
    told = {"run": "tied", "vocab_size": 512, "padded_vocab_size": 512, "precision": "fp32"}
    found = fragments_of(trainer.engine, RunConfig.from_keys(keys))
    path = save_checkpoint(folder, 1, found, progress_of(trainer.engine), groups, **told)  # type: ignore[arg-type]
    return sorted({piece.name for piece in read_manifest(path).slices})


def smallest_scale(keys: dict[str, Any]) -> str:
    """What is said when DeepSpeed's scaler, at its smallest scale, meets another overflow."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    trainer = make_trainer(keys)
    scaler = DynamicLossScaler(init_scale=1, scale_window=2, min_scale=1, delayed_shift=1, consecutive_hysteresis=False)
    with mock.patch.object(trainer, "_train_whole", side_effect=lambda batches: scaler.update_scale(True)):
        try:
            trainer.train_step([], 0.1)
        except (FloatingPointError, FailedElsewhere) as error:
            return str(error)
    raise AssertionError("it went on")


def deepspeed_says(keys: dict[str, Any]) -> dict[str, Any]:
    """What DeepSpeed has understood of our settings."""
    engine = make_trainer(keys).engine
    return {
        "batch": (engine.train_batch_size(), engine.train_micro_batch_size_per_gpu(), engine.gradient_accumulation_steps()),
        "stage": engine.zero_optimization_stage(),
        "clipping": engine.gradient_clipping(),
        "steps_per_print": engine.steps_per_print(),
        "wall_clock_breakdown": engine.wall_clock_breakdown(),
        "bf16": engine.bfloat16_enabled(),
        "accumulation": str(engine.get_data_types()[1]),
        "reduce_bucket_size": engine.zero_reduce_bucket_size(),
        "allgather_bucket_size": engine.zero_allgather_bucket_size(),
        "allgather_partitions": engine.zero_allgather_partitions(),
        "overlap_comm": engine.zero_overlap_comm(),
        "reduce_scatter": engine.zero_reduce_scatter(),
        "contiguous_gradients": engine.zero_contiguous_gradients(),
        "loss_scale": (engine.loss_scale(), engine.dynamic_loss_scale_args()) if engine.fp16_enabled() else None,
    }
