"""The token embedding, its rows cut over the tensor ranks; changes when the vocabulary is cut otherwise."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from model.parallel.collectives import sum_out
from model.parallel.groups import Groups
from model.parallel.parameters import Init, make_parameter


class VocabParallelEmbedding(nn.Module):
    """tokens_BS -> x_BSD: every rank looks up the tokens of its rows, zero for the others, and the ranks sum."""

    def __init__(self, vocab: int, width: int, *, init: Init, groups: Groups) -> None:
        super().__init__()
        self.weight = make_parameter((vocab, width), init, groups, shard_dim=0)
        self._groups = groups

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """The rows of the tokens; under sequence parallelism of this rank's share of them."""
        if self._groups.tensor_group is None:
            return F.embedding(tokens_BS, self.weight)
        local_BS = tokens_BS - self.weight.shard_offset
        outside_BS = (local_BS < 0) | (local_BS >= self.weight.shape[0])
        x_BSD = F.embedding(local_BS.masked_fill(outside_BS, 0), self.weight)
        return sum_out(x_BSD.masked_fill(outside_BS[..., None], 0), self._groups)
