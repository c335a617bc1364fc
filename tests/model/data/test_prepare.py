"""A prepared directory: whole or not there, left alone when nothing changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.config.training import Tokenizer as TokenizerKeys
from model.data import prepare as module
from model.data.prepare import Progress, main, train_bpe, write_tokens
from model.data.tokens import TokenFile
from model.tokenizers import LibraryTokenizer, build_tokenizer

ROOT = Path(__file__).parents[3]
FILES = ["heldout.bin", "heldout.idx", "manifest.json", "tokenizer.json", "train.bin", "train.idx", "words.txt"]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "lib").mkdir()
    for i in range(80):
        (tmp_path / "lib" / f"module{i}.py").write_text(f"def function{i}(first, second):\n    return first + {i} * second\n")
    (tmp_path / "lib" / "os.py").write_text("name = 'posix'\n")
    return tmp_path / "lib"


@pytest.fixture
def prepared(tmp_path: Path, library: Path) -> Path:
    assert run(tmp_path, library) == 0
    return tmp_path / "data"


def run(tmp_path: Path, library: Path, *more: str) -> int:
    return main(["stdlib", "-d", str(tmp_path / "data"), "--input", str(library), "--vocab-size", "300", *more])


def times(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}


def test_the_directory_holds_the_text_and_its_tokenizer(prepared: Path) -> None:
    assert sorted(path.name for path in prepared.iterdir()) == FILES
    tokenizer = build_tokenizer(TokenizerKeys(tokenizer_type="HFTokenizer", vocab_file=str(prepared / "tokenizer.json")))
    assert 258 < tokenizer.vocab_size <= 300 and tokenizer.eod == 0
    train, heldout = TokenFile(prepared / "train"), TokenFile(prepared / "heldout")
    assert len(train) + len(heldout) == 81 and train.dtype == np.uint16
    documents = [file.sequence(i).tolist() for file in (train, heldout) for i in range(len(file))]
    assert all(document[-1] == 0 and 0 not in document[:-1] for document in documents)
    texts = [tokenizer.decode(document) for document in documents]
    assert "name = 'posix'\n" in texts
    assert (prepared / "words.txt").read_text().split() == sorted({word for text in texts for word in text.split()})


def test_what_is_there_and_whole_is_left(prepared: Path, tmp_path: Path, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = times(prepared)
    assert run(tmp_path, library) == 0
    assert times(prepared) == before
    assert "already prepared" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("name", FILES)
def test_what_is_damaged_is_made_again(prepared: Path, tmp_path: Path, library: Path, name: str) -> None:
    whole = {file: (prepared / file).read_bytes() for file in FILES}
    (prepared / name).write_bytes(whole[name][:-3] + b"xyz")
    assert run(tmp_path, library) == 0
    assert {file: (prepared / file).read_bytes() for file in FILES} == whole


def test_another_text_or_vocabulary_is_prepared_anew(prepared: Path, tmp_path: Path, library: Path) -> None:
    before = times(prepared)
    assert main(["stdlib", "-d", str(prepared), "--input", str(library), "--vocab-size", "280"]) == 0
    assert not set(before.items()) & set(times(prepared).items())
    (library / "module1.py").write_text("x = 1\n")
    before = times(prepared)
    assert run(tmp_path, library) == 0
    assert not set(before.items()) & set(times(prepared).items())


@pytest.mark.parametrize("failure", [ValueError("the text is bad"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_what_was_there(
    prepared: Path,
    tmp_path: Path,
    library: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failure: BaseException,
) -> None:
    def fail(prefix: Path, *args: Any, **keys: Any) -> None:
        if prefix.name == "heldout":
            raise failure
        write_tokens(prefix, *args, **keys)

    monkeypatch.setattr(module, "write_tokens", fail)
    before = times(prepared)
    (library / "module1.py").write_text("x = 1\n")
    assert run(tmp_path, library) == (2 if isinstance(failure, ValueError) else 1)
    assert times(prepared) == before
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_killed_preparation_is_begun_anew(prepared: Path, tmp_path: Path, library: Path) -> None:
    """Killed while the files were being renamed: no manifest, so nothing counts as prepared."""
    whole = {file: (prepared / file).read_bytes() for file in FILES}
    (prepared / "manifest.json").unlink()
    (prepared / "heldout.idx").unlink()
    assert run(tmp_path, library) == 0
    assert {file: (prepared / file).read_bytes() for file in FILES} == whole


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["stdlib", "-d", "data", "--vocab-size", "100"], "--vocab-size 100: bytes alone are 258\n  fix: "),
        (["stdlib", "-d", "data", "--input", "nowhere"], "nowhere: holds no standard library"),
        (["enwik8", "-d", "data"], "enwik8: no file\n  fix: "),
        (["enwik8", "-d", "data", "--input", "nowhere"], "nowhere: cannot be read"),
        (["stdlib", "-d", "file/data", "--input", "lib"], "file/data: cannot be written (Not a directory)\n  fix: "),
    ],
)
def test_a_users_mistake_is_told_and_nothing_is_written(
    tmp_path: Path,
    library: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert main(argv) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_any_text_comes_back_from_its_tokens() -> None:
    quiet = Progress(terminal=False)
    for words in (r"\S+|\s+", None):
        library = train_bpe(["def f ( x ) :\n    return x\n"] * 3, vocab_size=300, words=words, progress=quiet)
        tokenizer = LibraryTokenizer(library, eod=library.token_to_id("<|endoftext|>"))
        for text in ("def f ( x ) :\n\n\treturn 'é \U0001f600'  \n", "", " ", "<x>"):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_plain_lines_where_no_terminal_is(tmp_path: Path, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, library) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["reading stdlib", "training the tokenizer (300 tokens)", "tokenizing the training text"]
    assert all("\x1b" not in line and "\r" not in line for line in lines)


def test_a_bar_on_a_terminal(tmp_path: Path, library: Path) -> None:
    """A true terminal: a pseudo-terminal of the kernel."""
    reader, writer = os.openpty()
    argv = [
        sys.executable,
        "-m",
        "model.data.prepare",
        "stdlib",
        "-d",
        str(tmp_path / "data"),
        "--input",
        str(library),
        "--vocab-size",
        "300",
    ]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=writer, stderr=writer, env=os.environ | {"TERM": "xterm", "COLUMNS": "100"})
    os.close(writer)
    shown = b""
    try:
        while piece := os.read(reader, 4096):
            shown += piece
    except OSError:  # Linux answers with EIO when the other end has gone
        pass
    os.close(reader)
    assert process.wait() == 0
    assert "━".encode() in shown and b"100%" in shown and b"prepared in" in shown


def test_preparing_and_measuring_need_no_torch() -> None:
    code = (
        "import sys, model.data.prepare, model.data.baselines, model.data.samples\n"
        "assert not {'torch', 'deepspeed', 'pydantic'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_manifest_tells_what_was_prepared(prepared: Path) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert manifest["request"]["dataset"] == "stdlib" and manifest["request"]["vocab_size"] == 300
    assert sorted(manifest["files"]) == sorted(set(FILES) - {"manifest.json"})
    assert manifest["tokens"]["train"] == len(TokenFile(prepared / "train").tokens)
