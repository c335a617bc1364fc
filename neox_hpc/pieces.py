"""A job's script in pieces, each with the line of the template that wrote it: what ``explain`` stands on.

Changes when what is known of a piece does.  The templates are those of render.py; only marks are put into them when they are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream

from neox_hpc.plan import Plan
from neox_hpc.render import Launch, fill, quote, templates, wrap


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of the script: text of a template, a value in it, or a word of a command."""

    template: str
    line: int
    """Of the template."""
    is_value: bool
    """Whether the template took it from the plan."""
    text: str

    @property
    def place(self) -> str:
        """``job.sh.j2:12``"""
        return f"{self.template}:{self.line}"


def render_pieces(plan: Plan, launch: Launch | None = None) -> tuple[Piece, ...]:
    """The script in pieces: their texts, joined, are those of ``render_script``."""
    return tuple(_pieces(fill(_marking(), plan, launch)))


_MARK = re.compile(r"\0(?:([\w./-]+):(\d+)(=?))?\0")
"""Template, line, and whether a value follows; nothing: another word of the same value."""


def _pieces(text: str) -> Iterator[Piece]:
    before, *marked = _MARK.split(text)
    assert not before, "every text of a template is marked"
    template, line, is_value = "", 0, False
    for name, number, equals, piece in zip(*(marked[place::4] for place in range(4)), strict=True):
        if name is not None:
            template, line, is_value = name, int(number), bool(equals)
        if piece:
            yield Piece(template=template, line=line, is_value=is_value, text=piece)


@cache
def _marking() -> Environment:
    environment = templates().overlay(extensions=[_Marks])
    environment.filters = {**environment.filters, "wrap": _marked_wrap}
    return environment


class _Marks(Extension):
    """Puts a mark before every line of text and every value."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        for token in stream:
            if token.type == "data":
                for offset, text in enumerate(re.findall(r"[^\n]*\n|[^\n]+", token.value)):
                    yield Token(token.lineno, "data", f"\0{stream.name}:{token.lineno + offset}\0{text}")
            else:
                if token.type == "variable_begin":
                    yield Token(token.lineno, "data", f"\0{stream.name}:{token.lineno}=\0")
                yield token


def _marked_wrap(words: Iterable[Any], indent: int = 2, width: int = 110) -> str:
    """The filter ``wrap``, with a mark before every word and what parts it from the last one."""
    listed = list(words)
    wrapped, marked, done = wrap(listed, indent, width), "", 0
    for word in map(quote, listed):
        start = wrapped.index(word, done)
        marked += f"\0\0{wrapped[done:start]}\0\0{word}"
        done = start + len(word)
    return marked + wrapped[done:]
