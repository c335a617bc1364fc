"""``~/.config/neox-hpc/config.yml``: what is the user's own at a site.  Changes when something else may be said there.

sites:
  mysite: {account: ABC123}
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from neox_hpc.errors import Problem, UserError
from neox_hpc.marked_yaml import Marked, located, read_marked

FILE = ".config/neox-hpc/config.yml"
SITE_KEYS = ("account",)


@dataclass(frozen=True, kw_only=True)
class UserSite:
    """A user's own facts at one site."""

    account: str | None = None
    place: str = ""
    """``file:line`` of the account."""


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
    account = read.values.get("sites", {}).get(site, {}).get("account")
    return UserSite(account=account, place=located(read.places, f"sites.{site}.account").split("  ")[0])


def _check(read: Marked) -> list[Problem]:
    problems = [_unknown(read, key, key, ("sites",)) for key in read.values if key != "sites"]
    sites = read.values.get("sites", {})
    if not isinstance(sites, dict):
        return [*problems, Problem(located(read.places, "sites"), "expected site names", "write sites: {NAME: {account: …}}")]
    for name, facts in sites.items():
        if not isinstance(facts, dict):
            problems.append(Problem(located(read.places, f"sites.{name}"), "expected key: value", "write {account: …}"))
            continue
        problems += [_unknown(read, f"sites.{name}.{key}", key, SITE_KEYS) for key in facts if key not in SITE_KEYS]
        if not isinstance(facts.get("account", ""), str):
            where = located(read.places, f"sites.{name}.account")
            problems.append(Problem(where, f"expected text, got {facts['account']!r}", "write it in quotes"))
    return problems


def _unknown(read: Marked, dotted: str, key: str, known: tuple[str, ...]) -> Problem:
    near = difflib.get_close_matches(str(key), known, n=1)
    fix = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return Problem(located(read.places, dotted), "unknown key", fix)
