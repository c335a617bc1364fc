"""How a rank fails: its own error on the screen and in a file, so that the first cause can be told from what followed."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

ATTEMPT_VARIABLE = "NEOX_HPC_ATTEMPT_DIR"
"""Directory of this attempt's logs, set by job.sh."""


LOST = "another rank is gone or does not answer; its own error is the cause, and one that was killed (out of memory?) leaves none"


class FailedElsewhere(Exception):
    """This rank cannot go on because another one cannot, which says why."""

    def __init__(self, *, rank: int, status: int) -> None:
        super().__init__(f"rank {rank} failed")
        self.status = status
        """The exit code of that rank."""


def report_failure(error: BaseException, rank: int) -> int:
    """Print the error, leave it in ``rank<R>.error`` of the attempt's directory, and return the exit code.

    That is 2 for a user's mistake, else 1.  A ``ValueError`` raised by our own code is a mistake that its message mends, so it
    has no traceback.  Nor has a collective operation that broke off: its cause stands in another rank's.
    """
    if isinstance(error, FailedElsewhere):
        return error.status
    text, status = describe_failure(error)
    print(f"[rank {rank}] error: {text}", file=sys.stderr, flush=True)
    directory = os.environ.get(ATTEMPT_VARIABLE)
    if directory:
        try:
            with open(Path(directory) / f"rank{rank}.error", "x", encoding="utf-8") as file:
                file.write(text.rstrip() + "\n")
        except FileExistsError:
            pass  # the first error of a rank stays
        except OSError as unwritable:
            print(f"[rank {rank}] {unwritable}", file=sys.stderr, flush=True)
    return status


def describe_failure(error: BaseException) -> tuple[str, int]:
    """What is said of an error, the first line being the message, and the exit code."""
    if _is_ours(error) and isinstance(error, ValueError):
        return str(error), 2
    if _is_ours(error) and isinstance(error, FloatingPointError):
        return str(error), 1
    headline = f"{type(error).__name__}: {error}"
    if _is_collective(error):
        return f"{LOST}\n{headline}\n{_place(error)}", 1
    return headline + "\n" + "".join(traceback.format_exception(error)), 1


def _is_ours(error: BaseException) -> bool:
    """Raised in this package, not in a library below it."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).resolve().is_relative_to(Path(__file__).resolve().parent)


def _is_collective(error: BaseException) -> bool:
    """An operation over all ranks broke off.

    Gloo raises a plain RuntimeError that names its source file; NCCL and the rendezvous store raise a DistError.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    return "DistError" in names or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def _place(error: BaseException) -> str:
    """The innermost line of this package."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/model/" in frame.filename]
    return f"  in {ours[-1].name}, {ours[-1].filename}:{ours[-1].lineno}" if ours else ""
