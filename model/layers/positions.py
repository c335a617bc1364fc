"""Rotary positions: Su et al. 2021, "RoFormer", arXiv:2104.09864, equation 34, in GPT-NeoX's half-split form.

Changes when positions are told otherwise.  The first ``rotary_dims`` dimensions of a head rotate, dimension i with
i + rotary_dims / 2, by position x base^(-2i/rotary_dims); the others pass unchanged.
Legend: B batch, S tokens, N heads here, M key-value heads here, H head size, P pairs of rotating dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Rotary:
    """Cosines and sines of all positions, kept per device and type; one object serves all layers."""

    def __init__(self, dims: int, base: float, positions: int) -> None:
        self.dims = dims
        angle_SP = torch.arange(positions, dtype=torch.float64)[:, None] * base ** (
            -torch.arange(0, dims, 2, dtype=torch.float64) / dims
        )
        self._table = (angle_SP.cos().float(), angle_SP.sin().float())
        self._cast: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def split(self, qkv_BSN3H: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """q_BNSH, k_BNSH, v_BNSH of heads whose first position is ``start``; q and k are rotated."""
        table = self._at(qkv_BSN3H, start, qkv_BSN3H.shape[1])
        if torch.compiler.is_compiling():
            q_BNSH, k_BNSH, v_BNSH = _parts(qkv_BSN3H)
            return rotated(q_BNSH, *table), rotated(k_BNSH, *table), v_BNSH
        q_BNSH, k_BNSH, v_BNSH = _SplitAndRotate.apply(qkv_BSN3H, *table)  # type: ignore[no-untyped-call]
        return q_BNSH, k_BNSH, v_BNSH

    def split_grouped(self, q_BSNH: Tensor, kv_BSM2H: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """q_BNSH, k_BMSH, v_BMSH; q and k are rotated."""
        table = self._at(q_BSNH, start, q_BSNH.shape[1])
        k_BMSH, v_BMSH = kv_BSM2H.transpose(1, 2).chunk(2, dim=-1)
        rotate = rotated if torch.compiler.is_compiling() else _Rotate.apply
        q_BNSH, k_BMSH = rotate(q_BSNH.transpose(1, 2), *table), rotate(k_BMSH, *table)
        return q_BNSH, k_BMSH, v_BMSH.contiguous()  # a view would keep what the queries were made of

    def _at(self, x: Tensor, start: int, length: int) -> tuple[Tensor, Tensor]:
        key, end = (x.device, x.dtype), start + length
        if key not in self._cast:
            cos_SP, sin_SP = self._table
            self._cast[key] = (cos_SP.to(x.device, x.dtype), sin_SP.to(x.device, x.dtype))
        cos_SP, sin_SP = self._cast[key]
        assert end <= len(cos_SP), f"position {end - 1} of {len(cos_SP)}"
        return cos_SP[start:end], sin_SP[start:end]


def rotated(x_BNSH: Tensor, cos_SP: Tensor, sin_SP: Tensor) -> Tensor:
    """The formula, which a compiler makes one pass of."""
    pairs = cos_SP.shape[-1]
    first, second, rest = x_BNSH[..., :pairs], x_BNSH[..., pairs : 2 * pairs], x_BNSH[..., 2 * pairs :]
    return torch.cat((first * cos_SP - second * sin_SP, second * cos_SP + first * sin_SP, rest), dim=-1)


class NoPositions:
    """``pos_emb: none``: the split alone."""

    def split(self, qkv_BSN3H: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """q_BNSH, k_BNSH, v_BNSH."""
        q_BNSH, k_BNSH, v_BNSH = qkv_BSN3H.transpose(1, 2).chunk(3, dim=-1)
        return q_BNSH, k_BNSH, v_BNSH

    def split_grouped(self, q_BSNH: Tensor, kv_BSM2H: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """q_BNSH, k_BMSH, v_BMSH."""
        k_BMSH, v_BMSH = kv_BSM2H.transpose(1, 2).chunk(2, dim=-1)
        return q_BSNH.transpose(1, 2), k_BMSH, v_BMSH


class _SplitAndRotate(torch.autograd.Function):
    """One pass over q, k and v each way; autograd by itself would copy, pad and add whole tensors for every slice."""

    @staticmethod
    def forward(ctx: Any, qkv_BSN3H: Tensor, cos_SP: Tensor, sin_SP: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos_SP, sin_SP)
        parts = _parts(qkv_BSN3H)
        q_BNSH, k_BNSH, v_BNSH = (torch.empty_like(part, memory_format=torch.contiguous_format) for part in parts)
        _rotate(parts[0], cos_SP, sin_SP, out=q_BNSH)
        _rotate(parts[1], cos_SP, sin_SP, out=k_BNSH)
        v_BNSH.copy_(parts[2])
        return q_BNSH, k_BNSH, v_BNSH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos_SP, sin_SP = ctx.saved_tensors
        B, N, S, H = grads[0].shape
        grad_BSN3H = grads[0].new_empty((B, S, N, 3 * H))
        parts = _parts(grad_BSN3H)
        _rotate(grads[0], cos_SP, -sin_SP, out=parts[0])  # the inverse of a rotation is its transpose
        _rotate(grads[1], cos_SP, -sin_SP, out=parts[1])
        parts[2].copy_(grads[2])
        return grad_BSN3H, None, None


class _Rotate(torch.autograd.Function):
    """Heads of one kind."""

    @staticmethod
    def forward(ctx: Any, x_BNSH: Tensor, cos_SP: Tensor, sin_SP: Tensor) -> Tensor:
        ctx.save_for_backward(cos_SP, sin_SP)
        out_BNSH = torch.empty_like(x_BNSH, memory_format=torch.contiguous_format)
        _rotate(x_BNSH, cos_SP, sin_SP, out=out_BNSH)
        return out_BNSH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos_SP, sin_SP = ctx.saved_tensors
        grad_BNSH = torch.empty_like(grads[0])
        _rotate(grads[0], cos_SP, -sin_SP, out=grad_BNSH)
        return grad_BNSH, None, None


def _parts(qkv_BSN3H: Tensor) -> tuple[Tensor, ...]:
    """Views of q, k and v, each BNSH."""
    return qkv_BSN3H.transpose(1, 2).chunk(3, dim=-1)


def _rotate(x_BNSH: Tensor, cos_SP: Tensor, sin_SP: Tensor, *, out: Tensor) -> None:
    pairs = cos_SP.shape[-1]
    first, second = x_BNSH[..., :pairs], x_BNSH[..., pairs : 2 * pairs]
    torch.mul(first, cos_SP, out=out[..., :pairs]).addcmul_(second, sin_SP, value=-1)
    torch.mul(second, cos_SP, out=out[..., pairs : 2 * pairs]).addcmul_(first, sin_SP)
    out[..., 2 * pairs :] = x_BNSH[..., 2 * pairs :]
