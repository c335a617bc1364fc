"""What the ranks of a cell make of it, and what one rank does, trained once for each network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.model.grid.cells import Cell
from tests.ranks import RankPool

if TYPE_CHECKING:
    from tests.model.grid.cases import Found
    from tests.model.grid.training import Expected

OneRank = Callable[[Cell], "Expected"]
Trained = Callable[..., "list[Found]"]


@pytest.fixture(scope="session")
def one_rank() -> OneRank:
    """The cell's network on one rank."""
    from tests.model.grid.training import train_on_one_rank

    known: dict[str, Expected] = {}

    def train(cell: Cell) -> Expected:
        network = str(sorted(cell.network.items()))
        if network not in known:
            known[network] = train_on_one_rank(cell.network)
        return known[network]

    return train


@pytest.fixture(scope="session")
def trained(rank_pool: Callable[[int], RankPool]) -> Trained:
    """The cell on its ranks, perhaps with a mutation."""

    def train(cell: Cell, mutation: str | None = None) -> list[Found]:
        return rank_pool(cell.ranks).run("tests.model.grid.cases:train_cell", cell.keys, mutation)

    return train
