"""Which implementation of each operation runs: the one table from configuration to code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from torch import Tensor

from model.config import RunConfig
from model.kernels.activations import gelu_erf, gelu_tanh
from model.kernels.attention import Attention, eager_attention, sdpa_attention

ATTENTION: dict[tuple[str, bool], str] = {
    # (kind in attention_config, scaled_upper_triang_masked_softmax_fusion) -> name
    ("global", False): "eager",
    ("global", True): "sdpa",
    ("flash", False): "sdpa",
    ("flash", True): "sdpa",
}
ATTENTION_CODE: dict[str, Attention] = {"eager": eager_attention, "sdpa": sdpa_attention}
ACTIVATION: dict[tuple[str, bool], str] = {("gelu", False): "gelu_erf", ("gelu", True): "gelu_tanh"}
"""(activation, bias_gelu_fusion) -> name"""
ACTIVATION_CODE: dict[str, Callable[[Tensor], Tensor]] = {"gelu_erf": gelu_erf, "gelu_tanh": gelu_tanh}


@dataclass(frozen=True, kw_only=True)
class Implementations:
    """The chosen names; printed at the start of a run."""

    attention: tuple[str, ...]
    """One a layer."""
    norm: str
    activation: str
    loss: str

    def rows(self) -> list[tuple[str, str]]:
        """Operation and implementation, for people."""
        shown = []
        for field in fields(self):
            value = getattr(self, field.name)
            shown.append((field.name, value if isinstance(value, str) else ", ".join(_runs(value))))
        return shown


def choose(config: RunConfig) -> Implementations:
    """The implementations that a configuration asks for.

    Raises:
        ValueError: something is asked for that does not exist yet.
    """
    shape = config.architecture
    kinds = tuple((kind, shape.scaled_upper_triang_masked_softmax_fusion) for kind in shape.attention_kinds)
    activation = (shape.activation, shape.bias_gelu_fusion)
    for key, wanted, table in (("attention_config", kinds, ATTENTION), ("activation", (activation,), ACTIVATION)):
        missing = sorted({row[0] for row in wanted if row not in table})
        if missing:
            raise ValueError(f"{key}: {', '.join(missing)} has no implementation yet")
    return Implementations(
        attention=tuple(ATTENTION[kind] for kind in kinds),
        norm="torch",
        activation=ACTIVATION[activation],
        loss="vocab-parallel" if config.parallelism.model_parallel_size > 1 else "torch",
    )


def _runs(names: tuple[str, ...]) -> list[str]:
    runs: list[list[str]] = []
    for name in names:
        if runs and runs[-1][0] == name:
            runs[-1].append(name)
        else:
            runs.append([name])
    return [f"{len(run)} x {run[0]}" for run in runs]
