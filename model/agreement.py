"""What ranks must know of each other: one looks for all, and all hear of an error that one has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from model.failure import FailedElsewhere
from model.parallel.groups import Groups

T = TypeVar("T")


def from_first_rank(find: Callable[[], T], groups: Groups) -> T:
    """What rank 0 finds, on every rank.  One looks for all: a shared file system may still show another node yesterday's directory.

    Raises:
        ValueError: rank 0 met it; the others raise FailedElsewhere.
    """
    if groups.layout.world_size == 1:
        return find()
    answer: list[Any] = [None, False]
    failure: ValueError | None = None
    if groups.rank == 0:
        try:
            answer = [find(), False]
        except ValueError as error:
            answer, failure = [None, True], error
    dist.broadcast_object_list(answer)
    if failure is not None:
        raise failure
    if answer[1]:
        raise FailedElsewhere(rank=0, status=2)
    found: T = answer[0]
    return found


def from_all_ranks(mine: T, groups: Groups) -> list[T]:
    """Every rank's answer, in rank order."""
    if groups.layout.world_size == 1:
        return [mine]
    everyone = [mine] * groups.layout.world_size
    dist.all_gather_object(everyone, mine)
    return everyone
