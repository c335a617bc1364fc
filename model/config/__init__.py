"""The GPT-NeoX vocabulary: frozen, typed sections; derived numbers as pure functions; ``run.json``.

Needs pydantic and the standard library only, so that the control plane can use it without torch.
"""

from model.config.layout import BatchSizes, Layout
from model.config.run import KEYS, SECTIONS, ConfigError, KeyProblem, RunConfig, iter_keys, nearest_key
from model.config.runfile import Origin, RunFile, read_run, write_run

__all__ = [
    "KEYS",
    "SECTIONS",
    "BatchSizes",
    "ConfigError",
    "KeyProblem",
    "Layout",
    "Origin",
    "RunConfig",
    "RunFile",
    "iter_keys",
    "nearest_key",
    "read_run",
    "write_run",
]
