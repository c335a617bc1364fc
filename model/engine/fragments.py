"""Where DeepSpeed 0.19.8 keeps the fp32 weights and the optimizer's states of each parameter.

Its internal names stand in this file and nowhere else; tests/model/test_engine.py names each of them against the pinned version.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from model.config import RunConfig
from model.optim import begin_state
from model.optimizers.tensor_by_tensor import Packed
from model.parallel.parameters import GlobalParameter, global_parameters


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A contiguous piece of a parameter's flattened local shard that this rank updates."""

    parameter: GlobalParameter
    shard_shape: tuple[int, ...]
    """Of the parameter's shard on this tensor rank, of which ZeRO may leave only a piece here."""
    start: int
    tensors: Mapping[str, Tensor]
    """weight, and what the optimizer keeps of it (exp_avg, …): fp32 views into its own memory, one dimension."""
    keep: Callable[[], None]
    """Where ``tensors`` are copies, because the optimizer keeps them in another form: takes them back.  Shared by the fragments of
    one tensor of its own."""
    whole_on_every_data_rank: bool
    """ZeRO-0: all data ranks hold, and update, the same."""

    @property
    def of_first_stage(self) -> bool:
        """A later pipeline stage's copy of what several share: the first stage has, and stores, the same."""
        return bool(getattr(self.parameter, "ds_pipe_replicated", False))

    @property
    def length(self) -> int:
        """Elements."""
        return int(self.tensors["weight"].numel())


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What an optimizer counts beside its moments; the same on every rank."""

    optimizer_steps: int
    """Steps that changed the weights (fp16 skips those that overflow)."""
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
def fragments_of(engine: Any, config: RunConfig) -> list[Fragment]:
    """The pieces that this rank updates, without padding.  What the optimizer does not keep yet is made, as before its first
    step."""
    parameters = list(global_parameters(engine.module))
    optimizer, state = engine.optimizer, _States(config)
    if isinstance(optimizer, torch.optim.Optimizer):
        return [_whole(optimizer, p, state) for p in parameters]
    piece = _piece_of_parameters if _partitions_parameters(optimizer) else _piece_of_states
    return [fragment for p in parameters if (fragment := piece(optimizer, p, state)) is not None]


def _whole(optimizer: torch.optim.Optimizer, p: GlobalParameter, state: _States) -> Fragment:
    """ZeRO-0 in fp32: the parameter itself."""
    return Fragment(
        parameter=p,
        shard_shape=tuple(p.shape),
        start=0,
        tensors={name: tensor.view(-1) for name, tensor in state.of(optimizer, p.data, p).items()},
        keep=state.keep(optimizer, p),
        whole_on_every_data_rank=True,
    )


def _piece_of_states(optimizer: Any, p: GlobalParameter, state: _States) -> Fragment | None:
    """ZeRO 1 and 2, and BF16_Optimizer: DeepSpeed says where the piece lies in the flat fp32 tensor of its parameter group."""
    mapping: Any = getattr(p, "_hp_mapping")  # noqa: B009 (DeepSpeed puts it there)
    if mapping is None:
        return None
    flat = _flat_partitions(optimizer)[mapping.param_group_index]
    at, length = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
    return _part(
        optimizer.optimizer,
        state,
        flat,
        p,
        at,
        length,
        shard_shape=tuple(p.shape),
        start=mapping.lp_fragment_address.start,
    )


def _piece_of_parameters(optimizer: Any, p: GlobalParameter, state: _States) -> Fragment | None:
    """ZeRO-3: every parameter is cut into equal pieces, the last ones filled up; the parameter itself is empty between steps."""
    shape: tuple[int, ...] = tuple(getattr(p, "ds_shape"))  # noqa: B009
    sub_group, at, length = optimizer.grad_position[optimizer.get_param_id(p)]
    start = optimizer._get_param_partition_rank(p) * length
    length = min(length, math.prod(shape) - start)
    if length <= 0:
        return None
    flat = optimizer.fp32_partitioned_groups_flat[sub_group]
    return _part(optimizer.optimizer, state, flat, p, at, length, shard_shape=shape, start=start)


def _part(
    inner: torch.optim.Optimizer,
    state: _States,
    flat: Tensor,
    p: GlobalParameter,
    at: int,
    length: int,
    *,
    shard_shape: tuple[int, ...],
    start: int,
) -> Fragment:
    tensors = {name: tensor.narrow(0, at, length) for name, tensor in state.of(inner, flat.data, flat).items()}
    return Fragment(
        parameter=p,
        shard_shape=shard_shape,
        start=start,
        tensors=tensors,
        keep=state.keep(inner, flat),
        whole_on_every_data_rank=False,
    )


@torch.no_grad()
def after_load(engine: Any, fragments: Iterable[Fragment], progress: Progress | None) -> None:
    """Bring the engine in line with fragments that were just filled: what the optimizer keeps in another form, the counters, and
    the weights that the model computes with.

    ``progress``: ``None`` where only weights were loaded; the optimizer then begins afresh.
    """
    for keep in dict.fromkeys(fragment.keep for fragment in fragments):
        keep()
    optimizer = engine.optimizer
    basic = isinstance(optimizer, torch.optim.Optimizer)
    restore_progress(engine, optimizer if basic else optimizer.optimizer, progress)
    if basic:
        return
    if _partitions_parameters(optimizer):
        _renew_partitioned_parameters(optimizer)
        return
    if hasattr(optimizer, "update_lp_params"):  # BF16_Optimizer
        optimizer.update_lp_params()
    else:
        _renew_parameters(optimizer)
    optimizer._hp_optimizer_states_linked = False
    if progress is not None:
        optimizer._lazy_init_hp_params_optimizer_state()


def restore_progress(engine: Any, inner: torch.optim.Optimizer, progress: Progress | None) -> None:
    """Put the counters of the optimizer ``inner`` and of the engine's loss scaler where they stood; ``None``: forget them."""
    if progress is None:
        inner.state.clear()
        return
    for state in inner.state.values():
        if isinstance(state["step"], Tensor):
            state["step"].fill_(progress.optimizer_steps)
        else:
            state["step"] = progress.optimizer_steps
    for name, value in progress.loss_scaler.items() if engine.fp16_enabled() else ():
        scaler = engine.optimizer.loss_scaler
        if hasattr(scaler, name):
            setattr(scaler, name, value if name == "cur_scale" else int(value))


def _renew_parameters(optimizer: Any) -> None:
    """DeepSpeedZeroOptimizer, stages 1 and 2: every rank's piece into its place, then everyone's pieces to everyone."""
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


def _renew_partitioned_parameters(optimizer: Any) -> None:
    """DeepSpeedZeroOptimizer_Stage3: this rank's pieces into its own flat tensors; small parameters, which stay whole, anew."""
    optimizer.checkpoint_event_prologue()  # every parameter back into pieces
    for number, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
        optimizer.fp16_partitioned_groups_flat[number].data.copy_(flat.data)
        optimizer._unflatten_partitioned_parameters(number)
    optimizer.checkpoint_event_epilogue()


def _partitions_parameters(optimizer: Any) -> bool:
    """ZeRO-3."""
    return hasattr(optimizer, "fp32_partitioned_groups_flat")


def _flat_partitions(optimizer: Any) -> list[Tensor]:
    """The fp32 tensors that the inner optimizer updates, one a parameter group."""
    if hasattr(optimizer, "fp32_groups_flat_partition"):  # BF16_Optimizer
        return list(optimizer.fp32_groups_flat_partition)
    return list(optimizer.single_partition_of_fp32_groups)


class _States:
    """What the optimizer of ``config`` keeps of a tensor, beside the tensor itself."""

    def __init__(self, config: RunConfig) -> None:
        self._kind, self._kept = config.optimizer, config.optimizer_states
        self._unpacked: dict[Tensor, dict[str, Tensor]] = {}
        self._keeps: dict[Tensor, Callable[[], None]] = {}

    def of(self, inner: torch.optim.Optimizer, weight: Tensor, key: Tensor) -> dict[str, Tensor]:
        if isinstance(inner, Packed):
            if key not in self._unpacked:
                self._unpacked[key] = inner.unpacked(key)
            return {"weight": weight} | self._unpacked[key]
        state = inner.state[key]
        if not state:
            state.update(begin_state(self._kind, self._kept, weight))
        return {"weight": weight} | {name: state[name] for name in self._kept}

    def keep(self, inner: torch.optim.Optimizer, key: Tensor) -> Callable[[], None]:
        """Takes back what ``of`` has unpacked of ``key``."""
        if not isinstance(inner, Packed):
            return _nothing
        return self._keeps.setdefault(key, partial(inner.pack, key, self._unpacked[key]))


def _nothing() -> None:
    pass
