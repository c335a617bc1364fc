"""Positions told by heads: rotary, or not at all; and the three places in which an encoding can act.

Changes when heads are told their positions otherwise.  Rotary: Su et al. 2021, "RoFormer", arXiv:2104.09864, equation 34, in
GPT-NeoX's half-split form: the first ``rotary_dims`` dimensions of a head rotate, dimension i with i + rotary_dims / 2, by
position x base^(-2i/rotary_dims); the others pass unchanged.
Legend: B batch, S tokens, N heads here, M key-value heads here, H head size, P pairs of rotating dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model.config import RunConfig
from model.config.own import RopeScaling
from model.layers.masks import Bias
from model.parallel.groups import Groups


class Heads(Protocol):
    """How heads learn where their tokens stand."""

    def split(self, qkv_BSN3H: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """q_BNSH, k_BNSH, v_BNSH of tokens whose first position is ``start``."""

    def split_grouped(self, q_BSNH: Tensor, kv_BSM2H: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """q_BNSH, k_BMSH, v_BMSH."""


class Rotary:
    """Cosines and sines of all positions, kept per device and type; one object serves all layers."""

    def __init__(self, dims: int, base: float, positions: int, scaling: RopeScaling | None = None) -> None:
        self.dims = dims
        frequency_P, length = frequencies(dims, base, scaling)
        angle_SP = torch.arange(positions, dtype=torch.float64)[:, None] * frequency_P
        self._table = ((length * angle_SP.cos()).float(), (length * angle_SP.sin()).float())
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


def frequencies(dims: int, base: float, scaling: RopeScaling | None = None) -> tuple[Tensor, float]:
    """Radians a position of each pair, and the length that rotated pairs get."""
    frequency_P = base ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)
    return (frequency_P, 1.0) if scaling is None else scaled(frequency_P, base, scaling)


def kept_frequencies(config: RunConfig) -> tuple[float, ...] | None:
    """Those that stand in checkpoints, if ``rotary_save_freqs_buffer`` asks for them."""
    a = config.architecture
    if not a.rotary_save_freqs_buffer or a.pos_emb != "rotary":
        return None
    return tuple(frequencies(a.rotary_dims, a.rotary_emb_base, config.own.neox_hpc.rope_scaling)[0].tolist())


def scaled(frequency_P: Tensor, base: float, keys: RopeScaling) -> tuple[Tensor, float]:
    """Frequencies for longer sequences than those of the first training, and the length that rotated pairs get.

    linear: Chen et al. 2023, arXiv:2306.15595, positions divided by the factor.  llama3: Llama 3.1's (Meta, llama-models,
    ``apply_scaling``), the slow ones divided, the fast ones kept, those between mixed by their wavelength.
    yarn: Peng et al. 2023, arXiv:2309.00071, section 3.2 and equation 15, mixed by their number in the head; the ramp's ends are
    rounded, as in the authors' code.  Hugging Face's ``rope_parameters`` have the same words.
    """
    slow_P = frequency_P / keys.factor
    if keys.rope_type == "linear":
        return slow_P, 1.0
    known = keys.original_max_position_embeddings
    assert known is not None, "RopeScaling asks for it"
    if keys.rope_type == "llama3":
        turns_P = known * frequency_P / (2 * math.pi)
        kept_P = ((turns_P - keys.low_freq_factor) / (keys.high_freq_factor - keys.low_freq_factor)).clamp(0, 1)
        return slow_P + kept_P * (frequency_P - slow_P), 1.0
    pairs = len(frequency_P)

    def pair_of(turns: float) -> float:
        """Which pair turns so often over the known length."""
        return pairs * math.log(known / (turns * 2 * math.pi)) / math.log(base)

    first, last = max(math.floor(pair_of(keys.beta_fast)), 0), min(math.ceil(pair_of(keys.beta_slow)), 2 * pairs - 1)
    slowed_P = ((torch.arange(pairs, dtype=torch.float64) - first) / max(last - first, 0.001)).clamp(0, 1)
    length = keys.attention_factor if keys.attention_factor is not None else 0.1 * math.log(keys.factor) + 1
    return frequency_P + slowed_P * (slow_P - frequency_P), length


class PlainHeads:
    """The split alone: positions are told elsewhere, or not at all."""

    def split(self, qkv_BSN3H: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """q_BNSH, k_BNSH, v_BNSH."""
        q_BNSH, k_BNSH, v_BNSH = qkv_BSN3H.transpose(1, 2).chunk(3, dim=-1)
        return q_BNSH, k_BNSH, v_BNSH

    def split_grouped(self, q_BSNH: Tensor, kv_BSM2H: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """q_BNSH, k_BMSH, v_BMSH."""
        k_BMSH, v_BMSH = kv_BSM2H.transpose(1, 2).chunk(2, dim=-1)
        return q_BSNH.transpose(1, 2), k_BMSH, v_BMSH


@dataclass(frozen=True, kw_only=True)
class Positions:
    """A position encoding, by the place where it acts."""

    added: Callable[[], nn.Module] | None = None
    """Makes the layer that adds to embeddings: (x_BSD, first position) -> x_BSD."""
    heads: Heads = field(default_factory=PlainHeads)
    bias: Bias | None = None
    """To scores of the attention; a module where it is learned."""


def rotary(config: RunConfig, groups: Groups) -> Positions:
    """``pos_emb: rotary``"""
    a = config.architecture
    scaling = config.own.neox_hpc.rope_scaling
    return Positions(heads=Rotary(a.rotary_dims, a.rotary_emb_base, a.max_position_embeddings, scaling))


def nowhere(config: RunConfig, groups: Groups) -> Positions:
    """``pos_emb: none``"""
    return Positions()


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
