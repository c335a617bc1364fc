"""Cases of tests/test_ranks_pool.py, called on the ranks."""

from __future__ import annotations

import os
import time

import torch
import torch.distributed as dist


def sum_of_ranks(start: int) -> int:
    total = torch.tensor(start + dist.get_rank())
    dist.all_reduce(total)
    return int(total)


def fail_on_rank_one() -> None:
    if dist.get_rank() == 1:
        raise ValueError("rank one is unwell")
    dist.barrier()


def die_on_rank_zero() -> None:
    if dist.get_rank() == 0:
        os._exit(3)
    dist.barrier()


def sleep() -> None:
    time.sleep(60)


def process_id() -> int:
    return os.getpid()
