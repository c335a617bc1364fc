"""Tokenizers by name: round trips over the registry, GPT-2's rules, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.config.training import Tokenizer as TokenizerKeys
from model.data.prepare import Progress, train_bpe
from model.tokenizers import KINDS, Tokenizer, build_tokenizer

TEXTS = ("", " ", "def f(x):\n\treturn 'é \U0001f600'\n\n", "  two  blanks ", "they're 12345")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The files of every kind, trained on a few words."""
    library = train_bpe(
        ["they are returned by the function they call\n"] * 3, vocab_size=300, words=None, progress=Progress(terminal=False)
    )
    library.save(str(tmp_path / "tokenizer.json"))
    library.model.save(str(tmp_path))
    return tmp_path


def build(kind: str, files: Path) -> Tokenizer:
    names = {"HFTokenizer": "tokenizer.json"}
    vocab = str(files / names.get(kind, "vocab.json"))
    return build_tokenizer(TokenizerKeys(tokenizer_type=kind, vocab_file=vocab, merge_file=str(files / "merges.txt")))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_from_its_tokens(kind: str, text: str, files: Path) -> None:
    tokenizer = build(kind, files)
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.encode_many([text, "x"])[0] == tokens
    assert all(0 <= token < tokenizer.vocab_size for token in tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_a_document_is_no_text(kind: str, files: Path) -> None:
    tokenizer = build(kind, files)
    assert tokenizer.eod is not None and 0 <= tokenizer.eod < tokenizer.vocab_size
    assert tokenizer.decode([*tokenizer.encode("the"), tokenizer.eod]) == "the"


def test_every_kind_that_the_keys_say_trains_is_built() -> None:
    extra = TokenizerKeys.model_fields["tokenizer_type"].json_schema_extra
    assert isinstance(extra, dict)
    assert set(KINDS) == set(extra["trains"])  # type: ignore[arg-type]


def test_gpt2_merges_pairs_in_the_order_of_its_file(tmp_path: Path) -> None:
    """By hand: bytes become letters, a blank becomes Ġ; the first line of merges.txt comes first, a merge never crosses words."""
    vocab = {letter: i for i, letter in enumerate(["a", "b", "c", "Ġ", "ab", "bc", "Ġa", "abc", "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nb c\na b\nĠ a\n")
    tokenizer = build("GPT2BPETokenizer", tmp_path)
    assert [list(vocab)[token] for token in tokenizer.encode("abc abc ab")] == ["a", "bc", "Ġa", "bc", "Ġ", "ab"]
    assert tokenizer.vocab_size == 9 and tokenizer.eod == 8


def test_characters_are_the_bytes_of_utf8(files: Path) -> None:
    tokenizer = build("CharLevelTokenizer", files)
    assert tokenizer.encode("Aé") == [65, 0xC3, 0xA9]
    assert tokenizer.decode([65, 0, 1, 511, 66]) == "AB"
    assert tokenizer.vocab_size == 512


def test_a_tokenizer_without_an_end_of_document_has_none(files: Path) -> None:
    written = json.loads((files / "tokenizer.json").read_text().replace("<|endoftext|>", "<|end|>"))
    (files / "tokenizer.json").write_text(json.dumps(written))
    assert build("HFTokenizer", files).eod is None


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        *(("HFTokenizer", "tokenizer.json", content) for content in (None, "", "{}", "no JSON")),
        *(("GPT2BPETokenizer", "vocab.json", content) for content in (None, "", "{}", "no JSON")),
        *(("GPT2BPETokenizer", "merges.txt", content) for content in (None, "no such merge")),
    ],
)
def test_a_missing_or_damaged_file_is_named_with_the_fix(files: Path, kind: str, name: str, content: str | None) -> None:
    if content is None:
        (files / name).unlink()
    else:
        (files / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{files}/(.|\n)*\n  fix: "):
        build(kind, files)


def test_a_path_that_is_not_given_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"vocab_file: is not given\n  fix: "):
        build_tokenizer(TokenizerKeys(tokenizer_type="HFTokenizer"))


def test_a_kind_that_is_not_built_yet_is_refused() -> None:
    with pytest.raises(ValueError, match=r"SPMTokenizer is not built yet\n  fix: write one of HFTokenizer"):
        build_tokenizer(TokenizerKeys(tokenizer_type="SPMTokenizer"))
