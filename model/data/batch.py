"""What a training step is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch of one data-parallel rank.  B sequences, S tokens each."""

    tokens_BS: Tensor
    """int64"""
    labels_BS: Tensor
    """int64: the token after each token"""
    loss_mask_BS: Tensor
    """float32: 1 where the label counts"""
    doc_ids_BS: Tensor | None = None
    """int32, present when attention stops at document boundaries"""
    sample_B: Tensor | None = None
    """int64: the samples' numbers in the run, from which dropout draws; ``to`` leaves it on the CPU, where it is read"""

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        return Batch(
            tokens_BS=self.tokens_BS.to(device, non_blocking=True),
            labels_BS=self.labels_BS.to(device, non_blocking=True),
            loss_mask_BS=self.loss_mask_BS.to(device, non_blocking=True),
            doc_ids_BS=None if self.doc_ids_BS is None else self.doc_ids_BS.to(device, non_blocking=True),
            sample_B=self.sample_B,
        )
