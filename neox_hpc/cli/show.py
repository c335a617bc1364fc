"""How facts look: tables and colours on a terminal, plain text in a pipe, JSON for programs.

Changes when the looks do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
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
    """A rich table on a terminal; else columns parted by two blanks, never cut, for grep and awk."""
    if sys.stdout.isatty():
        _print_rich_table(headers, rows)
        return
    plain = [tuple(headers), *(tuple(map(click.unstyle, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*plain, strict=True)]
    for row in plain:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


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
