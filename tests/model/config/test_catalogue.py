"""The page of keys and the schema for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from model.config.catalogue import PAGE_COMMAND, counts, json_schema, page, rows
from model.config.keys import Status
from neox_hpc.cli.config import config
from tests.model.config.test_neox_files import CONFIGS, REFUSED

ROOT = Path(__file__).parents[3]


def test_the_page_of_keys_is_fresh() -> None:
    assert (ROOT / "docs" / "keys.md").read_text() == page(), f"stale: run  {PAGE_COMMAND}"


def test_every_key_of_gpt_neox_is_counted_once() -> None:
    assert sum(counts().values()) == 321


def test_every_key_inside_a_section_has_a_status_and_says_what_it_is() -> None:
    found = {row.key: row for row in rows()}
    assert found["optimizer.params.lr"].status is Status.LIVE
    assert found["zero_optimization.overlap_comm"].status is Status.PASSED
    assert found["neox_hpc.moe_type"].status is Status.PLANNED
    assert all(row.doc for row in rows())


def allowed(schema: dict[str, Any], value: Any, whole: dict[str, Any]) -> bool:
    """The few words of JSON Schema that ours uses."""
    if "$ref" in schema:
        return allowed(whole["properties"][schema["$ref"].rpartition("/")[2]], value, whole)
    if "anyOf" in schema and not any(allowed(part, value, whole) for part in schema["anyOf"]):
        return False
    kinds = {
        "string": str,
        "boolean": bool,
        "integer": int,
        "number": (int, float),
        "array": list,
        "object": dict,
        "null": type(None),
    }
    types = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", list(kinds))
    if not any(isinstance(value, kinds[kind]) and (kind == "boolean") == isinstance(value, bool) for kind in types):
        return False
    if "enum" in schema and not {value, str(value).lower()} & set(schema["enum"]):
        return False
    if isinstance(value, dict) and schema.get("additionalProperties") is False:
        inner = schema["properties"]
        return all(name in inner and allowed(inner[name], entry, whole) for name, entry in value.items())
    return True


def test_the_schema_takes_gpt_neoxs_files_and_refuses_what_is_no_key() -> None:
    schema = json_schema()
    for name, values in CONFIGS.items():
        bad = [key for key, value in values.items() if not allowed(schema, {key: value}, schema)]
        assert bad == (["optimizer"] if name in REFUSED else []), name
    assert allowed(schema, {"num-layers": 2}, schema)
    assert not allowed(schema, {"num_layerz": 2}, schema)
    assert not allowed(schema, {"fp16": {"enabeld": True}}, schema)
    assert not allowed(schema, {"seed": "soon"}, schema)
    assert not allowed(schema, {"rank": 0}, schema)
    json.dumps(schema)


def test_keys_and_schema_are_printed() -> None:
    run = CliRunner()
    found = run.invoke(config, ["keys", "--status", "passed"])
    assert found.exit_code == 0
    assert "wall_clock_breakdown" in found.stdout
    assert "321 keys of GPT-NeoX: " in found.stderr
    as_json = json.loads(run.invoke(config, ["keys", "--json"]).stdout)
    assert sum(as_json["counts"].values()) == 321
    assert json.loads(run.invoke(config, ["schema"]).stdout)["title"].startswith("neox-hpc")
    assert run.invoke(config, ["keys", "--markdown"]).stdout == page()


def test_a_check_names_the_file_and_the_block_of_what_would_not_train(tmp_path: Path) -> None:
    file = tmp_path / "part.yml"
    file.write_text("use_wandb: true\nwarmup_iters: 5\ntrain_iters: 10\n")
    found = CliRunner().invoke(config, ["check", str(file)])
    assert found.exit_code == 0
    assert found.stderr == f"note: {file}:2  warmup_iters: is now warmup, a share of the decay's 10 steps: read as 0.5\n"
    assert found.stdout == (
        f"{file}: fine, as a part of a configuration, and would not train yet:\n"
        f"  {file}:1  use_wandb: true is known and not built yet; remove it\n"
    )
