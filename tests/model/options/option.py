"""What an option is, and the network that it changes; changes when options need another kind of proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.model.grid.cells import Cell

if TYPE_CHECKING:
    from torch import Tensor

Reference = Callable[[Mapping[str, "Tensor"], Mapping[str, Any], "Tensor"], "Tensor"]
"""(weights by global name, keys, tokens_BS) -> logits_BSV, padding of the vocabulary included."""

STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Option:
    """One choice, and something independent that makes the same one."""

    keys: Mapping[str, Any]
    """Put over ``NETWORK``."""
    reference: Reference
    """Without dropout."""
    dropping: Reference | None = None
    """With dropout, where there is some; the same parts are dropped."""

    @property
    def network(self) -> dict[str, Any]:
        """All keys on one rank."""
        return NETWORK | dict(self.keys)

    def on(self, layout: str) -> tuple[int, dict[str, Any]]:
        """Ranks, and all keys, on the layout of that name."""
        cell = LAYOUTS[layout]
        return cell.ranks, cell.keys | self.network


def _cell(**axes: Any) -> Cell:
    plain: dict[str, Any] = {"tensor": 1, "pipe": 0, "data": 1, "zero": 0, "sequence_parallel": False, "recompute": "nothing"}
    return Cell(**plain | axes)


LAYOUTS = {
    "T1": _cell(),
    "T2": _cell(tensor=2),
    "T2, sequence parallel": _cell(tensor=2, sequence_parallel=True),
    "P2": _cell(pipe=2, accumulation=2),
}
"""Name -> how the network is cut."""

NETWORK = _cell().network | {"pos_emb": "none", "rotary_pct": 1.0}
"""Two layers in sequence, LayerNorm, GELU, four heads, biases, an untied head, no positions; wide initial values, so that every
part matters."""
