"""Follows a run to its end, sparing its scheduler.

Changes when how often something is looked at does.  Files are looked at twice a second; a scheduler that serves others too is asked
when a file says that something has happened, and else ever more rarely.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from neox_hpc.jobs import Answer
from neox_hpc.rundir import RunDir
from neox_hpc.status import Standing, State, look

LOOK_S = 0.5
FAR_LOOK_S = 2.0
"""The same over ssh."""
ASK_S = (0.0, 5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds between one question and the next; the last one repeats."""
LOST_GRACE_S = 20.0
"""A compute node's last file may take this long to appear here (NFS attribute caching), so long a lost job is looked for again."""


@dataclass
class RareAsk:
    """A question that is put when it is due, and else answered from memory."""

    ask: Callable[[], Answer]
    clock: Callable[[], float]
    least_s: float = 0.0
    """A site may forbid questions that follow each other faster."""
    _asked: int = field(default=0, init=False)
    _last_s: float | None = field(default=None, init=False)
    _answer: Answer = field(default_factory=Answer, init=False)

    def __call__(self) -> Answer:
        now_s = self.clock()
        wait_s = max(self.least_s, ASK_S[min(self._asked, len(ASK_S) - 1)])
        if self._last_s is None or now_s - self._last_s >= wait_s:
            self._answer = self.ask()
            self._asked += 1
            self._last_s = now_s
        return self._answer

    def soon(self) -> None:
        """Something has happened: begin again with short waits."""
        self._asked = 0


def follow(
    run: RunDir,
    ask: Callable[[], Answer],
    *,
    shared: bool,
    refresh: Callable[[], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Standing]:
    """The run's standing, again and again, until it has ended; the last one is the end.

    Args:
        shared: the scheduler serves others too: ask it rarely.
        refresh: what brings the files of a run on another machine here.
    """
    rare = RareAsk(ask, clock, float(run.plan.get("poll_s") or 0.0))
    marks: object = None
    lost_s: float | None = None
    while True:
        if refresh is not None:
            refresh()
        if (found := _marks(run)) != marks:
            marks = found
            rare.soon()
        standing = look(run, rare if shared else ask)
        lost = shared and standing.verdict.state is State.LOST
        lost_s = (lost_s if lost_s is not None else clock()) if lost else None
        yield standing
        if standing.verdict.state is State.NOT_SUBMITTED or (standing.verdict.state.ended and not _may_yet_appear(lost_s, clock())):
            return
        sleep(LOOK_S if refresh is None else FAR_LOOK_S)


def _marks(run: RunDir) -> object:
    """What changes in the run directory when a job starts, starts again, or ends."""
    attempts = run.attempts
    return len(attempts), attempts[-1].exit_status if attempts else None


def _may_yet_appear(lost_s: float | None, now_s: float) -> bool:
    return lost_s is not None and now_s - lost_s < LOST_GRACE_S
