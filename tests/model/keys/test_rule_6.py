"""DESIGN.md, rule 6: no key is accepted and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("deepspeed", reason="pip install deepspeed")
pytest.importorskip("tokenizers", reason="pip install tokenizers")

from model.config.catalogue import rows
from model.config.keys import Status
from tests.model.keys.observables import Here, engine, training, write_files
from tests.model.keys.rows import LIVE, PASSED, TRAINED, Row
from tests.ranks import RankPool


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, rank_pool: Callable[[int], RankPool]) -> Path:
    """Token files, tokenizers, prompts, and a run that has trained four steps."""
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    here = Here(folder, rank_pool(1), rank_pool(4), folder)
    keys = filled(here, TRAINED) | {"save": "../trained/checkpoints", "checkpoint_factor": 4}
    training(keys, here)
    return folder


@pytest.fixture
def here(tmp_path: Path, files: Path, rank_pool: Callable[[int], RankPool]) -> Here:
    """An empty folder beside the files."""
    return Here(tmp_path, rank_pool(1), rank_pool(4), files)


def filled(here: Here, keys: dict[str, Any]) -> dict[str, Any]:
    """Keys whose paths are real."""
    return {key: here.fill(value) for key, value in keys.items()}


def with_value(keys: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """``keys`` with one key, perhaps inside a section, set; or left out for ``None``."""
    first, _, rest = dotted.partition(".")
    if value is None:
        return {key: kept for key, kept in keys.items() if key != first}
    if not rest:
        return keys | {first: value}
    inner = keys.get(first) or ({"stage": 1} if first == "zero_optimization" else {})
    return keys | {first: with_value(inner, rest, value)}


def observed(row: Row, value: Any, here: Here, name: str) -> Any:
    """What is seen with one of the values, in a folder of its own."""
    folder = here.folder / name
    folder.mkdir()
    own = Here(folder, here.pool, here.four, here.files)
    return row.see(filled(own, with_value(row.given, row.key, here.fill(value))), own)


def test_every_live_key_has_one_row() -> None:
    keys = [row.key for row in LIVE]
    assert len(keys) == len(set(keys))
    assert set(keys) == {row.key for row in rows(Status.LIVE)}


@pytest.mark.parametrize("row", LIVE, ids=lambda row: row.key)
def test_a_live_key_makes_a_difference(row: Row, here: Here) -> None:
    one, other = observed(row, row.one, here, "one"), observed(row, row.other, here, "other")
    assert one != other, f"{row.key}: {row.one} and {row.other} give the same {row.see.__name__}"


def test_every_key_that_is_passed_to_deepspeed_has_a_value_to_read_back() -> None:
    assert set(PASSED) == {row.key for row in rows(Status.PASSED)}


@pytest.mark.parametrize("key", PASSED)
def test_deepspeed_has_the_value_that_was_passed(key: str, here: Here) -> None:
    value, given = PASSED[key]
    assert engine(given, here)[key] != value
    assert engine(with_value(given, key, value), here)[key] == value


def test_the_same_configuration_gives_the_same_observations(here: Here) -> None:
    """Else a row would show noise."""
    for number, row in enumerate({row.see: row for row in LIVE}.values()):
        assert observed(row, row.one, here, f"{number}a") == observed(row, row.one, here, f"{number}b"), row.key
