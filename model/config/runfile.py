"""``run.json``: the one file that the control plane writes and the data plane reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.config.run import RunConfig

SCHEMA_VERSION: Literal[1] = 1


class Origin(BaseModel):
    """Where a run comes from; for the reader, never read by the training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    neox_hpc: str = ""
    """Version of neox-hpc."""
    site: str = ""
    user: str = ""
    git_commit: str = ""
    """Commit of the submit directory, with ``+dirty`` when files differ."""
    config_files: tuple[str, ...] = ()


class RunFile(BaseModel):
    """A run, frozen: all paths are absolute, every key has its value.  The run directory is the one that holds the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    world_size: int | None = Field(None, description="Ranks that the plan starts; absent when the run is started by hand.")
    device: Literal["cpu", "gpu"] | None = Field(None, description="What the ranks compute on; absent: a GPU where there is one.")
    config: RunConfig
    origin: Origin = Origin()


def write_run(run: RunFile) -> str:
    """The text of run.json; the same run gives the same bytes."""
    return json.dumps(run.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"


def read_run(path: Path) -> RunFile:
    """Read run.json.

    Raises:
        ValueError: the file is missing, no JSON, of another schema version, or not a run.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        version = json.loads(text).get("schema_version")
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{path}: not a run.json: {error}") from error
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema_version {version}, this program reads {SCHEMA_VERSION}: render the run again")
    try:
        return RunFile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
