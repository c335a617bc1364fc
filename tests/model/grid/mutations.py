"""Eight mistakes that are easily made in a parallel model, each put in for the time of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from model.parallel import loss as head
from model.parallel.groups import Groups
from model.parallel.linear import RowParallelLinear
from tests.model.grid.cells import Cell


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """A mistake, and where it is seen."""

    apply: Callable[[], AbstractContextManager[Any]]
    cell: Cell
    seen_in: str
    """A quantity of comparison.py."""
    of: str
    """The parameter or step of which that quantity is off, by name."""


def _norm_gradients_stay_apart() -> AbstractContextManager[Any]:
    """Under sequence parallelism every tensor rank's norms see a share of the tokens; their gradients are not summed."""
    return mock.patch("model.layers.norm.share", lambda groups, *parameters: parameters)


def _tied_gradients_stay_apart() -> AbstractContextManager[Any]:
    """The embedding's stage and the head's each update their own copy."""
    return mock.patch("model.engine.pipeline._tied_weights", return_value=[])


@contextmanager
def _vocabulary_maximum_of_each_rank() -> Iterator[None]:
    """Each rank's exponentials are taken relative to the largest logit of its own shard, not of all, and then summed."""
    largest_c: list[Tensor] = []
    right = head._loss_and_its_gradient

    def loss_and_its_gradient(z_cv: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        largest_c[:] = [z_cv.amax(-1)]
        return right(z_cv, *rest)

    def over_vocabulary(lse_r: Tensor, at_label_r: Tensor, here_r: Tensor, how: Any) -> tuple[Tensor, Tensor]:
        sums_r2 = torch.stack(((lse_r - largest_c[0]).exp(), at_label_r.masked_fill(~here_r, 0)), -1)
        dist.all_reduce(sums_r2, group=how.groups.tensor_group)
        return sums_r2[:, 0].log() + largest_c[0], sums_r2[:, 1]

    with (
        mock.patch.object(head, "_loss_and_its_gradient", loss_and_its_gradient),
        mock.patch.object(head, "_over_vocabulary", over_vocabulary),
    ):
        yield


def _vocabulary_sum_of_each_rank() -> AbstractContextManager[Any]:
    """Each rank's softmax is over its own shard of the vocabulary."""
    right = head._over_vocabulary

    def over_vocabulary(lse_r: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return lse_r, right(lse_r, *rest)[1]

    return mock.patch.object(head, "_over_vocabulary", over_vocabulary)


def _bias_of_each_rank() -> AbstractContextManager[Any]:
    """A row-parallel layer adds its bias before the ranks are summed, and so once for each."""
    from model.parallel.collectives import sum_out

    def forward(self: RowParallelLinear, y_BSi: Tensor, *, partial: bool = False) -> Tensor:
        assert not partial
        return sum_out(F.linear(y_BSi, self.weight, self.bias), self._groups)

    return mock.patch.object(RowParallelLinear, "forward", forward)


def _sum_over_micro_batches() -> AbstractContextManager[Any]:
    """The gradients of the micro-batches are summed, and nothing is divided by their number."""
    from deepspeed import DeepSpeedEngine

    right = DeepSpeedEngine.backward

    def backward(self: Any, loss: Tensor, **how: Any) -> Any:
        # its own scale_wrt_gas=False would be undone by a hook on the loss (0.19.8)
        return right(self, loss * self.gradient_accumulation_steps(), **how)

    return mock.patch.object(DeepSpeedEngine, "backward", backward)


def _sum_over_data_ranks() -> AbstractContextManager[Any]:
    """The data ranks' gradients are summed, and nothing is divided by their number."""
    from model.engine.settings import deepspeed_settings

    def settings(*given: Any) -> dict[str, Any]:
        return deepspeed_settings(*given) | {"gradient_allreduce_op": "sum"}

    return mock.patch("model.engine.trainer.deepspeed_settings", settings)


def _replicated_parameters_counted_on_every_rank() -> AbstractContextManager[Any]:
    """The norm counts a parameter that lies whole on every tensor rank once for each."""

    def counts(parameter: Any, groups: Groups) -> bool:
        return not getattr(parameter, "ds_pipe_replicated", False)

    return mock.patch("model.engine.norm.counts", counts)


def _cell(**axes: Any) -> Cell:
    plain: dict[str, Any] = {"tensor": 1, "pipe": 0, "data": 1, "zero": 0, "sequence_parallel": False, "recompute": "nothing"}
    return Cell(**plain | axes)


_TENSOR, _SEQUENCE = _cell(tensor=2), _cell(tensor=2, sequence_parallel=True)
_STAGES, _DATA = _cell(pipe=2, head="tied"), _cell(data=2, accumulation=2)

MUTATIONS: dict[str, Mutation] = {
    "norms' gradients are not summed under sequence parallelism": Mutation(
        apply=_norm_gradients_stay_apart, cell=_SEQUENCE, seen_in="gradient", of="layers.0.input_layernorm.weight"
    ),
    "a tied embedding's gradients are not summed": Mutation(
        apply=_tied_gradients_stay_apart, cell=_STAGES, seen_in="gradient", of="embedding.word_embeddings.weight"
    ),
    "the vocabulary's maximum is each rank's own": Mutation(
        apply=_vocabulary_maximum_of_each_rank, cell=_TENSOR, seen_in="loss", of="step 1"
    ),
    "the vocabulary's sum is each rank's own": Mutation(
        apply=_vocabulary_sum_of_each_rank, cell=_TENSOR, seen_in="loss", of="step 1"
    ),
    "a row-parallel bias is added on every rank": Mutation(
        apply=_bias_of_each_rank,
        cell=_TENSOR,
        seen_in="loss",
        of="step 2",  # it begins at zero
    ),
    "micro-batches are not averaged": Mutation(
        apply=_sum_over_micro_batches, cell=_DATA, seen_in="gradient", of="head.final_linear.weight"
    ),
    "data ranks are summed": Mutation(apply=_sum_over_data_ranks, cell=_DATA, seen_in="gradient", of="head.final_linear.weight"),
    "the norm counts replicated parameters on every tensor rank": Mutation(
        apply=_replicated_parameters_counted_on_every_rank, cell=_TENSOR, seen_in="norm", of="step 1"
    ),
}
