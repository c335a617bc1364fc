"""A DeepSpeed engine around the network: one optimizer step, one validation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from model.config import BatchSizes, RunConfig
from model.data.batch import Batch
from model.engine.cpu_adam import load_operation
from model.engine.diagnosis import bad_parameters, first_of_all, forward_again, watch_layers
from model.engine.norm import clip_gradients
from model.engine.recompute import recompute_with_deepspeed
from model.engine.schedule import set_rate
from model.engine.settings import deepspeed_settings
from model.failure import FailedElsewhere
from model.gpt import GPT
from model.optim import make_optimizer
from model.parallel.groups import Groups
from model.parallel.parameters import global_parameters

SMALLEST = "loss scale already at minimum"
"""Of the message by which DeepSpeed's loss scaler gives up."""
SKIPS = 50
"""Steps in a row that may overflow in fp16 (GPT-NeoX's number)."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step tells; equal on all ranks."""

    loss: float
    """Mean over micro-batches and data-parallel ranks."""
    rate: float
    """The learning rate."""
    grad_norm: float
    """Before clipping."""
    loss_scale: float | None
    """fp16 only"""
    skipped: bool
    """fp16 only: the gradient overflowed and the weights stayed."""


class Trainer:
    """Trains ``model``, this rank's pipeline stage, in place."""

    def __init__(self, model: GPT, config: RunConfig, batch: BatchSizes, groups: Groups, device: torch.device) -> None:
        import deepspeed

        if groups.layout.pipe > 1 and config.zero_stage > 1:  # DeepSpeed asserts it, when everything has been built
            raise ValueError(
                f"zero_optimization.stage {config.zero_stage} cannot be combined with {groups.layout.pipe} pipeline stages\n"
                "  fix: write stage: 1, or pipe_parallel_size: 1"
            )
        self.model, self.device = model, device
        self._config, self._groups = config, groups
        self._skips = 0
        self._own_norm: float | None = None
        mpu: Any = _Mpu(groups)
        recompute_with_deepspeed(model, config, groups, mpu, device)
        if config.optimizer_name == "cpu_adam":
            load_operation(config.own.neox_hpc.cpu_adam_op)
        optimizer = self._optimizer = make_optimizer(config, model.parameters(), groups)
        optimizer.register_step_pre_hook(self._before_step)
        with redirect_stdout(StringIO()):  # BF16_Optimizer prints the memory in use, a dozen times
            if self._staged:
                from model.engine.pipeline import Pipeline

                parts: dict[str, Any] = {"model": Pipeline(model, groups, mpu)}
            else:
                parts = {"model": model, "mpu": mpu}  # always: DeepSpeed keeps the first in a module
            self.engine: Any = deepspeed.initialize(
                **parts, optimizer=optimizer, config=deepspeed_settings(config, batch), dist_init_required=False
            )[0]

    def train_step(self, batches: Iterable[Batch], rate: float) -> StepResult:
        """One optimizer step over the micro-batches of this rank at learning rate ``rate``, or at that of DeepSpeed's schedule.

        Raises:
            FloatingPointError: the loss is no number, first on this rank; or fp16 overflows at every step.
            FailedElsewhere: another rank says so.
        """
        rate = set_rate(self.engine, rate)
        if self._local:  # from here to the end of the run
            self.engine.enable_backward_allreduce = self.engine.pipeline_enable_backward_allreduce = False
        self._own_norm = None
        batches = list(batches)
        try:
            loss = float(self._train_stages(batches) if self._staged else self._train_whole(batches))
        except _NotFinite as error:
            self._explain(error.what, batches)
        except Exception as error:
            if SMALLEST not in str(error):
                raise
            self._stop_overflowing("the fp16 gradient overflowed at the smallest loss scale (min_loss_scale)")
        norm = self._own_norm if self._own_norm is not None else float(self.engine.get_global_grad_norm() or 0.0)
        if self._config.precision != "fp16":
            if not (math.isfinite(norm) and math.isfinite(loss)):
                self._explain(_what(loss, norm), batches)
            return StepResult(loss=loss, rate=rate, grad_norm=norm, loss_scale=None, skipped=False)
        skipped = bool(self.engine.optimizer.overflow)
        self._count_skips(skipped)
        scale = float(self.engine.optimizer.cur_scale)
        return StepResult(loss=loss, rate=rate, grad_norm=norm, loss_scale=scale, skipped=skipped)

    @torch.no_grad()
    def validate(self, batches: Sequence[Batch]) -> float:
        """Mean loss over micro-batches and data-parallel ranks, without dropout."""
        if self._staged:
            loss = self._validate_stages(batches)
        else:
            self.engine.eval()
            loss = float(self._mean(torch.stack([self.engine(batch.to(self.device)) for batch in batches]).mean()))
        if not math.isfinite(loss) and self._config.precision != "fp16":
            self._explain(f"the validation loss is {loss}", batches)
        return loss

    @property
    def _local(self) -> bool:
        """The optimizer takes this rank's own gradients in the coming step (1-bit Adam)."""
        return bool(getattr(self._optimizer, "takes_local_gradients", False))

    @property
    def _staged(self) -> bool:
        return self._groups.layout.pipe > 1

    def _train_whole(self, batches: Iterable[Batch]) -> Tensor:
        """The mean loss over micro-batches and data ranks."""
        self.engine.train()
        losses = []
        for batch in batches:
            loss = self.engine(batch.to(self.device))
            self.engine.backward(loss)
            losses.append(loss.detach())
            self.engine.step()
        return self._mean(torch.stack(losses).mean())

    def _train_stages(self, batches: Iterable[Batch]) -> Tensor:
        from model.engine.pipeline import feed

        loss: Tensor = self.engine.train_batch(feed(batches, self.model))
        return loss

    def _validate_stages(self, batches: Sequence[Batch]) -> float:
        from model.engine.pipeline import feed

        return float(self.engine.eval_batch(feed(batches, self.model), num_micro_batches=len(batches)))

    def _before_step(self, *_: Any) -> None:
        """Before the optimizer changes weights: clip where DeepSpeed does not, and stop at a gradient that is no number."""
        if self._config.zero_stage == 0:
            parameters = list(global_parameters(self.model))
            largest = self._config.optimization.gradient_clipping
            norm = self._own_norm = clip_gradients(parameters, self._groups, largest, local=self._local)
        elif self._config.precision == "fp16":
            return  # DeepSpeed has looked: it skips steps that overflow
        else:
            norm = float(self.engine.optimizer._global_grad_norm)
        if not math.isfinite(norm):
            raise _NotFinite(f"the norm of the gradient is {norm}")

    def _mean(self, local: Tensor) -> Tensor:
        total = local.float().reshape(1).clone()
        if self._groups.data_group is not None:
            dist.all_reduce(total, group=self._groups.data_group)
        return total / self._groups.layout.data

    def _count_skips(self, skipped: bool) -> None:
        """Stop a run whose gradient overflows at every step; all ranks see the same."""
        self._skips = self._skips + 1 if skipped else 0
        if self._skips >= SKIPS:
            self._stop_overflowing(f"the fp16 gradient overflowed {SKIPS} steps in a row")

    def _stop_overflowing(self, what: str) -> NoReturn:
        """All ranks have seen the same; the first says so."""
        if self._groups.rank:
            raise FailedElsewhere(rank=0, status=1)
        raise FloatingPointError(f"{what}\n  fix: train in bfloat16, or lower the learning rate")

    def _explain(self, what: str, batches: Sequence[Batch]) -> NoReturn:
        """The rank that met it first says where; the others stop with it.  Collective."""
        found = bad_parameters(self.model)
        if self._staged:
            with watch_layers(self.model, found):
                self._validate_stages(batches)
        else:
            found += forward_again(self.model.train(), batches, self.device)
        rank, where = first_of_all(found, self._groups)
        if rank != self._groups.rank:
            raise FailedElsewhere(rank=rank, status=1)
        fix = "lower the learning rate, or clip the gradient (gradient_clipping); the newest checkpoint is from before"
        raise FloatingPointError(f"{what}: {where}\n  fix: {fix}")


class _NotFinite(Exception):
    """All ranks raise it together."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


def _what(loss: float, norm: float) -> str:
    return f"the norm of the gradient is {norm}" if math.isfinite(loss) else f"the loss is {loss}"


class _Mpu:
    """What DeepSpeed asks of a layout.

    It defines nothing of sequence parallelism: DeepSpeed takes that as a sign to ignore the rest.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        alone = dist.new_group([groups.rank], use_local_synchronization=True)  # every rank makes its own and asks no other
        self._data = groups.data_group or alone
        self._model = groups.model_group or alone
        self._tensor = groups.tensor_group or alone

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self._data

    def get_data_parallel_world_size(self) -> int:
        return self._groups.layout.data

    def get_data_parallel_rank(self) -> int:
        return self._groups.data_rank

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self._model

    def get_model_parallel_world_size(self) -> int:
        return self._groups.layout.tensor * self._groups.layout.pipe

    def get_model_parallel_rank(self) -> int:
        return dist.get_rank(self._model)

    def get_tensor_model_parallel_group(self) -> dist.ProcessGroup:
        return self._tensor

    def get_tensor_model_parallel_world_size(self) -> int:
        return self._groups.layout.tensor

    def get_tensor_model_parallel_rank(self) -> int:
        return self._groups.tensor_rank
