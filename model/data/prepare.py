"""From a corpus to token files: ``python -m model.data.prepare stdlib -d data/stdlib``.

Writes ``train`` and ``heldout`` (.bin/.idx), ``tokenizer.json`` (a byte-level BPE trained on the training documents), ``words.txt``
(every word of the corpus) and ``manifest.json``.  What is there and whole is left as it is.  Needs no torch.
Changes when a prepared directory gets other contents (then RECIPE is raised).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.data.corpora import CORPORA, Corpus, Texts, read_corpus
from model.data.tokens import TokenFile, TokenFileWriter, token_dtype
from model.tokenizers import END_OF_DOCUMENT, LibraryTokenizer, Tokenizer

RECIPE = 1
"""Version of the rules by which a directory is prepared."""
PADDING = "<|padding|>"
SMALLEST_VOCABULARY = 256 + 2
"""Every byte, the end of a document and the padding."""
TOGETHER = 32
"""Documents that are tokenized at a time."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be prepared."""

    dataset: str
    vocab_size: int
    fingerprint: str
    recipe: int = RECIPE


class Progress:
    """A bar on a terminal, plain lines elsewhere."""

    def __init__(self, *, terminal: bool) -> None:
        self._terminal = terminal

    def say(self, text: str) -> None:
        """One line that stays."""
        print(text, flush=True)

    def each(self, label: str, items: Sequence[Any]) -> Iterator[Any]:
        """The items, with a bar that goes when they are through."""
        if not self._terminal:
            self.say(label)
            yield from items
            return
        from rich.progress import track

        yield from track(items, description=label, transient=True)


def prepare(dataset: str, directory: Path, *, source: Path | None, vocab_size: int | None, progress: Progress) -> dict[str, Any]:
    """Prepare ``directory`` and return its manifest.

    Raises:
        ValueError: there is no such dataset, its input is missing or empty, or the directory cannot be written.
    """
    if dataset not in CORPORA:
        raise ValueError(f"{dataset}: no such dataset\n  fix: write one of {', '.join(CORPORA)}")
    corpus = CORPORA[dataset]
    request = Request(dataset=dataset, vocab_size=vocab_size or corpus.vocab_size, fingerprint=corpus.fingerprint(source))
    if request.vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(f"--vocab-size {request.vocab_size}: bytes alone are {SMALLEST_VOCABULARY}\n  fix: write a larger one")
    there = read_manifest(directory)
    if there is not None and there["request"] == vars(request) and _is_whole(directory, there):
        progress.say(f"{directory}: already prepared, {_summary(there)}")
        return there
    if there is not None:
        progress.say(f"{directory}: prepared before, but for another text or vocabulary, or damaged: made again")
    began = time.monotonic()
    manifest = _make(directory, request, corpus, source, progress)
    progress.say(f"{directory}: prepared in {time.monotonic() - began:.0f} s, {_summary(manifest)}")
    return manifest


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a prepared directory; ``None`` where there is none that can be read."""
    try:
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and {"request", "files"} <= manifest.keys() else None


def train_bpe(texts: Sequence[str], *, vocab_size: int, words: str | None, progress: Progress) -> Any:
    """A byte-level BPE of the library ``tokenizers``; any text comes back from its tokens unchanged."""
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Library

    tokenizer = Library(models.BPE())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    cut = [] if words is None else [pre_tokenizers.Split(Regex(words), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cut, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_DOCUMENT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(progress.each(f"training the tokenizer ({vocab_size} tokens)", texts), trainer)
    return tokenizer


def write_tokens(prefix: Path, texts: Sequence[str], tokenizer: Tokenizer, *, label: str, progress: Progress) -> None:
    """Tokenize documents, each ended by the end-of-document token."""
    groups = [texts[first : first + TOGETHER] for first in range(0, len(texts), TOGETHER)]
    with TokenFileWriter(prefix, token_dtype(tokenizer.vocab_size)) as writer:
        for group in progress.each(label, groups):
            for tokens in tokenizer.encode_many(group):
                writer.add([*tokens, tokenizer.eod] if tokenizer.eod is not None else tokens)


def _make(directory: Path, request: Request, corpus: Corpus, source: Path | None, progress: Progress) -> dict[str, Any]:
    partial = directory / f".partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"{directory}: cannot be written ({error.strerror})\n  fix: choose another directory with -d") from error
    try:
        progress.say(f"reading {request.dataset}")
        texts = read_corpus(request.dataset, source)
        _write_files(partial, texts, corpus, request, progress)
        manifest = _manifest(partial, request)
        (directory / "manifest.json").unlink(missing_ok=True)  # last to come, first to go
        for name in (*manifest["files"], "manifest.json"):
            os.replace(partial / name, directory / name)
        return manifest
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_files(partial: Path, texts: Texts, corpus: Corpus, request: Request, progress: Progress) -> None:
    library = train_bpe(texts.train, vocab_size=request.vocab_size, words=corpus.words, progress=progress)
    library.save(str(partial / "tokenizer.json"))
    tokenizer = LibraryTokenizer(library, eod=library.token_to_id(END_OF_DOCUMENT))
    write_tokens(partial / "train", texts.train, tokenizer, label="tokenizing the training text", progress=progress)
    write_tokens(partial / "heldout", texts.heldout, tokenizer, label="tokenizing the held-out text", progress=progress)
    words = {word for documents in (texts.train, texts.heldout) for document in documents for word in document.split()}
    (partial / "words.txt").write_text("\n".join(sorted(words)) + "\n", encoding="utf-8")


def _manifest(partial: Path, request: Request) -> dict[str, Any]:
    """Describe the files and write that beside them."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(partial.iterdir())}
    splits = {name: TokenFile(partial / name) for name in ("train", "heldout")}
    manifest = {
        "request": vars(request),
        "python": sys.version.split()[0],
        "vocab_size": 1 + max(json.loads((partial / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"].values()),
        "documents": {name: len(tokens) for name, tokens in splits.items()},
        "tokens": {name: len(tokens.tokens) for name, tokens in splits.items()},
        "files": files,
    }
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _is_whole(directory: Path, manifest: dict[str, Any]) -> bool:
    """All files are there with the bytes they were written with."""
    return all(
        (directory / name).is_file()
        and (directory / name).stat().st_size == file["bytes"]
        and _sha256(directory / name) == file["sha256"]
        for name, file in manifest["files"].items()
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _summary(manifest: dict[str, Any]) -> str:
    tokens, documents = manifest["tokens"], manifest["documents"]
    return (
        f"{tokens['train']:,} training tokens in {documents['train']:,} documents, "
        f"{tokens['heldout']:,} held-out tokens in {documents['heldout']:,}, vocabulary {manifest['vocab_size']:,}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 done, 1 failed, 2 the user's mistake."""
    listed = "\n".join(f"  {name:8} {corpus.description}" for name, corpus in CORPORA.items())
    parser = argparse.ArgumentParser(
        prog="python -m model.data.prepare",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Make token files and a tokenizer from a text.",
        epilog=f"datasets:\n{listed}\n\nexample:\n  python -m model.data.prepare stdlib -d data/stdlib",
    )
    parser.add_argument("dataset", choices=CORPORA, help="which text")
    parser.add_argument("-d", "--directory", type=Path, required=True, help="where the files go")
    parser.add_argument("--vocab-size", type=int, help="tokens of the tokenizer (default: the dataset's)")
    parser.add_argument("--input", type=Path, dest="source", help="file or folder of the text, for datasets that need one")
    asked = parser.parse_args(argv)
    progress = Progress(terminal=sys.stdout.isatty())
    try:
        prepare(asked.dataset, asked.directory, source=asked.source, vocab_size=asked.vocab_size, progress=progress)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except (OSError, KeyboardInterrupt) as error:
        why = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        print(f"{asked.directory}: not prepared: {why}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
