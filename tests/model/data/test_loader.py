"""From keys to batches: the order, resuming, blending, what is refused, and the index on disk."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.config import BatchSizes, RunConfig
from model.data.loader import Splits, open_data
from model.data.tokens import TokenFileWriter
from tests.model.data.test_samples import told_blend, told_samples

BATCH = BatchSizes(train=12, micro=2, accumulation=3, data=2)
SEQ = 7


def write_tokens(prefix: Path, first: int, documents: int = 63, dtype: Any = np.uint16) -> list[list[int]]:
    """Documents of odd lengths whose tokens all differ, so that a token tells where it comes from."""
    texts, at = [], first
    for length in np.random.default_rng(first).integers(0, 12, documents).tolist():
        texts.append(list(range(at, at + length)))
        at += length
    with TokenFileWriter(prefix, dtype) as writer:
        for text in texts:
            writer.add(text)
    return texts


def config(**keys: Any) -> RunConfig:
    values = {
        "num_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 1,
        "seq_length": SEQ,
        "max_position_embeddings": SEQ,
        "train_micro_batch_size_per_gpu": 2,
        "train_iters": 10,
        "eval_interval": 4,
        "eval_iters": 2,
        "seed": 5,
        "optimizer": {"type": "Adam", "params": {"lr": 0.001}},
        "split": "8, 1, 1",
    }
    return RunConfig.from_keys(values | keys)


def told(texts: list[list[int]], documents: list[int], samples: int, seed: int = 5) -> list[list[int]]:
    """The served samples of some documents, by the slow telling."""
    order, _, served = told_samples([len(text) for text in texts], documents, SEQ, samples, seed)
    stream = [token for document in order for token in texts[document]]
    return [stream[number * SEQ : number * SEQ + SEQ + 1] for number in served]


def rows(splits: Splits, steps: int, batch: BatchSizes = BATCH) -> list[list[int]]:
    """The training samples in the order of the micro-batches and of the data ranks."""
    found = []
    for step in range(steps):
        for rank in range(batch.data):
            got = splits.train.batch(step, rank)
            found += torch.cat([got.tokens_BS, got.labels_BS[:, -1:]], dim=1).tolist()
    return found


def test_micro_batches_are_consecutive_samples_dealt_to_the_ranks_in_order(tmp_path: Path) -> None:
    texts = write_tokens(tmp_path / "text", 0)
    splits = open_data(config(data_path=str(tmp_path / "text")), BATCH, tmp_path / "index", build=True)
    train = list(range(51))  # 50 + 6 + 6 is one too few: every bound moves up
    assert rows(splits, 30) == told(texts, train, samples=10 * 12)[: 30 * 4]
    valid = splits.valid
    assert valid is not None and len(valid) == (10 // 4 + 1) * 2 * 12
    expected = told(texts, list(range(51, 57)), samples=len(valid))[2]
    assert valid.batch(0, 1).tokens_BS[0].tolist() == expected[:-1]
    assert splits.test is not None and len(splits.test) == 2 * 12


def test_a_batch_has_the_contracts_types_and_shapes(tmp_path: Path) -> None:
    write_tokens(tmp_path / "text", 0)
    batch = open_data(config(data_path=str(tmp_path / "text")), BATCH, tmp_path / "index", build=True).train.batch(0, 0)
    assert (batch.tokens_BS.dtype, batch.labels_BS.dtype, batch.loss_mask_BS.dtype) == (torch.int64, torch.int64, torch.float32)
    assert batch.tokens_BS.shape == batch.labels_BS.shape == batch.loss_mask_BS.shape == (2, SEQ)
    assert torch.equal(batch.tokens_BS[:, 1:], batch.labels_BS[:, :-1])
    assert batch.tokens_BS.is_contiguous() and batch.labels_BS.is_contiguous()
    assert batch.loss_mask_BS.min() == 1 and batch.doc_ids_BS is None
    assert torch.equal(batch.to(torch.device("cpu")).tokens_BS, batch.tokens_BS)


def test_a_step_is_the_same_whatever_was_read_before(tmp_path: Path) -> None:
    write_tokens(tmp_path / "text", 0)
    keys = config(data_path=str(tmp_path / "text"))
    first = open_data(keys, BATCH, tmp_path / "index", build=True).train
    for step in range(20):
        first.batch(step, 0)
    again = open_data(keys, BATCH, tmp_path / "index", build=False).train
    assert torch.equal(first.batch(17, 1).tokens_BS, again.batch(17, 1).tokens_BS)


def test_the_samples_do_not_depend_on_how_many_ranks_share_them(tmp_path: Path) -> None:
    write_tokens(tmp_path / "text", 0)
    keys = config(data_path=str(tmp_path / "text"))
    two = rows(open_data(keys, BATCH, tmp_path / "index", build=True), 6)
    alone = BatchSizes(train=12, micro=12, accumulation=1, data=1)
    assert rows(open_data(keys, alone, tmp_path / "index", build=False), 2, alone) == two


def test_beyond_the_last_sample_the_first_comes_again(tmp_path: Path) -> None:
    write_tokens(tmp_path / "text", 0)
    valid = open_data(config(data_path=str(tmp_path / "text")), BATCH, tmp_path / "index", build=True).valid
    assert valid is not None
    assert torch.equal(valid.batch(len(valid) // 4, 1).tokens_BS, valid.batch(0, 1).tokens_BS)


def test_files_are_blended_by_weight_each_with_its_own_margin(tmp_path: Path) -> None:
    one, two = write_tokens(tmp_path / "one", 0), write_tokens(tmp_path / "two", 10000, documents=41)
    paths = [str(tmp_path / "one"), str(tmp_path / "two")]
    keys = config(train_data_paths=paths, train_data_weights=[1.0, 3.0], valid_data_paths=paths[:1])
    splits = open_data(keys, BATCH, tmp_path / "index", build=True)
    served = [
        told(texts, list(range(len(texts))), samples=math.ceil(120 * share * 1.005)) for texts, share in ((one, 0.25), (two, 0.75))
    ]
    source, position = told_blend([0.25, 0.75], 120)
    assert rows(splits, 30) == [served[d][i] for d, i in zip(source, position, strict=True)]
    assert splits.valid is not None and splits.test is None


def test_one_file_in_a_list_is_asked_for_the_margin_too(tmp_path: Path) -> None:
    """With 40 samples of 7 tokens an epoch is just used up; the 0.5 % more need a second one, and that is another order."""
    with TokenFileWriter(tmp_path / "text", np.uint16) as writer:
        for first in range(0, 12 * 10 * SEQ + 1, 1):
            writer.add([first])
    texts = [[token] for token in range(12 * 10 * SEQ + 1)]
    listed = open_data(config(train_data_paths=[str(tmp_path / "text")]), BATCH, tmp_path / "index", build=True)
    cut = open_data(config(data_path=str(tmp_path / "text"), split="1"), BATCH, tmp_path / "index", build=True)
    everything = list(range(len(texts)))
    assert rows(listed, 30) == told(texts, everything, samples=121)[:120]
    assert rows(cut, 30) == told(texts, everything, samples=120)[:120] != rows(listed, 30)


def test_a_file_of_weight_zero_is_not_served(tmp_path: Path) -> None:
    texts = write_tokens(tmp_path / "one", 0), write_tokens(tmp_path / "two", 10000)
    keys = config(train_data_paths=[str(tmp_path / "one"), str(tmp_path / "two")], train_data_weights=[0.0, 1.0])
    served = {token for row in rows(open_data(keys, BATCH, tmp_path / "index", build=True), 30) for token in row}
    assert texts[0] and min(served) >= 10000


def test_eod_mask_loss_masks_where_the_token_is_the_input(tmp_path: Path) -> None:
    with TokenFileWriter(tmp_path / "text", np.uint16) as writer:
        for _ in range(40):
            writer.add([1, 2, 3, 0])
    keys = config(data_path=str(tmp_path / "text"), eod_mask_loss=True)
    batch = open_data(keys, BATCH, tmp_path / "index", build=True, eod=0).train.batch(0, 0)
    assert torch.equal(batch.loss_mask_BS == 0, batch.tokens_BS == 0) and (batch.tokens_BS == 0).any()
    with pytest.raises(ValueError, match="no end-of-document token"):
        open_data(keys, BATCH, tmp_path / "index", build=True)


@pytest.mark.parametrize(("vocab_size", "refused"), [(300, True), (100000, False), (None, False)])
def test_a_token_outside_the_vocabulary_is_refused(tmp_path: Path, vocab_size: int | None, refused: bool) -> None:
    write_tokens(tmp_path / "text", 300)
    keys = config(data_path=str(tmp_path / "text"))
    train = open_data(keys, BATCH, tmp_path / "index", build=True, vocab_size=vocab_size).train
    if refused:
        with pytest.raises(ValueError, match=rf"{tmp_path}/text.bin: holds token \d+, the vocabulary has 300\n  fix: "):
            train.batch(0, 0)
    else:
        train.batch(0, 0)


def test_a_negative_token_is_refused(tmp_path: Path) -> None:
    with TokenFileWriter(tmp_path / "text", np.int32) as writer:
        writer.add([-100] * 100)
    train = open_data(config(data_path=str(tmp_path / "text"), split="1"), BATCH, tmp_path / "index", build=True).train
    with pytest.raises(ValueError, match="holds token -100"):
        train.batch(0, 0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, r"data_path: is not given\n  fix: "),
        ({"data_path": "/no/such"}, r"data_path: /no/such.idx: no such token file\n  fix: "),
        ({"train_data_paths": ["text", "/no/such"]}, r"train_data_paths: /no/such.idx: no such token file"),
        (
            {"data_path": "text", "split": "0, 1, 0"},
            r"split: '0, 1, 0' of the 5 documents in .*text.idx leaves none for train\n  fix: ",
        ),
        ({"data_path": "text", "split": "969, 30, 1"}, r"leaves none for valid\n  fix: .*eval_iters: 0"),
        ({"data_path": "text", "split": "x"}, r"split: 'x' is no list of numbers"),
        ({"data_path": "text", "train_iters": None}, r"train_iters: is not given"),
        ({"data_path": "numbers"}, r"holds float32 values, not tokens"),
        ({"data_path": "hollow", "split": "2, 1, 0"}, r"hollow.bin: no tokens for valid \(documents 2 to 3 of 3\)\n  fix: "),
    ],
)
def test_what_cannot_be_served_is_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    write_tokens(tmp_path / "text", 0, documents=5)
    for name, dtype, documents in (("numbers", np.float32, [[0.5]]), ("hollow", np.uint16, [[1], [2], []])):
        with TokenFileWriter(tmp_path / name, dtype) as writer:
            for document in documents:
                writer.add(document)
    here = {
        "data_path": lambda path: str(tmp_path / path),
        "train_data_paths": lambda paths: [str(tmp_path / path) for path in paths],
    }
    placed = {key: here[key](value) if key in here else value for key, value in keys.items()}
    with pytest.raises(ValueError, match=message):
        open_data(config(**placed), BATCH, tmp_path / "index", build=True)
    assert not (tmp_path / "index").exists() or not list((tmp_path / "index").glob("*.partial"))


def test_without_validation_no_document_is_needed_for_it(tmp_path: Path) -> None:
    write_tokens(tmp_path / "text", 0, documents=5)
    keys = config(data_path=str(tmp_path / "text"), split="969, 30, 1", eval_iters=0)
    splits = open_data(keys, BATCH, tmp_path / "index", build=True)
    assert splits.valid is None and splits.test is None


def test_only_the_building_rank_writes_and_the_others_read(tmp_path: Path) -> None:
    write_tokens(tmp_path / "text", 0)
    keys = config(data_path=str(tmp_path / "text"))
    with pytest.raises(ValueError, match=r"no sample index\n  fix: "):
        open_data(keys, BATCH, tmp_path / "index", build=False)
    assert not (tmp_path / "index").exists()
    built = open_data(keys, BATCH, tmp_path / "index", build=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*")}
    opened = open_data(keys, BATCH, tmp_path / "index", build=False)
    open_data(keys, BATCH, tmp_path / "index", build=True)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*")}
    assert rows(built, 3) == rows(opened, 3)
    assert isinstance(opened.train.sources[0].index.starts, np.memmap)


def test_a_damaged_index_is_named_and_built_again_by_the_building_rank(tmp_path: Path) -> None:
    write_tokens(tmp_path / "text", 0)
    keys = config(data_path=str(tmp_path / "text"))
    good = rows(open_data(keys, BATCH, tmp_path / "index", build=True), 3)
    for file in (tmp_path / "index").rglob("starts.npy"):
        file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"damaged(.|\n)*fix: remove it"):
        open_data(keys, BATCH, tmp_path / "index", build=False)
    assert rows(open_data(keys, BATCH, tmp_path / "index", build=True), 3) == good


def test_data_tokenized_again_under_the_same_name_gets_a_new_index(tmp_path: Path) -> None:
    write_tokens(tmp_path / "text", 0)
    keys = config(data_path=str(tmp_path / "text"))
    open_data(keys, BATCH, tmp_path / "index", build=True)
    texts = write_tokens(tmp_path / "text", 777)
    assert rows(open_data(keys, BATCH, tmp_path / "index", build=True), 3) == told(texts, list(range(51)), samples=120)[:12]


def test_an_index_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    write_tokens(tmp_path / "text", 0)
    (tmp_path / "index").write_text("a file stands here")
    with pytest.raises(ValueError, match=rf"{tmp_path}/index/.*: cannot be written(.|\n)*fix: "):
        open_data(config(data_path=str(tmp_path / "text")), BATCH, tmp_path / "index", build=True)


def test_the_index_needs_nothing_but_its_run_directory(tmp_path: Path) -> None:
    """Token files may lie where nothing can be written."""
    write_tokens(tmp_path / "data" / "text", 0)
    before = sorted(path.name for path in (tmp_path / "data").iterdir())
    open_data(config(data_path=str(tmp_path / "data" / "text")), BATCH, tmp_path / "index", build=True)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == before
    shutil.rmtree(tmp_path / "index")
