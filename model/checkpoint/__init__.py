"""Checkpoints by global parameter name: what is saved, under which names, and loading at another layout.

    SAVE/global_step<N>/manifest.json       what lies where: one entry per slice
    SAVE/global_step<N>/rank<r>.safetensors  the slices that rank r updates
    SAVE/latest                             the name of the newest checkpoint

A slice is a contiguous piece of the flattened shard that a tensor rank holds of a parameter; the manifest gives the shard's
place in the whole tensor.  So any layout can be read by any other.
"""

from model.checkpoint.directory import newest_checkpoint
from model.checkpoint.load import load_checkpoint, load_weights
from model.checkpoint.save import save_checkpoint

__all__ = ["load_checkpoint", "load_weights", "newest_checkpoint", "save_checkpoint"]
