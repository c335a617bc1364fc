"""The baselines against counting by hand, and the words of a sample."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from model.data.baselines import entropy, main, measure, read_sample, word_share
from model.data.tokens import TokenFileWriter

RNG = np.random.default_rng(0)
TRAIN, HELDOUT, VOCAB = RNG.zipf(1.3, 1000) % 63, RNG.zipf(1.3, 333) % 65, 70


def test_the_entropy_is_that_of_the_frequencies() -> None:
    assert entropy(np.array([1, 1, 2, 0])) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4), rel=1e-12)
    assert entropy(np.array([0, 5])) == 0


def test_the_unigram_loss_is_counted_by_hand() -> None:
    counts = Counter(TRAIN.tolist())
    by_hand = -sum(math.log((counts[token] + 1) / (len(TRAIN) + VOCAB)) for token in HELDOUT.tolist()) / len(HELDOUT)
    assert measure(TRAIN, HELDOUT, VOCAB).unigram_loss == pytest.approx(by_hand, rel=1e-12)


def test_the_bigram_loss_is_counted_by_hand() -> None:
    train, heldout = TRAIN.tolist(), HELDOUT.tolist()
    pairs, before = Counter(pairwise(train)), Counter(train[:-1])
    losses = [-math.log((pairs[a, b] + 1) / (before[a] + VOCAB)) for a, b in pairwise(heldout)]
    assert measure(TRAIN, HELDOUT, VOCAB).bigram_loss == pytest.approx(sum(losses) / len(losses), rel=1e-12)


def test_the_smoothed_distributions_sum_to_one() -> None:
    every = np.arange(VOCAB)
    assert sum(math.exp(-measure(TRAIN, np.array([b, b]), VOCAB).unigram_loss) for b in every) == pytest.approx(1, rel=1e-12)
    for a in (0, 1, 69):
        assert sum(math.exp(-measure(TRAIN, np.array([a, b]), VOCAB).bigram_loss) for b in every) == pytest.approx(1, rel=1e-12)


def test_uint16_tokens_do_not_overflow() -> None:
    wide = measure(TRAIN, HELDOUT, 60000)
    assert measure(TRAIN.astype(np.uint16), HELDOUT.astype(np.uint16), 60000) == wide


def test_the_words_of_a_sample_are_counted() -> None:
    share = word_share("def f ( x ) :\n    return xx", {"def", "f", "(", ")", ":", "x", "return"})
    assert (share.words, share.distinct, share.share) == (8, 8, 7 / 8)
    assert word_share(" \n", {"a"}).share == 0


def test_a_sample_may_be_text_or_generates_json_lines(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("def f\n{}")
    lines = [{"context": "def ", "text": "f", "length": 1}, {"context": "", "text": "x y"}]
    (tmp_path / "lines").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert read_sample(tmp_path / "text") == "def f\n{}"
    assert read_sample(tmp_path / "lines") == "def f\nx y"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, tokens in (("train", TRAIN), ("heldout", HELDOUT)):
        with TokenFileWriter(tmp_path / name, np.uint16) as writer:
            writer.add(tokens[:100])
            writer.add(tokens[100:])
    (tmp_path / "words.txt").write_text("def\nf\n")
    (tmp_path / "sample").write_text("def f g h")
    return tmp_path


def test_the_command_prints_json_that_other_programs_read(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = {"model": {"vocab": {"a": 0, "b": 69}}, "added_tokens": [{"id": 1}]}
    (data / "tokenizer.json").write_text(json.dumps(described))
    assert (
        main(["--train", str(data / "train"), "--heldout", str(data / "heldout"), "--sample", str(data / "sample"), "--json"]) == 0
    )
    facts = json.loads(capsys.readouterr().out)
    expected = measure(TRAIN, HELDOUT, 70)
    assert facts == vars(expected) | {"words": 4, "distinct": 4, "share": 0.5}


def test_the_command_prints_lines(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--train", str(data / "train"), "--heldout", str(data / "heldout"), "--sample", str(data / "sample")]) == 0
    shown = capsys.readouterr().out
    assert f"bigram loss (add-one)                 {measure(TRAIN, HELDOUT, 65).bigram_loss:.4f}" in shown
    assert "4 words, 4 distinct, 50.0% occur in the corpus" in shown


def test_a_sample_can_be_held_against_a_dataset_alone(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(80):
        (data / f"module{i}.py").write_text("def f ( x ) :\n    return g ( x )\n")
    (data / "os.py").write_text("x = 1\n")
    assert main(["--dataset", "stdlib", "--input", str(data), "--json", "--sample", str(data / "sample")]) == 0
    assert json.loads(capsys.readouterr().out) == {"words": 4, "distinct": 4, "share": 0.75}  # h is no word there


@pytest.mark.parametrize("argv", [[], ["--train", "x"], ["--heldout", "x", "--sample", "y"], ["--dataset", "stdlib"]])
def test_half_a_question_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert "give --train and --heldout, or --sample, or all of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [("train.bin", "train.bin: truncated"), ("words.txt", "words.txt: no such file\n  fix: "), ("sample", "cannot be read")],
)
def test_what_is_missing_is_told(data: Path, capsys: pytest.CaptureFixture[str], change: str, message: str) -> None:
    if change == "train.bin":
        (data / change).write_bytes(b"x")
    else:
        (data / change).unlink()
    assert main(["--train", str(data / "train"), "--heldout", str(data / "heldout"), "--sample", str(data / "sample")]) == 2
    assert message in capsys.readouterr().err
