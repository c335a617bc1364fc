"""Reads a job's output: its last lines, or all of it as it grows.

Changes when how a growing file is followed does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

BLOCK_BYTES = 64 * 1024


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file; empty when there is no file."""
    content = b"".join(Stream(path, tail_offset(path, lines)).new_blocks())
    return content.decode(errors="replace").splitlines()


def tail_offset(path: Path, lines: int) -> int:
    """Where the last lines of a file begin, found from its end; 0 when there is no file."""
    content = b""
    try:
        with path.open("rb") as file:
            position = size = file.seek(0, 2)
            while position > 0 and content.count(b"\n") <= lines:
                step = min(BLOCK_BYTES, position)
                position -= step
                file.seek(position)
                content = file.read(step) + content
    except OSError:
        return 0
    kept = content.splitlines(keepends=True)[-lines:] if lines > 0 else []
    return size - sum(map(len, kept))


@dataclass
class Stream:
    """The bytes of a growing file, from an offset on; a file that shrinks is read again from its start."""

    path: Path
    offset: int = 0
    _seen: bool = field(default=False, init=False)

    def new_blocks(self) -> Iterator[bytes]:
        """What was written since the last call."""
        try:
            file = self.path.open("rb")
        except OSError:
            return
        with file:
            self._seen = True
            if file.seek(0, 2) < self.offset:
                self.offset = 0
            file.seek(self.offset)
            while block := file.read(BLOCK_BYTES):
                self.offset += len(block)
                yield block

    @property
    def has_begun(self) -> bool:
        """Whether there has been a file."""
        return self._seen
