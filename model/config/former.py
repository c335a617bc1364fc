"""Former keys of GPT-NeoX and of its README: each is translated into today's keys, with a note.

Changes when another former key is known: add a row to ``FORMER``.  A dotted key stands inside a section.  Sources:
reference/neox_inventory.md 20.8, GPT-NeoX's README (mixture of experts), its older releases, and the files it ships.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from model.config.keys import KeyProblem, Status, status_of
from model.config.optimization import DeepSpeed
from model.config.own import NeoxHpc

REMOVED = object()
"""As a new value: the key is taken out."""

Today = tuple[Mapping[str, Any], str]
"""Today's dotted keys with their values, and what the user is told (nothing, where nothing changes by it)."""


@dataclass(frozen=True, kw_only=True)
class Former:
    """A key that was."""

    doc: str
    """What stands in its place."""
    read: Callable[[Any, Mapping[str, Any]], Today]
    """(its value, all other keys) -> today's keys; raises ValueError, with the fix, for what has no translation."""


@dataclass(frozen=True, kw_only=True)
class FormerNote:
    """What became of former keys."""

    keys: tuple[str, ...]
    text: str


@dataclass(frozen=True, kw_only=True)
class Translated:
    """A configuration in today's keys."""

    values: dict[str, Any]
    notes: tuple[FormerNote, ...] = ()
    moved: Mapping[str, str]
    """Today's dotted key -> the former key that it comes from."""
    problems: tuple[KeyProblem, ...] = ()


def translate(values: Mapping[str, Any]) -> Translated:
    """Replace former keys.  A key of today that is given as well counts."""
    if not (FIRST & values.keys()):
        return Translated(values=dict(values), moved={})
    today = _copied(values)
    notes: list[FormerNote] = []
    moved: dict[str, str] = {}
    problems = []
    for key, former in FORMER.items():
        if not _holds(today, key):
            continue
        value = _take(today, key)
        try:
            changes, text = ({}, "") if value is None else former.read(value, today)
        except ValueError as error:
            wrong, _, fix = str(error).partition(": ")
            problems.append(KeyProblem(key=key, wrong=wrong, fix=fix))
            continue
        for new, new_value in changes.items():
            if new_value is REMOVED:
                _take(today, new)
            elif not _holds(today, new):
                _put(today, new, new_value)
                moved[new] = key
            elif text:
                text += f"; {new} is given as well and counts"
        if text and notes and notes[-1].text == text:
            notes[-1] = FormerNote(keys=(*notes[-1].keys, key), text=text)
        elif text:
            notes.append(FormerNote(keys=(key,), text=text))
    return Translated(values=today, notes=tuple(notes), moved=moved, problems=tuple(problems))


# The readings ------------------------------------------------------------------------------------------------------------


def _renamed(new: str) -> Former:
    return Former(doc=f"is now {new}", read=lambda value, keys: ({new: value}, f"is now {new}: read as that"))


def _ours(key: str) -> Former:
    return _renamed(f"neox_hpc.{key}")


def _sparsity(value: Any, keys: Mapping[str, Any]) -> Today:
    patterns = {"none": ["global"], "all": ["sparse_variable"], "interspersed": ["sparse_variable", "global"]}
    if value not in patterns:
        raise ValueError(f"expected none, all or interspersed, got {value!r}: write attention_config")
    pattern = [[patterns[value], "all"]]
    return {"attention_config": pattern}, f"is now attention_config: read as {pattern}"


def _attention_type(value: Any, keys: Mapping[str, Any]) -> Today:
    if value == "multihead":
        return {}, "num_kv_heads says it: not needed"
    if value == "multiquery":
        return {"num_kv_heads": 1}, "is now num_kv_heads: read as 1"
    if value == "groupedquery":
        if keys.get("num_kv_heads") is None:
            raise ValueError("groupedquery without num_kv_heads: write num_kv_heads, the number of key-value heads")
        return {}, "num_kv_heads says it: not needed"
    raise ValueError(f"expected multihead, multiquery or groupedquery, got {value!r}: write num_kv_heads")


def _decay_lr_to(value: Any, keys: Mapping[str, Any]) -> Today:
    params = _inner(_inner(keys, "optimizer"), "params")
    peak = _number(params.get("lr", 1e-3), "optimizer.params.lr")
    floor = float(f"{_number(value, 'decay_lr_to') * peak:.12g}")
    return {"min_lr": floor}, f"a share of the peak rate; is now min_lr: read as {value} x {peak} = {floor}"


def _warmup_iters(value: Any, keys: Mapping[str, Any]) -> Today:
    steps = keys.get("lr_decay_iters")
    if steps is None and keys.get("train_iters") is not None:
        steps = max(1, int(_number(keys["train_iters"], "train_iters") * _number(keys.get("lr_decay_fraction") or 1, "")))
    if steps is None:
        raise ValueError("a number of steps, and neither train_iters nor lr_decay_iters is given: write warmup, a share of them")
    share = _number(value, "warmup_iters") / _number(steps, "lr_decay_iters")
    return {"warmup": share}, f"is now warmup, a share of the decay's {steps} steps: read as {share:.6g}"


def _use_bias(value: Any, keys: Mapping[str, Any]) -> Today:
    both = {"use_bias_in_attn_linear": value, "use_bias_in_mlp": value}
    return both, "is now use_bias_in_attn_linear and use_bias_in_mlp: read as both"


def _mlp_type(value: Any, keys: Mapping[str, Any]) -> Today:
    if value == "regular":
        return {}, ""
    if value != "llama":
        raise ValueError(f"expected regular or llama, got {value!r}: write activation")
    changes: dict[str, Any] = {"activation": "swiglu"}
    if isinstance(keys.get("hidden_size"), int) and keys.get("intermediate_size") is None:
        multiple = keys.get("mlp_multiple_of", 1)
        width = math.ceil(int(8 * keys["hidden_size"] / 3) / multiple) * multiple
        changes["intermediate_size"] = 3 * width  # a gated MLP's real width is a third of it, in GPT-NeoX's count
    shown = ", ".join(f"{key}: {value}" for key, value in changes.items())
    return changes, f"is now activation and intermediate_size: read as {shown}"


def _half_type(value: Any, keys: Mapping[str, Any]) -> Today:
    if value == "fp16":
        return {}, ""
    if value not in ("bfloat16", "bf16"):
        raise ValueError(f"expected fp16 or bfloat16, got {value!r}: write precision")
    enabled = _inner(keys, "fp16").get("enabled", _inner(keys, "fp16").get("fp16", True))
    text = f"is now a section of its own: read as bf16: {{enabled: {str(enabled).lower()}}}; bfloat16 needs no loss scale"
    return {"bf16.enabled": enabled, "fp16": REMOVED}, text


def _enabled(section: str) -> Former:
    def read(value: Any, keys: Mapping[str, Any]) -> Today:
        given = _inner(keys, section).get("enabled")
        text = "" if given in (None, value) else f"is an older spelling of {section}.enabled"
        return {f"{section}.enabled": value}, text

    return Former(doc=f"is now {section}.enabled", read=read)


def _no_loss_scale(value: Any, keys: Mapping[str, Any]) -> Today:
    return {}, "bfloat16 has no loss scale: not needed"


def _recomputation(value: Any, keys: Mapping[str, Any]) -> Today:
    """DeepSpeed's section activation_checkpointing: each key is one of GPT-NeoX's."""
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a section, got {value!r}: write partition_activations")
    if odd := [key for key in value if key not in RECOMPUTATION]:
        raise ValueError(f"has no {odd[0]}: write some of {', '.join(RECOMPUTATION)}")
    today = {RECOMPUTATION[key]: setting for key, setting in value.items() if RECOMPUTATION[key] and setting is not None}
    shown = ", ".join(f"{key}: {str(setting).lower()}" for key, setting in today.items()) or "nothing"
    return today, f"is DeepSpeed's name for keys of GPT-NeoX: read as {shown}"


RECOMPUTATION = {
    "partition_activations": "partition_activations",
    "cpu_checkpointing": "checkpoint_in_cpu",
    "contiguous_memory_optimization": "contiguous_checkpointing",
    "synchronize_checkpoint_boundary": "synchronize_each_layer",
    "profile": "profile_backward",
    "number_checkpoints": "",  # it follows from num_layers and checkpoint_num_layers
}


def _of_their_checkpoints() -> Former:
    text = "is of DeepSpeed's own checkpoints, and ours fit any layout without it: not needed"
    return Former(doc="is of DeepSpeed's own checkpoints; ours fit any layout", read=lambda value, keys: ({}, text))


def _offload(new: str) -> Former:
    def read(value: Any, keys: Mapping[str, Any]) -> Today:
        if not isinstance(value, bool):
            raise ValueError(f"expected true or false, got {value!r}: write zero_optimization.{new}: {{device: cpu}}")
        if not value:
            return {}, ""
        return {f"zero_optimization.{new}": {"device": "cpu"}}, f"is now {new}: read as {new}: {{device: cpu}}"

    return Former(doc=f"is now zero_optimization.{new}", read=read)


_SAME_NAME = [key for key, field in DeepSpeed.model_fields.items() if status_of(field) is Status.PASSED]
"""DeepSpeed's keys that are GPT-NeoX's as well."""

FORMER: Mapping[str, Former] = {
    **{f"deepspeed_extra_args.{key}": _renamed(key) for key in (*_SAME_NAME, "scheduler", "activation_checkpointing")},
    "activation_checkpointing": Former(doc="is now partition_activations and its neighbours", read=_recomputation),
    "sparsity": Former(doc="is now attention_config", read=_sparsity),
    "attention_type": Former(doc="is now num_kv_heads", read=_attention_type),
    "decay_lr_to": Former(doc="is now min_lr", read=_decay_lr_to),
    "warmup_iters": Former(doc="is now warmup", read=_warmup_iters),
    "use_bias": Former(doc="is now use_bias_in_attn_linear and use_bias_in_mlp", read=_use_bias),
    "mlp_type": Former(doc="is now activation and intermediate_size", read=_mlp_type),
    "save_interval": _renamed("checkpoint_factor"),
    "gas": _renamed("gradient_accumulation_steps"),
    "slurm_comment": _renamed("comment"),
    "expert_interval": _renamed("moe_expert_interval"),
    "expert_parallel_size": _ours("moe_expert_parallel_size"),
    **{key: _ours(key) for key in NeoxHpc.model_fields},
    "fp16.type": Former(doc="bfloat16 is now the section bf16", read=_half_type),
    "fp16.fp16": _enabled("fp16"),
    "bf16.bf16": _enabled("bf16"),
    **{
        f"bf16.{key}": Former(doc="bfloat16 has no loss scale", read=_no_loss_scale)
        for key in ("loss_scale", "loss_scale_window", "initial_scale_power", "hysteresis", "min_loss_scale")
    },
    "zero_optimization.cpu_offload": _offload("offload_optimizer"),
    "zero_optimization.cpu_offload_params": _offload("offload_param"),
    **{
        f"zero_optimization.{key}": _of_their_checkpoints()
        for key in (
            "load_from_fp32_weights",
            "elastic_checkpoint",
            "stage3_gather_16bit_weights_on_model_save",
            "stage3_gather_fp16_weights_on_model_save",
        )
    },
}
"""The one table of former keys."""
FIRST = {key.partition(".")[0] for key in FORMER}


# Dotted keys in nested mappings ----------------------------------------------------------------------------------------


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _inner(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _holds(values: Mapping[str, Any], key: str) -> bool:
    first, _, rest = key.partition(".")
    return _holds(_inner(values, first), rest) if rest else first in values


def _take(values: dict[str, Any], key: str) -> Any:
    first, _, rest = key.partition(".")
    return _take(values[first], rest) if rest else values.pop(first)


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    first, _, rest = key.partition(".")
    if rest:
        inner = values.get(first)
        values[first] = inner = inner if isinstance(inner, dict) else {}
        _put(inner, rest, value)
    else:
        values[first] = value


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"needs a number, and {key} is {value!r}: write one")
    return value
