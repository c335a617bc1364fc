"""What one layer hands to the next, and so one pipeline stage to another; changes when something else must travel.

The fields in use are fixed for a run, so that a stage knows what to receive.  No attention mask travels: causality lives in the
attention.  Legend: B batch, S tokens, D width, v this rank's share of the padded vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Stage(NamedTuple):
    """The typed tuple between layers."""

    x: Tensor
    """tokens_BS before the embedding, x_BSD after it (x_BsD under sequence parallelism), logits_BSv after the head."""
    doc_ids_BS: Tensor | None = None
    """int32: a token sees tokens of its own document only.  ``None``: a sequence is one document."""
    sample_B: Tensor | None = None
    """int64: the samples' numbers in the run, from which dropout draws.  ``None``: nothing is dropped."""
    auxiliary_loss: Tensor | None = None
    """fp32 scalar, summed over the blocks so far; ``None`` where no block has one."""


def pack(stage: Stage) -> tuple[Tensor, ...]:
    """The fields in use."""
    return tuple(field for field in stage if field is not None)


def unpack(tensors: Sequence[Tensor], fields: Sequence[str]) -> Stage:
    """The stage whose ``fields`` these are."""
    return Stage(**dict(zip(fields, tensors, strict=True)))
