"""Cases of the memory tests, called on the ranks: the tensors that a rank holds while it trains.

On a CPU they are counted by torch's profiler, which sees every allocation of tensors, those inside of operators as well; the
allocator gives memory back at once, so that the sum of allocations and releases is what is held.  On a GPU it is the allocator's
own count.  Code, libraries, communicators and fragmentation are no tensors and not counted.
"""

from __future__ import annotations

import gc
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Work
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from model.config import RunConfig
from model.data.batch import Batch
from model.engine.start import join_ranks
from model.engine.trainer import Trainer
from model.gpt import GPT
from model.parallel.groups import make_groups
from tests.ranks import TIMEOUT

STEPS = 2
"""The optimizer's moments appear in the first; the ones after it are alike."""

LET_GO_S = 0.001


def peak_of_training(keys: dict[str, Any], vocab: int, device: str = "cpu") -> int:
    """Most bytes of tensors that this rank holds over the steps of a training, its network and engine included."""
    where = torch.device(device)
    join_ranks(where, "gloo" if device == "cpu" else "nccl", TIMEOUT)
    gc.collect()
    return peak_bytes(lambda: train(keys, vocab, where), where)


def train(keys: dict[str, Any], vocab: int, device: torch.device) -> None:
    """A few steps on random tokens."""
    config = RunConfig.from_keys(keys)
    keys = config.parallelism
    groups = make_groups(config.layout(dist.get_world_size()), dist.get_rank(), sequence_parallel=keys.sequence_parallel)
    sizes = config.batch_sizes(groups.layout)
    trainer = Trainer(GPT(config, vocab, groups).to(device), config, sizes, groups, device)
    for _ in range(STEPS):
        trainer.train_step([random_batch(config, sizes.micro, vocab) for _ in range(sizes.accumulation)], 1e-3)


def random_batch(config: RunConfig, sequences: int, vocab: int) -> Batch:
    """Tokens of which every label counts."""
    tokens = torch.randint(0, vocab, (sequences, config.architecture.seq_length + 1))
    mask = torch.ones(sequences, config.architecture.seq_length)
    return Batch(
        tokens_BS=tokens[:, :-1].contiguous(),
        labels_BS=tokens[:, 1:].contiguous(),
        loss_mask_BS=mask,
        sample_B=torch.arange(sequences),
    )


def peak_bytes(work: Callable[[], None], device: torch.device) -> int:
    """The most bytes of tensors that ``work`` holds at one time, beyond those that were there."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    return max(held_bytes(work))


def held_bytes(work: Callable[[], None]) -> list[int]:
    """Bytes of tensors on the CPU after every allocation and release.

    The profiler misses releases in other threads, and gloo's threads let go of a tensor a moment after the wait for it is over:
    the wait is made to last that moment, while the caller has the tensor in its hands.
    """
    finished = Work.wait

    def wait(handle: Any, *args: Any) -> Any:
        done = finished(handle, *args)
        time.sleep(LET_GO_S)
        return done

    with mock.patch.object(Work, "wait", wait), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    assert seen.profiler is not None
    events = sorted(_allocations(seen.profiler.kineto_results.experimental_event_tree()), key=lambda event: event.start_time_ns)
    held = _Held()
    return [held.change(event.extra_fields.ptr, event.extra_fields.alloc_size) for event in events]


class _Held:
    """The blocks of memory in use.  One that overlaps a new one is gone: its release was not seen."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._starts: list[int] = []
        self._total = 0

    def change(self, start: int, size: int) -> int:
        """The bytes in use after an allocation, or after a release (``size`` is negative)."""
        if size < 0:
            self._drop(start)
            return self._total
        place = bisect_left(self._starts, start)
        if place and self._starts[place - 1] + self._sizes[self._starts[place - 1]] > start:
            place -= 1
        while place < len(self._starts) and self._starts[place] < start + size:
            self._drop(self._starts[place])
        self._starts.insert(place, start)
        self._sizes[start] = size
        self._total += size
        return self._total

    def _drop(self, start: int) -> None:
        if start in self._sizes:  # else it is older than the measurement
            self._total -= self._sizes.pop(start)
            del self._starts[bisect_left(self._starts, start)]


def _allocations(events: Iterable[Any]) -> Iterator[Any]:
    """The allocations among a tree of events."""
    for event in events:
        if event.tag == _EventType.Allocation:
            yield event
        yield from _allocations(event.children)
