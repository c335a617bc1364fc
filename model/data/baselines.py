"""What a model has to beat: unigram and bigram losses of a held-out text, and the share of a sample's words that exist.

    python -m model.data.baselines --train data/stdlib/train --heldout data/stdlib/heldout --sample samples.txt

All losses in nats per token.  numpy only; the token files fit in memory.  Changes when a baseline is added.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data.corpora import CORPORA, read_corpus
from model.data.tokens import TokenFile


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Losses on the held-out text, nats per token."""

    unigram_entropy: float
    """Entropy of the held-out text's own token frequencies: no model without context can do better."""
    unigram_loss: float
    """Of the training text's token frequencies, add-one smoothed."""
    bigram_loss: float
    """Of the training text's pair frequencies, add-one smoothed: P(b after a) = (n(ab) + 1) / (n(a) + V)."""
    vocab_size: int
    train_tokens: int
    heldout_tokens: int


@dataclass(frozen=True, kw_only=True)
class WordShare:
    """The words of a sample, cut at white space."""

    words: int
    distinct: int
    share: float
    """Of the words, how many occur in the corpus; 0 of no words is 0."""


def measure(train: NDArray[Any], heldout: NDArray[Any], vocab_size: int) -> Baselines:
    """The baselines of two token streams whose tokens are below ``vocab_size``."""
    return Baselines(
        unigram_entropy=entropy(np.bincount(heldout, minlength=vocab_size)),
        unigram_loss=unigram_loss(train, heldout, vocab_size),
        bigram_loss=bigram_loss(train, heldout, vocab_size),
        vocab_size=vocab_size,
        train_tokens=len(train),
        heldout_tokens=len(heldout),
    )


def entropy(counts: NDArray[Any]) -> float:
    """Of a distribution given by counts."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def unigram_loss(train: NDArray[Any], heldout: NDArray[Any], vocab_size: int) -> float:
    """Mean of -log((n(token) + 1) / (N + V)) over the held-out tokens."""
    counts = np.bincount(train, minlength=vocab_size)
    return float(-np.log((counts[heldout] + 1) / (len(train) + vocab_size)).mean())


def bigram_loss(train: NDArray[Any], heldout: NDArray[Any], vocab_size: int) -> float:
    """Mean of -log((n(ab) + 1) / (n(a) + V)) over the held-out tokens but the first; n(a) counts a before any token."""
    pairs, counts = np.unique(_pairs(train, vocab_size), return_counts=True)
    before = np.bincount(train[:-1], minlength=vocab_size)
    asked = _pairs(heldout, vocab_size)
    at = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
    seen = np.where(pairs[at] == asked, counts[at], 0)
    return float(-np.log((seen + 1) / (before[heldout[:-1]] + vocab_size)).mean())


def _pairs(tokens: NDArray[Any], vocab_size: int) -> NDArray[np.int64]:
    wide = tokens.astype(np.int64)
    return wide[:-1] * vocab_size + wide[1:]


def word_share(text: str, corpus_words: Collection[str]) -> WordShare:
    """How many of a text's words occur in a corpus (give a set)."""
    words = text.split()
    known = sum(word in corpus_words for word in words)
    return WordShare(words=len(words), distinct=len(set(words)), share=known / len(words) if words else 0.0)


def read_baselines(train: str, heldout: str) -> Baselines:
    """The baselines of two token files; the vocabulary is that of ``tokenizer.json`` beside them, else the largest token + 1.

    Raises:
        ValueError: a file is missing, damaged, or too short.
    """
    streams = {}
    for prefix in (train, heldout):
        tokens = TokenFile(prefix)
        if len(tokens.tokens) < 2 or not np.issubdtype(tokens.dtype, np.integer) or tokens.tokens.min() < 0:
            raise ValueError(f"{tokens.data_path}: holds no text (two tokens at least)\n  fix: name a file of tokens")
        streams[prefix] = np.asarray(tokens.tokens)
    largest = int(max(stream.max() for stream in streams.values())) + 1
    return measure(streams[train], streams[heldout], max(largest, _vocab_size(Path(train).parent / "tokenizer.json")))


def _vocab_size(path: Path) -> int:
    if not path.is_file():
        return 0
    described = json.loads(path.read_text(encoding="utf-8"))
    tokens: list[int] = [*described["model"]["vocab"].values(), *(token["id"] for token in described["added_tokens"])]
    return max(tokens) + 1


def read_sample(path: Path) -> str:
    """The text of a sample: a text file, or JSON lines whose ``context`` and ``text`` are joined (as generate.py writes them).

    Raises:
        ValueError: there is no such file.
    """
    try:
        written = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--sample {path}: cannot be read ({error})\n  fix: write the path of a text or of generate's output"
        ) from error
    lines = [_json_object(line) for line in written.splitlines() if line.strip()]
    if not lines or any(line is None for line in lines):
        return written
    return "\n".join(f"{line.get('context') or ''}{line.get('text') or ''}" for line in lines if line is not None)


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "text" in value else None


def read_words(train: str | None, dataset: str | None, source: Path | None) -> set[str]:
    """Every word of the corpus: of the dataset if it is named, else of ``words.txt`` beside the training tokens.

    Raises:
        ValueError: neither is there.
    """
    if dataset is None:
        path = Path(train or "").parent / "words.txt"
        if not path.is_file():
            raise ValueError(f"{path}: no such file\n  fix: prepare the data again, or name the corpus with --dataset")
        return set(path.read_text(encoding="utf-8").split())
    texts = read_corpus(dataset, source)
    return {word for document in (*texts.train, *texts.heldout) for word in document.split()}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 done, 2 the user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m model.data.baselines", description="Losses that a model has to beat (nats per token)."
    )
    parser.add_argument("--train", metavar="PREFIX", help="token file of the training text")
    parser.add_argument("--heldout", metavar="PREFIX", help="token file of the held-out text")
    parser.add_argument("--sample", type=Path, metavar="FILE", help="generated text: count its words that occur in the corpus")
    parser.add_argument(
        "--dataset", choices=CORPORA, help="the corpus whose words count (default: words.txt beside the token file)"
    )
    parser.add_argument("--input", type=Path, dest="source", metavar="PATH", help="file or folder of that corpus")
    parser.add_argument("--json", action="store_true", help="print JSON")
    asked = parser.parse_args(argv)
    if (asked.train is None) != (asked.heldout is None) or (asked.train is None and asked.sample is None):
        parser.error("give --train and --heldout, or --sample, or all of them")
    facts: dict[str, Any] = {}
    try:
        if asked.train is not None:
            facts |= asdict(read_baselines(asked.train, asked.heldout))
        if asked.sample is not None:
            facts |= asdict(word_share(read_sample(asked.sample), read_words(asked.train, asked.dataset, asked.source)))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(facts, indent=2) if asked.json else "\n".join(_lines(facts)))
    return 0


def _lines(facts: dict[str, Any]) -> list[str]:
    lines = []
    if "bigram_loss" in facts:
        lines += [
            f"unigram entropy of the held-out text  {facts['unigram_entropy']:.4f} nats per token",
            f"unigram loss (add-one)                {facts['unigram_loss']:.4f}",
            f"bigram loss (add-one)                 {facts['bigram_loss']:.4f}",
        ]
    if "words" in facts:
        lines.append(f"sample: {facts['words']} words, {facts['distinct']} distinct, {facts['share']:.1%} occur in the corpus")
    return lines


if __name__ == "__main__":
    sys.exit(main())
