"""``neox-hpc diff``: two runs, two machines for one configuration, or two versions of a profile.

Changes when what is shown of two jobs does.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neox_hpc.cli.explain import find_named_run, open_inputs, shown_place
from neox_hpc.cli.prepare import asked_of, other_options, prepare
from neox_hpc.cli.show import fold, print_json, terminal_width
from neox_hpc.errors import Problem, UserError

if TYPE_CHECKING:
    from neox_hpc.diff import Comparison, Difference, Side, Value

WIDTH = 100
"""Characters of a line; fewer on a terminal that has fewer."""


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="RUN RUN|CONFIG.yml...")
@click.option("-s", "--site", "sites", multiple=True, help="A machine; given twice, the configuration on both.")
@other_options
@click.option("--script", is_flag=True, help="The difference of the two scripts, line by line.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
def diff(words: tuple[str, ...], sites: tuple[str, ...], script: bool, as_json: bool, **options: Any) -> int:
    """What differs between two jobs: in words, in sizes, in keys with their file and line, in variables and modules.

    Two runs; one configuration on two machines, or with two versions of a site file; a run and what its configuration would make
    now.

    \b
    Examples:
      neox-hpc diff my_run my_run.2
      neox-hpc diff -s ./mysite.yml -s ./other.yml configs/20B.yml
      neox-hpc diff -s ./mysite.yml -s ./old/mysite.yml configs/20B.yml     two versions of a profile
      neox-hpc diff my_run -s ./mysite.yml configs/20B.yml     that run, and a submit of today
    """
    from neox_hpc.diff import compare

    left, right = _sides(words, sites, options)
    found = compare(left, right)
    if as_json:
        print_json(_document(found))
    elif script:
        _print_scripts(left, right)
    else:
        _print(found)
    return 0 if left.script is not None and right.script is not None else 2


def _sides(words: Sequence[str], sites: Sequence[str], options: dict[str, Any]) -> tuple[Side, Side]:
    from neox_hpc.diff import make_side

    runs, configs = (words, ()) if not sites else (words[: 2 - len(sites)], words[2 - len(sites) :])
    if len(runs) + len(sites) != 2 or len(sites) > 2 or bool(sites) != bool(configs):
        fix = "write two RUNs; or -s SITE -s SITE CONFIG.yml; or RUN -s SITE CONFIG.yml"
        raise UserError(Problem("diff", "two jobs are compared, and these words do not name two", fix))
    found = [(run.name, str(run.path), open_inputs(run)[0]) for run in map(find_named_run, runs)]
    for site in sites:
        inputs = prepare(asked_of({"configs": tuple(configs), "site": site, **options}), cwd=Path.cwd()).inputs
        found.append((inputs.site.name, shown_place(inputs.site.file), inputs))
    alike = found[0][0] == found[1][0]
    left, right = (make_side(long if alike else short, inputs) for short, long, inputs in found)
    return left, right


def _print(found: Comparison) -> None:
    left, right = found.left.name, found.right.name
    click.echo(click.style(f"{left} | {right}", bold=True))
    if found.is_empty:
        click.echo("  nothing differs")
        return
    for sentence in found.sentences:
        click.echo(_fold(f"  {sentence}", 2))
    _print_columns([("", left, right), *((each.what, _text(each.left), _text(each.right)) for each in found.sizes)])
    if found.same:
        click.echo("\n" + _fold(f"  the same: {', '.join(found.same)}", 2))
    for title, differences in (("configuration", found.keys), (f"facts of {found.left.inputs.site.name}", found.facts)):
        _print_changes(title, differences)
    for title, differences in (("modules", found.modules), ("variables", found.variables), ("directives", found.directives)):
        _print_sets(title, differences, left, right)


def _fold(text: str, indent: int) -> str:
    return fold(text, indent, min(WIDTH, terminal_width() or WIDTH))


def _print_columns(rows: Sequence[tuple[str, str, str]]) -> None:
    if len(rows) == 1:
        return
    click.echo("")
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    room = terminal_width()
    for number, (what, left, right) in enumerate(rows):
        line = f"  {what:{widths[0]}}  {left:{widths[1]}}  {right}".rstrip()
        if room is not None and sum(widths) + 6 > room:  # one below the other
            line = "\n".join(_fold(f"  {label:{widths[0]}}  {text}", widths[0] + 4) for label, text in ((what, left), ("", right)))
        click.echo(click.style(line, dim=True) if number == 0 else line)


def _print_changes(title: str, differences: Sequence[Difference]) -> None:
    """Value and place before and after."""
    if not differences:
        return
    click.echo(f"\n  {title}")
    width = max(len(each.what) for each in differences)
    for each in differences:
        click.echo(_fold(f"    {each.what:{width}}  {_placed(each.left)}  →  {_placed(each.right)}", width + 8))


def _print_sets(title: str, differences: Sequence[Difference], left: str, right: str) -> None:
    """What only one side has, in a line; what both have otherwise, a line each."""
    if not differences:
        return
    click.echo(f"\n  {title}")
    ours = [_told(title, each.what, each.left) for each in differences if each.right is None]
    theirs = [_told(title, each.what, each.right) for each in differences if each.left is None]
    changed = [each for each in differences if each.left is not None and each.right is not None]
    labels = [*(f"{name} only" for name, told in ((left, ours), (right, theirs)) if told), *(each.what for each in changed)]
    width = max(map(len, labels))
    for name, told in ((left, ours), (right, theirs)):
        if told:
            click.echo(_fold(f"    {f'{name} only':{width}}  {', '.join(told)}", width + 6))
    for each in changed:
        click.echo(_fold(f"    {each.what:{width}}  {_text(each.left)}  →  {_text(each.right)}", width + 6))


def _told(title: str, what: str, value: Value | None) -> str:
    return what if title == "variables" else _text(value)


def _text(value: Value | None) -> str:
    return value.text if value is not None else "—"


def _placed(value: Value | None) -> str:
    if value is None:
        return "—"
    text = value.text if len(value.text) <= 60 else f"{value.text[:59]}…"
    return f"{text} ({shown_place(value.place)})" if value.place else f"{text} (default)"


def _print_scripts(left: Side, right: Side) -> None:
    ours, theirs = (left.script or "").splitlines(), (right.script or "").splitlines()
    for line in difflib.unified_diff(ours, theirs, left.name, right.name, lineterm="", n=1):
        click.echo(line)


def _document(found: Comparison) -> dict[str, Any]:
    parts = ("sizes", "keys", "facts", "modules", "variables", "directives")
    sides = [
        {"name": side.name, "problems": [{"where": p.where, "wrong": p.wrong, "kind": p.kind} for p in side.planned.problems]}
        for side in (found.left, found.right)
    ]
    return {
        "sides": sides,
        "sentences": list(found.sentences),
        "same": list(found.same),
        **{part: [asdict(each) for each in getattr(found, part)] for part in parts},
    }
