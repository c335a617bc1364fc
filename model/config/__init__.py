"""The GPT-NeoX vocabulary: frozen, typed sections; derived numbers as pure functions; ``run.json``.

Needs pydantic and the standard library only, so that the control plane can use it without torch.
"""

from model.config.architecture import SPARSE
from model.config.flops import step_flops
from model.config.former import FORMER, FormerNote, Translated, translate
from model.config.idle import idle_keys
from model.config.keys import KeyProblem
from model.config.layout import BatchSizes, Layout
from model.config.partition import layer_parameters, shared_parameters, stage_bounds
from model.config.run import (
    KEYS,
    SECTIONS,
    ConfigError,
    RunConfig,
    check_fragment,
    is_fragment,
    iter_keys,
    nearest_key,
    untrained_in_fragment,
)
from model.config.runfile import Origin, RunFile, read_run, write_run

__all__ = [
    "FORMER",
    "KEYS",
    "SECTIONS",
    "SPARSE",
    "BatchSizes",
    "ConfigError",
    "FormerNote",
    "KeyProblem",
    "Layout",
    "Origin",
    "RunConfig",
    "RunFile",
    "Translated",
    "check_fragment",
    "idle_keys",
    "is_fragment",
    "iter_keys",
    "layer_parameters",
    "nearest_key",
    "read_run",
    "shared_parameters",
    "stage_bounds",
    "step_flops",
    "translate",
    "untrained_in_fragment",
    "write_run",
]
