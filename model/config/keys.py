"""How a configuration key is declared: type, default, documentation, and its one status.

A key is a field of a :class:`Section`.  The five words below are the only way to declare one, so that the status of every key
stands in one place and can be listed (``neox-hpc config keys``, docs/keys.md) and tested (DESIGN.md, rule 6).
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError


class Status(str, Enum):
    """What a key does here; see docs/keys.md."""

    LIVE = "live"
    """Changes what is planned, rendered or trained."""
    PASSED = "passed to DeepSpeed"
    """Handed to DeepSpeed by name; read back from the engine's own configuration in a test."""
    RETIRED = "retired"
    """Never read by GPT-NeoX, or replaced here; accepted at its default only, and whoever sets it is told the reason."""
    RUNTIME = "runtime"
    """Set by the launcher; refused in a file."""
    PLANNED = "planned"
    """Known and typed, not built yet: it plans and renders, and training refuses any value but the default."""


class KeyProblem(BaseModel):
    """One thing wrong with one key."""

    model_config = ConfigDict(frozen=True)

    key: str
    """Dotted, as it is written: ``optimizer.params.lr``."""
    wrong: str
    fix: str = ""


class Section(BaseModel):
    """A frozen group of keys.  Strict: the text ``"1"`` is no number; an int is accepted where a float is asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)

    def passed_on(self) -> dict[str, Any]:
        """The keys that DeepSpeed is handed by name, with their values; an absent one is left to DeepSpeed's own default."""
        passed_keys = [key for key, field in type(self).model_fields.items() if status_of(field) is Status.PASSED]
        found = {key: value for key in passed_keys if (value := getattr(self, key)) is not None}
        return {key: value.passed_on() if isinstance(value, Section) else value for key, value in found.items()}


def live(default: Any = ..., *, doc: str, trains: tuple[Any, ...] | None = None, **limits: Any) -> Any:
    """A key that works.  ``trains`` lists the values that train today; the others plan, and training refuses them."""
    return _key(Status.LIVE, default, doc, limits, trains=list(trains) if trains is not None else None)


def passed(default: Any = None, *, doc: str, **limits: Any) -> Any:
    """A key handed to DeepSpeed under its own name."""
    return _key(Status.PASSED, default, doc, limits)


def retired(default: Any = None, *, doc: str, why: str, **limits: Any) -> Any:
    """A key without effect, in GPT-NeoX or here, accepted at its default only; ``why`` is shown to whoever sets it."""
    return _key(Status.RETIRED, default, doc, limits, why=why)


def runtime(default: Any = None, *, doc: str, why: str, **limits: Any) -> Any:
    """A key that the launcher sets; ``why`` tells who sets a file's value wrong."""
    return _key(Status.RUNTIME, default, doc, limits, why=why)


def planned(default: Any = None, *, doc: str, trains: tuple[Any, ...] | None = None, **limits: Any) -> Any:
    """A key of GPT-NeoX that is not built here yet.  ``trains`` lists other values that mean the same as the default today."""
    return _key(Status.PLANNED, default, doc, limits, trains=list(trains) if trains is not None else None)


def absent(message: str) -> PydanticCustomError:
    """The error of a rule that another key would satisfy: no error in a file that is only a part of a configuration."""
    return PydanticCustomError("absent", "{text}", {"text": message})


def status_of(field: FieldInfo) -> Status:
    """The status that a field was declared with."""
    return Status(_extra(field)["status"])


def trained_values(field: FieldInfo) -> tuple[Any, ...] | None:
    """The values of a live key that train today; ``None`` means all of them."""
    values = _extra(field).get("trains")
    return None if values is None else tuple(values)


def reason_of(field: FieldInfo) -> str:
    """Why a retired or runtime key is refused."""
    return str(_extra(field).get("why") or "")


def _key(status: Status, default: Any, doc: str, limits: dict[str, Any], **extra: Any) -> Any:
    schema_extra = {"status": status.value} | {name: value for name, value in extra.items() if value is not None}
    return Field(default, description=doc, json_schema_extra=schema_extra, **limits)


def _extra(field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra
    assert isinstance(extra, dict), "every key is declared with live, passed, retired, runtime or planned"
    return extra
