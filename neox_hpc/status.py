"""How a run stands: the scheduler's answer and the run directory, judged together.

Changes when what a state means does.  ``judge`` decides and reads nothing; ``look`` reads and decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from signal import Signals
from typing import Any

from neox_hpc.jobs import Answer
from neox_hpc.metrics import Progress, read_progress
from neox_hpc.rundir import RankError, RunDir
from neox_hpc.schedulers import JobState

QUIET_S = 120.0
"""A running job that has written no step for this long, and for 20 times its step time, is called quiet."""


class State(str, Enum):
    """Where a run is."""

    NOT_SUBMITTED = "not submitted"
    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    LOST = "lost"
    """The scheduler knows the job no more, and the job left no outcome."""
    UNKNOWN = "unknown"
    """The scheduler does not answer, and the job left no outcome (yet)."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (State.NOT_SUBMITTED, State.PENDING, State.RUNNING, State.UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A state and why it is believed."""

    state: State
    why: str = ""
    exit_status: int | None = None

    @property
    def exit_code(self) -> int:
        """neox-hpc's own exit code for a run that has ended."""
        if self.state is State.DONE:
            return 0
        return 2 if self.state is State.FAILED and self.exit_status == 2 else 1


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Everything that ``status`` shows of a run."""

    run: RunDir
    verdict: Verdict
    site: str
    scheduler: str
    software: Mapping[str, Any]
    """What the ranks run in: of the receipt, else of the plan."""
    job_id: str | None
    attempt: int | None
    progress: Progress
    train_iters: int | None
    first_error: RankError | None
    started_s: float | None
    """When the newest attempt began (file time)."""
    elapsed_s: float | None
    quiet_s: float | None
    """Seconds since the newest step of a running job, when that is suspiciously long."""


def judge(*, answer: Answer, submitted: bool, cancelled: bool, attempts: int, exit_status: int | None) -> Verdict:
    """What is true of a run.

    Args:
        answer: the scheduler's.
        exit_status: of the newest attempt's outcome file.
    """
    said = answer.status
    if said is not None and not said.state.ended and said.state is not JobState.UNKNOWN:
        here = State.PENDING if said.state is JobState.PENDING else State.RUNNING
        return Verdict(state=here, why=said.reason)
    if said is not None and said.state.ended:
        code = exit_status if exit_status is not None else said.exit_code
        state = JobState.CANCELLED if cancelled and said.state is JobState.FAILED else said.state  # not every scheduler tells
        return _judge_ended(state, said.word, code)
    silence = answer.silence or (f"the scheduler says {said.word}" if said is not None else "")
    if exit_status is not None:
        return _judge_outcome(exit_status, cancelled=cancelled)
    if not submitted and not attempts:
        return Verdict(state=State.NOT_SUBMITTED)
    if cancelled and not silence:
        return Verdict(state=State.CANCELLED)
    if silence:
        return Verdict(state=State.UNKNOWN, why=silence)
    if not attempts:
        return Verdict(state=State.LOST, why="the scheduler knows the job no more, and it never started")
    return Verdict(
        state=State.LOST, why="the job is gone and left no outcome: killed from outside (kill -9, out of memory, a dead node)"
    )


def look(run: RunDir, ask: Callable[[], Answer], *, now_s: float | None = None) -> Standing:
    """Read everything about a run.  The scheduler is asked first: a job that it calls ended has written its outcome."""
    answer = ask()
    now_s = time.time() if now_s is None else now_s
    receipt, plan, attempts = run.receipt, run.plan, run.attempts
    last = attempts[-1] if attempts else None
    verdict = judge(
        answer=answer,
        submitted=receipt is not None,
        cancelled=run.is_cancelled,
        attempts=len(attempts),
        exit_status=last.exit_status if last is not None else None,
    )
    progress = read_progress(run.metrics)
    started_s = last.started_s if last is not None else None
    newest_s = run.newest_step_s
    end_s = now_s if not verdict.state.ended else (last.ended_s if last is not None else None) or newest_s
    return Standing(
        run=run,
        verdict=verdict,
        site=str(plan.get("site", "")),
        scheduler=str(plan.get("scheduler", "")),
        software=receipt.software if receipt is not None and receipt.software else {"is": plan.get("software")},
        job_id=receipt.job_id if receipt is not None else None,
        attempt=last.number if last is not None else None,
        progress=progress,
        train_iters=plan.get("train_iters"),
        first_error=last.first_error if last is not None else None,
        started_s=started_s,
        elapsed_s=max(0.0, end_s - started_s) if started_s is not None and end_s is not None else None,
        quiet_s=_quiet_s(verdict.state, progress, since_s=max(newest_s or 0.0, started_s or 0.0), now_s=now_s),
    )


def remaining_s(standing: Standing) -> float | None:
    """Seconds to the last step, at the newest step's speed."""
    progress = standing.progress
    if standing.verdict.state is not State.RUNNING or None in (progress.step, progress.step_time_s, standing.train_iters):
        return None
    assert progress.step is not None and progress.step_time_s is not None and standing.train_iters is not None
    return max(0, standing.train_iters - progress.step) * progress.step_time_s


def explain_exit(status: int) -> str:
    """An exit status in words: shells add 128 to a signal, DeepSpeed's launcher exits with minus the signal of its rank."""
    number = status - 128 if 128 < status <= 192 else 256 - status if 192 < status <= 255 else 0
    known = {signal.value: signal.name for signal in Signals}
    if number not in known:
        return f"exit status {status}"
    often = ": often out of memory" if number == Signals.SIGKILL else ""
    return f"exit status {status}: {'a rank was ' if status > 192 else ''}killed by {known[number]}{often}"


def _judge_ended(state: JobState, word: str, exit_status: int | None) -> Verdict:
    if state is JobState.DONE:
        return _judge_outcome(exit_status or 0, cancelled=False)
    why = "" if word.lower() == state.value else word
    return Verdict(state=State(state.value), why=why, exit_status=exit_status)


def _judge_outcome(exit_status: int, *, cancelled: bool) -> Verdict:
    if exit_status == 0:
        return Verdict(state=State.DONE, exit_status=0)
    return Verdict(state=State.CANCELLED if cancelled else State.FAILED, exit_status=exit_status)


def _quiet_s(state: State, progress: Progress, *, since_s: float, now_s: float) -> float | None:
    limit_s = max(QUIET_S, 20 * (progress.step_time_s or 0.0))
    silent_s = now_s - since_s
    return silent_s if state is State.RUNNING and since_s > 0 and silent_s > limit_s else None
