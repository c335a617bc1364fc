"""Where DeepSpeed 0.19.8 keeps the fp32 weights and the optimizer's moments of each parameter.

Its internal names stand in this file and nowhere else; tests/model/test_engine.py names each of them against the pinned version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.parallel.parameters import GlobalParameter, global_parameters

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A contiguous piece of a parameter's flattened local shard that this rank updates."""

    parameter: GlobalParameter
    shard_shape: tuple[int, ...]
    """Of the parameter's shard on this tensor rank, of which ZeRO may leave only a piece here."""
    start: int
    tensors: Mapping[str, Tensor]
    """weight, exp_avg, exp_avg_sq: fp32 views into the optimizer's own memory, one dimension."""
    whole_on_every_data_rank: bool
    """ZeRO-0: all data ranks hold, and update, the same."""

    @property
    def length(self) -> int:
        """Elements."""
        return int(self.tensors["weight"].numel())


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What an optimizer counts beside its moments; the same on every rank."""

    optimizer_steps: int
    """Adam's own count: steps that changed the weights (fp16 skips those that overflow)."""
    loss_scaler: Mapping[str, float]
    """fp16: the scale and the counters by which it moves."""


SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""Of DeepSpeed's DynamicLossScaler; a fixed scale has none but the first."""


def progress_of(engine: Any) -> Progress:
    """What the engine's optimizer has counted."""
    inner = engine.optimizer if isinstance(engine.optimizer, torch.optim.Optimizer) else engine.optimizer.optimizer
    steps = [int(state["step"]) for state in inner.state.values() if "step" in state]
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    found = {name: float(getattr(scaler, name)) for name in SCALER_FIELDS if hasattr(scaler, name)} if engine.fp16_enabled() else {}
    return Progress(optimizer_steps=max(steps, default=0), loss_scaler=found)


@torch.no_grad()
def fragments_of(engine: Any) -> list[Fragment]:
    """The pieces that this rank updates.  Moments that do not exist yet are made, as zeros at step 0."""
    parameters = list(global_parameters(engine.module))
    optimizer = engine.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        return [
            Fragment(
                parameter=p,
                shard_shape=tuple(p.shape),
                start=0,
                tensors={name: tensor.view(-1) for name, tensor in _state(optimizer, p.data, p).items()},
                whole_on_every_data_rank=True,
            )
            for p in parameters
        ]
    found = []
    for p in parameters:
        mapping: Any = getattr(p, "_hp_mapping")  # noqa: B009 (DeepSpeed puts it there)
        if mapping is None:
            continue
        flat = _flat_partitions(optimizer)[mapping.param_group_index]
        at, length = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
        tensors = {name: tensor.narrow(0, at, length) for name, tensor in _state(optimizer.optimizer, flat.data, flat).items()}
        found.append(
            Fragment(
                parameter=p,
                shard_shape=tuple(p.shape),
                start=mapping.lp_fragment_address.start,
                tensors=tensors,
                whole_on_every_data_rank=False,
            )
        )
    return found


@torch.no_grad()
def after_load(engine: Any, progress: Progress | None) -> None:
    """Bring the engine in line with fragments that were just filled: the counters, and the weights that the model computes with.

    ``progress``: ``None`` where only weights were loaded; the optimizer then begins afresh.
    """
    optimizer = engine.optimizer
    basic = isinstance(optimizer, torch.optim.Optimizer)
    inner = optimizer if basic else optimizer.optimizer
    if progress is None:
        inner.state.clear()
    else:
        for state in inner.state.values():
            state["step"].fill_(progress.optimizer_steps)
        for name, value in progress.loss_scaler.items() if engine.fp16_enabled() else ():
            scaler = optimizer.loss_scaler
            if hasattr(scaler, name):
                setattr(scaler, name, value if name == "cur_scale" else int(value))
    if basic:
        return
    if hasattr(optimizer, "update_lp_params"):  # BF16_Optimizer
        optimizer.update_lp_params()
    else:  # DeepSpeedZeroOptimizer, stages 1 and 2
        from deepspeed import comm
        from deepspeed.runtime.utils import all_gather_dp_groups

        for number, flat in enumerate(optimizer.single_partition_of_fp32_groups):
            place = comm.get_rank(group=optimizer.real_dp_process_group[number])
            optimizer.parallel_partitioned_bit16_groups[number][place].data.copy_(flat.data)
        all_gather_dp_groups(
            groups_flat=optimizer.bit16_groups_flat,
            partitioned_param_groups=optimizer.parallel_partitioned_bit16_groups,
            dp_process_group=optimizer.real_dp_process_group,
            start_alignment_factor=optimizer.nccl_start_alignment_factor,
            allgather_bucket_size=optimizer.allgather_bucket_size,
        )
    optimizer._hp_optimizer_states_linked = False
    if progress is not None:
        optimizer._lazy_init_hp_params_optimizer_state()


def _flat_partitions(optimizer: Any) -> list[Tensor]:
    """The fp32 tensors that the inner optimizer updates, one a parameter group."""
    if hasattr(optimizer, "fp32_groups_flat_partition"):  # BF16_Optimizer
        return list(optimizer.fp32_groups_flat_partition)
    return list(optimizer.single_partition_of_fp32_groups)


def _state(inner: torch.optim.Optimizer, weight: Tensor, key: Tensor) -> dict[str, Tensor]:
    state = inner.state[key]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        state |= {moment: torch.zeros_like(weight) for moment in MOMENTS}
    return {"weight": weight} | {moment: state[moment] for moment in MOMENTS}
