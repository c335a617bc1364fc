"""Texts by name: documents for training and held-out documents.  Changes when a text is added: one function, one line in CORPORA.

Nothing is downloaded here.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from model.data.python_source import Line, frequent_literals, read_lines, write_lines

PAGE = b"  <page>\n"
"""Begins an article of a Wikipedia dump."""
HELDOUT_ONE_IN = 20
"""One file in so many is held out, by the hash of its name: the same files on every machine."""
NO_LIBRARY_TEXT = frozenset(
    {
        *("site-packages", "dist-packages", "__pycache__", "ensurepip"),
        *("test", "tests", "idle_test", "lib2to3", "turtledemo"),
        *("encodings", "pydoc_data"),
    }
)
"""Folders of the standard library that are not part of it, are not installed everywhere, or hold tables rather than text."""


@dataclass(frozen=True)
class Texts:
    """The documents of a corpus, in a fixed order."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A text that can be prepared."""

    description: str
    read: Callable[[Path | None], Texts]
    """Given the file or folder of ``--input``."""
    fingerprint: Callable[[Path | None], str]
    """Changes when what is read does; quick."""
    vocab_size: int
    """Of its tokenizer, unless another is asked for."""
    words: str | None
    """Regular expression of what the tokenizer may join to one token; ``None``: GPT-2's."""


def read_corpus(name: str, source: Path | None) -> Texts:
    """The documents of a corpus.

    Raises:
        ValueError: there is no such corpus, its file is missing or no such file, or it holds no text.
    """
    if name not in CORPORA:
        raise ValueError(f"{name}: no such dataset\n  fix: write one of {', '.join(CORPORA)}")
    texts = CORPORA[name].read(source)
    for split, documents in (("train", texts.train), ("heldout", texts.heldout)):
        if not any(documents):
            raise ValueError(f"{name}: holds no text to {'train on' if split == 'train' else 'hold out'}\n  fix: give it more text")
    return texts


def standard_library(source: Path | None) -> Texts:
    """Python's standard library: that of the running Python, or the one in the folder ``source``."""
    root = _library_root(source)
    found = list(_read_library(root))
    train = [lines for name, lines in found if not _is_heldout(name)]
    kept = frequent_literals(train)
    return Texts(
        train=tuple(write_lines(lines, kept) for lines in train),
        heldout=tuple(write_lines(lines, kept) for name, lines in found if _is_heldout(name)),
    )


def enwik8(source: Path | None) -> Texts:
    """The first 10^8 bytes of the English Wikipedia of 2006: articles; as usual, the last 10^7 bytes are held out."""
    data = _read_enwik8(source)
    cut = data.find(PAGE, len(data) * 9 // 10)
    if cut <= 0:
        raise ValueError(f"{source}: holds no articles ({PAGE.decode().strip()})\n  fix: give the file enwik8, or enwik8.zip")
    return Texts(train=_pages(data[:cut]), heldout=_pages(data[cut:]))


def _library_fingerprint(source: Path | None) -> str:
    digest = hashlib.sha256()
    for name, data in _python_files(_library_root(source)):
        digest.update(f"{name} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def _library_root(source: Path | None) -> Path:
    return source or Path(sysconfig.get_paths()["stdlib"])


def _is_heldout(name: str) -> bool:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELDOUT_ONE_IN == 0


def _read_library(root: Path) -> Iterator[tuple[str, list[Line]]]:
    """Name and logical lines of every file that is Python source in UTF-8; a few in a library are not, on purpose."""
    for name, data in _python_files(root):
        try:
            lines = read_lines(data.decode("utf-8-sig"))
        except ValueError:
            continue
        if lines:
            yield name, lines


def _python_files(root: Path) -> Iterator[tuple[str, bytes]]:
    """Name below ``root`` and content of every source file, by name."""
    if not (root / "os.py").is_file():
        raise ValueError(
            f"{root}: holds no standard library (no os.py)\n"
            "  fix: install Python with its library as files, or name a folder that has it with --input (…/lib/python3.12)"
        )
    for name in sorted(_python_names(root)):
        yield name, (root / name).read_bytes()


def _python_names(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in NO_LIBRARY_TEXT and not name.startswith(("config-", "."))]
        for file in files:
            # _sysconfigdata is a table of the machine, sitecustomize belongs to the distribution
            if file.endswith(".py") and not file.startswith(("_sysconfigdata", "sitecustomize")):
                yield (Path(folder) / file).relative_to(root).as_posix()


def _read_enwik8(path: Path | None) -> bytes:
    if path is None:
        raise ValueError("enwik8: no file\n  fix: fetch http://mattmahoney.net/dc/enwik8.zip and write --input enwik8.zip")
    try:
        if not zipfile.is_zipfile(path):
            return path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            return archive.read("enwik8")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read ({error})\n  fix: give the file enwik8, or enwik8.zip") from error


def _pages(data: bytes) -> tuple[str, ...]:
    first, *pages = data.split(PAGE)
    texts = [first.decode("utf-8", errors="replace"), *((PAGE + page).decode("utf-8", errors="replace") for page in pages)]
    return tuple(text for text in texts if text)


CORPORA: dict[str, Corpus] = {
    "stdlib": Corpus(
        description="Python's standard library as lexical tokens: no comments, docstrings or rare literals; split by file",
        read=standard_library,
        fingerprint=_library_fingerprint,
        vocab_size=3072,
        words=r"\S+|\s+",
    ),
    "enwik8": Corpus(
        description="10^8 bytes of Wikipedia, split by article (give the file with --input)",
        read=enwik8,
        fingerprint=lambda source: hashlib.sha256(_read_enwik8(source)).hexdigest(),
        vocab_size=16384,
        words=None,
    ),
}
