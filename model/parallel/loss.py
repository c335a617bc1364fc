"""Head and loss as one operation: the logits of all tokens never exist.

Changes when the loss is computed otherwise.  Legend: B batch, S tokens, s this rank's share of them, T = B x S, c a chunk of T,
r a block of c, D width, d this rank's share of it, V the padded vocabulary, v this rank's share of it.

    z_tv = x_t . w_v        lse_t = log sum_v exp(z_tv)        p_tv = exp(z_tv - lse_t)
    loss = sum_t m_t (lse_t - z_t,label + a lse_t^2) / max(sum_t m_t, 1)          m the mask, a the weight of the z-loss
    d (sum_t ...) / d z_tv = m_t ((1 + 2 a lse_t) p_tv - [v is the label])

The gradient of a chunk's logits needs nothing but the chunk, so the forward pass goes on to dx and dW while it has the logits, and
writes each chunk over the one before (as Hsu et al. 2024, "Liger Kernel", arXiv:2410.10989, do).  The gradients wait for the
backward pass as those of the *sum*: d sum / d z lies in [-1, 1], which fp16 keeps; the mean and the incoming gradient (with fp16's
loss scale) come at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.parallel.collectives import gather_last, share_of_sequence, start_gather, start_sum, start_sum_in
from model.parallel.groups import Groups

Cut = Literal["column", "row"]

CHUNK_CPU = 3 << 23
"""Logits in a chunk on a CPU: 96 MiB of fp32.  Products like large chunks, caches and page tables small ones: chunks of 166, 333,
500 and 667 tokens, vocabulary 50304, one core of a Xeon at 2.5 GHz, CPU time: 2048 tokens of width 128 969, 950, 969, 997 ms, 1024
of width 512 1699, 1603, 1555, 1518 ms."""

CHUNK_GPU = 1 << 26
"""Logits in a chunk on a GPU: 256 MiB of fp32."""


def head_loss(
    x: Tensor,
    weight: Tensor,
    labels_BS: Tensor,
    mask_BS: Tensor,
    groups: Groups,
    *,
    cut: Cut = "column",
    z_loss: float = 0.0,
    in_fp32: bool = True,
) -> Tensor:
    """The mean loss over the labels that count, 0 where none does: a scalar in fp32, the same on every tensor rank.

    Args:
        x: x_BSD, the same on every tensor rank; with ``groups.sequence_parallel`` x_BsD.
        weight: of the head; weight_vD if the ``cut`` is "column", weight_Vd if it is "row".  The backward pass does not read it.
        mask_BS: 1 where a label counts, else 0.
        z_loss: weight of lse^2 (Chowdhery et al. 2022, "PaLM", arXiv:2204.02311, section 5).
        in_fp32: softmax and loss in fp32 (fp64 for logits of fp64), else in the precision of the logits.
    """
    with_gradients = torch.is_grad_enabled()
    how = _How(
        groups=groups,
        cut=cut if groups.tensor_group is not None else "whole",
        z_loss=z_loss,
        in_fp32=in_fp32,
        dx=with_gradients and x.requires_grad,
        dw=with_gradients and weight.requires_grad,
    )
    if how.dx or how.dw:
        loss: Tensor = _HeadLoss.apply(x, weight, labels_BS, mask_BS, how)  # type: ignore[no-untyped-call]
        return loss
    return _loss_and_gradients(x, weight, labels_BS, mask_BS, how)[0]


def reference(x_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, mask_T: Tensor, z_loss: float = 0.0) -> Tensor:
    """The formula, on one rank."""
    z_TV = x_TD @ weight_VD.T
    lse_T = z_TV.logsumexp(-1)
    loss_T = lse_T - z_TV.gather(-1, labels_T[:, None])[:, 0] + z_loss * lse_T**2
    return (loss_T * mask_T).sum() / mask_T.sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class _How:
    """What is computed, and over which ranks."""

    groups: Groups
    cut: Literal["column", "row", "whole"]
    z_loss: float
    in_fp32: bool
    dx: bool
    dw: bool


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, labels_BS: Tensor, mask_BS: Tensor, how: _How) -> Tensor:
        loss, dx, dw = _loss_and_gradients(x, weight, labels_BS, mask_BS, how)
        ctx.save_for_backward(dx, dw, mask_BS.sum().clamp(min=1))
        ctx.dtypes = x.dtype, weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw, count = ctx.saved_tensors
        scale = grads[0] / count
        # in place: a second backward pass is an error that autograd itself reports; in 16 bits a GPU would round the scale first
        wide = (None if g is None else g if g.element_size() > 2 else g.float() for g in (dx, dw))
        dx, dw = (None if g is None else g.mul_(scale).to(dtype) for g, dtype in zip(wide, ctx.dtypes, strict=True))
        return dx, dw, None, None, None


def _loss_and_gradients(
    x: Tensor, weight: Tensor, labels_BS: Tensor, mask_BS: Tensor, how: _How
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The mean loss, and the gradients of its sum; a gradient that nobody wants is ``None``."""
    x_BSI = _inputs(x, how)
    total, dx_TI, dw = _over_chunks(x_BSI.flatten(0, 1), weight, labels_BS.flatten(), mask_BS.flatten(), how)
    dx = None if dx_TI is None else _input_gradient(dx_TI.view(x_BSI.shape).to(x.dtype), how)
    return total / mask_BS.sum().clamp(min=1), dx, dw


def _over_chunks(
    x_TI: Tensor, weight: Tensor, labels_T: Tensor, mask_T: Tensor, how: _How
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The sum of the loss and its gradients, a chunk of tokens after the other; I is D, or d when the cut is "row"."""
    products = _products_in(x_TI, how)
    exact = torch.promote_types(weight.dtype, torch.float32)
    x_TI, weight_vI = x_TI.to(products), weight.to(products)
    precision = exact if how.in_fp32 else products
    size = _chunk_size(weight_vI, len(x_TI))
    buffer_cv = x_TI.new_empty(size, len(weight_vI))
    wide_cv = None if precision == products else torch.empty_like(buffer_cv, dtype=precision)
    dx_TI = torch.empty_like(x_TI) if how.dx else None
    dw_vI = torch.empty_like(weight, dtype=exact) if how.dw else None
    term_vI = torch.empty_like(weight_vI) if how.dw and products != exact else None
    total = torch.zeros((), dtype=exact, device=x_TI.device)
    for start in range(0, len(x_TI), size):
        rows = slice(start, start + size)
        x_cI = x_TI[rows]
        z_cv = torch.mm(x_cI, weight_vI.T, out=buffer_cv[: len(x_cI)])
        if how.cut == "row":
            start_sum(z_cv, how.groups)()
        if dx_TI is None and dw_vI is None:
            total += _loss(z_cv.to(precision), labels_T[rows], mask_T[rows], how)
            continue
        loss, dz_cv = _loss_and_its_gradient(z_cv, wide_cv, x_cI, weight_vI, labels_T[rows], mask_T[rows], how)
        total += loss
        if dx_TI is not None:
            torch.mm(dz_cv, weight_vI, out=dx_TI[rows])
        if dw_vI is not None:
            _accumulate(dw_vI, dz_cv.T, x_cI, term_vI, first=start == 0)
    return total, dx_TI, dw_vI


def _accumulate(dw_vI: Tensor, dz_vc: Tensor, x_cI: Tensor, term_vI: Tensor | None, *, first: bool) -> None:
    """dw += dz x, through ``term_vI`` where the product has another precision than the sum, which is in fp32.

    8192 tokens in bf16, relative L2 error in 1, 4, 16, 64 chunks: summed in bf16 0.17, 0.30, 0.50, 0.94 %, in fp32 up to 0.22 %.
    """
    if term_vI is None:
        torch.addmm(dw_vI, dz_vc, x_cI, beta=0 if first else 1, out=dw_vI)
    elif first:
        dw_vI.copy_(torch.mm(dz_vc, x_cI, out=term_vI))
    else:
        dw_vI += torch.mm(dz_vc, x_cI, out=term_vI)


def _loss(z_cv: Tensor, labels_c: Tensor, mask_c: Tensor, how: _How) -> Tensor:
    """The sum of the loss over a chunk, in the precision of the logits."""
    label_c, here_c = _local_labels(labels_c, z_cv.shape[-1], how)
    lse_c, at_label_c = _over_vocabulary(z_cv.logsumexp(-1), _at(z_cv, label_c), here_c, how)
    return _sum_of_loss(lse_c, at_label_c, mask_c, how)


def _loss_and_its_gradient(
    z_cv: Tensor, wide_cv: Tensor | None, x_cI: Tensor, weight_vI: Tensor, labels_c: Tensor, mask_c: Tensor, how: _How
) -> tuple[Tensor, Tensor]:
    """The same and its gradient, which is written over the logits; ``wide_cv`` if they are not precise enough to compute with.

    A softmax is one way through memory and one parallel region.  In smaller pieces, each pass of them in a core's cache, it is no
    faster where the cores are ours, and on a busy machine ten times slower: every region waits for its last thread.
    """
    label_c, here_c = _local_labels(labels_c, z_cv.shape[-1], how)
    at_own_label_c = _at(z_cv, label_c)
    largest_c = z_cv.amax(-1) if z_cv.device.type != "cpu" else None
    p_cv = torch.softmax(z_cv, -1, out=z_cv) if wide_cv is None else _wide_softmax(z_cv, wide_cv[: len(z_cv)])
    at_own_label_c = at_own_label_c.to(p_cv.dtype)
    if largest_c is not None:
        own_lse_c = largest_c.to(p_cv.dtype) - p_cv.amax(-1).log_()  # the largest share is 1 / (sum of exponentials)
    else:
        own_lse_c = _lse_from_shares(p_cv, label_c, at_own_label_c, x_cI, weight_vI, how)
    lse_c, at_label_c = _over_vocabulary(own_lse_c, at_own_label_c, here_c, how)
    factor_c = mask_c.to(p_cv.dtype) * (1 + 2 * how.z_loss * lse_c)
    scale_c = factor_c * (own_lse_c - lse_c).exp_()
    if not _all_ones(scale_c):
        p_cv.mul_(scale_c[:, None])
    dz_cv = p_cv if wide_cv is None else z_cv.copy_(p_cv)
    # the label's entry from its logit, in full precision: p - 1 of a rounded p would be 0 for a p near 1
    own_c = factor_c * (at_own_label_c - lse_c).exp_() - (mask_c if here_c is None else mask_c * here_c)
    dz_cv.scatter_(-1, label_c[:, None], own_c[:, None].to(dz_cv.dtype))
    return _sum_of_loss(lse_c, at_label_c, mask_c, how), dz_cv


def _wide_softmax(z_cv: Tensor, wide_cv: Tensor) -> Tensor:
    if z_cv.device.type == "cpu":
        return torch.softmax(wide_cv.copy_(z_cv), -1, out=wide_cv)
    return torch.softmax(z_cv, -1, dtype=wide_cv.dtype, out=wide_cv)


def _lse_from_shares(p_cv: Tensor, label_c: Tensor, at_label_c: Tensor, x_cI: Tensor, weight_vI: Tensor, how: _How) -> Tensor:
    """lse = z - log p at any column, without a pass over all of them: at the label's unless its share is too small for a number."""
    share_c = _at(p_cv, label_c)
    lse_c = at_label_c - share_c.log()
    lost = (share_c < torch.finfo(p_cv.dtype).tiny).nonzero()[:, 0]
    if len(lost):
        share, column = p_cv[lost].max(-1)
        logit = (x_cI[lost] * weight_vI[column]).sum(-1)
        if how.cut == "row":
            start_sum(logit, how.groups)()
        lse_c[lost] = logit.to(share.dtype) - share.log()
    return lse_c


def _sum_of_loss(lse_c: Tensor, at_label_c: Tensor, mask_c: Tensor, how: _How) -> Tensor:
    loss_c = lse_c - at_label_c + how.z_loss * lse_c**2
    return (loss_c * mask_c.to(loss_c.dtype)).sum(dtype=torch.promote_types(loss_c.dtype, torch.float32))


def _at(z_cv: Tensor, label_c: Tensor) -> Tensor:
    return z_cv.gather(-1, label_c[:, None])[:, 0]


def _all_ones(scale_c: Tensor) -> bool:
    """Nothing to multiply with, the usual case of one rank; a GPU would have to be waited for to know."""
    return scale_c.device.type == "cpu" and bool((scale_c == 1).all())


def _local_labels(labels_r: Tensor, width: int, how: _How) -> tuple[Tensor, Tensor | None]:
    """Labels as columns of this shard (0 if it is on another rank), and whether they stand here (``None``: all do)."""
    if how.cut != "column":
        return labels_r, None
    local_r = labels_r - how.groups.tensor_rank * width
    here_r = (local_r >= 0) & (local_r < width)
    return local_r.masked_fill(~here_r, 0), here_r


def _over_vocabulary(lse_r: Tensor, at_label_r: Tensor, here_r: Tensor | None, how: _How) -> tuple[Tensor, Tensor]:
    """lse over the whole vocabulary, and the label's logit, from those of the shards: one collective, equal on every rank."""
    if here_r is None:
        return lse_r, at_label_r
    mine_r2 = torch.stack((lse_r, at_label_r.masked_fill(~here_r, 0)), dim=-1)
    all_rn2 = gather_last(mine_r2, how.groups.tensor_group).unflatten(-1, (-1, 2))
    return all_rn2[..., 0].logsumexp(-1), all_rn2[..., 1].sum(-1)


def _inputs(x: Tensor, how: _How) -> Tensor:
    """x_BSD, or the columns of it that meet this rank's weights: x_BSd."""
    groups = how.groups
    x_BSD = start_gather(x, groups)() if groups.sequence_parallel else x
    if how.cut == "row":
        return x_BSD.chunk(groups.layout.tensor, dim=-1)[groups.tensor_rank].contiguous()
    return x_BSD


def _input_gradient(dx: Tensor, how: _How) -> Tensor:
    """The gradient of what came in, whole on every rank or its share of the sequence, from each rank's part of it."""
    groups = how.groups
    if how.cut == "column":
        return start_sum_in(dx, groups)()
    if how.cut == "row":
        dx = gather_last(dx, groups.tensor_group)
        return share_of_sequence(dx, groups).contiguous() if groups.sequence_parallel else dx
    return dx


def _products_in(x: Tensor, how: _How) -> torch.dtype:
    """The precision of the matrix products: fp32 for bf16 and fp16 on a CPU that would only imitate them."""
    # 1024 x 512 by 50304 x 512 on two cores of a Xeon with AVX-512 and no bf16 units: 1.2 s in bf16, 0.35 s in fp32
    if x.device.type == "cpu" and x.dtype in _UNITS and how.in_fp32 and not torch.cpu.get_capabilities().get(_UNITS[x.dtype]):
        return torch.float32
    return x.dtype


_UNITS = {torch.bfloat16: "avx512_bf16", torch.float16: "avx512_fp16"}


def _chunk_size(weight_vI: Tensor, tokens: int) -> int:
    """Tokens in a chunk, in chunks of about equal size."""
    most = max(64, (CHUNK_CPU if weight_vI.device.type == "cpu" else CHUNK_GPU) // len(weight_vI))
    return math.ceil(tokens / math.ceil(tokens / most))
