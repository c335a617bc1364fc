"""Python source as plain words: one logical line a line, one blank between lexical tokens, rare literals replaced.

The convention is that of the benchmarks for code (PY150 as CodeXGLUE prepares it for code completion, arXiv:2102.04664): comments
and docstrings go; a string or number literal that is not among the most frequent ones of the training text becomes ``<STR_LIT>``
or ``<NUM_LIT>``.  What stays is the language itself: a small model can learn it, and its words are those of a closed list.
Changes when that convention does.
"""

from __future__ import annotations

import io
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

KEPT_STRINGS, KEPT_NUMBERS = 200, 30
"""How many literals stay (CodeXGLUE keeps 200 strings and 30 numbers)."""
STRING, NUMBER = "<STR_LIT>", "<NUM_LIT>"

FORMATTED = "f''"
"""Stands for every formatted string; as such strings are never kept, their text does not matter."""

Kind = Literal["word", "string", "number"]
_OPENS = {getattr(tokenize, name) for name in ("FSTRING_START", "TSTRING_START") if hasattr(tokenize, name)}
_CLOSES = {getattr(tokenize, name) for name in ("FSTRING_END", "TSTRING_END") if hasattr(tokenize, name)}
_LAYOUT = {tokenize.NL, tokenize.COMMENT, tokenize.ENDMARKER, tokenize.ENCODING}
_KINDS: dict[int, Kind] = {tokenize.STRING: "string", tokenize.NUMBER: "number"}


@dataclass(frozen=True)
class Line:
    """One logical line."""

    depth: int
    """Levels of indentation."""
    lexemes: tuple[tuple[Kind, str], ...]


@dataclass(frozen=True)
class KeptLiterals:
    """The literals that are written as they are."""

    strings: frozenset[str]
    numbers: frozenset[str]


def read_lines(source: str) -> list[Line]:
    """The logical lines of a source file, without comments and docstrings.

    Raises:
        ValueError: this Python cannot read it.
    """
    try:
        return [
            line for line in _lines(source) if any(kind != "string" for kind, _ in line.lexemes)
        ]  # a lone string is a docstring
    except (tokenize.TokenError, SyntaxError) as error:
        raise ValueError(f"no Python source: {error}") from error


def frequent_literals(files: Iterable[list[Line]]) -> KeptLiterals:
    """The literals to keep; strings with blanks in them never are (a literal is to be one word), nor are formatted ones."""
    strings, numbers = Counter[str](), Counter[str]()
    for kind, text in (lexeme for lines in files for line in lines for lexeme in line.lexemes):
        if kind == "number":
            numbers[text] += 1
        elif kind == "string" and not _is_formatted(text):
            strings[text] += 1
    frequent = (text for text, _ in strings.most_common(KEPT_STRINGS))
    return KeptLiterals(
        frozenset(text for text in frequent if len(text.split()) == 1), frozenset(dict(numbers.most_common(KEPT_NUMBERS)))
    )


def write_lines(lines: Iterable[Line], kept: KeptLiterals) -> str:
    """The text: four blanks a level, one blank between lexical tokens."""
    return "".join(
        "    " * line.depth + " ".join(_written(kind, text, kept) for kind, text in line.lexemes) + "\n" for line in lines
    )


def _is_formatted(string: str) -> bool:
    prefix = string.partition(string[-1])[0].lower()
    return "f" in prefix or "t" in prefix


def _written(kind: Kind, text: str, kept: KeptLiterals) -> str:
    if kind == "string":
        return text if text in kept.strings else STRING
    return NUMBER if kind == "number" and text not in kept.numbers else text


def _lines(source: str) -> Iterator[Line]:
    depth, lexemes = 0, list[tuple[Kind, str]]()
    for kind, text in _lexemes(source):
        if kind == tokenize.INDENT:
            depth += 1
        elif kind == tokenize.DEDENT:
            depth -= 1
        elif kind == tokenize.NEWLINE:
            yield Line(depth, tuple(lexemes))
            lexemes.clear()
        else:
            lexemes.append((_KINDS.get(kind, "word"), text))


def _lexemes(source: str) -> Iterator[tuple[int, str]]:
    """Tokens without layout.  From Python 3.12 on a formatted string comes in pieces; here it is one string everywhere."""
    open_strings = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in _OPENS:
            open_strings += 1
        elif token.type in _CLOSES:
            open_strings -= 1
            if not open_strings:
                yield tokenize.STRING, FORMATTED
        elif not open_strings and token.type not in _LAYOUT:
            yield token.type, token.string
