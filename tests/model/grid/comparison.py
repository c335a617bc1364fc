"""How far the ranks of a cell are from one rank, quantity by quantity; changes when other quantities are compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.model.grid.cases import Found, Piece
from tests.model.grid.training import Expected

GRADIENT, NORM, LOSS, WEIGHT = 1e-5, 1e-5, 2e-5, 1e-4
"""Largest relative differences: of the first step's gradient of each parameter (L2), of each step's gradient norm and loss, and of
each parameter after the last step (L2).  Initial weights are equal bit for bit."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A quantity that is further from one rank's than it may be."""

    quantity: str
    """initial weight, gradient, final weight, loss or norm"""
    of: str
    """The parameter's global name, or the step."""
    where: str
    """The ranks that hold it."""
    relative: float
    allowed: float

    def __str__(self) -> str:
        return f"{self.quantity} of {self.of} on {self.where}: off by {self.relative:.2e}, allowed {self.allowed:.0e}"


def differences(ranks: Sequence[Found], expected: Expected) -> list[Difference]:
    """All that differ, in the order in which a step makes them."""
    found = [
        *_of_tensors("initial weight", [(rank, rank.initial) for rank in ranks], expected.initial, 0.0),
        *_of_tensors("gradient", [(rank, rank.gradients) for rank in ranks], expected.gradients, GRADIENT),
    ]
    for step in range(len(expected.losses)):
        for rank in ranks:
            found += _of_step("loss", step, rank, rank.losses[step], expected.losses[step], LOSS)
            found += _of_step("norm", step, rank, rank.norms[step], expected.norms[step], NORM)
    return found + list(_of_tensors("final weight", [(rank, rank.final) for rank in ranks], expected.final, WEIGHT))


def _of_step(quantity: str, step: int, rank: Found, value: float, expected: float, allowed: float) -> Iterator[Difference]:
    relative = abs(value - expected) / expected
    if not relative <= allowed:  # NaN is none
        yield Difference(quantity=quantity, of=f"step {step + 1}", where=f"rank {rank.rank}", relative=relative, allowed=allowed)


def _of_tensors(
    quantity: str, held: Iterable[tuple[Found, Sequence[Piece]]], expected: Mapping[str, Tensor], allowed: float
) -> Iterator[Difference]:
    copies = assemble(held, expected)
    assert {name for name, _ in copies} == expected.keys(), "every parameter is somewhere"
    for (name, where), whole in sorted(copies.items(), key=lambda item: item[0]):
        relative = float((whole - expected[name]).norm() / expected[name].norm().clamp(min=1e-30))
        if not relative <= allowed:
            yield Difference(quantity=quantity, of=name, where=where, relative=relative, allowed=allowed)


def assemble(held: Iterable[tuple[Found, Sequence[Piece]]], like: Mapping[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    """(name, ranks) -> the whole tensor from the pieces of these ranks; NaN where none of them has anything.

    A tensor that tensor parallelism does not cut is as many tensors as there are tensor ranks, which must all be right; so are a
    tied matrix on two stages, and everything on the data ranks of ZeRO-0.
    """
    copies: dict[tuple[str, str], Tensor] = {}
    for rank, pieces in held:
        for piece in pieces:
            key = piece.name, _copy(rank, piece)
            if key not in copies:
                copies[key] = torch.full_like(like[piece.name], math.nan)
            whole = copies[key]
            if piece.shard_dim is not None:
                whole = whole.narrow(piece.shard_dim, piece.shard_offset, piece.shard_shape[piece.shard_dim])
            shard = whole.flatten()
            shard[piece.start : piece.start + len(piece.values)] = piece.values
            whole.copy_(shard.view(whole.shape))
    return copies


def _copy(rank: Found, piece: Piece) -> str:
    pipe, data, tensor = rank.place
    where = [f"stage {pipe}"]
    where += [f"tensor rank {tensor}"] * (piece.shard_dim is None)
    where += [f"data rank {data}"] * piece.on_every_data_rank
    return ", ".join(where)
