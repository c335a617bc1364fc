"""What one layer keeps of the tokens that it has seen while sampling: keys and values, or their number; changes when they are kept
otherwise.

Legend: B batch, N heads here, S new tokens, K tokens seen, H head size.
"""

from __future__ import annotations

from torch import Tensor


class LayerCache:
    """Room that doubles when it is full, so that a token costs no copy of those before it."""

    def __init__(self) -> None:
        self.length = 0
        """Tokens seen."""
        self._kv_2BNKH: Tensor | None = None

    def count(self, tokens: int) -> int:
        """The first position of so many further tokens, of which nothing is kept."""
        self.length += tokens
        return self.length - tokens

    def append(self, k_BNSH: Tensor, v_BNSH: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, k_BNKH and v_BNKH, the new ones last."""
        end = self.length + k_BNSH.shape[2]
        room = self._room(end, k_BNSH)
        room[0, :, :, self.length : end] = k_BNSH
        room[1, :, :, self.length : end] = v_BNSH
        self.length = end
        return room[0, :, :, :end], room[1, :, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Go on with these sequences of the batch only."""
        if self._kv_2BNKH is not None:
            self._kv_2BNKH = self._kv_2BNKH[:, rows]

    def _room(self, end: int, like_BNSH: Tensor) -> Tensor:
        old = self._kv_2BNKH
        if old is None or old.shape[3] < end:
            B, N, _, H = like_BNSH.shape
            new = like_BNSH.new_empty((2, B, N, max(64, end, 2 * self.length), H))
            if old is not None:
                new[:, :, :, : self.length] = old[:, :, :, : self.length]
            self._kv_2BNKH = new
        assert self._kv_2BNKH is not None
        return self._kv_2BNKH
