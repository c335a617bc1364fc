"""Where our own code writes a word of a script, and the comment that stands there: the reason for what no file asks for.

Changes when words of scripts come from other modules.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from neox_hpc import containers, plan, software
from neox_hpc.launchers import LAUNCHERS, interface
from neox_hpc.schedulers import SCHEDULERS
from neox_hpc.site import Site

LEAST = 4
"""Characters of a text that is looked for: shorter ones stand everywhere."""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """A text in our code."""

    text: str
    place: str
    """``neox_hpc/schedulers/slurm.py:141``"""
    comment: str = ""
    """At the end of its line, else right above it."""


def of_scheduler(site: Site) -> tuple[str, ...]:
    """The modules whose words directives are."""
    kinds = type(SCHEDULERS[site.scheduler]).__mro__
    return tuple(dict.fromkeys(kind.__module__ for kind in kinds if kind is not object))


def of_launcher(site: Site) -> tuple[str, ...]:
    """The modules whose words the start is made of."""
    return (LAUNCHERS[site.launcher].__module__, interface.__name__, containers.__name__)


OF_ENVIRONMENT = (plan.__name__, software.__name__, containers.__name__)
"""The modules that name variables."""


def find(word: str, modules: Iterable[str]) -> Wording | None:
    """The longest text of some modules that a word of a script begins with; of one length the last, for tables come first."""
    texts = (wording for name in modules for wording in _texts(name) if word.startswith(wording.text))
    return max(texts, key=lambda wording: len(wording.text), default=None)


@cache
def _texts(module: str) -> tuple[Wording, ...]:
    """The texts in a module's functions, from the last to the first."""
    source = inspect.getsource(sys.modules[module])
    lines, file = source.splitlines(), f"{module.replace('.', '/')}.py"
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    constants = {node for function in functions for node in ast.walk(function) if isinstance(node, ast.Constant)}
    found = [(node.lineno, node.value.strip()) for node in constants if isinstance(node.value, str)]
    return tuple(
        Wording(text=text, place=f"{file}:{line}", comment=_comment(lines, line))
        for line, text in sorted(found, reverse=True)
        if len(text) >= LEAST and " " not in text
    )


def _comment(lines: list[str], number: int) -> str:
    """Of the line with a number."""
    _, mark, after = lines[number - 1].rpartition("  # ")
    if mark:
        return after
    above: list[str] = []
    for line in reversed(lines[: number - 1]):
        if not line.strip().startswith("# "):
            break
        above.insert(0, line.strip()[2:])
    return " ".join(above)
