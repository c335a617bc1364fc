"""1-bit Adam: after a warm-up of Adam data-parallel ranks send the sign of their momenta, one bit a weight, in place of gradients.

Tang et al. 2021, "1-bit Adam: Communication Efficient Large-Scale Training with Adam's Convergence Speed", arXiv:2102.02888,
algorithm 1, with T the number of warm-up steps (``freeze_step``), n ranks i, and C(x) = |x| / sqrt(d) sign(x) of d elements:

    up to T:  m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g², of the mean gradient g
    after:    m_i = b1 m + (1 - b1) g_i;  c_i = C(m_i + e_i);  e_i <- m_i + e_i - c_i      (each rank of its own gradient)
              m <- C(mean c_i + e);  e <- mean c_i + e - m                                  (each rank of one chunk of it)
    w <- w - lr (m / (sqrt(v) + eps) + decay w)

without Adam's correction of its first steps.  A weight that had no gradient in the warm-up (the row of a token that was not met)
has no v to be divided by: it stays at m = 0 from then on, and d does not count it.  DeepSpeed 0.19.8 has it no more.  What is
compressed is what a rank holds: after T the training depends on the number of data ranks, as in the paper, and a little on the
cut over tensor ranks.  The errors e are not stored: a run that continues begins with none.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.optimizers.tensor_by_tensor import TensorByTensor
from model.parallel.groups import Groups

SCALE_BYTES = 4
"""fp32"""


class OneBitAdam(TensorByTensor):
    """Keeps m, v and, after the warm-up, the two errors of the compression."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        freeze_step: int,
        ranks: Groups,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "freeze_step": freeze_step, "weight_decay": 0.0})
        self._freeze_step, self._ranks = freeze_step, ranks

    @property
    def takes_local_gradients(self) -> bool:
        """The next step is one after the warm-up: nobody else is to take the mean of its gradients over data ranks."""
        return max((int(state["step"]) for state in self.state.values()), default=0) >= self._freeze_step

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        if "exp_avg" not in state:
            state |= {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
        m, v = state["exp_avg"], state["exp_avg_sq"]
        m.lerp_(gradient, 1 - beta1)
        if int(state["step"]) <= self._freeze_step:
            v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        else:
            m.copy_(self._mean_of_signs(m.reshape(-1), v.reshape(-1) > 0, state).view_as(m))
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.addcdiv_(m, v.sqrt().add_(group["eps"]), value=-group["lr"])

    def _mean_of_signs(self, mine: Tensor, met: Tensor, state: dict[str, Any]) -> Tensor:
        """The compressed mean of the compressed ``mine`` of all data ranks: the same on each of them, and 0 where not ``met``."""
        n, place = self._ranks.layout.data, self._ranks.data_rank
        chunk = -(-mine.numel() // (8 * n)) * 8
        lengths = [min(chunk, max(0, mine.numel() - rank * chunk)) for rank in range(n)]
        if "error" not in state:
            state["error"] = torch.zeros_like(mine)
            state["error_of_mean"] = mine.new_zeros(lengths[place])
        sent = _compress(mine, state["error"], met)
        rows = torch.stack([_packed(sent[0], part, chunk) for part in sent[1].split(chunk)])
        rows = torch.cat([rows, rows.new_zeros(n - len(rows), rows.shape[1])])  # ranks without a part of a short tensor
        received = torch.empty_like(rows)
        group = self._ranks.data_group
        if group is None:
            received.copy_(rows)
        else:
            dist.all_to_all_single(received, rows, group=group)
        mean = torch.stack([_unpacked(row, lengths[place]) for row in received]).mean(0)
        scale, signs = _compress(mean, state["error_of_mean"], met[place * chunk :][: lengths[place]])
        row = _packed(scale, signs, chunk)
        everyone = [torch.empty_like(row) for _ in range(n)]
        if group is None:
            everyone[0].copy_(row)
        else:
            dist.all_gather(everyone, row, group=group)
        return torch.cat([_unpacked(row, length) for row, length in zip(everyone, lengths, strict=True)]).mul_(met)


def _compress(x: Tensor, error: Tensor, met: Tensor) -> tuple[Tensor, Tensor]:
    """C(x + error) of the elements that were ``met``, as its size and which are not negative; ``error`` becomes what is lost."""
    error.add_(x).mul_(met)
    size = error.norm() / met.sum().clamp(min=1).sqrt()
    positive = error >= 0
    error.sub_(torch.where(positive, size, -size)).mul_(met)
    return size, positive


def _packed(size: Tensor, positive: Tensor, chunk: int) -> Tensor:
    """The bytes of the size, then a bit for each of ``chunk`` elements."""
    bits = torch.zeros(chunk, dtype=torch.uint8, device=positive.device)
    bits[: positive.numel()] = positive
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return torch.cat([size.reshape(1).view(torch.uint8), (bits.view(-1, 8) << shifts).sum(1, dtype=torch.uint8)])


def _unpacked(row: Tensor, length: int) -> Tensor:
    """The first ``length`` elements: plus or minus the size."""
    size = row[:SCALE_BYTES].clone().view(torch.float32)
    shifts = torch.arange(8, dtype=torch.uint8, device=row.device)
    bits = (row[SCALE_BYTES:, None] >> shifts & 1).reshape(-1)[:length]
    return torch.where(bits.bool(), size, -size)
