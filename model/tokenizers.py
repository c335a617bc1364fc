"""Tokenizers by GPT-NeoX's names.  Changes when a kind of tokenizer is added: one builder, one line in KINDS.

The library ``tokenizers`` is imported only by the kinds that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from model.config.training import Tokenizer as TokenizerKeys

END_OF_DOCUMENT = "<|endoftext|>"


class Tokenizer(Protocol):
    """Text to tokens and back."""

    @property
    def vocab_size(self) -> int:
        """Tokens there are, before the embedding is padded."""

    @property
    def eod(self) -> int | None:
        """The token that ends a document; ``None`` when the vocabulary has none."""

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of several texts, on all cores where the library can."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens; those that are no text (end of document, padding of the vocabulary) are left out."""


class LibraryTokenizer:
    """A tokenizer of the library ``tokenizers``."""

    def __init__(self, library_tokenizer: Any, *, eod: int | None) -> None:
        self._tokenizer = library_tokenizer
        self._eod = eod

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @property
    def eod(self) -> int | None:
        return self._eod

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode([token for token in tokens if token != self._eod]))


class CharLevelTokenizer:
    """The bytes of UTF-8 as tokens; 512 of them, so that data of GPT-NeoX fits."""

    vocab_size = 512
    eod = 0

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        # 1 is GPT-NeoX's padding; above 255 stands no character
        return bytes(token for token in tokens if 1 < token < 256).decode("utf-8", errors="replace")


def build_tokenizer(keys: TokenizerKeys) -> Tokenizer:
    """The tokenizer that the keys ask for.

    Raises:
        ValueError: its kind is not built yet, a file is missing, or a file is no such tokenizer.
    """
    if keys.tokenizer_type not in KINDS:
        raise ValueError(f"tokenizer_type: {keys.tokenizer_type} is not built yet\n  fix: write one of {', '.join(KINDS)}")
    return KINDS[keys.tokenizer_type](keys)


def _hugging_face(keys: TokenizerKeys) -> Tokenizer:
    from tokenizers import Tokenizer as Library

    path = _file(keys.vocab_file, "vocab_file", "a tokenizer.json of the library tokenizers")
    tokenizer = _parse(path, "a tokenizer.json of the library tokenizers", lambda: Library.from_file(str(path)))
    return LibraryTokenizer(tokenizer, eod=tokenizer.token_to_id(END_OF_DOCUMENT))


def _gpt2(keys: TokenizerKeys) -> Tokenizer:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    vocab = _file(keys.vocab_file, "vocab_file", "GPT-2's vocab.json")
    merges = _file(keys.merge_file, "merge_file", "GPT-2's merges.txt")
    what = f"GPT-2's vocabulary that fits {merges}"
    tokenizer = Library(_parse(vocab, what, lambda: models.BPE.from_file(str(vocab), str(merges))))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    eod = tokenizer.token_to_id(END_OF_DOCUMENT)
    if eod is None:
        raise ValueError(
            f"{vocab}: has no token {END_OF_DOCUMENT}\n  fix: use GPT-2's own vocab.json, or tokenizer_type: HFTokenizer"
        )
    return LibraryTokenizer(tokenizer, eod=eod)


KINDS: dict[str, Callable[[TokenizerKeys], Tokenizer]] = {
    "HFTokenizer": _hugging_face,
    "GPT2BPETokenizer": _gpt2,
    "CharLevelTokenizer": lambda keys: CharLevelTokenizer(),
}


def _file(value: str | None, key: str, what: str) -> Path:
    if value is None:
        raise ValueError(f"{key}: is not given\n  fix: write the path of {what}")
    path = Path(value)
    if not path.is_file():
        raise ValueError(f"{key}: {path} is no file\n  fix: write the path of {what}")
    return path


def _parse(path: Path, what: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # the library raises plain Exception for whatever is wrong in a file
        raise ValueError(f"{path}: is not {what} ({error})\n  fix: copy the file again, or correct tokenizer_type") from error
