"""The one door to ``model.config``.  ``model`` is a common name: it is checked to be ours before anything of it is imported."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from neox_hpc.errors import Problem, UserError


def check_own_model() -> None:
    """Refuse a ``model`` that does not stand beside this package.

    Raises:
        UserError: another package of that name comes first on the import path.
    """
    ours = Path(__file__).resolve().parent.parent / "model" / "__init__.py"
    spec = find_spec("model")
    found = None if spec is None else spec.origin or ", ".join(spec.submodule_search_locations or ())
    if found is None or Path(found).resolve() != ours:
        wrong = f"the package 'model' that Python finds ({found}) is not the one of neox-hpc ({ours.parent})"
        raise UserError(Problem("import path", wrong, "run from another directory, or take the other one out of PYTHONPATH"))


check_own_model()

from model.config import (  # noqa: E402 (only after the check)
    FORMER,
    KEYS,
    SPARSE,
    BatchSizes,
    ConfigError,
    KeyProblem,
    Layout,
    Origin,
    RunConfig,
    RunFile,
    Translated,
    check_fragment,
    idle_keys,
    is_fragment,
    layer_parameters,
    nearest_key,
    shared_parameters,
    stage_bounds,
    step_flops,
    translate,
    untrained_in_fragment,
    write_run,
)


def catalogue() -> ModuleType:
    """``model.config.catalogue``: every key for a reader.  Only who shows keys pays for its import."""
    from model.config import catalogue as module

    return module


__all__ = [
    "FORMER",
    "KEYS",
    "SPARSE",
    "BatchSizes",
    "ConfigError",
    "KeyProblem",
    "Layout",
    "Origin",
    "RunConfig",
    "RunFile",
    "Translated",
    "catalogue",
    "check_fragment",
    "check_own_model",
    "idle_keys",
    "is_fragment",
    "layer_parameters",
    "nearest_key",
    "shared_parameters",
    "stage_bounds",
    "step_flops",
    "translate",
    "untrained_in_fragment",
    "write_run",
]
