"""Token files: GPT-NeoX's ``PREFIX.bin`` and ``PREFIX.idx``, read as a memory map and written.

Format (little endian; GPT-NeoX ``indexed_dataset.py``, mmap): the .bin is all tokens, one document after another, without a
header.  The .idx is the magic ``MMIDIDX\\0\\0``, u64 version 1, u8 data type, u64 sequences n, u64 document marks m; then int32[n]
lengths in tokens, int64[n] byte offsets in the .bin, int64[m] document marks (0, and the number of sequences at each document's
end).  Changes when that format does.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

if TYPE_CHECKING:
    from typing_extensions import Self

MAGIC = b"MMIDIDX\x00\x00"
LEGACY = b"TNTIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, type[np.generic]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.float32,
    7: np.float64,
    8: np.uint16,
}
"""The data type codes of GPT-NeoX; Megatron-core swaps 6 and 7 in some versions."""
PIECE = 1 << 22
"""Documents of an index that are checked at a time."""
_AGAIN = "\n  fix: copy both files again, or tokenize the text again"
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The type that holds every token of a vocabulary, by GPT-NeoX's rule: uint16 below 65500, else int32."""
    return np.dtype(np.uint16) if vocab_size < 65500 else np.dtype(np.int32)


class TokenFile:
    """A token file, memory-mapped.

    Raises:
        ValueError: a file is missing, damaged, or the two do not belong together; the message names it and the sizes.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = Path(prefix)
        self.index_path, self.data_path = _with_suffix(self.prefix, ".idx"), _with_suffix(self.prefix, ".bin")
        for path in (self.index_path, self.data_path):
            if not path.is_file():
                raise ValueError(f"{path}: no such token file\n  fix: write the prefix of a pair, without .bin or .idx")
        self.dtype, count, marks = _read_header(self.index_path)
        _check_size(self.index_path, HEADER.size + 12 * count + 8 * marks, "its header")
        index = np.memmap(self.index_path, mode="r", dtype=np.uint8)
        begin, middle, end = HEADER.size, HEADER.size + 4 * count, HEADER.size + 12 * count
        self.lengths: NDArray[np.int32] = index[begin:middle].view("<i4")
        self._offsets: NDArray[np.int64] = index[middle:end].view("<i8")
        _check_size(self.data_path, self._promised_bytes(), "its index")
        empty = not self.data_path.stat().st_size  # nothing to map
        self.tokens: NDArray[Any] = np.empty(0, self.dtype) if empty else np.memmap(self.data_path, mode="r", dtype=self.dtype)

    def __len__(self) -> int:
        """Sequences in the file."""
        return len(self.lengths)

    def sequence(self, index: int) -> NDArray[Any]:
        """The tokens of one sequence."""
        start = int(self._offsets[index]) // self.dtype.itemsize
        return self.tokens[start : start + int(self.lengths[index])]

    def _promised_bytes(self) -> int:
        """Bytes of the .bin by the index, which is read once, in pieces (it has 12 bytes per document)."""
        promised, itemsize = 0, self.dtype.itemsize
        for first in range(0, len(self), PIECE):
            lengths, offsets = self.lengths[first : first + PIECE], self._offsets[first : first + PIECE]
            if lengths.min() < 0 or offsets.min() < 0 or np.any(offsets % itemsize):
                raise ValueError(f"{self.index_path}: damaged: a length or an offset in it is impossible{_AGAIN}")
            promised = max(promised, int((offsets + lengths.astype(np.int64) * itemsize).max()))
        return promised


class TokenFileWriter:
    """Writes a token file under temporary names; the pair gets its names at the end, or never.

    Used as a context manager; ``add`` appends one document.

    Raises:
        ValueError: the data type is none of the format's, or the file cannot be written.
    """

    def __init__(self, prefix: str | Path, dtype: DTypeLike) -> None:
        self.prefix = Path(prefix)
        self.dtype = np.dtype(dtype)
        if self.dtype not in CODES:
            raise ValueError(f"{self.dtype} is no token type: use one of {', '.join(map(str, CODES))}")
        self._lengths: list[int] = []
        try:
            self.prefix.parent.mkdir(parents=True, exist_ok=True)
            self._data: BinaryIO = open(self._partial(".bin"), "wb")  # noqa: SIM115 (closed in __exit__)
        except OSError as error:
            raise ValueError(f"{self.prefix}: cannot be written ({error.strerror})\n  fix: choose another directory") from error

    def __enter__(self) -> Self:
        return self

    def add(self, tokens: Sequence[int] | NDArray[Any]) -> None:
        """Append one document.

        Raises:
            ValueError: a token does not fit the file's data type.
        """
        wide = np.asarray(tokens)
        limits = np.iinfo(self.dtype) if np.issubdtype(self.dtype, np.integer) else np.finfo(self.dtype)
        if wide.size and not (limits.min <= wide.min() and wide.max() <= limits.max):
            outside = wide.max() if wide.max() > limits.max else wide.min()
            raise ValueError(
                f"{self.prefix}: token {outside} does not fit {self.dtype}\n  fix: write the file as int32 (token_dtype)"
            )
        wide.astype(self.dtype).tofile(self._data)
        self._lengths.append(wide.size)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._data.close()
            if kind is None:
                self._publish()
        finally:
            for suffix in (".bin", ".idx"):
                self._partial(suffix).unlink(missing_ok=True)

    def _publish(self) -> None:
        if not sum(self._lengths):
            raise ValueError(f"{self.prefix}: no tokens were written: the corpus is empty\n  fix: give it text")
        lengths = np.asarray(self._lengths, dtype=np.int32)
        offsets = np.zeros(len(lengths), dtype=np.int64)
        np.cumsum(lengths[:-1].astype(np.int64) * self.dtype.itemsize, out=offsets[1:])
        marks = np.arange(len(lengths) + 1, dtype=np.int64)
        with open(self._partial(".idx"), "wb") as index:
            index.write(HEADER.pack(MAGIC, 1, CODES[self.dtype], len(lengths), len(marks)))
            for array in (lengths, offsets, marks):
                array.tofile(index)
        _with_suffix(self.prefix, ".idx").unlink(missing_ok=True)  # a new .bin never stands beside an old .idx
        for suffix in (".bin", ".idx"):
            os.replace(self._partial(suffix), _with_suffix(self.prefix, suffix))

    def _partial(self, suffix: str) -> Path:
        return _with_suffix(self.prefix, f"{suffix}.{os.getpid()}.partial")


def _with_suffix(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def _read_header(path: Path) -> tuple[np.dtype[Any], int, int]:
    """Data type, sequences and document marks."""
    with open(path, "rb") as file:
        head = file.read(HEADER.size)
    if head[: len(LEGACY)] == LEGACY:
        raise ValueError(f"{path}: is in GPT-NeoX's older 'cached' format\n  fix: tokenize the text again with --dataset-impl mmap")
    if head[: len(MAGIC)] != MAGIC[: len(head)]:
        raise ValueError(f"{path}: is no token index (it begins with {head[:9]!r}, not {MAGIC!r}){_AGAIN}")
    if len(head) < HEADER.size:
        raise ValueError(f"{path}: truncated: {len(head)} bytes, its header alone has {HEADER.size}{_AGAIN}")
    _, version, code, count, marks = HEADER.unpack(head)
    if version != 1 or code not in DTYPES:
        raise ValueError(
            f"{path}: version {version}, data type {code}: known are version 1 and data types {sorted(DTYPES)}{_AGAIN}"
        )
    return np.dtype(DTYPES[code]), count, marks


def _check_size(path: Path, expected: int, promised_by: str) -> None:
    found = path.stat().st_size
    if found < expected:
        raise ValueError(f"{path}: truncated: {found} bytes, {promised_by} promises {expected}{_AGAIN}")
    if found > expected:
        raise ValueError(f"{path}: {found} bytes, but {promised_by} promises {expected}: the files do not belong together{_AGAIN}")
