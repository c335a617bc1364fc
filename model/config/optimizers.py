"""The optimizers: who makes each, which numbers it reads, what it keeps of a weight, and where its formula holds.

Changes when an optimizer is added: one file in model/optimizers/ and one entry here.  Arithmetic and names only, no torch, so
that a plan refuses what a job could not train, and counts what it would hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What there is to know of an optimizer before it is made."""

    make: str
    """``module:name`` of what makes it: ``make(groups, lr=…, **numbers)``."""
    reads: Mapping[str, Any]
    """Its keys of ``optimizer.params``, beside ``lr``, with the values that they have when absent."""
    keeps: tuple[str, ...] = ()
    """Its fp32 tensors of a weight's shape, by the names that its ``state`` and our checkpoints give them."""
    keeps_with_momentum: tuple[str, ...] = ()
    """Those that it keeps beside them where ``momentum`` is not 0."""
    from_weight: frozenset[str] = frozenset()
    """Those of them that begin as the weight itself; the others begin at 0."""
    working: int = 0
    """fp32 tensors of a weight's shape that it makes while it updates it."""
    packed_bytes: float | None = None
    """Of a weight, for what ``keeps`` names, where the optimizer keeps that in another form; else 4 each."""
    takes_groups: bool = False
    """It talks to other ranks: ``make`` is also given ``ranks``, the process groups."""
    step: Literal["tensor", "tensor beside the weight", "number", "counted for it"] = "tensor"
    """What ``state["step"]`` is, which counts the steps of a weight: a tensor in the memory of the node unless it says else."""
    known_to_deepspeed: bool = False
    """DeepSpeed 0.19.8 has it in its list of optimizers that ZeRO was tried with; the others are declared to it."""
    whole_because: str = ""
    """Why it cannot update the flat pieces into which ZeRO cuts weights; nothing where it can."""
    uncut_because: str = ""
    """Why it cannot update one tensor rank's part of a matrix; nothing where it can."""
    in_memory_of_node: bool = False
    """It updates in the memory of the node: ZeRO has to offload the optimizer."""
    rates_by_width: Literal["adam", "sgd"] | None = None
    """How its learning rates change with the width in muP (model/mup.py); ``None``: no rule is known."""
    decays: bool = True
    """It has weight decay."""
    package: str = ""
    """The third-party package that it comes from, as pip takes it, where it is not installed with ``train``."""

    def bytes_a_weight(self, numbers: Mapping[str, Any]) -> float:
        """What it keeps of a weight, the weight itself not counted."""
        kept = 4 * len(self.states(numbers))
        return kept if self.packed_bytes is None else kept - 4 * len(self.keeps) + self.packed_bytes

    def states(self, numbers: Mapping[str, Any]) -> tuple[str, ...]:
        """Its tensors of a weight's shape, with these numbers."""
        return (*self.keeps, *(self.keeps_with_momentum if numbers.get("momentum") else ()))


ADAM = {"betas": (0.9, 0.999), "eps": 1e-8, "adam_w_mode": True}
MOMENTS = ("exp_avg", "exp_avg_sq")
TORCH_ADAM = Optimizer(
    make="model.optimizers.adam:make_adam",
    reads=ADAM,
    keeps=MOMENTS,
    step="tensor beside the weight",
    known_to_deepspeed=True,
    rates_by_width="adam",
)

OPTIMIZERS: dict[str, Optimizer] = {
    "adam": TORCH_ADAM,
    "adamw": TORCH_ADAM,
    "adam8bit": Optimizer(
        make="model.optimizers.adam8bit:Adam8bit",
        reads={"betas": (0.9, 0.999), "eps": 1e-8},
        keeps=MOMENTS,
        packed_bytes=2 + 2 * 4 / 256,  # and an fp32 number for every block of 256
        step="number",
        rates_by_width="adam",
        package="bitsandbytes>=0.50",
    ),
    "cpu_adam": replace(TORCH_ADAM, make="model.engine.cpu_adam:make_cpu_adam", step="number", in_memory_of_node=True),
    "cpu_torch_adam": replace(TORCH_ADAM, in_memory_of_node=True),
    "onebitadam": Optimizer(
        make="model.optimizers.onebit_adam:OneBitAdam",
        reads={"betas": (0.9, 0.999), "eps": 1e-8, "freeze_step": 100_000},
        keeps=MOMENTS,
        packed_bytes=8 + 4 + 4,  # the errors of the compression
        working=2,
        takes_groups=True,
        whole_because="sends momenta of whole weights in place of gradients",
    ),
    "muon": Optimizer(
        make="model.optimizers.muon:Muon",
        reads={"momentum": 0.95, "betas": (0.9, 0.999), "eps": 1e-8},
        keeps=("momentum_buffer", *MOMENTS),
        packed_bytes=8,  # of embedding and head; a hidden matrix has the one, 4
        working=1,
        whole_because="orthogonalizes whole matrices",
        uncut_because="orthogonalizes whole matrices",
    ),
    "sgd": Optimizer(
        make="model.optimizers.sgd:make_sgd",
        reads={"momentum": 0.0},
        keeps_with_momentum=("momentum_buffer",),
        step="counted for it",
        rates_by_width="sgd",
    ),
    "sm3": Optimizer(
        make="model.optimizers.sm3:SM3",
        reads={"momentum": 0.0, "beta": 0.0, "eps": 1e-30},
        keeps=("accumulator",),
        keeps_with_momentum=("momentum_buffer",),
        packed_bytes=0,  # one for every row and column of a matrix
        takes_groups=True,
        whole_because="keeps a number for every row and column of a matrix",
        decays=False,
    ),
    "lion": Optimizer(make="model.optimizers.lion:Lion", reads={"betas": (0.9, 0.99)}, keeps=("exp_avg",), working=1),
    "madgrad_wd": Optimizer(
        make="model.optimizers.madgrad:MadGrad",
        reads={"momentum": 0.9, "eps": 1e-6},
        keeps=("sum_of_gradients", "sum_of_squares"),
        keeps_with_momentum=("first_weight",),
        from_weight=frozenset({"first_weight"}),
        working=2,
    ),
}
