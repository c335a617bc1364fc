"""Rotary positions: Su et al. 2021, "RoFormer", arXiv:2104.09864, in GPT-NeoX's half-split form.

The first ``rotary_dims`` dimensions of a head rotate, dimension i with i + rotary_dims / 2, by position x base^(-2i/rotary_dims).
"""

from __future__ import annotations

import torch
from torch import Tensor


class Rotary:
    """Cosines and sines of all positions, kept per device and type."""

    def __init__(self, dims: int, base: float, positions: int) -> None:
        self.dims = dims
        angle_SI = torch.arange(positions, dtype=torch.float64)[:, None] * base ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)
        angle_SR = torch.cat([angle_SI, angle_SI], dim=-1)
        self._table = (angle_SR.cos().float(), angle_SR.sin().float())
        self._cast: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, x_BNSH: Tensor, start: int = 0) -> Tensor:
        """Rotate heads whose first position is ``start``."""
        cos_SR, sin_SR = self._at(x_BNSH)
        end = start + x_BNSH.shape[2]
        turned_BNSR = x_BNSH[..., : self.dims]
        first, second = turned_BNSR.chunk(2, dim=-1)
        turned_BNSR = turned_BNSR * cos_SR[start:end] + torch.cat([-second, first], dim=-1) * sin_SR[start:end]
        if self.dims == x_BNSH.shape[-1]:
            return turned_BNSR
        return torch.cat([turned_BNSR, x_BNSH[..., self.dims :]], dim=-1)

    def _at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        key = (x.device, x.dtype)
        if key not in self._cast:
            cos_SR, sin_SR = self._table
            self._cast[key] = (cos_SR.to(x.device, x.dtype), sin_SR.to(x.device, x.dtype))
        return self._cast[key]
