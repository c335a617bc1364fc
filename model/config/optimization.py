"""Keys of the optimizer, the learning rate, precision, ZeRO and the rest that DeepSpeed is told."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import field_validator, model_validator

from model.config.deepspeed_sections import (
    Bf16,
    CommsLogger,
    DataTypes,
    Dtype,
    ExtraArgs,
    FlopsProfiler,
    Fp16,
    Scheduler,
    ZeroOptimization,
)
from model.config.keys import Section, live, passed, planned, retired
from model.config.optimizers import OPTIMIZERS
from model.config.schedule import Style

NAMES = tuple(name for name in OPTIMIZERS if name != "adam8bit")
"""Of ``optimizer.type``; ``use_bnb_optimizer`` makes adam8bit of adam."""
OWN_COLLECTIVES = "it sends through torch.distributed (distributed_backend), as everything does"
GONE = "DeepSpeed 0.19.8 has it no more"
Precision = Literal["fp32", "fp16", "bfloat16"]


def _defaults(key: str) -> str:
    """``0.9 (madgrad_wd), 0.0 (sgd)``"""
    names: dict[Any, list[str]] = {}
    for name, kind in OPTIMIZERS.items():
        if key in kind.reads:
            names.setdefault(kind.reads[key], []).append(name)
    return ", ".join(f"{value} ({', '.join(some)})" for value, some in names.items())


class OptimizerParams(Section):
    """``optimizer.params``: PyTorch's names.  What is absent has the optimizer's own default (model/config/optimizers.py)."""

    lr: float = live(1e-3, gt=0, doc="Peak learning rate.")
    betas: tuple[float, float] | None = live(
        None, strict=False, doc="Decay of the two moments, [0.9, 0.999] when absent; of Lion's direction and moment, [0.9, 0.99]."
    )
    eps: float | None = live(None, gt=0, doc=f"Added to the root of the second moment; when absent {_defaults('eps')}.")
    adam_w_mode: bool | None = live(
        None, doc="Adam: decoupled weight decay (AdamW), as when absent; false adds it to the gradient (L2)."
    )
    momentum: float | None = live(None, ge=0, lt=1, doc=f"Momentum; when absent {_defaults('momentum')}.")
    beta: float | None = live(None, ge=0, lt=1, doc="SM3: decay of its sums of squares; when absent 0, they grow for ever.")
    freeze_step: int | None = live(None, ge=1, doc="1-bit Adam: steps after which ranks send one bit a value; when absent 100000.")
    cuda_aware: bool | None = retired(None, doc="1-bit Adam's MPI sends from GPU memory.", why=OWN_COLLECTIVES)
    comm_backend_name: str | None = retired(None, doc="What 1-bit Adam sends through.", why=OWN_COLLECTIVES)

    @field_validator("betas")
    @classmethod
    def _decays(cls, betas: tuple[float, float] | None) -> tuple[float, float] | None:
        if betas is not None and not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas {list(betas)} must lie in [0, 1)")
        return betas


class OptimizerChoice(Section):
    """``optimizer``: which one, and its parameters."""

    type: str = live(
        "adam",
        doc=f"One of {', '.join(NAMES)}; adam and adamw both decouple weight decay, as GPT-NeoX's fused Adam does.",
    )
    params: OptimizerParams = live(OptimizerParams(), doc="Its parameters.")

    @field_validator("type")
    @classmethod
    def _known(cls, name: str) -> str:
        if name.lower() not in NAMES:
            near = difflib.get_close_matches(name.lower(), NAMES, n=1)
            known = f"did you mean {near[0]}?" if near else f"write one of {', '.join(NAMES)}"
            raise ValueError(f"unknown optimizer {name!r}: {known}")
        return name.lower()


class Optimization(Section):
    """The optimizer and what is done to gradients before it."""

    optimizer: OptimizerChoice = live(OptimizerChoice(), doc="Optimizer type and parameters; the learning rate stands here.")
    scheduler: Scheduler | None = passed(None, doc="DeepSpeed's own learning-rate schedule, in the place of ours.")
    use_bnb_optimizer: bool = live(False, doc="Adam whose moments are kept in 8 bits, by bitsandbytes.")
    clip_grad: float = retired(1.0, doc="Older name of gradient_clipping.", why="write gradient_clipping")
    weight_decay: float = live(0.1, ge=0, doc="Weight decay of matrices; biases and norms have none.")
    gradient_clipping: float = live(1.0, ge=0, doc="Largest norm of the whole gradient; 0 turns clipping off.")


class LearningRate(Section):
    """The learning rate over steps (formulas: model/config/schedule.py)."""

    lr_decay_style: Style = live("linear", doc="Curve after warm-up.")
    lr_decay_iters: int | None = live(None, ge=1, doc="Steps until min_lr is reached; train_iters when absent.")
    lr_decay_fraction: float | None = live(None, gt=0, le=1, doc="The same as a share of train_iters.")
    min_lr: float = live(0.0, ge=0, doc="The rate never falls below this after warm-up.")
    warmup: float = live(0.01, ge=0, le=1, doc="Share of the decay steps during which the rate rises from 0.")

    override_lr_scheduler: bool = live(
        False, doc="A run that continues from a checkpoint of another curve follows this file's; else it is refused."
    )
    use_checkpoint_lr_scheduler: bool = live(False, doc="It follows the checkpoint's.")

    @model_validator(mode="after")
    def _one_curve(self) -> LearningRate:
        if self.lr_decay_iters is not None and self.lr_decay_fraction is not None:
            raise ValueError("lr_decay_iters and lr_decay_fraction both give the length of the decay: keep one")
        if self.override_lr_scheduler and self.use_checkpoint_lr_scheduler:
            raise ValueError(
                "override_lr_scheduler follows this file's curve and use_checkpoint_lr_scheduler the checkpoint's: keep one"
            )
        return self


class DeepSpeed(Section):
    """Batch sizes, precision, ZeRO and printing, under DeepSpeed's names."""

    train_batch_size: int | None = live(None, ge=1, doc="Sequences in one optimizer step, over all GPUs.")
    train_micro_batch_size_per_gpu: int | None = live(None, ge=1, doc="Sequences that one data-parallel rank computes at once.")
    gradient_accumulation_steps: int | None = live(None, ge=1, doc="Micro-batches in one optimizer step; solved when absent.")
    precision: Precision | None = live(None, doc="Arithmetic of the model; fp32 when nothing says else.")
    fp16: Fp16 | None = live(None, doc="fp16 and its loss scale.")
    bf16: Bf16 | None = live(None, doc="bfloat16.")
    zero_optimization: ZeroOptimization = live(ZeroOptimization(stage=0), doc="ZeRO: what data-parallel ranks share out.")
    steps_per_print: int = passed(10, ge=1, doc="DeepSpeed logs its own line every so many steps, where its log is shown.")
    wall_clock_breakdown: bool = passed(False, doc="DeepSpeed times forward, backward and step, and prints it.")
    fp16_lm_cross_entropy: bool = live(False, doc="The loss itself in fp16 (with fp16).")
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
    amp: dict[str, Any] | None = retired(None, doc="Apex mixed precision.", why=f"{GONE}; write precision")
    data_types: DataTypes | None = passed(None, doc="Arithmetic beside the model's own.")
    communication_data_type: Dtype | None = passed(
        None, doc="In what data-parallel ranks reduce gradients; when absent, fp16 for fp16, else as they are added up."
    )
    prescale_gradients: bool = passed(False, doc="Divide gradients before they are reduced, not after.")
    gradient_predivide_factor: float = passed(1.0, gt=0, doc="Divide by this before, and by the rest after.")
    sparse_gradients: bool = retired(False, doc="Reduce embedding gradients as sparse tensors.", why=GONE)
    curriculum_learning: dict[str, Any] | None = planned(None, doc="DeepSpeed's sequence-length curriculum.")
    data_efficiency: dict[str, Any] | None = planned(None, doc="DeepSpeed's data efficiency library.")
    activation_checkpointing: dict[str, Any] | None = retired(
        None, doc="DeepSpeed's section of it; each of its keys is read as GPT-NeoX's.", why="it is read as partition_activations, …"
    )
    sparse_attention: dict[str, Any] | None = planned(None, doc="DeepSpeed's sparse attention section.")
    elasticity: dict[str, Any] | None = retired(
        None, doc="Batch sizes that fit many numbers of GPUs.", why=f"{GONE}; write train_batch_size, and the rest is solved"
    )
    compression_training: dict[str, Any] | None = retired(None, doc="Quantization and pruning while training.", why=GONE)
    checkpoint: dict[str, Any] | None = retired(
        None, doc="How DeepSpeed writes checkpoints.", why="checkpoints here are not DeepSpeed's: their slices fit any layout"
    )
    autotuning: dict[str, Any] | None = retired(
        None, doc="Find ZeRO stage and micro-batch by trials.", why="its trials are started by DeepSpeed's launcher, not used here"
    )
    flops_profiler: FlopsProfiler | None = passed(None, doc="FLOPs and times of every module, once.")
    comms_logger: CommsLogger | None = passed(None, doc="Sizes and times of DeepSpeed's collectives.")
    tensorboard: dict[str, Any] | None = planned(None, doc="DeepSpeed's own TensorBoard monitor.")
    wandb: dict[str, Any] | None = planned(None, doc="DeepSpeed's own W&B monitor.")
    csv_monitor: dict[str, Any] | None = planned(None, doc="DeepSpeed's own CSV monitor.")
    dump_state: bool = passed(False, doc="DeepSpeed logs its engine's state at start.")
    deepspeed_extra_args: ExtraArgs | None = live(None, doc="Further keys of DeepSpeed's configuration.")
    fp32_allreduce: bool = live(False, doc="Tensor-parallel ranks sum activations and their gradients in fp32.")

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

    @model_validator(mode="after")
    def _fits_the_precision(self) -> DeepSpeed:
        accumulation = self.data_types.grad_accum_dtype if self.data_types is not None else None
        allowed = {"fp32": ("fp32",), "bfloat16": ("fp32", "bf16"), "fp16": ("fp32", "fp16")}[self.arithmetic]
        if accumulation not in (None, *allowed):
            wrong = f"data_types.grad_accum_dtype: {self.arithmetic} gradients are not added up in {accumulation}"
            raise ValueError(f"{wrong}: write {' or '.join(allowed)}")
        if self.fp16_lm_cross_entropy and self.arithmetic != "fp16":
            raise ValueError(f"fp16_lm_cross_entropy needs fp16, and the precision is {self.arithmetic}: remove it")
        return self

    @model_validator(mode="after")
    def _one_way_to_divide(self) -> DeepSpeed:
        """Seen in DeepSpeed 0.19.8: reduce-scatter divides once and reads neither key, prescaling does not read the factor, and
        ZeRO-3 halves the gradient where a factor of 2 meets 2 data-parallel ranks."""
        given = ["prescale_gradients"] if self.prescale_gradients else []
        given += ["gradient_predivide_factor"] if self.gradient_predivide_factor != 1 else []
        if len(given) == 2:
            raise ValueError(
                "prescale_gradients divides by all ranks before, gradient_predivide_factor by a part of them: keep one"
            )
        if "gradient_predivide_factor" in given and self.zero_optimization.stage == 3:
            raise ValueError("gradient_predivide_factor is not multiplied back by DeepSpeed's ZeRO-3: remove it, or write stage: 2")
        partitions = self.zero_optimization.stage > 0 or self.arithmetic != "fp32"
        if given and partitions and self.zero_optimization.reduce_scatter:
            raise ValueError(
                f"{given[0]} is not read while ZeRO reduce-scatters: write zero_optimization: {{reduce_scatter: false}}"
            )
        return self

    @property
    def arithmetic(self) -> Precision:
        """Arithmetic of the model."""
        if self.fp16 is not None and self.fp16.enabled:
            return "fp16"
        if self.bf16 is not None and self.bf16.enabled:
            return "bfloat16"
        return self.precision or "fp32"
