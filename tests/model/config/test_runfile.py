"""run.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.config import Origin, RunConfig, RunFile, read_run, write_run
from tests.model.config.test_run_config import SMALL


def small_run() -> RunFile:
    config = RunConfig.from_keys(
        SMALL | {"attention_config": [[["flash"], 2]], "optimizer": {"type": "adam", "params": {"lr": 0.01}}}
    )
    return RunFile(name="small", world_size=2, device="cpu", config=config, origin=Origin(site="local", config_files=("a.yml",)))


def test_run_json_gives_the_run_back(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(write_run(small_run()))
    assert read_run(path) == small_run()


def test_the_same_run_has_the_same_bytes() -> None:
    assert write_run(small_run()) == write_run(small_run())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:100], "not a run.json"),
        (lambda text: "[]", "not a run.json"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 99'), "schema_version 99"),
        (lambda text: text.replace('"hidden_size": 64', '"hidden_size": "64"'), "hidden_size"),
        (lambda text: text.replace('"num_layers": 2', '"num_layerz": 2'), "num_layer"),
    ],
)
def test_a_damaged_run_json_is_named(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "run.json"
    text = write_run(small_run())
    assert json.loads(text)
    path.write_text(change(text))
    with pytest.raises(ValueError, match=message):
        read_run(path)


def test_a_missing_run_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_run(tmp_path / "run.json")
