"""``~/.config/neox-hpc/``: what is the user's own at a site, and own sites.  Changes when something else is kept there.

sites:
  mysite: {account: ABC123, venv: /project/ABC123/env, login: me@login.mysite.org}
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neox_hpc.errors import Problem, UserError
from neox_hpc.marked_yaml import NOTHING, Marked, located, read_marked

FILE = ".config/neox-hpc/config.yml"
SOFTWARE = {
    "python": ("software", "python"),
    "venv": ("software", "venv"),
    "conda": ("software", "conda"),
    "module": ("software", "module"),
    "container": ("container", "image"),
}
"""What the ranks run in there: key -> the fact of a site whose place it takes."""
SITE_KEYS = ("account", "login", *SOFTWARE)


@dataclass(frozen=True, kw_only=True)
class UserSite:
    """A user's own facts at one site."""

    account: str | None = None
    place: str = ""
    """``file:line`` of the account."""
    login: str | None = None
    """Where jobs are submitted from another machine."""
    facts: Marked = NOTHING
    """In the form of a site file, over the site's own."""

    @property
    def software_place(self) -> str | None:
        """``file:line`` of what the ranks run in, if it is said here."""
        return next(iter(self.facts.places.values()), None)


def read_user_site(site: str, home: Path) -> UserSite:
    """What the user's file says of a site; nothing where there is no file.

    Raises:
        UserError: every problem of the file.
    """
    path = home / FILE
    if not path.is_file():
        return UserSite()
    read = read_marked(path, f"~/{FILE}")
    problems = [*read.problems, *_check(read)]
    if problems:
        raise UserError(problems)
    own = read.values.get("sites", {}).get(site, {})
    place = located(read.places, f"sites.{site}.account").split("  ")[0]
    return UserSite(account=own.get("account"), place=place, login=own.get("login"), facts=_facts(site, own, read))


def _facts(site: str, own: dict[str, Any], read: Marked) -> Marked:
    """At most one: :func:`_check` has seen to it."""
    for key, (section, fact) in SOFTWARE.items():
        if key in own:
            place = located(read.places, f"sites.{site}.{key}").split("  ")[0]
            return Marked({section: {fact: own[key]}}, {f"{section}.{fact}": place})
    return NOTHING


def write_own_site(path: Path, text: str) -> None:
    """A new site file of the user's own.

    Raises:
        UserError: there is one already, or it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        fix = "take another name, remove the file, or write --stdout and compare"
        raise UserError(Problem(str(path), "exists, and nothing is overwritten", fix)) from None
    except OSError as error:
        raise UserError(Problem(str(path), f"cannot be written: {error.strerror}", "write --stdout")) from None


def _check(read: Marked) -> list[Problem]:
    problems = [_unknown(read, key, key, ("sites",)) for key in read.values if key != "sites"]
    sites = read.values.get("sites", {})
    if not isinstance(sites, dict):
        return [*problems, Problem(located(read.places, "sites"), "expected site names", "write sites: {NAME: {account: …}}")]
    for name, facts in sites.items():
        if not isinstance(facts, dict):
            problems.append(Problem(located(read.places, f"sites.{name}"), "expected key: value", "write {account: …}"))
            continue
        problems += _check_site(read, f"sites.{name}", facts)
    return problems


def _check_site(read: Marked, where: str, facts: dict[str, Any]) -> Iterator[Problem]:
    for key, value in facts.items():
        if key not in SITE_KEYS:
            yield _unknown(read, f"{where}.{key}", key, SITE_KEYS)
        elif not isinstance(value, str):
            yield Problem(located(read.places, f"{where}.{key}"), f"expected text, got {value!r}", "write it in quotes")
    ways = [key for key in SOFTWARE if key in facts]
    if len(ways) > 1:
        wrong = f"{' and '.join(ways)} both say what the ranks run in"
        yield Problem(located(read.places, f"{where}.{ways[1]}"), wrong, "write one of them")


def _unknown(read: Marked, dotted: str, key: str, known: tuple[str, ...]) -> Problem:
    near = difflib.get_close_matches(str(key), known, n=1)
    fix = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return Problem(located(read.places, dotted), "unknown key", fix)
