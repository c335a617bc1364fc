"""Configuration files and ``--set`` to one RunConfig; every problem knows its file and line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neox_hpc.errors import Problem, UserError
from neox_hpc.marked_yaml import Marked, assign, located, merged, read_marked
from neox_hpc.shipped import find_shipped, list_shipped
from neox_hpc.vocabulary import (
    ConfigError,
    KeyProblem,
    RunConfig,
    Translated,
    check_fragment,
    idle_keys,
    is_fragment,
    translate,
    untrained_in_fragment,
)

SUFFIXES = (".yml", ".yaml", ".json")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A configuration and where each of its values was written."""

    config: RunConfig
    places: Mapping[str, str]
    """Dotted key -> ``file:line`` or ``--set key=value``."""
    files: tuple[str, ...]
    """The files as they are shown: relative to the current directory where they lie in it."""
    notes: tuple[str, ...] = ()
    """Files that were found among the shipped ones, and what became of former keys."""

    def where(self, key: str) -> str:
        """``file:line  key``, for a problem."""
        return located(self.places, key, self.files[0] if self.files else "")


def load_config(
    paths: Sequence[str | Path], *, conf_dir: str | Path | None = None, sets: Sequence[str] = (), cwd: Path | None = None
) -> Loaded:
    """Merge files and ``--set`` texts into one configuration.

    Relative paths are taken from ``conf_dir`` (itself from ``cwd``); ``.yml`` may be left out.  What is not there is looked for
    among the shipped configurations.  A key may stand in one file only; ``--set`` overrides files.

    Raises:
        UserError: holding every problem found.
    """
    read = _read(paths, conf_dir, sets, cwd or Path.cwd())
    try:
        config = RunConfig.from_keys(read.written)
    except ConfigError as error:
        raise UserError(read.problem(p.key, p.wrong, p.fix) for p in error.problems) from None
    if idle := tuple(idle_keys(config, read.translated.values)):
        raise UserError(read.problem(p.key, p.wrong, p.fix) for p in idle)
    return Loaded(config=config, places=read.places, files=read.files, notes=read.notes)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a check of files found; there was no problem."""

    whole: bool
    """False: the files are a part of a configuration."""
    untrained: tuple[Problem, ...]
    """The values that plan and render, and that training refuses."""
    files: tuple[str, ...]
    notes: tuple[str, ...]


def check_files(
    paths: Sequence[str | Path],
    *,
    fragment: bool = False,
    conf_dir: str | Path | None = None,
    sets: Sequence[str] = (),
    cwd: Path | None = None,
) -> Checked:
    """Check files that are together a configuration, or a part of one: asked for, or seen by its lack of every required key.

    Raises:
        UserError: holding every problem found.
    """
    base = cwd or Path.cwd()
    read = _read(paths, conf_dir, sets, base)
    if not fragment and not is_fragment(read.written):
        untrained = load_config(paths, conf_dir=conf_dir, sets=sets, cwd=base).config.untrained()
        return read.checked(untrained, whole=True)
    if problems := check_fragment(read.written):
        raise UserError(read.problem(p.key, p.wrong, p.fix) for p in problems)
    return read.checked(untrained_in_fragment(read.written), whole=False)


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """What is written, merged."""

    written: Mapping[str, Any]
    translated: Translated
    """The same in today's keys."""
    places: Mapping[str, str]
    files: tuple[str, ...]
    shipped: tuple[str, ...]
    """Notes of files that were found among the shipped ones."""

    @property
    def notes(self) -> tuple[str, ...]:
        former = (f"{located(self.places, note.keys[0])}: {note.text}{_also(note.keys)}" for note in self.translated.notes)
        return (*self.shipped, *former)

    def checked(self, untrained: Sequence[KeyProblem], *, whole: bool) -> Checked:
        shown = tuple(self.problem(problem.key, problem.wrong, problem.fix) for problem in untrained)
        return Checked(whole=whole, untrained=shown, files=self.files, notes=self.notes)

    def problem(self, key: str, wrong: str, fix: str) -> Problem:
        return Problem(located(self.places, key, self.files[0] if self.files else "--set"), wrong, fix)


def _also(keys: tuple[str, ...]) -> str:
    return f" (nor {', '.join(keys[1:])})" if len(keys) > 1 else ""


def _read(paths: Sequence[str | Path], conf_dir: str | Path | None, sets: Sequence[str], base: Path) -> _Sources:
    files, problems, shipped = _find([Path(conf_dir or "") / path for path in paths], base)
    shown = [_shown(path, base) for path in files]
    sources = [read_marked(path, name, dashes=True) for path, name in zip(files, shown, strict=True)]
    changes = assign(sets, "--set")
    values, places, twice = _join(sources)
    problems += [problem for source in (*sources, changes) for problem in source.problems] + twice
    places = places | dict(changes.places)
    written = merged(values, changes.values)
    translated = translate(written)
    moved = {new: places[old] for new, old in translated.moved.items() if old in places and new not in places}
    read = _Sources(written=written, translated=translated, places=places | moved, files=tuple(shown), shipped=shipped)
    if problems:  # what could be read is checked too; a key is not missed, since it may stand in what could not
        said = {problem.where for problem in problems}
        more = [read.problem(p.key, p.wrong, p.fix) for p in check_fragment(written)]
        raise UserError([*problems, *(problem for problem in more if problem.where not in said)])
    return read


def _find(named: Sequence[Path], base: Path) -> tuple[list[Path], list[Problem], tuple[str, ...]]:
    """The files that are meant: from ``base``, else the shipped ones of those names; what is wrong; notes of those taken."""
    files: list[Path] = []
    problems: list[Problem] = []
    notes: list[str] = []
    for path in named:
        names = [path] if path.suffix in SUFFIXES or not path.name else [path.with_name(path.name + ".yml"), path]
        here = next((base / name for name in names if (base / name).is_file()), None)
        shipped = next(filter(None, map(find_shipped, names)), None) if here is None else None
        if (found := here or shipped) is not None:
            files.append(found)
        elif (base / path).is_dir():
            problems.append(Problem(str(base / path), "is a directory", "name the files in it: -d DIRECTORY FILE…"))
        else:
            problems.append(Problem(str(base / names[0]), "no such file", _nearest_file(names[0], base)))
        if shipped is not None:
            notes.append(f"{path}: there is none here; {shipped}, which is shipped, is taken")
    return files, problems, tuple(notes)


def _nearest_file(name: Path, base: Path) -> str:
    folder = (base / name).parent
    names = sorted(p.name for p in folder.iterdir() if p.suffix in SUFFIXES) if folder.is_dir() else []
    if near := difflib.get_close_matches(name.name, names, n=1, cutoff=0.5):
        return f"did you mean {folder / near[0]}?"
    if near := difflib.get_close_matches(str(name).removeprefix("configs/"), list_shipped(), n=1, cutoff=0.7):
        return f"did you mean {near[0]}, which is shipped? `neox-hpc config list` has them all"
    if not folder.is_dir():
        return f"there is no directory {folder}: check the path (and --conf-dir)"
    return f"{folder} holds {', '.join(names[:8])}" if names else f"there is no configuration in {folder}"


def _shown(path: Path, base: Path) -> str:
    try:
        return str(path.relative_to(base))
    except ValueError:
        return str(path)


def _join(sources: Sequence[Marked]) -> tuple[dict[str, Any], dict[str, str], list[Problem]]:
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    problems = []
    for source in sources:
        for key in source.values:
            if key in values:
                problems.append(Problem(f"{source.places[key]}  {key}", f"is also written at {places[key]}", "keep one of them"))
        values = {**source.values, **values}
        places = {**source.places, **places}
    return values, places, problems
