"""Rank processes that live as long as the test session, so that torch and DeepSpeed are imported once a rank, not once a test.

Changes when the way in which tests start ranks does.  A case is a module-level function, named as ``"package.module:function"``;
every rank of the pool calls it with the same arguments, inside an initialized ``torch.distributed`` (gloo).
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import multiprocessing
import os
import pickle
import socket
import sys
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

START_S = 120.0
"""Longest start of a pool: the imports of torch and DeepSpeed on a busy machine."""

GRACE_S = 5.0
"""Time that the other ranks get to report once one has failed; they may wait for it in a collective."""


TIMEOUT = timedelta(minutes=5)
"""Of collectives between ranks that cases join once more."""


class RankFailure(AssertionError):
    """A case failed; the message holds the traceback of every rank that reported one."""


class RankPool:
    """``world`` processes joined by gloo on 127.0.0.1.  Made at the first ``run``; killed and made again after a failure."""

    def __init__(self, world: int, *, deepspeed: bool = True) -> None:
        self.world = world
        self._deepspeed = deepspeed
        self._ranks: list[tuple[BaseProcess, Connection]] = []

    def run(self, case: str, *args: Any, timeout_s: float = 120.0) -> list[Any]:
        """Call ``case`` on every rank and return each rank's result, in rank order.

        Arguments and results are pickled: plain values, arrays and CPU tensors.

        Raises:
            RankFailure: a rank raised, died, or did not answer in time.  The pool is then rebuilt for the next call.
        """
        if not self._ranks:
            self._start()
        for _, pipe in self._ranks:
            pipe.send_bytes(pickle.dumps((case, args)))
        return self._gather(case, timeout_s)

    def close(self) -> None:
        """End the ranks that this pool started."""
        for process, pipe in self._ranks:
            pipe.close()
            process.kill()
        for process, _ in self._ranks:
            process.join()
        self._ranks = []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        port = _free_port()
        for rank in range(self.world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, self.world, port, self._deepspeed), daemon=True)
            process.start()
            theirs.close()
            self._ranks.append((process, ours))
        self._gather("start of the pool", START_S)

    def _gather(self, case: str, timeout_s: float) -> list[Any]:
        answers: dict[int, Any] = {}
        failures: dict[int, str] = {}
        deadline = time.monotonic() + timeout_s
        waiting = {pipe: rank for rank, (_, pipe) in enumerate(self._ranks)}
        while waiting and (ready := wait(list(waiting), max(0.0, deadline - time.monotonic()))):
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = waiting.pop(pipe)
                answer, failure = _receive(pipe)
                if failure:
                    failures[rank] = failure
                    deadline = min(deadline, time.monotonic() + GRACE_S)
                else:
                    answers[rank] = answer
        if waiting or failures:
            self.close()
            raise RankFailure(_report(case, failures, sorted(waiting.values()), timeout_s))
        return [answers[rank] for rank in range(self.world)]


def _receive(pipe: Connection) -> tuple[Any, str]:
    try:
        answer, failure = pickle.loads(pipe.recv_bytes())
    except (EOFError, ConnectionResetError):
        return None, "the process died without a word"
    return answer, failure


def _report(case: str, failures: dict[int, str], silent: list[int], timeout_s: float) -> str:
    lines = [f"{case}:"]
    lines += [f"rank {rank}: {text}" for rank, text in sorted(failures.items())]
    if silent:
        why = "after another rank's failure" if failures else f"within {timeout_s:g} s"
        lines.append(f"no answer {why} from rank {', '.join(map(str, silent))}")
    return "\n".join(lines)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _serve(pipe: Connection, rank: int, world: int, port: int, deepspeed: bool) -> None:
    """A rank's life: join the others, then answer one case after another until the pipe closes."""
    _answer(pipe, lambda: _join(rank, world, port, deepspeed))
    while True:
        try:
            case, args = pickle.loads(pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            os._exit(0)  # the session is over; a rank that still holds process groups is in no hurry to say goodbye to them
        _answer(pipe, lambda: _find(case)(*args))  # noqa: B023 (called before the next turn)


def _answer(pipe: Connection, call: Any) -> None:
    try:
        message = pickle.dumps((call(), ""))
    except BaseException:  # noqa: BLE001 (SystemExit too is an answer that the test must see)
        message = pickle.dumps((None, traceback.format_exc()))
    sys.stdout.flush()
    pipe.send_bytes(message)


def _find(case: str) -> Any:
    module, _, function = case.partition(":")
    known = module in sys.modules
    found = getattr(importlib.import_module(module), function)
    if not known:
        gc.collect()
        gc.freeze()  # cases that collect an engine need not look through all that was imported: 0.3 s of the 0.4 s of a small one
    return found


def _join(rank: int, world: int, port: int, with_deepspeed: bool) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
        CUDA_VISIBLE_DEVICES="",
        DS_ACCELERATOR="cpu",
    )
    import torch

    torch.set_num_threads(1)
    if not (with_deepspeed and importlib.util.find_spec("deepspeed")):  # only the engine needs it
        torch.distributed.init_process_group("gloo")
        return
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would leave 66 MiB a rank in /dev/shm
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
