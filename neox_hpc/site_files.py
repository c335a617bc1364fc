"""Finds and reads ``sites/NAME.yml``: names, paths, ``extends:``, ``--site-set``, and every problem with its file and line.

Changes when the way in which site files are found, combined or complained of does.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from neox_hpc.errors import Problem, UserError
from neox_hpc.marked_yaml import NOTHING, Marked, assign, located, merged, read_marked
from neox_hpc.share import share
from neox_hpc.site import WAYS, Detect, EnvValue, NodeBin, Queue, Site, in_quotes


def site_folders(home: Path | None = None) -> tuple[Path, ...]:
    """Where names are looked up, first one first: the user's own, then the shipped ones."""
    return (own_folder(home or Path.home()), share("sites"))


def own_folder(home: Path) -> Path:
    """Where a user's own sites are."""
    return home / ".config" / "neox-hpc" / "sites"


def list_sites(home: Path | None = None) -> dict[str, Path]:
    """Name -> file of every site that can be named."""
    found: dict[str, Path] = {}
    for folder in site_folders(home):
        for path in sorted(folder.glob("*.yml")) if folder.is_dir() else ():
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def load_site(
    name_or_path: str | Path,
    sets: Sequence[str] = (),
    *,
    cwd: Path | None = None,
    home: Path | None = None,
    own: Marked = NOTHING,
) -> Site:
    """Read a site by name or path, with its ``extends:``, what its user says of it (``own``), and ``--site-set`` texts.

    Raises:
        UserError: holding every problem found.
    """
    return load_placed_site(name_or_path, sets, cwd=cwd, home=home, own=own)[0]


def load_placed_site(
    name_or_path: str | Path,
    sets: Sequence[str] = (),
    *,
    cwd: Path | None = None,
    home: Path | None = None,
    own: Marked = NOTHING,
) -> tuple[Site, Mapping[str, str]]:
    """The same, with the place of each of its facts: dotted fact -> ``file:line``, or ``--site-set fact=value``."""
    path = _find(str(name_or_path), cwd or Path.cwd(), home)
    base = _read(path, home, ())
    changes = assign(sets, "--site-set")
    problems = [*base.problems, *own.problems, *changes.problems]
    if problems:
        raise UserError(problems)
    places = {**base.places, **own.places, **changes.places}
    values = _over(_over(base.values, own.values), changes.values) | {
        "name": path.stem,
        "file": str(path),
        "given": str(name_or_path),
    }
    try:
        return Site.model_validate(values), places
    except ValidationError as error:
        raise UserError(_problem(details, places, str(path)) for details in error.errors()) from None


def file_schema() -> dict[str, Any]:
    """A JSON Schema of site files, for editors.  A file may extend another, so none of its keys is required."""
    schema = Site.model_json_schema(mode="validation")
    for set_by_loader in _SET_HERE:
        del schema["properties"][set_by_loader]
    del schema["required"]
    extends = {"type": "string", "description": "Name or path of the site file whose facts this one changes."}
    schema["properties"] = {"extends": extends, **schema["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "neox-hpc site file"}


def site_name(name_or_path: str) -> str:
    """The name of the site that a text names or leads to."""
    return Path(name_or_path).stem if _is_path(name_or_path) else name_or_path


_SET_HERE = ("name", "file", "given")
"""Facts that no file gives."""


def _find(text: str, cwd: Path, home: Path | None) -> Path:
    if _is_path(text):
        path = cwd / Path(text).expanduser()
        if path.is_file():
            return path
        raise UserError(Problem(f"--site {text}", f"no such file: {path}", "check the path; `neox-hpc sites list` shows the names"))
    known = list_sites(home)
    if text in known:
        return known[text]
    near = difflib.get_close_matches(text, known, n=1)
    fix = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}; or give the path of a site file"
    raise UserError(Problem(f"--site {text}", "no such site", fix))


def _is_path(text: str) -> bool:
    return "/" in text or text.endswith((".yml", ".yaml"))


def _read(path: Path, home: Path | None, seen: tuple[Path, ...]) -> Marked:
    own = read_marked(path, str(path))
    if named := [key for key in _SET_HERE if key in own.values]:
        return Marked(problems=(Problem(located(own.places, named[0]), "is taken from the file's own name", "remove it"),))
    parent = own.values.get("extends")
    if parent is None or own.problems:
        return own
    where = located(own.places, "extends")
    if path in seen:
        return Marked(problems=(Problem(where, "extends itself, by way of others", "break the circle"),))
    try:
        found = share("sites") / path.name if parent == path.stem else _find(str(parent), path.parent, home)
        lower = _read(found, home, (*seen, path))
    except UserError as error:
        return Marked(problems=tuple(Problem(where, p.wrong, p.fix) for p in error.problems))
    values = {key: value for key, value in own.values.items() if key != "extends"}
    return Marked(_extended(lower.values, values), {**lower.places, **own.places}, lower.problems)


def _extended(lower: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The lower file's values with the upper one's over them; what the upper one knows need not be found any more."""
    values = _over(lower, own)
    find = lower.get("find")
    if isinstance(find, Mapping) and isinstance(values["find"], Mapping):
        here = own.get("find")
        kept = set(here) if isinstance(here, Mapping) else set()
        values["find"] = {fact: how for fact, how in values["find"].items() if fact in kept or _value(values, fact) is None}
    return values


def _over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """One layer over another; the upper one's way to software takes the place of the lower one's."""
    if any(_section(upper, section).get(key) is not None for section, key in WAYS):
        unsaid = {section: {k: v for k, v in _section(lower, section).items() if (section, k) not in WAYS} for section, _ in WAYS}
        lower = {**lower, **{section: facts for section, facts in unsaid.items() if isinstance(lower.get(section), Mapping)}}
    return merged(lower, upper)


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = values.get(name)
    return section if isinstance(section, Mapping) else {}


def _value(values: Any, fact: str) -> Any:
    for part in fact.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "key: value",
    "model_type": "key: value",
    "tuple_type": "a list",
}


def _problem(details: Any, places: Mapping[str, str], file: str) -> Problem:
    location = [str(part) for part in details["loc"]]
    where = located(places, ".".join(location), file) if location else file
    if details["type"] == "extra_forbidden":
        near = _near(location[-1], _known_keys(location[:-1]))
        return Problem(where, "unknown key", f"did you mean {near}?" if near else "remove it; `neox-hpc sites schema` has all keys")
    if details["type"] == "missing":
        return Problem(where, "is required and absent", f"add {location[-1]}: …")
    if details["type"] == "value_error":
        wrong, _, fix = str(details["ctx"]["error"]).partition(": ")
        return Problem(where, wrong, fix)
    if details["type"] in _EXPECTED:
        written = details["input"]
        fix = in_quotes(written) if details["type"] == "string_type" and isinstance(written, (bool, int, float)) else ""
        return Problem(where, f"expected {_EXPECTED[details['type']]}, got {written!r}", fix)
    return Problem(where, f"{details['msg'][0].lower()}{details['msg'][1:]}, got {details['input']!r}")


def _near(written: str, known: Sequence[str]) -> str | None:
    """The key that was meant: the one that is begun (gpu_mem), else one that is spelled alike (gpuz)."""
    begun = sorted((key for key in known if len(written) > 3 and key.startswith(written)), key=len)
    return next(iter((*begun, *difflib.get_close_matches(written, known, n=1))), None)


def _known_keys(location: Sequence[str]) -> list[str]:
    """The keys of the section at a location; lists and tables of sections are passed through."""
    sections: dict[str, type[BaseModel]] = {"queues": Queue, "bins": NodeBin, "env": EnvValue, "detect": Detect}
    model: type[BaseModel] = Site
    for part in location:
        field = model.model_fields.get(part)
        if part in sections:
            model = sections[part]
        elif field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
    return list(model.model_fields)
