"""Checkpoints on disk: damage, what is passed over, what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.checkpoint import load_weights, newest_checkpoint
from model.checkpoint.manifest import read_manifest
from tests.model.tiny import curve, write_tiny_run
from tests.ranks import RankPool

CASE = "tests.model.cases_training:train"
REFUSAL = "tests.model.cases_training:refusal"

KEPT = {"rotary_save_freqs_buffer": True}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, rank_pool) -> Path:  # type: ignore[no-untyped-def]
    """A run of two ranks with checkpoints after 2, 4 and 6 steps."""
    run_dir = tmp_path_factory.mktemp("saved") / "run"
    rank_pool(2).run(CASE, write_tiny_run(run_dir, train_iters=6, checkpoint_factor=2, zero_optimization={"stage": 1}, **KEPT))
    return run_dir


@pytest.fixture
def save(saved: Path, tmp_path: Path) -> Path:
    """A copy of its checkpoints, to damage."""
    import shutil

    shutil.copytree(saved / "checkpoints", tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def test_every_weight_is_there_whole_with_its_moments(save: Path) -> None:
    manifest = read_manifest(save / "global_step6")
    elements: dict[tuple[str, str], int] = {}
    for piece in manifest.slices:
        elements[piece.name, piece.kind] = elements.get((piece.name, piece.kind), 0) + piece.length
    weights = load_weights(save / "global_step6")
    assert {kind for _, kind in elements} == {"weight", "exp_avg", "exp_avg_sq"}
    for (name, _), count in elements.items():
        assert count == weights[name].numel()


def test_a_truncated_file_is_named_and_the_older_checkpoint_is_taken(save: Path) -> None:
    broken = save / "global_step6" / "rank1.safetensors"
    broken.write_bytes(broken.read_bytes()[:-10])
    said: list[str] = []
    assert newest_checkpoint(save, said.append) == save / "global_step4"
    assert "rank1.safetensors" in said[0] and "its manifest promises" in said[0]


def test_a_missing_file_and_a_broken_manifest_are_passed_over(save: Path) -> None:
    (save / "global_step6" / "rank0.safetensors").unlink()
    manifest = save / "global_step4" / "manifest.json"
    manifest.write_text(manifest.read_text()[:-30])
    assert newest_checkpoint(save) == save / "global_step2"


def test_a_flipped_byte_is_an_error_that_names_the_parameter(save: Path) -> None:
    path = save / "global_step6" / "rank0.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"rank0\.safetensors: damaged checkpoint: .* does not have its checksum"):
        load_weights(save / "global_step6")


def test_a_run_whose_newest_checkpoint_has_a_flipped_byte_continues_from_the_one_before(save: Path, two_ranks: RankPool) -> None:
    path = save / "global_step6" / "rank1.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))
    two_ranks.run(
        CASE, write_tiny_run(save.parent, train_iters=7, lr_decay_iters=6, load=str(save), zero_optimization={"stage": 1})
    )
    assert len(curve(save.parent)) == 3  # steps 5, 6 and 7: metrics.jsonl was not copied


def test_a_save_directory_that_cannot_be_written_is_an_error_before_the_first_step(tmp_path: Path, two_ranks: RankPool) -> None:
    (tmp_path / "file").write_text("")
    save = tmp_path / "file" / "checkpoints"
    said = two_ranks.run(REFUSAL, write_tiny_run(tmp_path / "run", save=str(save)))
    assert said == [f"save: {save} cannot be written: Not a directory\n  fix: write another directory", ""]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_where_every_checkpoint_is_damaged_the_run_does_not_begin_afresh(save: Path, two_ranks: RankPool, tmp_path: Path) -> None:
    for manifest in save.glob("*/manifest.json"):
        manifest.write_text("{}")
    assert "no whole checkpoint" in two_ranks.run(REFUSAL, write_tiny_run(tmp_path / "run", load=str(save)))[0]


def test_heads_that_turn_otherwise_than_in_the_checkpoint_are_refused_where_both_keep_frequencies(
    save: Path, two_ranks: RankPool, tmp_path: Path
) -> None:
    other = write_tiny_run(tmp_path / "run", load=str(save), rotary_emb_base=500, **KEPT)
    assert "keeps other rotary frequencies" in two_ranks.run(REFUSAL, other)[0]


def test_an_unfinished_checkpoint_is_no_checkpoint_and_is_removed(save: Path, two_ranks: RankPool, tmp_path: Path) -> None:
    run_dir = save.parent
    (save / "global_step8.partial").mkdir()
    (save / "global_step8.partial" / "rank0.safetensors").write_bytes(b"half")
    assert newest_checkpoint(save) == save / "global_step6"
    two_ranks.run(CASE, write_tiny_run(run_dir, train_iters=7, lr_decay_iters=6, load=str(save), zero_optimization={"stage": 1}))
    assert not (save / "global_step8.partial").exists()
    assert len(curve(run_dir)) == 1


def test_the_manifest_is_of_a_format_that_a_later_program_can_tell(save: Path) -> None:
    manifest = save / "global_step6" / "manifest.json"
    content = json.loads(manifest.read_text())
    assert content["format_version"] == 1
    manifest.write_text(json.dumps(content | {"format_version": 2}))
    with pytest.raises(ValueError, match="format version"):
        read_manifest(save / "global_step6")


def test_no_checkpoint_at_all_is_no_error(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "absent") is None
