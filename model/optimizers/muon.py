"""Muon: the momentum of every hidden matrix, orthogonalized; torch's own, with torch's AdamW for all that is no hidden matrix.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/, with the size of step of Liu et al. 2025, "Muon is Scalable for LLM
Training", arXiv:2502.16982, 0.2 sqrt(max(rows, columns)) of a matrix, by which both take the same learning rate and weight decay:

    m <- momentum m + (1 - momentum) g;  w <- w - lr (0.2 sqrt(max(rows, columns)) NS(g + momentum (m - g)) + decay w)

NS: five steps of Newton and Schulz in bfloat16.  Embedding, head, positions, biases and norms are AdamW's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model.config.optimizers import MOMENTS


class Muon(torch.optim.Optimizer):
    """Two of torch's optimizers as one."""

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float, betas: tuple[float, float], eps: float) -> None:
        parts = ([group | {"params": some} for group in groups if (some := _chosen(group, matrix))] for matrix in (True, False))
        matrices, others = parts
        made: list[torch.optim.Optimizer] = []
        if matrices:
            made.append(_Matrices(matrices, lr=lr, momentum=momentum))
        if others:
            made.append(torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps, fused=True))
        super().__init__([group for one in made for group in one.param_groups], {"lr": lr})
        self._made = made
        for one in made:
            one.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step on every tensor that has a gradient."""
        assert closure is None, "DeepSpeed computes the gradient"
        for one in self._made:
            one.step()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and _is_hidden_matrix(weight):  # AdamW counts by itself
                    self.state[weight].setdefault("step", torch.zeros(())).add_(1)

    def unpacked(self, weight: Tensor) -> dict[str, Tensor]:
        """One tensor of a hidden matrix, two of the others; they are not copies."""
        matrix = _is_hidden_matrix(weight)
        names, state = ("momentum_buffer",) if matrix else MOMENTS, self.state[weight]
        state.setdefault("step", torch.zeros((), device="cpu" if matrix else weight.device))
        return {name: state.setdefault(name, torch.zeros_like(weight.detach())) for name in names}

    def pack(self, weight: Tensor, states: Mapping[str, Tensor]) -> None:
        """Nothing: what was unpacked are the states themselves."""


class _Matrices(torch.optim.Muon):
    """torch's, which knows single matrices only; here several of one shape may stand behind each other (a gated MLP's)."""

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float) -> None:
        one = [nn.Parameter(torch.empty(1, 1))]
        theirs = torch.optim.Muon(one, lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw").defaults
        torch.optim.Optimizer.__init__(self, groups, theirs)  # not Muon's own, which counts dimensions

    def _init_group(self, group: Any, params: list[Tensor], grads: list[Tensor], buffers: list[Tensor]) -> bool:
        """The matrices of a group with their gradients and momenta, each a view."""
        for weight in group["params"]:
            if weight.grad is not None:
                momentum = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight.grad))
                for found, whole in ((params, weight), (grads, weight.grad), (buffers, momentum)):
                    found += whole.view(-1, *weight.shape[-2:]).unbind()
        return False


def _chosen(group: dict[str, Any], matrix: bool) -> list[nn.Parameter]:
    return [weight for weight in group["params"] if _is_hidden_matrix(weight) == matrix]


def _is_hidden_matrix(weight: Tensor) -> bool:
    return weight.dim() > 1 and getattr(weight, "global_name", "layers.").startswith("layers.")
