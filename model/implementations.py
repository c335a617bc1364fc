"""Which implementation of each operation runs: the one table from configuration to code.

Changes when there is another implementation: add a row.  The first row of an operation that the configuration asks for is taken,
and printed at the start of a run.  What is asked for and not to be had is an error, never replaced in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

import torch

from model.config import RunConfig
from model.config.architecture import SPARSE, Architecture, AttentionKind
from model.config.kinds import ACTIVATIONS, NORMS, POSITIONS, Activation, Norm, PositionEncoding
from model.kernels.activations import flash_attn_missing, flash_attn_swiglu, gated, gelu_tanh
from model.kernels.attention import eager_attention, sdpa_attention
from model.layers.masks import Pattern, Window
from model.layers.patterns import LAYOUTS, BlockPattern, Layout
from model.parallel.groups import Groups
from model.parallel.loss import head_loss

Asked = Callable[[Architecture, AttentionKind], bool]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One implementation of one operation."""

    operation: str
    name: str
    asked: Asked
    """The configuration asks for it, for a layer of this kind of attention, if no row above took it."""
    code: Any
    """What the layers call."""
    missing: Callable[[torch.device], str] = lambda device: ""
    """Why it cannot run on a device, and what to do; empty: it can."""


def _code(place: str) -> Any:
    """What stands at ``module:name``."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _positions(name: str, kind: PositionEncoding) -> Row:
    """A position encoding, unless its fused kernel is asked for."""
    return Row(
        operation="positions",
        name=name,
        asked=lambda a, _: a.pos_emb == name and not (name == "rotary" and a.rope_fusion),
        code=_code(kind.make),
    )


def _window(config: RunConfig, groups: Groups) -> tuple[Pattern, ...]:
    width = config.architecture.sliding_window_width
    return () if width is None else (Window(width),)


def _blocks(layout: Layout) -> Callable[[RunConfig, Groups], tuple[Pattern, ...]]:
    return lambda config, groups: (BlockPattern(layout, config, groups), *_window(config, groups))


def _is(wanted: str) -> Asked:
    return lambda a, kind: kind == wanted


PATTERNS = tuple(Row(operation="pattern", name=kind, asked=_is(kind), code=_blocks(layout)) for kind, layout in LAYOUTS.items())


def _norm(name: str, kind: Norm) -> Row:
    """A norm, unless its fused kernel is asked for."""
    return Row(operation="norm", name=name, asked=lambda a, _: a.norm == name and not _fused(a), code=_code(kind.make))


def _fused(a: Architecture) -> bool:
    return (a.norm == "layernorm" and a.layernorm_fusion) or (a.norm == "rmsnorm" and a.rmsnorm_fusion)


def _activation(name: str, kind: Activation) -> Row:
    function = _code(kind.function)
    code = gated(function) if kind.gated else function
    return Row(operation="activation", name=name, asked=lambda a, _: a.activation == name, code=code)


TABLE = (
    Row(
        operation="attention",
        name="sdpa",
        asked=lambda a, kind: (
            kind == "flash"
            or (
                kind in ("global", *SPARSE)
                and a.scaled_upper_triang_masked_softmax_fusion
                and not a.apply_query_key_layer_scaling  # which asks for scores, and a flash layer has none to scale
            )
        ),
        code=sdpa_attention,
    ),
    Row(operation="attention", name="eager", asked=lambda a, kind: kind in ("global", *SPARSE), code=eager_attention),
    *PATTERNS,
    Row(operation="pattern", name="window", asked=lambda a, kind: a.sliding_window_width is not None, code=_window),
    Row(operation="pattern", name="causal", asked=lambda a, kind: True, code=_window),
    *(_positions(name, kind) for name, kind in POSITIONS.items()),
    *(_norm(name, kind) for name, kind in NORMS.items() if kind.make),
    Row(
        operation="activation",
        name="gelu_tanh",
        asked=lambda a, kind: a.activation == "gelu" and a.bias_gelu_fusion,
        code=gelu_tanh,
    ),
    Row(
        operation="activation",
        name="swiglu_of_flash_attn",
        asked=lambda a, kind: a.activation == "swiglu" and a.use_flashattn_swiglu,
        code=flash_attn_swiglu,
        missing=flash_attn_missing,
    ),
    *(_activation(name, kind) for name, kind in ACTIVATIONS.items()),
    Row(
        operation="residual",
        name="torch",
        asked=lambda a, kind: not a.bias_dropout_fusion,
        code=None,
    ),
    Row(operation="loss", name="fused_with_head", asked=lambda a, kind: True, code=head_loss),
)

KEYS = {
    "attention": ("attention_config", "scaled_upper_triang_masked_softmax_fusion", "apply_query_key_layer_scaling"),
    "pattern": ("attention_config", "sliding_window_width"),
    "positions": ("pos_emb", "rope_fusion"),
    "norm": ("norm", "layernorm_fusion", "rmsnorm_fusion"),
    "activation": ("activation", "bias_gelu_fusion", "use_flashattn_swiglu"),
    "residual": ("bias_dropout_fusion",),
    "loss": (),
}
"""Operation -> the keys that choose among its rows."""


@dataclass(frozen=True, kw_only=True)
class Implementations:
    """The rows that run."""

    attention: tuple[Row, ...]
    """One a layer."""
    pattern: tuple[Row, ...]
    """One a layer."""
    positions: Row
    norm: Row
    activation: Row
    residual: Row
    loss: Row

    def rows(self) -> list[tuple[str, str]]:
        """Operation and implementation, for people."""
        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        return [(name, value.name if isinstance(value, Row) else _counted(value)) for name, value in chosen.items()]


def choose(config: RunConfig, device: torch.device) -> Implementations:
    """The implementations that a configuration asks for.

    Raises:
        ValueError: something is asked for that does not exist, or cannot run on the device.
    """
    shape = config.architecture

    def row(operation: str, kind: AttentionKind) -> Row:
        return _row(operation, shape, kind, device)

    first = shape.attention_kinds[0]
    return Implementations(
        attention=tuple(row("attention", kind) for kind in shape.attention_kinds),
        pattern=tuple(row("pattern", kind) for kind in shape.attention_kinds),
        positions=row("positions", first),
        norm=row("norm", first),
        activation=row("activation", first),
        residual=row("residual", first),
        loss=row("loss", first),
    )


def _row(operation: str, shape: Architecture, kind: AttentionKind, device: torch.device) -> Row:
    for row in TABLE:
        if row.operation == operation and row.asked(shape, kind):
            if reason := row.missing(device):
                raise ValueError(f"{operation}: {row.name} was asked for and cannot run on {device.type}: {reason}")
            return row
    asked = ", ".join(f"{key} {_shown(kind if key == 'attention_config' else getattr(shape, key))}" for key in KEYS[operation])
    there = ", ".join(row.name for row in TABLE if row.operation == operation)
    raise ValueError(f"{asked}: no implementation yet; {operation} can be {there}")


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _counted(rows: Iterable[Row]) -> str:
    """``2 x eager, 10 x sdpa``: neighbours of the same name together."""
    runs: list[tuple[str, int]] = []
    for row in rows:
        name, times = runs.pop() if runs and runs[-1][0] == row.name else (row.name, 0)
        runs.append((name, times + 1))
    return ", ".join(f"{times} x {name}" for name, times in runs)
