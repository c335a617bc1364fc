"""The tokenizers by GPT-NeoX's names: text to token numbers and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from model.config.training import Tokenizer as TokenizerKeys

END_OF_DOCUMENT = "<|endoftext|>"
PADDING = "<|padding|>"


class Tokenizer(Protocol):
    """Text to tokens and back."""

    @property
    def vocab_size(self) -> int:
        """Tokens it knows, special ones included."""

    @property
    def eod(self) -> int | None:
        """The end-of-document token, if it has one."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens."""


def build_tokenizer(keys: TokenizerKeys) -> Tokenizer:
    """The tokenizer that the configuration names.

    Raises:
        ValueError: the type is not built yet, a file is not named, missing or damaged; the message names it.
    """
    if keys.tokenizer_type not in TOKENIZERS:
        raise ValueError(f"tokenizer_type {keys.tokenizer_type} is not built yet: write one of {', '.join(TOKENIZERS)}")
    return TOKENIZERS[keys.tokenizer_type](keys)


@dataclass(frozen=True)
class LibraryTokenizer:
    """A tokenizer of the ``tokenizers`` library."""

    library: Any

    @property
    def vocab_size(self) -> int:
        return int(self.library.get_vocab_size(with_added_tokens=True))

    @property
    def eod(self) -> int | None:
        token = self.library.token_to_id(END_OF_DOCUMENT)
        return None if token is None else int(token)

    def encode(self, text: str) -> list[int]:
        return list(self.library.encode(text).ids)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Many texts at once, in parallel."""
        return [encoding.ids for encoding in self.library.encode_batch(list(texts))]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.library.decode(list(tokens), skip_special_tokens=False))


@dataclass(frozen=True)
class CharLevelTokenizer:
    """Bytes as tokens; GPT-NeoX gives it 512 tokens, end of document 0, padding 1."""

    vocab_size: int = 512
    eod: int | None = 0

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(min(max(token, 32), 255) for token in tokens).decode(errors="replace")


def _hf(keys: TokenizerKeys) -> Tokenizer:
    import tokenizers

    path = _file(keys.vocab_file, "vocab_file", "HFTokenizer's JSON file")
    return LibraryTokenizer(_read(path, lambda: tokenizers.Tokenizer.from_file(str(path))))


def _gpt2(keys: TokenizerKeys) -> Tokenizer:
    import tokenizers

    vocab = _file(keys.vocab_file, "vocab_file", "the vocabulary of GPT-2's BPE (JSON)")
    merges = _file(keys.merge_file, "merge_file", "the merges of GPT-2's BPE")
    library = _read(vocab, lambda: tokenizers.ByteLevelBPETokenizer(str(vocab), str(merges)))
    library.add_special_tokens([END_OF_DOCUMENT])
    return LibraryTokenizer(library)


def _read(path: Path, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path}: no tokenizer of the library tokenizers: {error}") from error


def _file(name: str | None, key: str, what: str) -> Path:
    if name is None:
        raise ValueError(f"{key} is absent: name {what}")
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"{key}: {path} does not exist ({what})")
    return path


TOKENIZERS: dict[str, Callable[[TokenizerKeys], Tokenizer]] = {
    "HFTokenizer": _hf,
    "GPT2BPETokenizer": _gpt2,
    "CharLevelTokenizer": lambda keys: CharLevelTokenizer(),
}
