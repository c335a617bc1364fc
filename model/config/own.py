"""Keys of our own, in one section ``neox_hpc:``; the same words, statuses and rules as GPT-NeoX's keys.

Most are the mixture-of-experts keys that GPT-NeoX's README documents and its code no longer knows
(removed by its change #1210; defaults as they were there).
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from model.config.keys import Section, live, planned


class RopeScaling(Section):
    """Rotary positions for longer sequences than those of an earlier training; Hugging Face's words and formulas.

    Its ``dynamic`` is none of them: its frequencies change with the length, so that keys in a cache would be turned otherwise than
    the same keys in a whole sequence.
    """

    rope_type: Literal["linear", "llama3", "yarn"] = live(
        doc="linear: positions divided by factor (arXiv:2306.15595). llama3: slow frequencies divided, fast ones kept. "
        "yarn: by their number in the head (arXiv:2309.00071)."
    )
    factor: float = live(ge=1, doc="How much longer.")
    original_max_position_embeddings: int | None = live(None, ge=1, doc="Longest sequence of the earlier training: llama3, yarn.")
    low_freq_factor: float = live(1.0, gt=0, doc="llama3: what turns less often over that length is divided.")
    high_freq_factor: float = live(4.0, gt=0, doc="llama3: what turns more often is kept.")
    beta_fast: float = live(32.0, gt=0, doc="yarn: the pair that turns so often over that length is the last one kept.")
    beta_slow: float = live(1.0, gt=0, doc="yarn: the pair that turns so often is the first one divided.")
    attention_factor: float | None = live(
        None, gt=0, doc="yarn: queries and keys are lengthened by this; by 0.1 ln(factor) + 1 when absent."
    )

    @model_validator(mode="after")
    def _fits(self) -> RopeScaling:
        if self.rope_type != "linear" and self.original_max_position_embeddings is None:
            raise ValueError(f"rope_type {self.rope_type} needs original_max_position_embeddings")
        for key, kind in SCALED.items():
            if getattr(self, key) != type(self).model_fields[key].default and self.rope_type not in kind:
                raise ValueError(f"{key} is for rope_type {' and '.join(kind)}, and rope_type is {self.rope_type}: remove it")
        if self.high_freq_factor <= self.low_freq_factor or self.beta_fast <= self.beta_slow:
            raise ValueError("high_freq_factor and beta_fast are above low_freq_factor and beta_slow")
        return self


SCALED = {
    "original_max_position_embeddings": ("llama3", "yarn"),
    "low_freq_factor": ("llama3",),
    "high_freq_factor": ("llama3",),
    "beta_fast": ("yarn",),
    "beta_slow": ("yarn",),
    "attention_factor": ("yarn",),
}
"""Key of rope_scaling -> the types that it shapes."""


class NeoxHpc(Section):
    """``neox_hpc:``"""

    collective_timeout_minutes: float = live(
        10.0, gt=0, doc="How long a rank waits for another one in a collective before it fails; a dead one is noticed at once."
    )
    recompute_granularity: Literal["full", "selective"] = live(
        "full",
        doc="What checkpoint_activations computes again: whole blocks, or attention and activation only (arXiv:2205.05198).",
    )
    launcher_args: list[str] = live([], doc="Further arguments of the site's launcher, after the site's own, e.g. ['--mpi=none'].")
    rope_scaling: RopeScaling | None = live(None, doc="Rotary positions stretched to longer sequences.")
    compile: bool = live(False, doc="Blocks run as torch.compile makes them; on a CPU that takes a C++ compiler.")
    cpu_adam_op: str | None = live(
        None, doc="DeepSpeed's CPUAdam, built ahead by `python -m model.engine.cpu_adam FILE.so`: a job compiles nothing."
    )
    moe_type: Literal["megablocks", "deepspeed"] = planned("megablocks", doc="Implementation of the experts.")
    moe_expert_parallel_size: int = planned(1, ge=1, doc="GPUs over which the experts of a layer are dealt.")
    moe_loss_coeff: float = planned(0.1, ge=0, doc="Weight of the load-balancing loss.")
    moe_train_capacity_factor: float = planned(1.0, gt=0, doc="Room of an expert in training, of its even share of the tokens.")
    moe_eval_capacity_factor: float = planned(1.0, gt=0, doc="The same in evaluation.")
    moe_min_capacity: int = planned(4, ge=0, doc="Tokens that an expert has room for at least.")
    moe_token_dropping: bool = planned(False, doc="Tokens that find their expert full are dropped.")
    create_moe_param_group: bool = planned(True, doc="Experts have an optimizer group of their own.")
    moe_use_residual: bool = planned(True, doc="An MLP beside the experts (residual MoE).")
    moe_glu: bool = planned(False, doc="Gated experts.")
    enable_expert_tensor_parallelism: bool = planned(False, doc="Experts are cut over tensor-parallel ranks, too.")


class Own(Section):
    """What GPT-NeoX does not know."""

    neox_hpc: NeoxHpc = live(NeoxHpc(), doc="Keys of neox-hpc's own.")
