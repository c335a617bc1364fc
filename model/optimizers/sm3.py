"""SM3: Adagrad that remembers one number for every row and column of a matrix, not for every element.

Anil, Gupta, Koren, Singer 2019, "Memory-Efficient Adaptive Optimization", arXiv:1901.11150, algorithm SM3-II, with the slices along
each dimension as cover:

    n(i) = min over slices r that hold i of a(r) + g(i)²;  w <- w - lr g / sqrt(n + eps);  a(r) <- max over i in r of n(i)

As in GPT-NeoX, ``momentum`` averages g / sqrt(n + eps), and with ``beta`` n is beta min a + (1 - beta) g², and a never falls.
There is no weight decay.  Over tensor ranks the maxima are those of the whole matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.optimizers.tensor_by_tensor import TensorByTensor
from model.parallel.groups import Groups


class SM3(TensorByTensor):
    """Keeps a tensor of maxima for each dimension; 4 bytes x (rows + columns) of a matrix."""

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float, beta: float, eps: float, ranks: Groups) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "beta": beta, "eps": eps})
        self._ranks = ranks

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta, momentum = group["beta"], group["momentum"]
        maxima = self._maxima(weight, state)
        squares = reduce(torch.minimum, maxima[1:], maxima[0].expand_as(weight)).clone()
        squares.mul_(beta or 1.0).addcmul_(gradient, gradient, value=1 - beta)
        for found, new in zip(maxima, self._slices(squares, weight), strict=True):
            found.copy_(torch.maximum(found, new))
        update = squares.add_(group["eps"]).rsqrt_().mul_(gradient)
        if momentum:
            update = state.setdefault("momentum_buffer", torch.zeros_like(weight)).mul_(momentum).add_(update, alpha=1 - momentum)
        weight.add_(update, alpha=-group["lr"])

    def unpacked(self, weight: Tensor) -> dict[str, Tensor]:
        """The least of the maxima that hold an element: from them all maxima can be found again, at any layout.

        The largest of all rows' maxima is that of all columns', so each of them is the largest of what is stored in its slice.
        """
        state = self.state[weight]
        state.setdefault("step", torch.zeros(()))
        maxima = self._maxima(weight, state)
        least = reduce(torch.minimum, maxima[1:], maxima[0].expand_as(weight)).clone()
        with_momentum = any(group["momentum"] for group in self.param_groups)
        buffer = state.setdefault("momentum_buffer", torch.zeros_like(weight)) if with_momentum else None
        return {"accumulator": least} | ({} if buffer is None else {"momentum_buffer": buffer})

    def pack(self, weight: Tensor, states: Mapping[str, Tensor]) -> None:
        """Collective over tensor ranks."""
        state = self.state[weight]
        for found, new in zip(self._maxima(weight, state), self._slices(states["accumulator"], weight), strict=True):
            found.copy_(new)
        if "momentum_buffer" in states:
            state["momentum_buffer"].copy_(states["momentum_buffer"])

    def _maxima(self, weight: Tensor, state: dict[str, Any]) -> list[Tensor]:
        """a: for each dimension a tensor of its length, 1 long in the others."""
        for dim in range(weight.dim()):
            if f"maxima_{dim}" not in state:
                shape = [size if other == dim else 1 for other, size in enumerate(weight.shape)]
                state[f"maxima_{dim}"] = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        return [state[f"maxima_{dim}"] for dim in range(weight.dim())]

    def _slices(self, squares: Tensor, weight: Tensor) -> list[Tensor]:
        """The largest element of every slice along every dimension of the whole tensor, whose shard ``weight`` is."""
        shard_dim: int | None = getattr(weight, "shard_dim", None)
        found = []
        for dim in range(squares.dim()):
            others = [other for other in range(squares.dim()) if other != dim]
            largest = squares.amax(others, keepdim=True) if others else squares.clone()
            if shard_dim in others and self._ranks.tensor_group is not None:
                largest = largest.contiguous()
                dist.all_reduce(largest, dist.ReduceOp.MAX, self._ranks.tensor_group)
            found.append(largest)
        return found
