"""Which of the known machines this one is, by the signs that their files give.  Reads nothing but what it is handed.

Changes when another kind of sign is looked at, or their order is another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from neox_hpc.site import Detect, Site

_STRENGTH = ("env", "file", "host")
"""A variable that a site sets is a name that it gave itself; host names resemble each other."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the signs are compared with."""

    variables: Mapping[str, str]
    """Of the environment."""
    hosts: tuple[str, ...]
    """The names of this host: short, and in full."""
    read: Callable[[str], str | None]
    """The text of a file, empty for a directory; ``None`` where there is none."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A machine that this one seems to be."""

    site: str
    sign: str
    """What told it: ``SYSTEM_NAME is lab``."""


def detect_site(sites: Iterable[Site], around: Surroundings) -> Found | None:
    """The machine with the strongest sign: variables before files before host names, then in the order of sites and signs."""
    seen = ((kind, site, sign) for site in sites for sign in site.detect if (kind := _seen(sign, around)))
    ranked = sorted(seen, key=lambda found: _STRENGTH.index(found[0][0]))  # stable: else in the order given
    return next((Found(site=site.name, sign=told) for (_, told), site, _ in ranked), None)


def _seen(sign: Detect, around: Surroundings) -> tuple[str, str] | None:
    """The kind of a sign that is there, and what it says."""
    if sign.env is not None:
        value = around.variables.get(sign.env)
        there = value is not None and _fits(sign, value)
        return ("env", f"{sign.env} is {value}") if there else None
    if sign.file is not None:
        text = around.read(sign.file)
        if text is None or not _fits(sign, text.strip()):
            return None
        return "file", f"there is {sign.file}" + (f", which says {text.strip()}" if sign.matches is not None else "")
    name = next((host for host in around.hosts if re.fullmatch(sign.host or "", host)), None)
    return None if name is None else ("host", f"this host is {name}")


def _fits(sign: Detect, text: str) -> bool:
    return sign.matches is None or re.search(sign.matches, text) is not None
