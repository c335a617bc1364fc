"""How a run is laid over GPUs, and its batch equation: pure numbers, each checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Layout:
    """tensor x pipe x data == world_size; tensor is the fastest-moving axis of the rank (Megatron-LM's order)."""

    world_size: int
    tensor: int = 1
    pipe: int = 1
    expert: int = 1

    def __post_init__(self) -> None:
        cell = self.tensor * self.pipe
        if self.world_size < 1 or self.world_size % cell:
            raise ValueError(
                f"{self.world_size} ranks cannot hold model_parallel_size {self.tensor} x pipe_parallel_size {self.pipe}: "
                f"use a multiple of {cell}"
            )

    @property
    def data(self) -> int:
        """Replicas of the model."""
        return self.world_size // (self.tensor * self.pipe)

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """A rank's places on the tensor, data and pipe axis: rank = tensor + T (data + D pipe)."""
        return rank % self.tensor, rank // self.tensor % self.data, rank // (self.tensor * self.data)


@dataclass(frozen=True, kw_only=True)
class BatchSizes:
    """train == micro x accumulation x data, in sequences."""

    train: int
    micro: int
    accumulation: int
    data: int

    def __post_init__(self) -> None:
        product = self.micro * self.accumulation * self.data
        if self.train != product:
            raise ValueError(
                f"train_batch_size {self.train} is not train_micro_batch_size_per_gpu {self.micro} x "
                f"gradient_accumulation_steps {self.accumulation} x {self.data} data-parallel ranks = {product}"
            )


def solve_batch(*, train: int | None, micro: int | None, accumulation: int | None, data: int) -> BatchSizes:
    """The batch equation, solved for what is absent.  All sizes in sequences.

    With nothing but ``train`` or ``micro`` given, one micro-batch makes a step (GPT-NeoX's rule).

    Raises:
        ValueError: nothing is given, or the numbers do not multiply out; the message holds them all.
    """
    if train is None:
        if micro is None:
            raise ValueError("no batch size: write train_micro_batch_size_per_gpu (sequences per GPU) or train_batch_size (in all)")
        accumulation = accumulation or 1
        return BatchSizes(train=micro * accumulation * data, micro=micro, accumulation=accumulation, data=data)
    if micro is None:
        accumulation = accumulation or 1
        micro = _share(train, accumulation * data, f"{data} data-parallel ranks x gradient_accumulation_steps {accumulation}")
    elif accumulation is None:
        accumulation = _share(train, micro * data, f"{data} data-parallel ranks x train_micro_batch_size_per_gpu {micro}")
    return BatchSizes(train=train, micro=micro, accumulation=accumulation, data=data)


def _share(train: int, parts: int, parts_text: str) -> int:
    if train % parts:
        below, above = train // parts * parts, (train // parts + 1) * parts
        nearest = f"{above}" if below == 0 else f"{below} or {above}"
        raise ValueError(f"train_batch_size {train} is not a multiple of {parts_text} = {parts}: write {nearest}")
    return train // parts
