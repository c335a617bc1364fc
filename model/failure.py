"""How a rank fails: its own error on the screen and in a file, so that the first cause can be told from what followed."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

ATTEMPT_VARIABLE = "NEOX_HPC_ATTEMPT_DIR"
"""Directory of this attempt's logs, set by job.sh."""


def report_failure(error: BaseException, rank: int) -> int:
    """Print the error, leave it in ``rank<R>.error`` of the attempt's directory, and return the exit code: 2 for a user's mistake, else 1.

    A ``ValueError`` raised by our own code is a mistake that its message mends, so it has no traceback.
    """
    mistake = isinstance(error, (ValueError, FloatingPointError)) and _is_ours(error)
    headline = str(error) if mistake else f"{type(error).__name__}: {error}"
    text = headline if mistake else headline + "\n" + "".join(traceback.format_exception(error))
    print(f"[rank {rank}] error: {text}", file=sys.stderr, flush=True)
    directory = os.environ.get(ATTEMPT_VARIABLE)
    if directory:
        try:
            with open(Path(directory) / f"rank{rank}.error", "x", encoding="utf-8") as file:
                file.write(text.rstrip() + "\n")
        except OSError as unwritable:
            print(f"[rank {rank}] {unwritable}", file=sys.stderr, flush=True)
    return 2 if isinstance(error, ValueError) and mistake else 1


def _is_ours(error: BaseException) -> bool:
    """Raised in this package, not in a library below it."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).resolve().is_relative_to(Path(__file__).resolve().parent)
