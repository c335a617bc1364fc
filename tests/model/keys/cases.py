"""What needs a rank: tiny trainings, and what DeepSpeed understands.  Called in the session's pool of one rank."""

from __future__ import annotations

import contextlib
import io
import json
import re
from enum import Enum
from pathlib import Path
from typing import Any

from model.config import RunConfig, RunFile, write_run
from model.engine.settings import deepspeed_settings
from tests.model.cases_training import train


def train_here(folder: Path, keys: dict[str, Any]) -> dict[str, Any]:
    """Train in ``folder``: what was written (metrics without times, names of checkpoints) and said (without times)."""
    folder.mkdir(parents=True, exist_ok=True)
    run_file = folder / "run.json"
    run_file.write_text(write_run(RunFile(name="tiny", device="cpu", config=RunConfig.from_keys(keys))))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        train(run_file)
    return {
        "metrics": [_untimed(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()],
        "checkpoints": sorted(path.name for path in folder.glob("**/global_step*")),
        "lines": len(re.findall(r"^\s*step +\d+/", said.getvalue(), re.MULTILINE)),
        "said": said.getvalue(),
    }


def _untimed(line: dict[str, Any]) -> dict[str, Any]:
    timed = ("step_time_s", "tokens_per_s", "tflops_per_rank")
    return {key: True if key == "mfu" else value for key, value in line.items() if key not in timed}


def deepspeed_understands(keys: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's own configuration object, made from what the engine is handed."""
    from deepspeed.runtime.config import DeepSpeedConfig

    config = RunConfig.from_keys(keys)
    theirs = DeepSpeedConfig(deepspeed_settings(config, config.batch_sizes(config.layout(1))))
    return {
        "steps_per_print": theirs.steps_per_print,
        "wall_clock_breakdown": theirs.wall_clock_breakdown,
        "bf16.enabled": bool(theirs.bfloat16_config.enabled),
        **_fields("fp16", theirs.float16_config),
        **_fields("zero_optimization", theirs.zero_config),
    }


def _fields(name: str, section: Any) -> dict[str, Any]:
    """The fields of one of DeepSpeed's sections and of the sections in it, dotted, under the names that a file has."""
    found: dict[str, Any] = {}
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        dotted = f"{name}.{field.alias or key}"
        found[dotted] = value.value if isinstance(value, Enum) else value
        if hasattr(type(value), "model_fields"):
            found[dotted] = value.model_dump(mode="json", exclude_unset=True)
            found |= _fields(dotted, value)
    return found
