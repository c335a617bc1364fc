"""The grid's comparison sees what it is there to see: eight mistakes, each put into a cell that passes without it."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="pip install torch==2.13.0")
pytest.importorskip("deepspeed", reason="pip install deepspeed==0.19.8")

from tests.model.grid.cells import Cell
from tests.model.grid.comparison import differences
from tests.model.grid.conftest import OneRank, Trained
from tests.model.grid.mutations import MUTATIONS


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutated_cell_differs_from_one_rank(mutation: str, trained: Trained, one_rank: OneRank) -> None:
    mistake = MUTATIONS[mutation]
    found = differences(trained(mistake.cell, mutation), one_rank(mistake.cell))
    assert (mistake.seen_in, mistake.of) in {(difference.quantity, difference.of) for difference in found}
    assert max(difference.relative / difference.allowed for difference in found) > 100, "far beyond rounding"


@pytest.mark.parametrize("cell", dict.fromkeys(mistake.cell for mistake in MUTATIONS.values()), ids=str)
def test_the_same_cell_without_the_mistake_does_not(cell: Cell, trained: Trained, one_rank: OneRank) -> None:
    assert not differences(trained(cell), one_rank(cell))
