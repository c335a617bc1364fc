"""The pool of ranks that the distributed tests stand on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import ranks
from tests.ranks import RankFailure, RankPool

pytest.importorskip("torch", reason="pip install torch==2.13.0")


def test_ranks_reduce_together_and_live_on(two_ranks: RankPool) -> None:
    before = two_ranks.run("tests.cases_ranks:process_id")
    assert two_ranks.run("tests.cases_ranks:sum_of_ranks", 10) == [21, 21]
    assert two_ranks.run("tests.cases_ranks:process_id") == before


@pytest.fixture
def small_pool() -> Iterator[RankPool]:
    """A pool of its own, quick to start: these tests break it."""
    pool = RankPool(2, deepspeed=False)
    yield pool
    pool.close()


def test_a_failure_is_told_with_its_traceback_and_the_pool_recovers(small_pool: RankPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "GRACE_S", 0.5)
    with pytest.raises(RankFailure, match=r"rank 1: Traceback(.|\n)*rank one is unwell"):
        small_pool.run("tests.cases_ranks:fail_on_rank_one")
    assert small_pool.run("tests.cases_ranks:sum_of_ranks", 0) == [1, 1]
    with pytest.raises(RankFailure, match=r"no answer within 0\.2 s from rank 0, 1"):
        small_pool.run("tests.cases_ranks:sleep", timeout_s=0.2)


def test_a_rank_that_dies_is_named(small_pool: RankPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "GRACE_S", 0.5)
    with pytest.raises(RankFailure, match="rank 0: the process died"):
        small_pool.run("tests.cases_ranks:die_on_rank_zero")
