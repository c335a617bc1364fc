"""The facts of a site, one by one: which are known, where each was read, what a profile still lacks.

Changes when another thing is asked of a profile before it may be called sound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from neox_hpc.errors import Problem
from neox_hpc.site import Site

ABOUT_PROFILES = {"name", "file", "given", "title", "url", "status", "here", "sources", "find"}
"""What is said about a profile and not about its machine."""
_NEEDED = ("node.gpus", "node.cores", "software.python")
"""Facts without which a job is not whole."""


def iter_facts(site: Site) -> Iterator[tuple[str, Any]]:
    """Every fact that is given, or null where it is needed, by its dotted name."""
    given = _flat(site.model_dump(exclude=ABOUT_PROFILES, exclude_defaults=True))
    yield from given.items()
    chosen = {"software.python"} if site.way is not None else set()
    yield from ((fact, None) for fact in _NEEDED if fact not in given and fact not in chosen)


def source_of(site: Site, fact: str) -> str:
    """The source of a fact, or of the section it stands in."""
    parts = fact.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((site.sources[name] for name in names if name in site.sources), "")


def open_facts(site: Site) -> tuple[str, ...]:
    """What is not known of a machine, as far as the profile says how to find it or a job needs it; in the profile's order."""
    return tuple(dict.fromkeys((*site.find, *(fact for fact, value in iter_facts(site) if value is None and not site.here))))


def way_to_find(site: Site, fact: str) -> str:
    """```command` tells (remark)``: what comes after ``  # `` in a profile's line is for the reader; empty: it says nothing."""
    command, _, remark = site.find.get(fact, "").partition("  # ")
    return f"`{command}` tells{f' ({remark})' if remark else ''}" if command else ""


def check_sources(site: Site) -> Iterator[Problem]:
    """Facts without a source.  A shipped profile has none of them; in a user's own they are no mistake."""
    for fact, value in iter_facts(site):
        if value is not None and not source_of(site, fact):
            yield Problem(f"{site.file}  {fact}", "has no source", f"add under sources: `{fact}: where it stands, and the date`")


def check_site(site: Site) -> Iterator[Problem]:
    """What a profile that loads still lacks: a way to find every open fact, values that can work."""
    for fact, value in iter_facts(site):
        if value is None and fact in _NEEDED and not site.here and fact not in site.find:
            fix = f"add under find: `{fact}: the command that tells it`"
            yield Problem(f"{site.file}  {fact}", "is not known, and nothing says how to find it", fix)
    known = {fact for fact, value in iter_facts(site) if value is not None}
    for fact in site.find:
        if fact in known:
            yield Problem(f"{site.file}  find.{fact}", f"{fact} is known", "remove the line")
    for value in site.env.get("NCCL_NET", ()):
        if value.applies(1) and value.value not in BUILT_IN_NETWORKS:
            # plug-ins that are forced fail where there is no network to serve: a job of one node
            wrong = f"forces the plug-in {value.value!r} on jobs of one node too, which have no network for it"
            yield Problem(f"{site.file}  env.NCCL_NET", wrong, f"write NCCL_NET: {{value: {value.value}, min_nodes: 2}}")


BUILT_IN_NETWORKS = ("Socket", "IB")
"""What NCCL and RCCL can use without a plug-in."""


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
