"""A command line, read as the real program reads it: by a table of its options, and by nothing that the table does not hold.

Changes when a way of writing options does; what options a program has is in ``tables/PROGRAM.yml``, from its manual::

    program: jsrun                  # what it calls itself in messages
    manual: URL, date               # where everything below is from
    grammar: gnu                    # gnu: -n4, -n 4, --nrs=4, --nrs 4; words: -ppn 4 and --ppn 4; letters: -l select=2 only
    abbreviations: false            # whether a long name may be cut short
    operands: end                   # end: the first word that is no option ends them; mixed: it does not
    status: 1                       # exit status of a command line that is refused
    wording: {unknown: …, missing: …, value: …}     # what it says then, where that is documented
    options:
      nrs: {names: [-n, --nrs], takes: count, says: what the manual says of it, in our words}
    rules:
      - {apart: [[ntasks], [tasks-per-node]], wording: …}   # none of the one side with any of the other
      - {needs: [gpus-per-node, nodes], wording: …}         # the first only with the second
      - {once: [alloc_flags], wording: …}                   # not twice
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

TABLES = Path(__file__).with_name("tables")
KINDS = {
    "count": re.compile(r"[1-9]\d*"),
    "number": re.compile(r"\d+"),
    "integer": re.compile(r"[+-]?\d+"),
    "text": re.compile(r".+", re.DOTALL),
    "any": re.compile(r".*", re.DOTALL),
}
"""What a value may be; ``none`` takes no value, ``optional`` one after ``=`` only, ``pair`` two words."""


class Refused(Exception):
    """The program does not do what it is asked: its exit status, and what it prints."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.message, self.status = message, status


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a manual."""

    key: str
    names: tuple[str, ...]
    takes: str = "none"
    one_of: tuple[str, ...] = ()
    like: str = ""
    says: str

    @property
    def has_value(self) -> bool:
        """Whether a value has to follow."""
        return self.takes not in ("none", "optional")

    @property
    def example(self) -> tuple[str, ...]:
        """Values that the manual allows: the first named one, else the plainest of its kind."""
        if self.takes == "none":
            return ()
        plain = {"pair": ("NAME", "value"), "optional": ("1",)}
        return plain.get(self.takes) or ((self.one_of or ("2",))[0],)

    def allows(self, value: str) -> bool:
        """Whether a value is of the option's kind."""
        if self.one_of or self.like:
            return value in self.one_of or bool(self.like and re.fullmatch(self.like, value))
        return bool(KINDS.get(self.takes, KINDS["any"]).fullmatch(value))


@dataclass(frozen=True, kw_only=True)
class Table:
    """The options of one program."""

    program: str
    manual: str
    grammar: str
    abbreviations: bool = False
    operands: str = "end"
    status: int = 1
    wording: Mapping[str, str] = field(default_factory=dict)
    options: tuple[Option, ...]
    rules: tuple[Mapping[str, Any], ...] = ()

    def find(self, word: str) -> Option | None:
        """The option of that name; of a long name's beginning where the program allows that and it is clear."""
        for option in self.options:
            if word in option.names:
                return option
        if not (self.abbreviations and word.startswith("--")):
            return None
        near = {option.key: option for option in self.options if any(name.startswith(word) for name in option.names)}
        return next(iter(near.values())) if len(near) == 1 else None

    def refuse(self, kind: str, default: str, **words: str) -> Refused:
        """The program's own words for a wrong command line."""
        text = self.wording.get(kind, default)
        bare = words.get("option", "").lstrip("-")
        return Refused(text.format(program=self.program, bare=bare, **words), self.status)


@dataclass(frozen=True)
class Line:
    """A command line that a program understands."""

    given: Mapping[str, tuple[tuple[str, ...], ...]]
    """Option -> its values, a tuple for each time that it stands there."""
    rest: tuple[str, ...]
    """What follows the options."""

    def __contains__(self, key: str) -> bool:
        return key in self.given

    def text(self, key: str, default: str = "") -> str:
        """The last value of an option."""
        return self.given[key][-1][0] if self.given.get(key, ((),))[-1] else default

    def number(self, key: str, default: int) -> int:
        return int(self.text(key, str(default)))

    def all(self, key: str) -> tuple[str, ...]:
        """The values of an option that may be given again and again."""
        return tuple(value for values in self.given.get(key, ()) for value in values)

    def over(self, lower: Line) -> Line:
        """This line's options, then those that only the other one has: a command line over a script's directives."""
        return Line({**lower.given, **self.given}, self.rest)


@cache
def read_table(name: str) -> Table:
    """``tables/NAME.yml``."""
    raw = yaml.safe_load((TABLES / f"{name}.yml").read_text(encoding="utf-8"))
    options = [Option(key=key, **_as_tuples(facts)) for key, facts in raw.pop("options").items()]
    for base in raw.pop("also", ()):  # options that several commands of a program share
        options += read_table(base).options
    return Table(**_as_tuples(raw), options=tuple(options))


def _as_tuples(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}


def read_line(table: Table, words: Sequence[str]) -> Line:
    """The options of a command line and what follows them.

    Raises:
        Refused: an option that the table does not hold, a value that is missing or of another kind, two that exclude each other.
    """
    grammar = {"gnu": _gnu, "words": _words, "letters": _letters}[table.grammar]
    given: dict[str, list[tuple[str, ...]]] = {}
    rest: list[str] = []
    for option, values in grammar(table, list(words)):
        if option is None:
            rest += values
            continue
        for value in values:
            if option.has_value and not option.allows(value) and option.takes != "pair":
                raise table.refuse("value", "{program}: {option}: invalid value '{value}'", option=option.names[-1], value=value)
        given.setdefault(option.key, []).append(values)
    line = Line({key: tuple(values) for key, values in given.items()}, tuple(rest))
    _check_rules(table, line)
    return line


def _check_rules(table: Table, line: Line) -> None:
    for rule in table.rules:
        broken = False
        if "apart" in rule:
            one, other = rule["apart"]
            broken = any(key in line for key in one) and any(key in line for key in other)
        elif "needs" in rule:
            first, *others = rule["needs"]
            broken = first in line and not any(key in line for key in others)
        elif "once" in rule:
            broken = any(len(line.given.get(key, ())) > 1 for key in rule["once"])
        if broken:
            raise Refused(rule["wording"].format(program=table.program), rule.get("status", table.status))


Found = Iterator[tuple[Option | None, tuple[str, ...]]]
"""An option and its values; None and words that are no options."""


def _gnu(table: Table, words: list[str]) -> Found:
    """getopt_long: letters may be joined and carry their value, long names take ``=``."""
    while words:
        word = words.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            option = _found(table, name)
            if equals and option.takes == "none":
                raise table.refuse("unwanted", "{program}: option '{option}' doesn't allow an argument", option=name)
            yield option, (value,) if equals else _following(table, option, words)
        elif word.startswith("-") and len(word) > 1:
            letters = word[1:]
            while letters:
                option, letters = _found(table, f"-{letters[0]}"), letters[1:]
                if option.takes == "none" or (option.takes == "optional" and not letters):
                    yield option, ()
                    continue
                yield option, (letters,) if letters else _following(table, option, words)
                break
        elif table.operands == "mixed":
            yield None, (word,)
        else:
            words.insert(0, word)
            break
    yield None, tuple(words)


def _words(table: Table, words: list[str]) -> Found:
    """Whole words after one dash or two, as the table's names are written; a value follows, or stands behind ``=``."""
    while words and words[0].startswith("-") and len(words[0]) > 1:
        word = words.pop(0)
        if word == "--":
            break
        name, equals, value = word.partition("=")
        option = _found(table, name)
        yield option, (value,) if equals and option.has_value else _following(table, option, words)
    yield None, tuple(words)


def _letters(table: Table, words: list[str]) -> Found:
    """getopt: single letters, joined or with their value; a long word only where it is an option of its own (--version)."""
    while words:
        word = words.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            yield _found(table, word), ()
            continue
        if not word.startswith("-") or len(word) == 1:
            yield None, (word,)
            if table.operands == "end":
                break
            continue
        letters = word[1:]
        while letters:
            option, letters = _found(table, f"-{letters[0]}"), letters[1:]
            if option.takes == "none":
                yield option, ()
                continue
            yield option, (letters,) if letters else _following(table, option, words)
            break
    yield None, tuple(words)


def _found(table: Table, name: str) -> Option:
    option = table.find(name)
    if option is None:
        raise table.refuse("unknown", "{program}: unrecognized option '{option}'", option=name)
    return option


def _following(table: Table, option: Option, words: list[str]) -> tuple[str, ...]:
    """The value that has to follow in a word of its own."""
    if not option.has_value:
        return ()
    wanted = 2 if option.takes == "pair" and not (words and "=" in words[0]) else 1
    if len(words) < wanted:
        raise table.refuse("missing", "{program}: option '{option}' requires an argument", option=option.names[-1])
    taken = tuple(words[:wanted])
    del words[:wanted]
    return taken
