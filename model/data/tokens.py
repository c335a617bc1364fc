"""Token files: GPT-NeoX's ``PREFIX.bin`` and ``PREFIX.idx``, read as a memory map and written.

Format (little endian; GPT-NeoX ``indexed_dataset.py``, mmap): the .bin is all tokens, one document after another, without a
header.  The .idx is the magic ``MMIDIDX\\0\\0``, u64 version 1, u8 data type, u64 sequences n, u64 document marks m, int32[n] lengths
in tokens, int64[n] byte offsets in the .bin, int64[m] document marks: 0, then the number of sequences at each document's end.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

MAGIC = b"MMIDIDX\x00\x00"
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
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}


def token_dtype(vocab_size: int) -> np.dtype[np.generic]:
    """The type that holds every token of a vocabulary, by GPT-NeoX's rule: uint16 below 65500, else int32."""
    return np.dtype(np.uint16) if vocab_size < 65500 else np.dtype(np.int32)


class TokenFile:
    """A token file, memory-mapped.

    Raises:
        ValueError: a file is missing, damaged or shorter than its index says; the message names it and the sizes.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = Path(prefix)
        index_path, data_path = _with_suffix(self.prefix, ".idx"), _with_suffix(self.prefix, ".bin")
        for path in (index_path, data_path):
            if not path.is_file():
                raise ValueError(f"{path}: no such token file (data paths are prefixes, without .bin or .idx)")
        self.dtype, count, marks = _read_header(index_path)
        index = np.memmap(index_path, mode="r", dtype=np.uint8)
        expected = HEADER.size + 4 * count + 8 * count + 8 * marks
        if index.size < expected:
            raise ValueError(f"{index_path}: truncated: {index.size} bytes, its header promises {expected}; make the token file again")
        start = HEADER.size
        self.lengths: NDArray[np.int32] = index[start : start + 4 * count].view(np.int32)
        self._offsets: NDArray[np.int64] = index[start + 4 * count : start + 12 * count].view(np.int64)
        size, promised = data_path.stat().st_size, self._promised_bytes()
        if size < promised:
            raise ValueError(f"{data_path}: truncated: {size} bytes, its index promises {promised}; copy or make it again")
        self.tokens: NDArray[np.generic] = (
            np.memmap(data_path, mode="r", dtype=self.dtype) if size else np.empty(0, dtype=self.dtype)
        )

    def __len__(self) -> int:
        """Sequences in the file."""
        return len(self.lengths)

    def start(self, sequence: int) -> int:
        """Position of a sequence's first token in ``tokens``."""
        return int(self._offsets[sequence]) // self.dtype.itemsize

    def sequence(self, index: int) -> NDArray[np.generic]:
        """The tokens of one sequence."""
        start = self.start(index)
        return self.tokens[start : start + int(self.lengths[index])]

    def _promised_bytes(self) -> int:
        if not len(self.lengths):
            return 0
        ends = self._offsets + self.lengths.astype(np.int64) * self.dtype.itemsize
        if int(self._offsets.min()) < 0 or int(self.lengths.min()) < 0:
            raise ValueError(f"{self.prefix}.idx: damaged: it holds a negative length or offset; make the token file again")
        return int(ends.max())


class TokenFileWriter:
    """Writes a token file under temporary names; both files get their names together at the end, or not at all.

    Used as a context manager; ``add`` appends one document.
    """

    def __init__(self, prefix: str | Path, dtype: DTypeLike) -> None:
        self.prefix = Path(prefix)
        self.dtype = np.dtype(dtype)
        if self.dtype not in CODES:
            raise ValueError(f"{self.dtype} is no token type: use one of {', '.join(map(str, CODES))}")
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        self._lengths: list[int] = []
        self._data: BinaryIO = open(self._partial(".bin"), "wb")  # noqa: SIM115 (closed in __exit__)

    def __enter__(self) -> TokenFileWriter:
        return self

    def add(self, tokens: Iterable[int] | NDArray[np.generic]) -> None:
        """Append one document.

        Raises:
            ValueError: a token does not fit the file's data type.
        """
        wide = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens))
        array = wide.astype(self.dtype)
        if wide.size and not np.array_equal(array, wide):
            raise ValueError(f"token {int(wide.max())} does not fit {self.dtype}: write the file with a wider type")
        array.tofile(self._data)
        self._lengths.append(array.size)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._data.close()
        if kind is not None:
            self._partial(".bin").unlink(missing_ok=True)
            return
        lengths = np.asarray(self._lengths, dtype=np.int32)
        offsets = np.zeros(len(lengths), dtype=np.int64)
        np.cumsum(lengths[:-1].astype(np.int64) * self.dtype.itemsize, out=offsets[1:])
        marks = np.arange(len(lengths) + 1, dtype=np.int64)
        with open(self._partial(".idx"), "wb") as index:
            index.write(HEADER.pack(MAGIC, 1, CODES[self.dtype], len(lengths), len(marks)))
            for array in (lengths, offsets, marks):
                array.tofile(index)
        for suffix in (".bin", ".idx"):  # the index last: a reader opens it first
            os.replace(self._partial(suffix), _with_suffix(self.prefix, suffix))

    def _partial(self, suffix: str) -> Path:
        return _with_suffix(self.prefix, suffix + ".partial")


def _with_suffix(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def _read_header(path: Path) -> tuple[np.dtype[np.generic], int, int]:
    with open(path, "rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        raise ValueError(f"{path}: truncated: {len(head)} bytes, a header has {HEADER.size}; make the token file again")
    magic, version, code, count, marks = HEADER.unpack(head)
    if magic != MAGIC:
        raise ValueError(f"{path}: no mmap index of GPT-NeoX (its first bytes are {magic[:8]!r}); tokenize the text again")
    if version != 1 or code not in DTYPES:
        raise ValueError(f"{path}: version {version}, data type {code}: this program reads version 1 with types {sorted(DTYPES)}")
    return np.dtype(DTYPES[code]), count, marks
