"""AdamW whose moments are kept in 8 bits, in blocks of 256 elements: bitsandbytes' own.

Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861.  Tensors of fewer than 4096 elements keep
theirs in 32 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise
from bitsandbytes.optim import AdamW8bit
from torch import Tensor

from model.config.optimizers import MOMENTS

BLOCK = 256


class Adam8bit(AdamW8bit):  # type: ignore[misc]
    """bitsandbytes' optimizer; checkpoints keep its moments in fp32, so that any layout, and Adam itself, can take them."""

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, weight_decay=0.0)

    @torch.no_grad()
    def unpacked(self, weight: Tensor) -> dict[str, Tensor]:
        """Both moments of ``weight``."""
        if not self.state[weight]:
            self._begin(weight)
        return {name: _read(self.state[weight], number) for number, name in enumerate(MOMENTS, 1)}

    def _begin(self, weight: Tensor) -> None:
        """It finds a weight by its place in a group, and ZeRO-3 puts it there for a step only."""
        group = self.param_groups[0]
        others, group["params"] = group["params"], [weight]
        self.init_state(group, weight, 0, 0)
        group["params"] = others

    @torch.no_grad()
    def pack(self, weight: Tensor, states: Mapping[str, Tensor]) -> None:
        """Keep them, in 8 bits; what was read from 8 bits comes back as it was."""
        state = self.state[weight]
        for number, name in enumerate(MOMENTS, 1):
            if state[f"state{number}"].dtype != torch.uint8:
                state[f"state{number}"].copy_(states[name])
                continue
            packed, how = quantize_blockwise(states[name], code=state[f"qmap{number}"], blocksize=BLOCK)
            state[f"state{number}"].copy_(packed)
            state[f"absmax{number}"].copy_(how.absmax)


def _read(state: dict[str, Any], number: int) -> Tensor:
    kept: Tensor = state[f"state{number}"]
    if kept.dtype != torch.uint8:
        return kept
    absmax, code = state[f"absmax{number}"], state[f"qmap{number}"]
    read: Tensor = dequantize_blockwise(kept, absmax=absmax, code=code, blocksize=BLOCK)
    return read
