"""Which of the values that a plan was made from made which part of its script.

Plan and script are pure functions of these values, so the question is put to them: each value is changed in turn, and the parts of
the script that become others are its own.  No table of keys and lines has to be kept true.  A value that cannot be changed alone,
or whose work another one does as well, is not seen.

Changes when a plan is made from something more, or a part of a script is traced in another way.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from neox_hpc.containers import CONTAINERS
from neox_hpc.inputs import Inputs
from neox_hpc.launchers import LAUNCHERS
from neox_hpc.marked_yaml import place_of
from neox_hpc.pieces import Piece, render_pieces
from neox_hpc.plan import Plan, Planned
from neox_hpc.schedulers import SCHEDULERS
from neox_hpc.site import Site, show_walltime
from neox_hpc.site_facts import ABOUT_PROFILES, source_of
from neox_hpc.vocabulary import KEYS
from neox_hpc.wording import OF_ENVIRONMENT, Wording, find, of_launcher, of_scheduler

Path = tuple[str | int, ...]
"""The way to a value: ``("site", "queues", "batch", "bins", 0, "walltime")``."""

COMMAND_LINE = "command line"
BY_THE_PLAN = "decided by the plan"
OPTIONS = {
    "run_dir": "--output-dir",
    "cwd": "the directory of the command",
    "walltime_s": "--time",
    "environment_hostfile": "DLTS_HOSTFILE",
    "directives": "--directive",
    "early_signal": "--signal",
    "master_addr": "--master_addr",
    "master_port": "--master_port",
    "node_rank": "--node_rank",
    "joins": "the run of the first node",
    "exports": "exported variables",
}
"""What a part of a request is called where it was given, if it is not the option of its name."""
SILENT = {"name_is_given", "user", "git_commit", "neox_hpc", "software_place", "launched"}
"""What a request knows that makes no line."""
ACCOUNTS = ("user_account", "environment_account")
"""Pairs of a place and an account."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """A value that a plan was made from."""

    key: str
    """``node.cores``, ``train_batch_size``, ``--nodes``, ``machine.cores``"""
    value: str
    place: str
    """``file:line``, ``--set key=value``, the command line, this machine."""
    source: str = ""
    """Where the fact of a site was read."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of the script, and the values that made it: the one that made least else first; last whose words these are, and what
    the plan decided."""

    piece: Piece
    line: int
    """Of the script; of a piece of several lines the first."""
    given: tuple[Given, ...]
    wording: Wording | None = None
    """Where our own code writes it, of a word that begins with a text of ours."""


def explain(inputs: Inputs, planned: Planned) -> tuple[Part, ...]:
    """The script of a plan in parts; nothing where there is no plan.

    Args:
        planned: what ``inputs`` make.
    """
    if planned.plan is None:
        return ()
    plan, base = planned.plan, _Script(render_pieces(planned.plan, inputs.launch))
    made = {path: found for path, value in _values(inputs) if (found := _made(inputs, plan, base, path, value))}
    given = _merged((_given(inputs, path), found) for path, found in _joined(made).items())
    given |= {each: base.lost(render_pieces(other, inputs.launch)) for each, other in _decided(planned.notes, plan)}
    lines = _lines(base.pieces)
    return tuple(
        _part(piece, lines[index], _by_reach((each, found) for each, found in given.items() if index in found), plan.site)
        for index, piece in enumerate(base.pieces)
    )


def _part(piece: Piece, line: int, given: tuple[Given, ...], site: Site) -> Part:
    keys = [each.key for each in given]
    of_start = "launcher" in keys or (not keys and piece.text.startswith("-"))  # an option that other launchers have as well
    modules = of_launcher(site) if of_start else of_scheduler(site) if "scheduler" in keys else OF_ENVIRONMENT
    return Part(piece=piece, line=line, given=given, wording=find(piece.text, modules) if piece.is_value else None)


def _merged(made: Iterable[tuple[Given, frozenset[int]]]) -> dict[Given, frozenset[int]]:
    """Values that stand under one key are told as the first of them."""
    first: dict[tuple[str, str], Given] = {}
    merged: dict[Given, frozenset[int]] = defaultdict(frozenset)
    for each, found in made:
        merged[first.setdefault((each.key, each.place), each)] |= found
    return merged


def _by_reach(made: Iterable[tuple[Given, frozenset[int]]]) -> tuple[Given, ...]:
    def rank(pair: tuple[Given, frozenset[int]]) -> tuple[bool, bool, int]:
        return pair[0].place == BY_THE_PLAN, pair[0].key in ("scheduler", "launcher"), len(pair[1])

    return tuple(each for each, _ in sorted(made, key=rank))


# What a changed value changes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Script:
    """A script in pieces that can be compared."""

    pieces: tuple[Piece, ...]

    @cached_property
    def by_place(self) -> Mapping[tuple[str, int], Sequence[tuple[int, str]]]:
        """Line of a template -> what tells its pieces from those of another script: its values, else its text."""
        valued = {(piece.template, piece.line) for piece in self.pieces if piece.is_value}
        found: dict[tuple[str, int], list[tuple[int, str]]] = defaultdict(list)
        for index, piece in enumerate(self.pieces):
            place = (piece.template, piece.line)
            if (piece.is_value or place not in valued) and piece.text.strip(" \\\n"):
                found[place].append((index, piece.text))
        return found

    def lost(self, other: Sequence[Piece]) -> frozenset[int]:
        """The pieces that another script has not."""
        theirs = _Script(tuple(other)).by_place
        return frozenset(index for place, ours in self.by_place.items() for index in _lost(ours, theirs.get(place, ())))


def _lost(ours: Sequence[tuple[int, str]], theirs: Sequence[tuple[int, str]]) -> Iterator[int]:
    mine, other = [text for _, text in ours], [text for _, text in theirs]
    if len(mine) == len(other):
        yield from (index for (index, text), their in zip(ours, other, strict=True) if text != their)
    else:
        for kind, first, last, _, _ in SequenceMatcher(None, mine, other, autojunk=False).get_opcodes():
            if kind in ("replace", "delete"):
                yield from (index for index, _ in ours[first:last])


def _made(inputs: Inputs, plan: Plan, base: _Script, path: Path, value: Any) -> frozenset[int]:
    """The pieces that a value made: those that another value, or none in its place, changes."""
    if path in (("site", "scheduler"), ("site", "launcher")):  # no other one may go with the rest: only its words are asked for
        other = plan.site.model_copy(update={str(path[1]): next(_others(inputs, path, value))})
        return base.lost(render_pieces(dataclasses.replace(plan, site=other), inputs.launch))
    others = list(_others(inputs, path, value))
    tried = [[other] for other in others] if path[0] == "facts" else [others]  # what was seen of several hosts may be their least
    tried += [[None]] if _may_be_absent(inputs, path) else []
    return next((lost for each in tried if (lost := _lost_with(inputs, plan, base, path, each))), frozenset())


def _lost_with(inputs: Inputs, plan: Plan, base: _Script, path: Path, others: Iterable[Any]) -> frozenset[int]:
    """The pieces that are lost with the first of some values that makes a plan."""
    for other in others:
        try:
            changed = _put(inputs, path, other).planned().plan
        except _REFUSED:  # a text that no file could give: it has not been through the checks of one
            continue
        if changed is not None:
            same = dataclasses.replace(changed, run=plan.run) == plan
            return frozenset() if same else base.lost(render_pieces(changed, inputs.launch))
    return frozenset()


_REFUSED = (LookupError, ValueError, TypeError, ArithmeticError, AssertionError)


def _may_be_absent(inputs: Inputs, path: Path) -> bool:
    """Whether it is a text that a section need not have."""
    around, value = _get(inputs, path[:-1]), _get(inputs, path)
    return isinstance(around, BaseModel) and isinstance(value, str) and type(around).model_fields[str(path[-1])].default is None


_GONE = object()
"""In place of an item of a list: the list without it."""


def _others(inputs: Inputs, path: Path, value: Any) -> Iterator[Any]:
    """Values to put in place of one, the likeliest to fit first."""
    choices: dict[Path, Iterable[str]] = {
        ("site", "scheduler"): SCHEDULERS,
        ("site", "launcher"): [name for name in LAUNCHERS if name != "local"],  # which has one node
        ("site", "container", "runtime"): CONTAINERS,
        ("request", "queue"): inputs.site.queues or (),
    }
    if isinstance(path[-1], int) and path[1] not in ACCOUNTS:
        yield _GONE
    elif words := _words(inputs, path):
        yield from (word for word in words if word != value)
    elif choices.get(path):
        yield from (name for name in choices[path] if name != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (other for other in (2 * value, value + 1, value // 2) if other != value)
    elif isinstance(value, float):
        yield from (2 * value, value / 2)
    else:
        yield from (f"_{value}_", f"{value}_", value[:-1])


DECIDED: Mapping[str, tuple[Path, ...]] = {
    "nodes": (("nodes",), ("step", "nodes")),
    "queue": (("queue",),),
    "walltime": (("walltime_s",),),
}
"""What is decided where nobody says it -> where it stands in a plan; the plan's note says why."""


def _decided(notes: Iterable[str], plan: Plan) -> Iterator[tuple[Given, Plan]]:
    """The decisions of a plan, and it with another one."""
    for what, _, why in (note.partition(": ") for note in notes):
        if what in DECIDED and (value := _get(plan, DECIDED[what][0])) is not None:
            other: Any = plan
            for path in DECIDED[what]:
                other = _put(other, path, f"{value}_" if isinstance(value, str) else value + 3600)
            yield Given(key=what, value=why, place=BY_THE_PLAN), other


def _words(inputs: Inputs, path: Path) -> tuple[Any, ...]:
    """The words that are allowed in a place, where there are only some."""
    around = _get(inputs, path[:-1])
    field = type(around).model_fields.get(str(path[-1])) if isinstance(around, BaseModel) else None
    return tuple(_literals(field.annotation)) if field is not None else ()


def _literals(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for inner in get_args(annotation):
            yield from _literals(inner)


# The values -------------------------------------------------------------------------------------------------------------------


def _values(inputs: Inputs) -> Iterator[tuple[Path, Any]]:
    """The values that were given, or seen on this machine."""
    skipped = ABOUT_PROFILES - {"name"}
    yield from (leaf for leaf in leaves(inputs.site, ("site",)) if leaf[0][1] not in skipped)
    for key, section in KEYS.items():
        if place_of(inputs.loaded.places, key):
            yield from leaves(getattr(getattr(inputs.loaded.config, section), key), ("loaded", "config", section, key))
    yield from (leaf for leaf in leaves(inputs.request, ("request",)) if leaf[0][1] not in {*SILENT, *ACCOUNTS})
    yield from ((("request", name, 1), value[1]) for name in ACCOUNTS if (value := getattr(inputs.request, name)) is not None)
    yield from (leaf for leaf in leaves(inputs.facts, ("facts",)) if leaf[0][1] != "exists")


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The single values in a value, without those that are their type's default."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            if (inner := getattr(value, name)) != field.get_default(call_default_factory=True):
                yield from leaves(inner, (*path, name))
    elif dataclasses.is_dataclass(value):
        for each in dataclasses.fields(value):
            if (inner := getattr(value, each.name)) != each.default:
                yield from leaves(inner, (*path, each.name))
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from leaves(inner, (*path, name))
    elif isinstance(value, tuple):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    elif isinstance(value, (str, int, float)):
        yield path, value


def _put(value: Any, path: Path, new: Any) -> Any:
    """A copy of a value with another one at the end of a path."""
    if not path:
        return new
    name, rest = path[0], path[1:]
    if isinstance(name, int):
        items = [_put(value[name], rest, new)] if rest or new is not _GONE else []
        return (*value[:name], *items, *value[name + 1 :])
    if isinstance(value, Mapping):
        return {**value, name: _put(value[name], rest, new)}
    changed = {name: _put(getattr(value, name), rest, new)}
    return value.model_copy(update=changed) if isinstance(value, BaseModel) else dataclasses.replace(value, **changed)


def _joined(made: Mapping[Path, frozenset[int]]) -> dict[Path, frozenset[int]]:
    """Items of a list that made the same parts are one value: a map of cores, not its eight entries."""
    items: dict[Path, list[Path]] = defaultdict(list)
    for path in made:
        if isinstance(path[-1], int):
            items[path[:-1]].append(path)
    one = {parent: paths for parent, paths in items.items() if len(paths) > 1 and len({made[path] for path in paths}) == 1}
    joined = {path: parent for parent, paths in one.items() for path in paths}
    return {joined.get(path, path): found for path, found in made.items()}


def _given(inputs: Inputs, path: Path) -> Given:
    """A value as it is told: under the name by which it is written."""
    part, names = path[0], path[1:]
    name, text = str(names[0]), shown(names, _get(inputs, path))
    if part == "site" and name == "name":
        return Given(key="--site", value=inputs.site.given or text, place=inputs.site.file)
    if part == "site":
        key = _written(inputs.places, names)
        return Given(key=key, value=text, place=place_of(inputs.places, key), source=source_of(inputs.site, key))
    if part == "loaded":
        key = _written(inputs.loaded.places, names[2:])
        return Given(key=key, value=text, place=place_of(inputs.loaded.places, key))
    if part == "facts":
        return Given(key=".".join(map(str, names)), value=text, place="seen on this machine")
    if name in ACCOUNTS:
        return Given(key="account", value=text, place=getattr(inputs.request, name)[0])
    if name == "name" and not inputs.request.name_is_given:
        return Given(key="the file's name", value=text, place=inputs.loaded.files[0])
    return Given(key=option_of(name), value=text, place=COMMAND_LINE)


def option_of(name: str) -> str:
    """What a part of a request is called where it was given."""
    return OPTIONS.get(name, f"--{name.replace('_', '-')}")


def _written(places: Mapping[str, str], names: Path) -> str:
    """The dotted key of a value, or of the nearest one around it that is written."""
    for length in range(len(names), 0, -1):
        if (key := ".".join(map(str, names[:length]))) in places:
            return key
    return ".".join(map(str, names))


def shown(names: Path, value: Any) -> str:
    """A value as a reader knows it."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, int) and str(names[-1]).startswith(("walltime", "min_walltime")):
        return show_walltime(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _get(value: Any, path: Path) -> Any:
    for name in path:
        value = value[name] if isinstance(name, int) or isinstance(value, Mapping) else getattr(value, name)
    return value


def _lines(pieces: Sequence[Piece]) -> list[int]:
    """The line of the script in which each piece begins."""
    lines, line = [], 1
    for piece in pieces:
        lines.append(line)
        line += piece.text.count("\n")
    return lines
