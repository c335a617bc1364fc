"""YAML whose values know their file and line: what configurations and site files are read by.

YAML 1.1 turns some things that people write into others (``010`` is 8, ``12:30:00`` is 45000); those are problems here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from neox_hpc.errors import Problem

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times faster
_OCTAL = re.compile(r"[-+]?0[0-7_]+$")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9]*)?$")


@dataclass(frozen=True)
class Marked:
    """The values of one source, where each stands, and what is wrong with its text."""

    values: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    """Dotted key -> ``file:line`` (or ``--set``)."""
    problems: tuple[Problem, ...] = ()


NOTHING = Marked()


def read_marked(path: Path, shown: str, *, dashes: bool = False) -> Marked:
    """Read a file whose top level is a mapping.  ``dashes``: a top-level key's dashes are underscores (GPT-NeoX's rule)."""
    try:
        return parse_marked(path.read_text(encoding="utf-8"), shown, dashes=dashes)
    except UnicodeDecodeError:
        return Marked(problems=(Problem(shown, "is not UTF-8 text", "give the YAML file"),))
    except OSError as error:
        return Marked(problems=(Problem(shown, f"cannot be read: {error.strerror}", "check the path and its permissions"),))


def parse_marked(text: str, shown: str, *, dashes: bool = False) -> Marked:
    """The same for text; ``shown`` is the file's name in places and problems."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return Marked()
        if not isinstance(root, yaml.MappingNode):
            return Marked(problems=(Problem(f"{shown}:{_line(root)}", "is not a mapping", "write key: value lines"),))
        walk = _Walk(loader, shown)
        values = walk.mapping(root, "", dashes)
        return Marked(values, walk.places, tuple(walk.problems))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{shown}:{mark.line + 1}" if mark else shown
        wrong = ", ".join(part for part in (error.context, error.problem) if part)
        return Marked(problems=(Problem(where, f"is not YAML: {wrong}", _syntax_fix(wrong)),))
    except yaml.YAMLError as error:
        return Marked(problems=(Problem(shown, f"is not YAML: {error}", "remove the character"),))
    except RecursionError:
        return Marked(problems=(Problem(shown, "is nested too deeply to be read", "give the YAML file"),))
    finally:
        loader.dispose()


def assign(texts: Sequence[str], option: str) -> Marked:
    """``a.b=c`` texts of a command-line option as one nested mapping.  A value is read as JSON, else as YAML, else is text."""
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    problems: list[Problem] = []
    for text in texts:
        dotted, equals, written = text.partition("=")
        first, *rest = dotted.strip().split(".")
        names = [first.replace("-", "_"), *rest]
        key, where = ".".join(names), f"{option} {text}"
        if not equals or not all(names):
            problems.append(Problem(where, "is not KEY=VALUE", f"write {option} {dotted or 'key'}=value"))
        elif key in places:
            problems.append(Problem(where, f"{key} was already given by {places[key]}", "keep one of them"))
        else:
            value, wrong = _read_value(written, where)
            problems += wrong
            places[key] = where
            problems += _put(values, names, value, where)
    return Marked(values, places, tuple(problems))


def merged(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """``upper`` over ``lower``; mappings are merged key by key, everything else is replaced."""
    result = dict(lower)
    for key, value in upper.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def place_of(places: Mapping[str, str], key: str) -> str:
    """Where a dotted key, or the nearest mapping around it, is written; empty when nowhere."""
    while key:
        if key in places:
            return places[key]
        key = key.rpartition(".")[0]
    return ""


def located(places: Mapping[str, str], key: str, otherwise: str = "") -> str:
    """``file:line  key`` for a problem."""
    place = place_of(places, key) or otherwise
    return f"{place}  {key}" if place else key


class _Walk:
    """Composed nodes to values; keeps places and problems."""

    def __init__(self, loader: Any, shown: str) -> None:
        self._loader = loader
        self._shown = shown
        self.places: dict[str, str] = {}
        self.problems: list[Problem] = []

    def mapping(self, node: Any, prefix: str, dashes: bool = False) -> dict[str, Any]:
        self._loader.flatten_mapping(node)  # merge keys (<<)
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                where = f"{self._shown}:{_line(key_node)}"
                self.problems.append(Problem(where, "a list or a mapping cannot be a key", "write key: value"))
                continue
            name = str(key_node.value).replace("-", "_") if dashes else str(key_node.value)
            key = f"{prefix}{name}"
            where = f"{self._shown}:{_line(key_node)}"
            if name in values:
                self.problems.append(Problem(f"{where}  {key}", f"is also written at {self.places[key]}", "keep one of them"))
                continue
            self.places[key] = where
            values[name] = self.value(value_node, key)
        return values

    def value(self, node: Any, key: str) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, f"{key}.")
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.places[f"{key}.{index}"] = f"{self._shown}:{_line(item)}"
            return [self.value(item, f"{key}.{index}") for index, item in enumerate(node.value)]
        self._check_trap(node, key)
        try:
            return self._loader.construct_object(node)
        except (ValueError, yaml.YAMLError):
            problem = Problem(
                f"{self._shown}:{_line(node)}  {key}", f"{node.value!r} is no {node.tag.rpartition(':')[2]}", "quote it"
            )
            self.problems.append(problem)
            return None

    def _check_trap(self, node: Any, key: str) -> None:
        tag, text = node.tag.rpartition(":")[2], node.value
        if tag == "int" and _OCTAL.match(text):
            wrong, fix = (
                f"YAML 1.1 reads {text} as the octal number {int(text.replace('_', ''), 8)}",
                f"write {text.lstrip('0') or 0}",
            )
        elif tag in ("int", "float") and _SEXAGESIMAL.match(text):
            wrong, fix = (
                f"YAML 1.1 reads {text} as a number to the base 60",
                f'write a plain number, or "{text}" where a text is meant',
            )
        else:
            return
        self.problems.append(Problem(f"{self._shown}:{_line(node)}  {key}", wrong, fix))


def _read_value(written: str, where: str) -> tuple[Any, tuple[Problem, ...]]:
    try:
        return json.loads(written), ()
    except json.JSONDecodeError:
        found = parse_marked(f"value: {written}\n", where) if written else Marked({"value": ""})
    if found.problems and not found.values:
        return written, ()  # no YAML at all: the text as it stands
    return found.values["value"], tuple(Problem(where, problem.wrong, problem.fix) for problem in found.problems)


def _put(values: dict[str, Any], names: list[str], value: Any, where: str) -> list[Problem]:
    inner = values
    for name in names[:-1]:
        inner = inner.setdefault(name, {})
        if not isinstance(inner, dict):
            return [Problem(where, f"{name} was given a value of its own by another option", "keep one of them")]
    if names[-1] in inner:
        return [Problem(where, f"parts of {names[-1]} were already given", "keep one of them")]
    inner[names[-1]] = value
    return []


def _syntax_fix(wrong: str) -> str:
    return "replace the tab by spaces" if r"'\t'" in wrong else "check the brackets, quotes and indentation there"


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1
