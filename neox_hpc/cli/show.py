"""How facts look: tables and colours on a terminal, plain text in a pipe, JSON for programs.

Changes when the looks do.
"""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import click

COLOURS = {
    "done": "green",
    "running": "cyan",
    "pending": "yellow",
    "failed": "red",
    "lost": "red",
    "timeout": "red",
    "unknown": "yellow",
}

NEVER_FOLDED = 30
"""Characters: on a terminal, a column whose cells are longer may fold."""
GAP = "  "
CONTINUED = "    "
"""Before what goes on in a further line."""


def terminal_width() -> int | None:
    """Characters of a line of the terminal; nothing for a pipe, where no line is folded."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fold(text: str, indent: int, width: int | None = None) -> str:
    """A line in lines of ``width``, else of the terminal; further ones begin with ``indent`` blanks.

    Words stay whole, but those that are longer than a line of the terminal.
    """
    terminal = terminal_width()
    room = width or terminal
    if room is None or len(text) <= room:
        return text
    is_broken = terminal is not None
    wrapped = textwrap.wrap(text, room, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=is_broken)
    return "\n".join(wrapped)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=1, default=str))


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """A label and a value a line; empty values are left out."""
    shown = [(label, value) for label, value in facts if value]
    width = max((len(label) for label, _ in shown), default=0)
    for label, value in shown:
        first, *rest = value.splitlines()
        click.echo(f"  {click.style(label.ljust(width), dim=True)}  {first}")
        for line in rest:
            click.echo(f"  {'':{width}}  {line}")


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A rich table on a terminal, in further lines a row where it is too narrow for one; else columns parted by two blanks, never
    cut, for grep and awk."""
    plain = [tuple(headers), *(tuple(map(click.unstyle, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*plain, strict=True)]
    room = terminal_width()
    if room is None:
        for row in plain:
            click.echo(GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    elif sum(min(width, NEVER_FOLDED) for width in widths) + _RICH * len(widths) <= room:
        _print_rich_table(headers, rows)
    else:
        _print_in_lines([tuple(headers), *map(tuple, rows)], widths, room)


def style_state(state: str) -> str:
    """A state in its colour."""
    return click.style(state.upper(), fg=COLOURS.get(state), bold=True)


def duration(seconds: float | None) -> str:
    """``0:00:07``, ``3:25:00``; empty when not known."""
    if seconds is None:
        return ""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def number(value: float | None, form: str) -> str:
    """A number in a format; empty when there is none."""
    return "" if value is None else format(value, form)


_RICH = 3
"""Characters that rich puts around a cell."""


def _print_in_lines(rows: Sequence[tuple[str, ...]], widths: Sequence[int], room: int) -> None:
    """Each row in as many lines as its columns need: what rich would crop."""
    lines = list(share_lines(widths, room))
    for number, row in enumerate(rows):
        for columns in lines:
            indent = CONTINUED if columns[0][0] > 0 else ""
            cells = [(_folded(row[column], width), width) for column, width in columns]
            for at in range(max(len(cell) for cell, _ in cells)):
                padded = (_padded(cell[at] if at < len(cell) else "", width) for cell, width in cells)
                line = (indent + GAP.join(padded)).rstrip()
                if line:
                    click.echo(click.style(line, bold=True) if number == 0 else line)


def share_lines(widths: Sequence[int], room: int) -> Iterator[list[tuple[int, int]]]:
    """Which columns stand in each line, and how wide: one that may fold takes what is left of a line, if that is enough to read."""
    line: list[tuple[int, int]] = []
    used = 0
    for column, width in enumerate(widths):
        least = min(width, NEVER_FOLDED)
        if line and used + len(GAP) + least > room:
            yield line
            line, used = [], len(CONTINUED)
        taken = len(GAP) if line else 0
        given = max(min(width, room - used - taken), 1)
        line.append((column, given))
        used += taken + given
    yield line


def _folded(cell: str, width: int) -> list[str]:
    return [cell] if len(click.unstyle(cell)) <= width else textwrap.wrap(click.unstyle(cell), width)


def _padded(cell: str, width: int) -> str:
    return cell + " " * (width - len(click.unstyle(cell)))


def _print_rich_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for header, *cells in zip(headers, *rows, strict=True):
        narrow = max((len(click.unstyle(cell)) for cell in cells), default=0) <= NEVER_FOLDED
        table.add_column(header, no_wrap=narrow, overflow="fold")  # rich crops what may not fold
    for row in rows:
        table.add_row(*(Text.from_ansi(cell) for cell in row))
    Console().print(table)
