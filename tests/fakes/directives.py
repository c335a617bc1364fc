"""What a job script asks for: the lines in it that a submitting program reads.

Changes when a scheduler's rules for such lines do.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from tests.fakes.engine import Line, Refused, Table, read_line


def of_pbs(script: str, prefix: str, table: Table) -> Line:
    """qsub(1B), "Script": from the first line on, until one that the shell would run; comments and lines with a colon are none."""
    found = Line({}, ())
    for text in script.splitlines():
        line = text.lstrip()
        if line.startswith(prefix):
            words = re.sub(r"\s#.*", "", line.removeprefix(prefix))
            if not words[:1].isspace() and words:
                continue  # #PBSx is a comment
            try:
                read = read_line(table, shlex.split(words))
            except Refused as refused:
                raise Refused(f"qsub: directive error: {words.strip()}\n{refused.message}", refused.status) from None
            found = merged(found, read)
        elif line and line[0] not in "#:":
            break
    return found


def of_lsf(script: str, table: Table) -> Line:
    """bsub, "Embedded options": lines that begin with #BSUB; a later one is taken over an earlier one."""
    found = Line({}, ())
    for line in script.splitlines():
        if re.match(r"#BSUB\s", line):
            found = merged(found, read_line(table, shlex.split(line.removeprefix("#BSUB"), comments=True)))
    return found


def merged(earlier: Line, later: Line) -> Line:
    """Two lines of options as one, those of the later one last."""
    keys = dict.fromkeys((*earlier.given, *later.given))
    return Line({key: (*earlier.given.get(key, ()), *later.given.get(key, ())) for key in keys}, ())


def of_flux(script: str, name: str, table: Table) -> Line:
    """RFC 36: one sentinel in the whole script, in one block; a line that is set apart from it is an error.

    Raises:
        Refused: another sentinel, a directive after the block, an option that is none.
    """
    words: list[str] = []
    sentinel, block_ended = "", 0
    for number, line, text, found in _flux_lines(script):
        if not found:
            if sentinel and not block_ended and line and not line.startswith("#"):
                block_ended = number
            continue
        if block_ended:
            raise Refused(
                f"flux-batch: ERROR: {name}: line {number}: orphan '{found}' detected: directives disabled after line {block_ended}"
            )
        if sentinel and sentinel != found:
            raise Refused(f"flux-batch: ERROR: {name}: line {number}: sentinel changed from '{sentinel}' to '{found}'")
        sentinel = found
        words += shlex.split(text, comments=True)
    try:
        return read_line(table, words)
    except Refused as refused:
        raise Refused(f"{refused.message}\nflux-batch: ERROR: argument parsing failed at {name}", refused.status) from None


def _flux_lines(script: str) -> Iterator[tuple[int, str, str, str]]:
    """Number, line, what the directive says, and how it begins: ``#flux:`` or ``# FLUX:``."""
    for number, line in enumerate(script.splitlines(), 1):
        found = re.match(r"^([^\w]*(?:flux|FLUX):)(.*)$", line)
        yield number, line, found[2] if found else "", found[1] if found else ""
