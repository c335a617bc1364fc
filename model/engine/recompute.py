"""DeepSpeed's activation checkpointing, as the network's recomputation; changes when DeepSpeed's does.

What the blocks between two stored activations compute is computed again in the backward pass (Chen et al. 2016, arXiv:1604.06174).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from model.config import RunConfig
from model.gpt import GPT, Recompute
from model.parallel.groups import Groups


def recompute_with_deepspeed(model: GPT, config: RunConfig, groups: Groups, mpu: Any, device: torch.device) -> None:
    """Let ``model`` recompute its blocks through DeepSpeed, if ``deepspeed_activation_checkpointing`` says so.

    In its form without reentrant backward, except for ZeRO-3.
    """
    keys = config.training
    if config.recomputes != "full" or not keys.deepspeed_activation_checkpointing:
        return
    from deepspeed import checkpointing

    partitions = keys.partition_activations and not groups.sequence_parallel  # which has already shared them out
    in_flight = groups.layout.pipe  # micro-batches that the first stage holds at most
    checkpointing.configure(
        mpu,
        partition_activations=partitions,
        contiguous_checkpointing=keys.contiguous_checkpointing and partitions,
        num_checkpoints=in_flight * -(-len(model.blocks) // keys.checkpoint_num_layers),
        checkpoint_in_cpu=keys.checkpoint_in_cpu and (partitions or device.type != "cpu"),  # else it is there
        synchronize=keys.synchronize_each_layer,
        profile=keys.profile_backward,
    )
    # ZeRO-3 frees weights as soon as they have been used, also those that a replay without reentrant backward has just stored
    again = checkpointing.checkpoint if config.zero_stage == 3 else checkpointing.non_reentrant_checkpoint
    model.recompute = partial(_recompute, again)


def _recompute(again: Recompute, function: Any, *tensors: Tensor) -> Tensor:
    """DeepSpeed empties the tensors that it stores elsewhere: it gets views, so that who else holds them keeps them."""
    return again(function, *(tensor.view_as(tensor) for tensor in tensors))
