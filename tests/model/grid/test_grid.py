"""The same training on every layout: each cell of the grid against one rank, by global parameter name, in fp32.

``make test`` trains the few cells that hold every pair of values, ``make test-full`` all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

pytest.importorskip("torch", reason="pip install torch==2.13.0")
pytest.importorskip("deepspeed", reason="pip install deepspeed==0.19.8")

from tests.model.grid.cells import CLIP, LAYOUT, RANKS, RANKS_IN_CI, Cell, every_cell, in_ci, layouts, legal_pairs, pairs_of
from tests.model.grid.comparison import differences
from tests.model.grid.conftest import OneRank, Trained

NETWORKS = {str(sorted(cell.network.items())): cell for cell in (*every_cell(), *in_ci())}


def each(cells: Iterable[Cell]) -> Any:
    """These cells; those that are too many for ``make test`` in the long suite only."""
    return pytest.mark.parametrize(
        "cell", [pytest.param(cell, id=str(cell), marks=[] if cell in in_ci() else pytest.mark.full) for cell in cells]
    )


@each(every_cell())
def test_a_cell_trains_as_one_rank_does(cell: Cell, trained: Trained, one_rank: OneRank) -> None:
    report = [str(difference) for difference in differences(trained(cell), one_rank(cell))]
    assert not report, "\n".join([f"{cell}: {len(report)} differences", *report[:20]])


@each(NETWORKS.values())
def test_the_loss_falls_and_the_gradient_is_clipped_at_every_step(cell: Cell, one_rank: OneRank) -> None:
    """Else equal curves would say little."""
    expected = one_rank(cell)
    assert expected.losses[0] - expected.losses[-1] > 0.5
    assert min(expected.norms) > CLIP


def test_every_legal_layout_is_in_the_grid_once() -> None:
    """Counted by hand for each number of stages; recomputing or not, each is there twice."""
    found = [_layout(cell) for cell in layouts()]
    one_stage = 2 * 4 * (2 + 2 * 2 + 2 * 2)  # P0 and P1; ZeRO 0 to 3; T1, T2 and T4 with D1 and D2, T2 and T4 with sequences or not
    two_stages = 2 * (2 + 2 * 2 + 1 * 2)  # ZeRO 0 and 1; T4 with D1 only
    four_stages = 2 * (2 + 1 * 2)  # T2 with D1 only
    assert len(found) == len(set(found)) == 2 * (one_stage + two_stages + four_stages)
    assert {axis: {getattr(cell, axis) for cell in layouts()} for axis in LAYOUT} == {axis: set(v) for axis, v in LAYOUT.items()}
    assert {_layout(cell) for cell in every_cell()} == set(found)


def _layout(cell: Cell) -> tuple[object, ...]:
    return cell.tensor, cell.pipe, cell.data, cell.zero, cell.sequence_parallel, cell.recompute != "nothing"


@pytest.mark.parametrize(("cells", "ranks"), [(every_cell(), RANKS), (in_ci(), RANKS_IN_CI)], ids=["grid", "CI"])
def test_every_pair_of_values_that_is_legal_is_trained(cells: tuple[Cell, ...], ranks: int) -> None:
    """Among others: tied and row-cut heads, grouped heads, dropout and accumulation, each with each way to cut the model."""
    assert max(cell.ranks for cell in cells) == ranks
    assert not legal_pairs(ranks) - set().union(*map(pairs_of, cells))
