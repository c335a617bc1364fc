"""Block-sparse patterns of attention: GPT-NeoX's kinds local, sparse_fixed, sparse_variable, bigbird and bslongformer.

By the rules of DeepSpeed's SparsityConfig classes, in one direction (deepspeed/ops/sparse_attention/sparsity_config.py, DeepSpeed
0.16; removed since).  Changes with another pattern: add a function and a line to LAYOUTS.

Fixed, variable: Child et al. 2019, arXiv:1904.10509.  BigBird: Zaheer et al. 2020, arXiv:2007.14062.  Longformer: Beltagy et al.
2020, arXiv:2004.05150.  Random blocks are a function of the run's seed, the head and the row, and none lies after the row's own:
DeepSpeed draws them from Python's global state, and in sparse_variable also after it, where they are hidden.
Legend: N heads here, L blocks of a sequence, Q queries, K keys.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.config import RunConfig
from model.config.architecture import Sparsity
from model.parallel.groups import Groups

Blocks = npt.NDArray[np.bool_]
Layout = Callable[[Sparsity, int, int, int], Blocks]
"""(keys, blocks, head, seed) -> LL, true where the queries of a block see the keys of another; what lies above the diagonal is
hidden anyway."""


class BlockPattern:
    """The heads' layouts, each entry a square of ``block`` tokens."""

    def __init__(self, layout: Layout, config: RunConfig, groups: Groups) -> None:
        shape = config.architecture
        keys = shape.sparsity_config or Sparsity()
        self._block, self._longest = keys.block, shape.seq_length
        here = shape.num_attention_heads // groups.layout.tensor
        heads = range(groups.tensor_rank * here, (groups.tensor_rank + 1) * here) if keys.different_layout_per_head else (0,)
        blocks = -(-shape.seq_length // keys.block)
        self._layout_NLL = torch.from_numpy(np.stack([layout(keys, blocks, head, config.training.seed) for head in heads]))

    def __call__(self, query_Q1: Tensor, key_1K: Tensor) -> Tensor:
        assert key_1K.shape[1] <= self._longest, f"a pattern of {self._longest} tokens, and {key_1K.shape[1]} of them"
        layout_NLL = self._layout_NLL.to(key_1K.device)
        return layout_NLL[:, query_Q1 // self._block, key_1K // self._block]

    def sees_all(self, keys: int) -> bool:
        return False


def local(keys: Sparsity, blocks: int, head: int, seed: int) -> Blocks:
    """Half as many blocks before a block's own as a window has."""
    window = keys.num_local_blocks or keys.num_sliding_window_blocks or 4
    row, column = _grid(blocks)
    return row - column <= window // 2


def fixed(keys: Sparsity, blocks: int, head: int, seed: int) -> Blocks:
    """Windows side by side, and of every window the last blocks (of other heads perhaps the ones before them) for all rows below.

    A last window that is not full has its representatives at the same place, or at its end if it does not reach that far.
    """
    row, column = _grid(blocks)
    window, last = keys.num_local_blocks or 4, keys.num_global_blocks
    first = window - (1 + head % keys.num_different_global_patterns) * last
    whole = blocks // window * window
    inside = (column % window >= first) & (column % window < first + last) & (column < whole)
    start = min(whole + first, blocks - last)
    inside |= (whole < blocks) & (column >= start) & (column < start + last)
    return (row // window == column // window) | inside


def variable(keys: Sparsity, blocks: int, head: int, seed: int) -> Blocks:
    """Windows of given widths side by side, the last width again to the end; global columns; random blocks."""
    edges = np.cumsum([*keys.local_window_blocks, *[keys.local_window_blocks[-1]] * blocks])
    number = np.searchsorted(edges, np.arange(blocks), side="right")
    return (
        (number[:, None] == number[None]) | _global(keys, blocks)[None] | _random(keys.num_random_blocks or 0, blocks, head, seed)
    )


def bigbird(keys: Sparsity, blocks: int, head: int, seed: int) -> Blocks:
    """A sliding window, the first blocks for all and all for them, and random blocks."""
    row, column = _grid(blocks)
    chance = _random(1 if keys.num_random_blocks is None else keys.num_random_blocks, blocks, head, seed)
    return _sliding(keys, blocks) | (column < keys.num_global_blocks) | (row < keys.num_global_blocks) | chance


def bslongformer(keys: Sparsity, blocks: int, head: int, seed: int) -> Blocks:
    """A sliding window, and some blocks for all and all for them."""
    everywhere = _global(keys, blocks)
    return _sliding(keys, blocks) | everywhere[None] | everywhere[:, None]


LAYOUTS: dict[str, Layout] = {
    "local": local,
    "sparse_fixed": fixed,
    "sparse_variable": variable,
    "bigbird": bigbird,
    "bslongformer": bslongformer,
}
"""Kind of attention -> its layout."""


def _grid(blocks: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows as L1, columns as 1L."""
    number = np.arange(blocks)
    return number[:, None], number[None]


def _sliding(keys: Sparsity, blocks: int) -> Blocks:
    row, column = _grid(blocks)
    return abs(row - column) <= (keys.num_sliding_window_blocks or 3) // 2


def _global(keys: Sparsity, blocks: int) -> Blocks:
    """The columns that all rows see."""
    starts = keys.global_block_indices
    ends = keys.global_block_end_indices or [start + 1 for start in starts]
    number = np.arange(blocks)
    chosen = np.zeros(blocks, dtype=np.bool_)
    for start, end in zip(starts, ends, strict=True):
        chosen |= (number >= start) & (number < end)
    return chosen


def _random(count: int, blocks: int, head: int, seed: int) -> Blocks:
    """``count`` blocks of each row, of those up to its own; all of them where there are fewer."""
    chosen = np.zeros((blocks, blocks), dtype=np.bool_)
    for row in range(blocks if count else 0):
        chosen[row, np.random.default_rng([seed, head, row]).permutation(row + 1)[:count]] = True
    return chosen
