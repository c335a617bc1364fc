"""Token files: the bytes of GPT-NeoX's format, and what damaged ones are answered with."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from model.data.tokens import DTYPES, TokenFile, TokenFileWriter, token_dtype

DOCUMENTS = ([5, 6, 7], [], [65499], [1, 2])


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    with TokenFileWriter(tmp_path / "text", np.uint16) as writer:
        for document in DOCUMENTS:
            writer.add(document)
    return tmp_path / "text"


def index_bytes(code: int = 8, itemsize: int = 2) -> bytes:
    """The .idx of DOCUMENTS, put together by hand from the description of the format."""
    lengths = [len(document) for document in DOCUMENTS]
    offsets = [itemsize * sum(lengths[:i]) for i in range(len(lengths))]
    head = b"MMIDIDX\x00\x00" + struct.pack("<Q", 1) + struct.pack("<B", code) + struct.pack("<QQ", 4, 5)
    return head + struct.pack("<4i", *lengths) + struct.pack("<4q", *offsets) + struct.pack("<5q", 0, 1, 2, 3, 4)


def test_the_writer_writes_gpt_neox_bytes(prefix: Path) -> None:
    assert prefix.with_suffix(".bin").read_bytes() == struct.pack("<6H", 5, 6, 7, 65499, 1, 2)
    assert prefix.with_suffix(".idx").read_bytes() == index_bytes()


@pytest.mark.parametrize("code", DTYPES)
def test_a_file_of_every_data_type_is_read(tmp_path: Path, code: int) -> None:
    dtype = np.dtype(DTYPES[code])
    documents = [np.array(document).astype(dtype) for document in DOCUMENTS]
    (tmp_path / "text.bin").write_bytes(b"".join(document.tobytes() for document in documents))
    (tmp_path / "text.idx").write_bytes(index_bytes(code, dtype.itemsize))
    tokens = TokenFile(tmp_path / "text")
    assert tokens.lengths.tolist() == [3, 0, 1, 2]
    for i, document in enumerate(documents):
        assert np.array_equal(tokens.sequence(i), document) and tokens.sequence(i).dtype == dtype


def test_a_prefix_may_hold_dots(tmp_path: Path) -> None:
    with TokenFileWriter(tmp_path / "pile.v1.2", np.int32) as writer:
        writer.add([70000])
    assert TokenFile(tmp_path / "pile.v1.2").sequence(0).tolist() == [70000]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65499, np.uint16), (65500, np.int32), (1, np.uint16), (200000, np.int32)])
def test_the_data_type_follows_the_vocabulary(vocab_size: int, dtype: type) -> None:
    assert token_dtype(vocab_size) == dtype


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size_is_refused_with_both_sizes(prefix: Path, suffix: str, change: int) -> None:
    path = prefix.with_suffix(suffix)
    whole = path.read_bytes()
    path.write_bytes(whole[:change] if change < 0 else whole + b"x")
    with pytest.raises(ValueError, match=rf"{path}: .*{len(whole) + change} bytes.* promises {len(whole)}(.|\n)*fix: "):
        TokenFile(prefix)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_missing_file_is_named(prefix: Path, suffix: str) -> None:
    prefix.with_suffix(suffix).unlink()
    with pytest.raises(ValueError, match=rf"{prefix}{suffix}: no such token file\n  fix: "):
        TokenFile(prefix)


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (0, b"PK\x03\x04", "is no token index"),
        (0, b"TNTIDX\x00\x00", "older 'cached' format"),
        (9, struct.pack("<Q", 2), "version 2, data type 8"),
        (17, b"\x09", "version 1, data type 9"),
        (18, struct.pack("<Q", 2**62), "truncated"),
        (34, struct.pack("<i", -3), "a length or an offset in it is impossible"),
        (50, struct.pack("<q", -2), "a length or an offset in it is impossible"),
        (58, struct.pack("<q", 5), "a length or an offset in it is impossible"),
        (50, struct.pack("<q", 2**40), "promises 1099511627782"),
    ],
)
def test_a_damaged_index_is_refused(prefix: Path, at: int, new: bytes, message: str) -> None:
    path = prefix.with_suffix(".idx")
    old = path.read_bytes()
    path.write_bytes(old[:at] + new + old[at + len(new) :])
    with pytest.raises(ValueError, match=message):
        TokenFile(prefix)


@pytest.mark.parametrize("size", [0, 5, 33])
def test_an_index_shorter_than_its_header_is_refused(prefix: Path, size: int) -> None:
    path = prefix.with_suffix(".idx")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"truncated: {size} bytes"):
        TokenFile(prefix)


@pytest.mark.parametrize("token", [65536, -1])
def test_a_token_that_does_not_fit_the_type_is_refused_and_nothing_is_left(tmp_path: Path, token: int) -> None:
    with (
        pytest.raises(ValueError, match=f"token {token} does not fit uint16"),
        TokenFileWriter(tmp_path / "text", "uint16") as writer,
    ):
        writer.add([1, token, 2])
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_tokens_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the corpus is empty"), TokenFileWriter(tmp_path / "text", np.uint16) as writer:
        writer.add([])
    assert list(tmp_path.iterdir()) == []


def test_a_failing_writer_leaves_the_old_pair(prefix: Path) -> None:
    with pytest.raises(KeyboardInterrupt), TokenFileWriter(prefix, np.uint16) as writer:
        writer.add([9])
        raise KeyboardInterrupt
    assert TokenFile(prefix).sequence(0).tolist() == [5, 6, 7]
    assert sorted(path.name for path in prefix.parent.iterdir()) == ["text.bin", "text.idx"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=rf"{tmp_path}/file/text: cannot be written(.|\n)*fix: "):
        TokenFileWriter(tmp_path / "file" / "text", np.uint16)
