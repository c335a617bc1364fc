"""Fixtures that every test may use: the pools of ranks."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from tests.ranks import RankPool

signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background of a script would hand on that INT is ignored


@pytest.fixture(scope="session")
def rank_pool() -> Iterator[Callable[[int], RankPool]]:
    """``rank_pool(world)``: the session's pool of that many ranks; started at its first use, ended with the session."""
    pools: dict[int, RankPool] = {}

    def pool(world: int) -> RankPool:
        return pools.setdefault(world, RankPool(world))

    yield pool
    for started in pools.values():
        started.close()


@pytest.fixture
def two_ranks(rank_pool: Callable[[int], RankPool]) -> RankPool:
    """A pool of two ranks."""
    return rank_pool(2)


@pytest.fixture
def four_ranks(rank_pool: Callable[[int], RankPool]) -> RankPool:
    """A pool of four ranks."""
    return rank_pool(4)
