"""Pipeline stages for DeepSpeed's pipeline engine: each is one of its layers; changes when DeepSpeed's pipeline does.

Which layers of ours a stage holds is decided in model/config/partition.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import Tensor, nn

from model.data.batch import Batch
from model.gpt import GPT
from model.layers.stage import pack, unpack
from model.parallel.groups import Groups
from model.parallel.parameters import global_parameters

Fed = tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]
"""What the engine is fed: the first stage takes the first part, the last one labels and mask."""


class Pipeline(PipelineModule):  # type: ignore[misc]
    """DeepSpeed's view of ``model``, this rank's stage."""

    def __init__(self, model: GPT, groups: Groups, mpu: Any) -> None:
        layout = groups.layout
        self._mpu = mpu
        super().__init__(
            layers=[LayerSpec(_StageModule, model) for _ in range(layout.pipe)],
            topology=PipeModelDataParallelTopology(num_pp=layout.pipe, num_mp=layout.tensor, num_dp=layout.data),
            partition_method="uniform",
            loss_fn=_loss(model),
        )
        self._tied = _tied_weights(model, groups)
        for weight, _ in self._tied:
            weight.ds_pipe_replicated = not groups.first_stage
        mpu.get_pipe_parallel_group = self._grid.get_pipe_parallel_group  # the engine broadcasts on both: another group would hang

    def mpu(self) -> Any:
        """Ours instead of DeepSpeed's grid."""
        return self._mpu

    def get_tied_weights_and_groups(self) -> list[tuple[Any, dist.ProcessGroup]]:
        """The engine sums these gradients over these groups before it reduces over data ranks.

        It looks for them where BF16_Optimizer or autograd keeps them.  An optimizer that adds up in another place (16-bit weights
        with fp32 sums, offloaded: ``grad_accum``, DeepSpeed 0.19.8) has nothing there, so those are summed here.
        """
        for weight, group in self._tied:
            summed = getattr(weight, "grad_accum", None)
            if weight.grad is None and summed is not None:
                dist.all_reduce(summed, group=group)
        return self._tied


def feed(batches: Iterable[Batch], model: GPT) -> Iterator[Fed]:
    """Micro-batches in the engine's form."""
    for batch in batches:
        yield pack(model.stage_of(batch)), (batch.labels_BS, batch.loss_mask_BS)


class _StageModule(nn.Module):
    """The tuple of one stage boundary to the next."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tensors: tuple[Tensor, ...] | Tensor) -> tuple[Tensor, ...]:
        given = unpack(tensors if isinstance(tensors, tuple) else (tensors,), self.model.fields)
        numbers_B = given.sample_B  # read once: every layer would wait for the GPU
        stage = self.model.run_layers(given if numbers_B is None else given._replace(sample_B=numbers_B.cpu()))
        stage = stage._replace(sample_B=numbers_B)
        head = self.model.head
        return pack(stage) if head is None else (stage.x, head.matrix.view_as(head.matrix))


def _loss(model: GPT) -> Callable[[tuple[Tensor, Tensor], tuple[Tensor, Tensor]], Tensor]:
    """The loss of a micro-batch.

    The head's matrix is an output of the last stage: BF16_Optimizer clears all gradients when the backward pass reaches the
    outputs, also that of a matrix which was only used after them.
    """

    def loss(outputs: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor]) -> Tensor:
        assert model.head is not None, "the engine asks the last stage"
        x_BSD, matrix = outputs
        value: Tensor = model.head(x_BSD, *labels, matrix=matrix)
        return value

    return loss


def _tied_weights(model: GPT, groups: Groups) -> list[tuple[Any, dist.ProcessGroup]]:
    """What several stages hold a copy of, and who holds one; in the same order everywhere."""
    here = {parameter.global_name: parameter for parameter in global_parameters(model)}
    shared = {"embedding.word_embeddings.weight": groups.ends_group if model.tied else None}
    shared["relative_positions.weight"] = groups.pipe_group
    return [(here[name], group) for name, group in shared.items() if group is not None and name in here]
