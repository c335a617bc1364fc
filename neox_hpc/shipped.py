"""The configurations that are shipped: where they are, and what the comment at the top of each says of it.

Changes when such a comment may say something more.  It has a title, then lines that begin with a word of ``Header`` and a colon;
a line that goes on is indented.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from neox_hpc.share import share

FOLDER = "configs"
"""Where they are in a checkout: a name may begin with it."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says of itself."""

    title: str
    source: str = ""
    """Paper and table, page, or file that the values come from."""
    needs: str = ""
    """What is given with it, or installed for it."""
    vocabulary: int | None = None
    """Tokens of the model's tokenizer, where the file does not name it."""
    published: str = ""
    """``FIGURE [without embeddings][, counted with KEY: VALUE, …] (SOURCE)``; read by neox_hpc/models_page.py."""
    differs: str = ""
    """Why our count is another one."""
    mended: tuple[str, ...] = ()
    """What is another value than in GPT-NeoX's file of that name, and why."""
    not_built: str = ""
    """What of it does not train yet."""


def list_shipped() -> dict[str, Path]:
    """Name -> file, by folder and size: ``20B.yml``, ``pythia/1-4B.yml``."""
    folder = share(FOLDER)
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*.yml"))
    return {name: folder / name for name in sorted(names, key=_by_size)}


def find_shipped(path: PurePath) -> Path | None:
    """The shipped configuration that a relative path names, with or without ``configs/`` before it."""
    if path.is_absolute() or ".." in path.parts:
        return None
    inside = PurePath(*path.parts[1:]) if path.parts[:1] == (FOLDER,) else path
    found = share(FOLDER) / inside
    return found if found.is_file() else None


def read_header(text: str) -> Header:
    """The comment at the top of a file.

    Raises:
        ValueError: it has no title.
    """
    title, *rest = _paragraphs(text) or [""]
    if not title or _WORD.match(title):
        raise ValueError("the file begins with no title")
    said: dict[str, list[str]] = {}
    for paragraph in rest:
        word, _, value = paragraph.partition(": ")
        said.setdefault(_WORDS[word], []).append(value.removesuffix("."))
    vocabulary = int(said.pop("vocabulary")[0]) if "vocabulary" in said else None
    mended = tuple(said.pop("mended", ()))
    return Header(title=title, vocabulary=vocabulary, mended=mended, **{word: values[0] for word, values in said.items()})


_WORDS = {name.replace("_", " ").capitalize(): name for name in Header.__dataclass_fields__ if name != "title"}
_WORDS["Not built yet"] = _WORDS.pop("Not built")
_WORD = re.compile(f"({'|'.join(_WORDS)}): ")


def _paragraphs(text: str) -> list[str]:
    """The title and what each word says, in one line each."""
    found: list[str] = []
    for line in filter(None, _comment(text)):
        if found and not _WORD.match(line):
            found[-1] += f" {line.strip()}"
        else:
            found.append(line)
    return found


def _comment(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        yield line.removeprefix("#").removeprefix(" ")


def _by_size(name: str) -> tuple[str, float, str]:
    """Folders in turn, the files of none first; 1-4B and 1.4B after 410M."""
    folder, _, file = name.rpartition("/")
    found = re.search(r"(\d+(?:[-.]\d+)?)([MB])\b", file)
    size = float(found[1].replace("-", ".")) * {"M": 1e6, "B": 1e9}[found[2]] if found else 0.0
    return folder, size, file
