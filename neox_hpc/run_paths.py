"""Which keys are paths, and what a relative one is relative to (DESIGN.md, "Which code runs").

Inputs: the directory of the submit command, GPT-NeoX's rule.  Outputs: the run directory.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from neox_hpc.vocabulary import KEYS, RunConfig

DATA_PREFIXES = ("data_path", *(key for key in KEYS if key.endswith("_data_paths")))
"""Prefixes of token files: PREFIX.bin and PREFIX.idx."""
INPUT_FILES = ("vocab_file", "merge_file", "sample_input_file", "base_shapes_file")
INPUT_FOLDERS = ("load",)
OUTPUTS = ("save", "sample_output_file", "tensorboard_dir", "log_dir", "memory_profiling_path")
OUTPUT_FOLDERS = ("save", "tensorboard_dir", "log_dir")


@dataclass(frozen=True)
class InputPath:
    """A path that must exist before the job starts."""

    key: str
    """Dotted: ``train_data_paths.0``."""
    path: str
    files: tuple[str, ...]
    """What must be there."""


def inputs(config: RunConfig, cwd: str) -> Iterator[InputPath]:
    """Every input path that the configuration names.  A ``load`` that is the run's own ``save`` need not exist."""
    values = config.keys()
    for key in DATA_PREFIXES:
        for where, prefix in _each(key, values[key]):
            path = _absolute(prefix, cwd)
            yield InputPath(where, path, (f"{path}.bin", f"{path}.idx"))
    for key in (*INPUT_FILES, *INPUT_FOLDERS):
        if values[key] is not None and not (key == "load" and continues(config)):
            path = _absolute(values[key], cwd)
            written = key == "base_shapes_file" and config.maximal_update.save_base_shapes
            yield InputPath(key, path, (f"{os.path.dirname(path)}/." if written else path,))  # of what is written, the directory
    operation = config.own.neox_hpc.cpu_adam_op
    if operation is not None:
        path = _absolute(operation, cwd)
        yield InputPath("neox_hpc.cpu_adam_op", path, (path,))


def outputs(config: RunConfig, run_dir: str) -> Iterator[str]:
    """The directories that a training writes to, absolute."""
    values = config.keys()
    for key in OUTPUTS:
        if values[key] is not None:
            path = _absolute(values[key], run_dir)
            yield path if key in OUTPUT_FOLDERS else os.path.dirname(path)


def continues(config: RunConfig) -> bool:
    """``load`` written with the same text as ``save`` (GPT-NeoX's idiom): the run's own newest checkpoint, or a fresh start."""
    return config.checkpoints.load is not None and config.checkpoints.load == config.checkpoints.save


def with_absolute_paths(config: RunConfig, *, cwd: str, run_dir: str) -> RunConfig:
    """The configuration for run.json: every path is absolute."""
    values = config.keys()
    bases = dict.fromkeys((*DATA_PREFIXES, *INPUT_FILES, *INPUT_FOLDERS), cwd) | dict.fromkeys(OUTPUTS, run_dir)
    if continues(config):
        bases["load"] = run_dir
    changed: dict[str, dict[str, Any]] = {}
    for key, base in bases.items():
        if values[key] is not None:
            changed.setdefault(KEYS[key], {})[key] = _rebase(values[key], base)
    # a path stays a path: the sections need not be validated again (3 ms of a cold dry run)
    sections = {name: getattr(config, name).model_copy(update=paths) for name, paths in changed.items()}
    own = config.own.neox_hpc
    if own.cpu_adam_op is not None:
        absolute = own.model_copy(update={"cpu_adam_op": _absolute(own.cpu_adam_op, cwd)})
        sections["own"] = config.own.model_copy(update={"neox_hpc": absolute})
    return config.model_copy(update=sections)


def _rebase(value: Any, base: str) -> Any:
    return _absolute(value, base) if isinstance(value, str) else tuple(_absolute(path, base) for path in value)


def _each(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    else:
        yield from ((f"{key}.{index}", path) for index, path in enumerate(value or ()))


def _absolute(path: str, base: str) -> str:
    return os.path.normpath(os.path.join(base, path))
