"""``neox-hpc explain``: which file and key made each line of a job's script.

Changes when what is shown of a line does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neox_hpc.cli.prepare import asked_of, other_options, prepare, print_notes, print_problems
from neox_hpc.cli.show import fold, print_json, terminal_width
from neox_hpc.errors import Problem, UserError

if TYPE_CHECKING:
    from neox_hpc.explain import Given, Part
    from neox_hpc.inputs import Inputs
    from neox_hpc.plan import Planned
    from neox_hpc.rundir import RunDir

SHOWN = 52
"""Characters of a line of the script in the whole table."""


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="RUN|CONFIG.yml... [LINE]")
@click.option("-s", "--site", help="The machine of a CONFIG that is not submitted yet; without it a RUN is explained.")
@other_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
def explain(words: tuple[str, ...], site: str | None, as_json: bool, **options: Any) -> int:
    """Which value made each line of a script, and the file and line where it stands.

    Each value that the plan is made from is changed in turn, and the lines that become others are its own: nothing is looked up in
    a table.  LINE is a number, a range (10-20), or a text that lines hold (/NCCL).

    \b
    Examples:
      neox-hpc explain my_run                     every line of a run, in short
      neox-hpc explain my_run 12                  one line, with all that made it and the source of each fact
      neox-hpc explain my_run /NCCL
      neox-hpc explain -s ./mysite.yml -N 512 configs/20B.yml
    """
    names, wanted = _parted(words)
    if site is None:
        if len(names) > 1:
            wrong = f"is not given, so {' '.join(names)} would be one run"
            raise UserError(Problem("--site", wrong, "write --site NAME, or name one run"))
        inputs, script = open_inputs(find_named_run(names[0]))
        planned = inputs.planned()
    else:
        prepared = prepare(asked_of({"configs": names, "site": site, **options}), cwd=Path.cwd())
        inputs, planned, script = prepared.inputs, prepared.planned, None
    if planned.plan is None:
        print_notes(planned.notes)
        print_problems(planned.problems)
        return 2
    rows = [row for row in _rows(inputs, planned) if wanted is None or row.is_wanted(wanted)]
    if not rows:
        raise UserError(Problem(f"LINE {wanted}", "the script has no such line", "leave it out to see all"))
    if script is not None and script != "".join(row.text for row in _rows(inputs, planned)):
        click.echo("note: this version of neox-hpc writes another script than the run has; this one is explained", err=True)
    if as_json:
        print_json([row.document for row in rows])
    elif wanted is None:
        _print_table(rows)
    else:
        _print_rows(rows)
    return 0


def open_inputs(run: RunDir) -> tuple[Inputs, str]:
    """What a run was planned from, and its script.

    Raises:
        UserError: it does not say it, or is damaged.
    """
    from neox_hpc.inputs import FILE, read_inputs

    path, fix = run.path / FILE, "ask for its configuration instead: --site NAME CONFIG.yml"
    try:
        text, frozen = path.read_text(encoding="utf-8"), (run.path / "run.json").read_text(encoding="utf-8")
        return read_inputs(text, frozen), run.script.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(Problem(str(path), f"what the run was planned from cannot be read: {error.strerror}", fix)) from None
    except ValueError as error:
        raise UserError(Problem(str(path), f"cannot be read: {error}", fix)) from None


def _parted(words: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """RUN or CONFIGs, and LINE: a last word that is no file."""
    *names, last = words
    is_line = re.fullmatch(r"\d+(-\d+)?|/(?!.*/).+", last) is not None and not Path(last).exists()
    return (tuple(names), last) if names and is_line else (tuple(words), None)


def find_named_run(name: str) -> RunDir:
    """The run of a path, name or job id."""
    import os

    from neox_hpc.registry import find_run, registry_file

    if name.endswith((".yml", ".yaml")):
        raise UserError(Problem("--site", f"is not given, so {name} would be a run", "write --site NAME, or name a run"))
    return find_run(name, file=registry_file(os.environ), cwd=Path.cwd())


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the script, with those that continue it."""

    first: int
    last: int
    text: str
    parts: tuple[Part, ...]

    @property
    def number(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"

    @property
    def given(self) -> tuple[Given, ...]:
        """What made it; the scheduler's and launcher's names only where nothing says more."""
        return _telling(tuple(dict.fromkeys(given for part in self.parts for given in part.given)))

    @property
    def has_value(self) -> bool:
        """Whether it is more than text of a template."""
        return any(part.piece.is_value for part in self.parts)

    @property
    def templates(self) -> tuple[str, ...]:
        """The lines of the templates that wrote it."""
        return tuple(dict.fromkeys(part.piece.place for part in self.parts))

    @property
    def document(self) -> dict[str, Any]:
        from dataclasses import asdict

        parts = [
            {"text": part.piece.text, "template": part.piece.place, "given": [asdict(given) for given in part.given]}
            | {"code": part.wording and {"place": part.wording.place, "comment": part.wording.comment}}
            for part in self.parts
        ]
        return {"first_line": self.first, "last_line": self.last, "text": self.text.rstrip("\n"), "parts": parts}

    def is_wanted(self, wanted: str) -> bool:
        if wanted.startswith("/"):
            return wanted[1:] in self.text
        first, _, last = wanted.partition("-")
        return self.first <= int(last or first) and int(first) <= self.last


def _telling(found: tuple[Given, ...]) -> tuple[Given, ...]:
    return tuple(given for given in found if given.key not in ("scheduler", "launcher")) or found


def _rows(inputs: Inputs, planned: Planned) -> list[Row]:
    from neox_hpc.explain import explain as trace

    rows: list[Row] = []
    first, text, parts = 1, "", []
    for part in trace(inputs, planned):
        for piece in re.findall(r"[^\n]*\n|[^\n]+", part.piece.text):
            text += piece
            if piece.strip(" \\\n"):
                parts.append(part)
            if piece.endswith("\n") and not text.endswith("\\\n"):
                last = first + text.count("\n") - 1
                rows.append(Row(first=first, last=last, text=text, parts=tuple(dict.fromkeys(parts))))
                first, text, parts = last + 1, "", []
    return rows


def _print_table(rows: Sequence[Row]) -> None:
    """A row a line; lines that no value has changed are one row where they are neighbours."""
    shown = list(_short(rows, SHOWN))
    widths = [max(len(cells[column]) for cells in shown) for column in range(4)]
    room = terminal_width()
    is_narrow = room is not None and sum(widths) + 6 > room
    if room is not None and is_narrow:
        widths[1] = min(widths[1], (room - widths[0]) // 2)
        shown = list(_short(rows, widths[1]))
    for number, text, key, place in shown:
        made = f"{key}  {place}".strip() if is_narrow else f"{key:{widths[2]}}  {place}"
        line = fold(f"{number:>{widths[0]}}  {text:{widths[1]}}  {made}".rstrip(), widths[0] + widths[1] + 4)
        click.echo(line if key else click.style(line, dim=True))


def _short(rows: Sequence[Row], most: int) -> Iterator[tuple[str, str, str, str]]:
    yield "LINE", "SCRIPT", "MADE BY", "WHERE"
    for group in _grouped([row for row in rows if row.text.strip()]):
        first, last = group[0], group[-1]
        number = first.number if first is last else f"{first.first}-{last.last}"
        keys = ", ".join(given.key for given in first.given[:3]) + (" …" if len(first.given) > 3 else "")
        place = shown_place(first.given[0].place) if first.given else _span(group)
        more = "" if first is last else " …"
        yield number, _cut(first.text, most - len(more)) + more, keys, place


def _grouped(rows: Sequence[Row]) -> list[list[Row]]:
    """Neighbours that hold no value and were made by the same: text of a template."""
    groups: list[list[Row]] = []
    for row in rows:
        before = groups[-1][-1] if groups else None
        if before is not None and before.given == row.given and not (row.given and (row.has_value or before.has_value)):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _span(rows: Sequence[Row]) -> str:
    """``job.sh.j2:12-30, stage.sh.j2:1-4``"""
    places = [place.rpartition(":") for row in rows for place in row.templates]
    lines: dict[str, list[int]] = {}
    for template, _, line in places:
        lines.setdefault(template, []).append(int(line))
    spans = [f"{name}:{min(found)}" + (f"-{max(found)}" if len(set(found)) > 1 else "") for name, found in lines.items()]
    return ", ".join(spans)


def _cut(text: str, most: int = SHOWN) -> str:
    flat = re.sub(r"\s*\\\n\s*", " ", text).strip("\n")
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"


def _print_rows(rows: Sequence[Row]) -> None:
    """Each line whole, and all that made its parts."""
    from neox_hpc.explain import BY_THE_PLAN

    for row in rows:
        if not row.text.strip():
            continue
        click.echo(click.style(f"{row.number}  ", dim=True) + click.style(row.text.rstrip("\n"), bold=True))
        groups = [(_telling(given), list(parts)) for given, parts in groupby(row.parts, key=lambda part: part.given) if given]
        several = len(groups) > 1
        found = [each for given, _ in groups for each in given if each.place != BY_THE_PLAN]
        widths = [max((len(text) for text in column), default=0) for column in ([g.key for g in found], [_value(g) for g in found])]
        told: set[str] = set()
        for given, parts in groups:
            if several:
                click.echo(f"  {_cut(' '.join(part.piece.text.strip() for part in parts))}")
            for each in given:
                if each.place == BY_THE_PLAN:  # a reason, which is long
                    click.echo(fold(f"    {each.key:{widths[0]}}  {each.value}  ({each.place})", 8))
                    continue
                line = f"    {each.key:{widths[0]}}  {_value(each):{widths[1]}}  {shown_place(each.place)}"
                click.echo(fold(line + (f"  ({each.source})" if each.source and each.key not in told else ""), 8))
                told.add(each.key)
        click.echo(click.style(fold(f"    template: {', '.join(row.templates)}", 8), dim=True))
        for part in row.parts:
            if part.wording is not None and (part.wording.comment or not several):
                word = f"{_cut(part.piece.text)} " if several else ""
                comment = f"  # {part.wording.comment}" if part.wording.comment else ""
                click.echo(click.style(fold(f"    code: {word}{part.wording.place}{comment}", 8), dim=True))


def _value(given: Given) -> str:
    return given.value if len(given.value) <= 60 else f"{given.value[:59]}…"


def shown_place(place: str) -> str:
    """A place as a reader knows it: shipped files by their folder, the user's own by ~."""
    from neox_hpc.share import share

    for folder, short in ((f"{share('sites').parent}/", ""), (f"{Path.home()}/", "~/")):
        if place.startswith(folder):
            return short + place.removeprefix(folder)
    return place
