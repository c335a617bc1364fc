"""Sections of DeepSpeed 0.19.8 that are handed over by name; changes when DeepSpeed reads other keys in them.

A key that would be idle, because something here takes its place or because this version has it no more, is refused with the reason.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from model.config.keys import Section, live, passed, retired

Dtype = Literal["fp32", "fp16", "bf16"]


class Fp16(Section):
    """``fp16``: half precision with a loss scale, by DeepSpeed's names."""

    enabled: bool = live(doc="Train in fp16.")
    loss_scale: float = passed(0, ge=0, doc="Fixed loss scale; 0 lets it move.")
    initial_scale_power: int = passed(16, ge=0, doc="The moving scale starts at 2 to this power.")
    loss_scale_window: int = passed(1000, ge=1, doc="Good steps before the scale doubles.")
    hysteresis: int = passed(2, ge=1, doc="Overflows before the scale halves.")
    consecutive_hysteresis: bool = passed(False, doc="A good step forgives the overflows before it.")
    min_loss_scale: int = passed(1, ge=1, doc="The scale never falls below this; the run stops where it would.")
    auto_cast: bool = retired(False, doc="Cast the model's inputs to fp16.", why="its inputs are token numbers")


class Bf16(Section):
    """``bf16``: bfloat16 with fp32 masters."""

    enabled: bool = live(doc="Train in bfloat16.")


NO_NVME = "NVMe is left out: DeepSpeed would compile its async_io operation in the job, and no checkpoint could be saved from it"


class Offload(Section):
    """Where optimizer states, or parameters, lie between their uses; by DeepSpeed's names."""

    device: Literal["none", "cpu", "nvme"] = passed("none", doc="cpu: in the memory of the node.")
    pin_memory: bool = passed(True, doc="In page-locked memory: faster to copy, and not to be swapped out.")
    nvme_path: str | None = retired(None, doc="Directory on NVMe.", why=NO_NVME)
    buffer_count: int | None = retired(None, doc="Buffers for reading NVMe.", why=NO_NVME)

    @field_validator("device")
    @classmethod
    def _in_memory(cls, device: str) -> str:
        if device == "nvme":
            raise ValueError(f"{NO_NVME}: write cpu")
        return device


class OffloadOptimizer(Offload):
    """``offload_optimizer``: the states and the update of the optimizer on the CPU."""

    pipeline_read: bool | None = retired(None, doc="Read the next tile from NVMe ahead.", why=NO_NVME)
    pipeline_write: bool | None = retired(None, doc="Write the last tile to NVMe behind.", why=NO_NVME)
    fast_init: bool | None = retired(None, doc="Faster start with NVMe.", why=NO_NVME)


class OffloadParam(Offload):
    """``offload_param``: ZeRO-3's pieces of parameters on the CPU."""

    buffer_size: int | float | None = retired(None, doc="Elements of a buffer for reading NVMe.", why=NO_NVME)
    max_in_cpu: int | float | None = retired(None, doc="Elements that stay on the CPU beside NVMe.", why=NO_NVME)


class ZeroOptimization(Section):
    """``zero_optimization``, by DeepSpeed's names; all but ``stage`` are handed over as they are.

    What is absent has DeepSpeed's own default.
    """

    stage: Literal[0, 1, 2, 3] = live(doc="0: nothing is partitioned; 1: optimizer states; 2: gradients; 3: parameters.")
    allgather_partitions: bool = passed(True, doc="Parameters are gathered by all-gather, not broadcast.")
    allgather_bucket_size: int | float = passed(500_000_000, ge=1, doc="Elements gathered at once.")
    overlap_comm: bool = passed(False, doc="Reduce gradients while the backward pass goes on.")
    reduce_scatter: bool = passed(True, doc="Reduce-scatter gradients instead of all-reduce.")
    reduce_bucket_size: int | float = passed(500_000_000, ge=1, doc="Elements reduced at once.")
    contiguous_gradients: bool = passed(False, doc="Gradients lie in one buffer.")
    round_robin_gradients: bool = passed(False, doc="Stages 1 and 2: gradients are dealt to ranks in turn.")
    ignore_unused_parameters: bool = passed(True, doc="Stage 2: parameters without gradient are no error.")
    offload_optimizer: OffloadOptimizer | None = passed(None, doc="Optimizer states on the CPU.")
    offload_param: OffloadParam | None = passed(None, doc="Stage 3: parameters on the CPU.")
    sub_group_size: int | float | None = passed(None, ge=1, doc="Stage 3: elements of a tile of the update.")
    stage3_prefetch_bucket_size: int | float | None = passed(None, ge=0, doc="Elements fetched ahead.")
    stage3_param_persistence_threshold: int | float | None = passed(None, ge=0, doc="Smaller parameters stay whole.")
    stage3_max_live_parameters: int | float | None = passed(None, ge=0, doc="Elements on a GPU before some are released.")
    stage3_max_reuse_distance: int | float | None = passed(None, ge=0, doc="Parameters needed again this soon stay.")
    zero_hpz_partition_size: int | None = passed(None, ge=1, doc="ZeRO++: ranks that share a second partition of the weights.")
    zero_quantized_weights: bool | None = passed(None, doc="ZeRO++: weights are gathered in 8 bits.")
    zero_quantized_gradients: bool | None = passed(None, doc="ZeRO++: gradients are reduced in 4 bits.")

    @model_validator(mode="after")
    def _offload_has_a_stage(self) -> ZeroOptimization:
        if self.offloads_optimizer and self.stage == 0:
            raise ValueError("offload_optimizer moves what ZeRO partitions, and stage 0 partitions nothing: write stage: 1, 2 or 3")
        if self.offloads_parameters and self.stage != 3:
            raise ValueError(f"offload_param needs stage 3, and stage is {self.stage}: write stage: 3, or remove offload_param")
        plus = [*self.needing_groups_of_nodes, *(["zero_quantized_weights"] if self.zero_quantized_weights else [])]
        if plus and self.stage != 3:
            raise ValueError(f"{plus[0]} (ZeRO++) needs stage 3, and stage is {self.stage}: write stage: 3, or remove it")
        return self

    @property
    def needing_groups_of_nodes(self) -> tuple[str, ...]:
        """The keys of ZeRO++ that are set and for which DeepSpeed groups the ranks of a node."""
        wanted = {"zero_hpz_partition_size": (self.zero_hpz_partition_size or 1) > 1}
        wanted["zero_quantized_gradients"] = bool(self.zero_quantized_gradients)
        return tuple(key for key, asked in wanted.items() if asked)

    @property
    def offloads_optimizer(self) -> bool:
        """The update runs on the CPU."""
        return self.offload_optimizer is not None and self.offload_optimizer.device == "cpu"

    @property
    def offloads_parameters(self) -> bool:
        """Parameters lie on the CPU between their uses."""
        return self.offload_param is not None and self.offload_param.device == "cpu"


_WARMUP = ("warmup_num_steps", "warmup_type")
_CYCLE = ("cycle_first_step_size", "cycle_second_step_size", "cycle_first_stair_count", "cycle_second_stair_count")
SCHEDULES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "LRRangeTest": (
        (),
        ("lr_range_test_min_lr", "lr_range_test_step_size", "lr_range_test_step_rate", "lr_range_test_staircase"),
    ),
    "OneCycle": (
        ("cycle_min_lr", "cycle_max_lr"),
        (
            *("decay_lr_rate", "decay_step_size", "decay_mom_rate", *_CYCLE),
            *("cycle_momentum", "cycle_min_mom", "cycle_max_mom"),
        ),
    ),
    "WarmupLR": ((), ("warmup_min_lr", "warmup_max_lr", *_WARMUP)),
    "WarmupDecayLR": (("total_num_steps",), ("warmup_min_lr", "warmup_max_lr", *_WARMUP)),
    "WarmupCosineLR": (("total_num_steps",), ("warmup_min_ratio", "cos_min_ratio", *_WARMUP)),
}
"""DeepSpeed's schedules: the parameters that each needs and those that it may have.  All are functions of the step count alone, so
that a run which continues needs no saved state."""


class Scheduler(Section):
    """``scheduler``: a learning-rate schedule of DeepSpeed's, in the place of ours."""

    type: Literal["LRRangeTest", "OneCycle", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR"] = passed(..., doc="Which one.")
    params: dict[str, bool | int | float | str] = passed({}, doc="Its parameters, by DeepSpeed's names.")

    @model_validator(mode="after")
    def _has_its_parameters(self) -> Scheduler:
        needed, further = SCHEDULES[self.type]
        if missed := [name for name in needed if name not in self.params]:
            raise ValueError(f"{self.type} needs {' and '.join(missed)}: add to params")
        if odd := [name for name in self.params if name not in (*needed, *further)]:
            raise ValueError(f"{self.type} has no {odd[0]}: write some of {', '.join((*needed, *further))}")
        for name, value in self.params.items():
            if isinstance(value, str) and name != "warmup_type":
                raise ValueError(
                    f"params.{name}: expected a number, got the text {value!r} (YAML 1.1 reads 1e-4 as text): write 1.0e-4"
                )
        if self.params.get("warmup_type", "log") not in ("log", "linear"):
            raise ValueError(f"params.warmup_type: unknown {self.params['warmup_type']!r}: write log or linear")
        return self


class DataTypes(Section):
    """``data_types``: arithmetic beside the model's own."""

    grad_accum_dtype: Dtype | None = passed(None, doc="In what gradients are added up; fp32 for bfloat16 when absent.")
    param_dtype: Dtype | None = retired(None, doc="Type of the weights.", why="write precision, which says it")
    buffer_dtype: Dtype | None = retired(None, doc="Type of the buffers.", why="the network has no buffers that could be cast")
    keep_in_fp32_modules: Any = retired(None, doc="Buffers that stay in fp32.", why="the network has no buffers that could be cast")


class CommsLogger(Section):
    """``comms_logger``: DeepSpeed's collectives with size and time; a table at the end of the run."""

    enabled: bool = passed(False, doc="Log them.  Every collective then waits for its end.")
    prof_all: bool = passed(True, doc="All kinds of collectives.")
    prof_ops: list[str] = passed([], doc="These kinds, with prof_all: false.")
    verbose: bool = passed(False, doc="A line for every collective.")
    debug: bool = passed(False, doc="With the name of the function that called it.")


class FlopsProfiler(Section):
    """``flops_profiler``: DeepSpeed's table of FLOPs, parameters and times of every module, in the log."""

    enabled: bool = passed(False, doc="Profile one step.")
    profile_step: int = passed(1, ge=0, doc="Which one; 0 is the first.")
    module_depth: int = passed(-1, ge=-1, doc="How deep modules are shown; -1: all.")
    top_modules: int = passed(1, ge=1, doc="How many modules of a depth are listed.")
    detailed: bool = passed(True, doc="Show the whole model with its numbers.")
    recompute_fwd_factor: float = passed(0.0, ge=0, doc="Share of the forward pass that is computed again.")
    output_file: str | None = retired(None, doc="A file instead of the log.", why="the table stands in the log of the run")


class ExtraArgs(Section):
    """``deepspeed_extra_args``: keys of DeepSpeed's configuration that GPT-NeoX has no key for; merged last.

    A key of it that has one is read as that one.
    """

    zero_force_ds_cpu_optimizer: bool | None = live(
        None,
        doc="With offload_optimizer: true updates by DeepSpeed's CPUAdam, whose operation is built ahead (neox_hpc.cpu_adam_op), "
        "false by torch's Adam; when absent, as optimizer.type says.",
    )
    log_level: Literal["debug", "info", "warning", "error", "critical"] | None = passed(None, doc="What DeepSpeed logs.")
    memory_breakdown: bool | None = passed(None, doc="Log the memory in use around every part of a step (log_level: info).")
    disable_python_gc: bool | None = passed(None, doc="No garbage collection by Python between steps.")
    timers: dict[str, Any] | None = passed(None, doc="DeepSpeed's timers: throughput: {enabled, synchronized}.")
