"""The registered texts: their split, and what is answered where there is none."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from model.data.corpora import CORPORA, _is_heldout, _library_root, _python_files, read_corpus
from model.data.python_source import read_lines

PAGES = [f"  <page>\n    <text>Article {i} é</text>\n  </page>\n" for i in range(100)]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder that looks like a library, with what is found in real ones."""
    for name in ("os", *(f"module{i}" for i in range(80)), "pkg/inner", "sitecustomize", "_sysconfigdata__linux", "test/test_os"):
        path = tmp_path / "lib" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path.stem} = 1\n")
    (tmp_path / "lib" / "empty.py").write_text("")
    (tmp_path / "lib" / "latin.py").write_bytes(b"# \xe9\nx = 1\n")
    (tmp_path / "lib" / "broken.py").write_text("x = (\n")
    (tmp_path / "lib" / "os.cpython-312.so").write_bytes(b"\x7fELF")
    for folder in ("site-packages", "config-3.12-x86_64-linux-gnu", "__pycache__", "pkg/tests"):
        (tmp_path / "lib" / folder).mkdir()
        (tmp_path / "lib" / folder / "foreign.py").write_text("foreign = 1\n")
    return tmp_path / "lib"


def test_the_library_is_split_by_file_and_keeps_to_itself(library: Path) -> None:
    texts = read_corpus("stdlib", library)
    names = [text.split()[0] for text in (*texts.train, *texts.heldout)]
    assert sorted(names) == sorted(["os", "inner", *(f"module{i}" for i in range(80))])
    assert 1 <= len(texts.heldout) <= 10


def test_a_file_stays_in_its_split_when_others_come_and_go(library: Path) -> None:
    before = read_corpus("stdlib", library)
    (library / "another.py").write_text("another = 1\n")
    (library / "module7.py").unlink()
    after = read_corpus("stdlib", library)
    assert set(after.train) - {"another = 1\n"} <= set(before.train) and set(after.heldout) - {"another = 1\n"} <= set(
        before.heldout
    )


def test_the_fingerprint_follows_the_text(library: Path) -> None:
    fingerprint = CORPORA["stdlib"].fingerprint
    before = fingerprint(library)
    assert fingerprint(library) == before
    (library / "module7.py").write_text("module7 = 2\n")
    assert fingerprint(library) != before


def test_the_running_pythons_library_is_a_text_of_some_size() -> None:
    """Whichever Python this is: a distribution's, python.org's, pyenv's, one in a virtual environment."""
    files = dict(_python_files(_library_root(None)))
    heldout = {name for name in files if _is_heldout(name)}
    assert {"os.py", "json/decoder.py", "asyncio/tasks.py"} <= set(files)
    assert 5_000_000 < sum(map(len, files.values())) < 30_000_000
    assert 0.02 < sum(len(files[name]) for name in heldout) / sum(map(len, files.values())) < 0.15
    assert not [name for name in files if "site-packages" in name or name.startswith(("test/", "idlelib/idle_test/"))]
    assert read_lines(files["os.py"].decode())


@pytest.mark.parametrize("packed", [False, True])
def test_enwik8_is_split_between_articles_and_nothing_is_lost(tmp_path: Path, packed: bool) -> None:
    text = "<mediawiki>\n" + "".join(PAGES)
    path = tmp_path / "enwik8"
    path.write_text(text)
    if packed:
        with zipfile.ZipFile(tmp_path / "enwik8.zip", "w") as archive:
            archive.write(path, "enwik8")
        path = tmp_path / "enwik8.zip"
    texts = read_corpus("enwik8", path)
    assert "".join((*texts.train, *texts.heldout)) == text
    assert texts.heldout == tuple(PAGES[-len(texts.heldout) :]) and len(texts.heldout) in (9, 10)


def test_a_folder_without_a_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}: holds no standard library(.|\n)*fix: .*--input"):
        read_corpus("stdlib", tmp_path)


def test_a_corpus_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "os.py").write_text("# nothing but a comment\n")
    with pytest.raises(ValueError, match=r"stdlib: holds no text to train on\n  fix: "):
        read_corpus("stdlib", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), (b"", "holds no articles"), (b"text", "holds no articles")]
)
def test_a_file_that_is_no_enwik8_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "enwik8").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}/enwik8: {message}(.|\n)*fix: "):
        read_corpus("enwik8", tmp_path / "enwik8")


def test_a_zip_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("other", "text")
    with pytest.raises(ValueError, match=r"other.zip: cannot be read(.|\n)*fix: "):
        read_corpus("enwik8", tmp_path / "other.zip")


@pytest.mark.parametrize(
    ("name", "message"), [("pile", "no such dataset\n  fix: write one of stdlib, enwik8"), ("enwik8", "--input")]
)
def test_a_name_or_a_file_that_is_missing_is_answered_with_the_fix(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_corpus(name, None)
