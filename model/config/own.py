"""Keys of our own, in one section ``neox_hpc:``; the same words, statuses and rules as GPT-NeoX's keys.

Most are the mixture-of-experts keys that GPT-NeoX's README documents and its code no longer knows
(removed by its change #1210; defaults as they were there).
"""

from __future__ import annotations

from typing import Literal

from model.config.keys import Section, live, planned


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
    compile: bool = live(False, doc="Blocks run as torch.compile makes them; on a CPU that takes a C++ compiler.")
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
