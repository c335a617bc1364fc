"""Keys of the optimizer, the learning rate, precision, ZeRO and the rest that DeepSpeed is told."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from model.config.keys import Section, live, passed, planned, retired

OPTIMIZERS = ("adam", "adamw", "onebitadam", "cpu_adam", "cpu_torch_adam", "sm3", "madgrad_wd", "sgd", "lion")


class OptimizerParams(Section):
    """``optimizer.params``: PyTorch's names."""

    lr: float = live(1e-3, gt=0, doc="Peak learning rate.")
    betas: tuple[float, float] = live((0.9, 0.999), strict=False, doc="Decay of the two moments.")
    eps: float = live(1e-8, gt=0, doc="Added to the root of the second moment.")
    adam_w_mode: bool = live(True, doc="Decoupled weight decay (AdamW); false adds it to the gradient (Adam, L2).")
    momentum: float | None = planned(None, ge=0, doc="Momentum of SGD and SM3.")
    freeze_step: int | None = planned(None, ge=0, doc="Step from which 1-bit Adam sends one bit a value.")
    cuda_aware: bool | None = planned(None, doc="1-bit Adam's MPI sends from GPU memory.")
    comm_backend_name: str | None = planned(None, doc="What 1-bit Adam sends through.")

    @field_validator("betas")
    @classmethod
    def _decays(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas {list(betas)} must lie in [0, 1)")
        return betas


class OptimizerChoice(Section):
    """``optimizer``: which one, and its parameters."""

    type: str = planned(
        "adam",
        trains=("adam", "adamw"),
        doc="Adam or AdamW; both decouple weight decay, as GPT-NeoX's fused Adam does.",
    )
    params: OptimizerParams = live(OptimizerParams(), doc="Its parameters.")

    @field_validator("type")
    @classmethod
    def _known(cls, name: str) -> str:
        if name.lower() not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {name!r}: write one of {', '.join(OPTIMIZERS)}")
        return name.lower()


class Optimization(Section):
    """The optimizer and what is done to gradients before it."""

    optimizer: OptimizerChoice = live(OptimizerChoice(), doc="Optimizer type and parameters; the learning rate stands here.")
    scheduler: dict[str, Any] | None = planned(None, doc="DeepSpeed's own learning-rate schedule.")
    use_bnb_optimizer: bool = planned(False, doc="8-bit Adam by bitsandbytes.")
    clip_grad: float = retired(1.0, doc="Older name of gradient_clipping.", why="write gradient_clipping")
    weight_decay: float = live(0.1, ge=0, doc="Weight decay of matrices; biases and norms have none.")
    gradient_clipping: float = live(1.0, ge=0, doc="Largest norm of the whole gradient; 0 turns clipping off.")


class LearningRate(Section):
    """The learning rate over steps (formulas: model/optim.py)."""

    lr_decay_style: Literal["constant", "linear", "cosine", "exponential"] = live("linear", doc="Curve after warm-up.")
    lr_decay_iters: int | None = live(None, ge=1, doc="Steps until min_lr is reached; train_iters when absent.")
    lr_decay_fraction: float | None = live(None, gt=0, le=1, doc="The same as a share of train_iters.")
    min_lr: float = live(0.0, ge=0, doc="The rate never falls below this after warm-up.")
    warmup: float = live(0.01, ge=0, le=1, doc="Share of the decay steps during which the rate rises from 0.")

    override_lr_scheduler: bool = planned(False, doc="This file's schedule wins over the checkpoint's.")
    use_checkpoint_lr_scheduler: bool = planned(False, doc="The checkpoint's schedule wins over this file's.")

    @model_validator(mode="after")
    def _one_length(self) -> LearningRate:
        if self.lr_decay_iters is not None and self.lr_decay_fraction is not None:
            raise ValueError("lr_decay_iters and lr_decay_fraction both give the length of the decay: keep one")
        return self


class Fp16(Section):
    """``fp16``: half precision with a loss scale, by DeepSpeed's names."""

    enabled: bool = live(doc="Train in fp16.")
    loss_scale: float = passed(0, ge=0, doc="Fixed loss scale; 0 lets it move.")
    initial_scale_power: int = passed(16, ge=0, doc="The moving scale starts at 2 to this power.")
    loss_scale_window: int = passed(1000, ge=1, doc="Good steps before the scale doubles.")
    hysteresis: int = passed(2, ge=1, doc="Overflows before the scale halves.")
    consecutive_hysteresis: bool = planned(False, doc="A good step forgives the overflows before it.")
    min_loss_scale: float = passed(1, ge=0, doc="The scale never falls below this.")
    auto_cast: bool = planned(False, doc="DeepSpeed casts the model's inputs to fp16.")


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
        plus = [key for key in ("zero_quantized_weights", "zero_quantized_gradients") if getattr(self, key)]
        plus += ["zero_hpz_partition_size"] if (self.zero_hpz_partition_size or 1) > 1 else []
        if plus and self.stage != 3:
            raise ValueError(f"{plus[0]} (ZeRO++) needs stage 3, and stage is {self.stage}: write stage: 3, or remove it")
        return self

    @property
    def offloads_optimizer(self) -> bool:
        """The update runs on the CPU."""
        return self.offload_optimizer is not None and self.offload_optimizer.device == "cpu"

    @property
    def offloads_parameters(self) -> bool:
        """Parameters lie on the CPU between their uses."""
        return self.offload_param is not None and self.offload_param.device == "cpu"


class DeepSpeed(Section):
    """Batch sizes, precision, ZeRO and printing, under DeepSpeed's names."""

    train_batch_size: int | None = live(None, ge=1, doc="Sequences in one optimizer step, over all GPUs.")
    train_micro_batch_size_per_gpu: int | None = live(None, ge=1, doc="Sequences that one data-parallel rank computes at once.")
    gradient_accumulation_steps: int | None = live(None, ge=1, doc="Micro-batches in one optimizer step; solved when absent.")
    precision: Literal["fp16", "fp32", "bfloat16"] | None = live(None, doc="Arithmetic of the model; fp32 when nothing says else.")
    fp16: Fp16 | None = live(None, doc="fp16 and its loss scale.")
    bf16: Bf16 | None = live(None, doc="bfloat16.")
    zero_optimization: ZeroOptimization = live(ZeroOptimization(stage=0), doc="ZeRO: what data-parallel ranks share out.")
    steps_per_print: int = passed(10, ge=1, doc="DeepSpeed prints its own line every so many steps.")
    wall_clock_breakdown: bool = passed(False, doc="DeepSpeed times forward, backward and step.")
    fp16_lm_cross_entropy: bool = planned(False, doc="The loss itself in fp16.")
    hysteresis: int = retired(2, doc="Older name of fp16.hysteresis.", why="write fp16: {hysteresis: ...}")
    loss_scale: float | None = retired(None, doc="Older name of fp16.loss_scale.", why="write fp16: {loss_scale: ...}")
    loss_scale_window: float = retired(
        1000.0, doc="Older name of fp16.loss_scale_window.", why="write fp16: {loss_scale_window: ...}"
    )
    min_scale: float = retired(1.0, doc="Older name of fp16.min_loss_scale.", why="write fp16: {min_loss_scale: ...}")
    zero_reduce_scatter: bool | None = retired(None, doc="A mirror.", why="write zero_optimization: {reduce_scatter: ...}")
    zero_contiguous_gradients: bool | None = retired(
        None, doc="A mirror.", why="write zero_optimization: {contiguous_gradients: ...}"
    )
    zero_reduce_bucket_size: int | None = retired(None, doc="A mirror.", why="write zero_optimization: {reduce_bucket_size: ...}")
    zero_allgather_bucket_size: int | None = retired(
        None, doc="A mirror.", why="write zero_optimization: {allgather_bucket_size: ...}"
    )
    deepspeed: bool = planned(True, doc="Train with DeepSpeed; there is no other engine yet.")
    deepscale: bool = retired(False, doc="Train with DeepScale.", why="never read by GPT-NeoX")
    deepscale_config: str | None = retired(None, doc="Configuration of DeepScale.", why="never read by GPT-NeoX")
    amp: dict[str, Any] | None = planned(None, doc="Apex mixed precision.")
    data_types: dict[str, Any] | None = planned(None, doc="DeepSpeed's data_types, e.g. grad_accum_dtype.")
    communication_data_type: str | None = planned(None, doc="Data type of gradient reductions.")
    prescale_gradients: bool = planned(False, doc="Divide gradients before they are reduced.")
    gradient_predivide_factor: float = planned(1.0, gt=0, doc="By how much, with prescale_gradients.")
    sparse_gradients: bool = planned(False, doc="Reduce embedding gradients as sparse tensors.")
    curriculum_learning: dict[str, Any] | None = planned(None, doc="DeepSpeed's sequence-length curriculum.")
    data_efficiency: dict[str, Any] | None = planned(None, doc="DeepSpeed's data efficiency library.")
    activation_checkpointing: dict[str, Any] | None = planned(None, doc="DeepSpeed's activation checkpointing section.")
    sparse_attention: dict[str, Any] | None = planned(None, doc="DeepSpeed's sparse attention section.")
    elasticity: dict[str, Any] | None = planned(None, doc="DeepSpeed's elasticity section.")
    compression_training: dict[str, Any] | None = planned(None, doc="DeepSpeed's compression section.")
    checkpoint: dict[str, Any] | None = planned(None, doc="DeepSpeed's checkpoint section.")
    autotuning: dict[str, Any] | None = planned(None, doc="DeepSpeed's autotuning section.")
    flops_profiler: dict[str, Any] | None = planned(None, doc="DeepSpeed's FLOPs profiler.")
    comms_logger: dict[str, Any] | None = planned(None, doc="DeepSpeed's log of collectives.")
    tensorboard: dict[str, Any] | None = planned(None, doc="DeepSpeed's own TensorBoard monitor.")
    wandb: dict[str, Any] | None = planned(None, doc="DeepSpeed's own W&B monitor.")
    csv_monitor: dict[str, Any] | None = planned(None, doc="DeepSpeed's own CSV monitor.")
    dump_state: bool = planned(False, doc="DeepSpeed prints its state at start.")
    deepspeed_extra_args: dict[str, Any] | None = planned(None, doc="Further keys of DeepSpeed's configuration.")
    fp32_allreduce: bool = planned(False, doc="Reduce gradients in fp32.")

    @model_validator(mode="after")
    def _one_precision(self) -> DeepSpeed:
        said: dict[str, str] = {}
        if self.precision is not None:
            said["precision"] = self.precision
        if self.fp16 is not None and self.fp16.enabled:
            said["fp16.enabled"] = "fp16"
        if self.bf16 is not None and self.bf16.enabled:
            said["bf16.enabled"] = "bfloat16"
        if len(set(said.values())) > 1:
            raise ValueError("two precisions are asked for: " + ", ".join(f"{key} says {value}" for key, value in said.items()))
        return self
