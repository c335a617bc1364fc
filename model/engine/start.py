"""Joining the other ranks, and importing DeepSpeed without a compiler."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist

from model.ranks import Ranks, choose_index, filter_devices_once, tell_device


def choose_device(wanted: Literal["cpu", "gpu"] | None, ranks: Ranks) -> torch.device:
    """The device of this rank: a GPU as :func:`model.ranks.choose_index` says, or the CPU.

    Raises:
        ValueError: a GPU is asked for and there are not enough; the message has both numbers.
    """
    filter_devices_once(os.environ)
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted is None and not visible):
        return torch.device("cpu")
    return torch.device("cuda", choose_index(ranks, visible))


def join_ranks(device: torch.device, backend: str, timeout: timedelta) -> None:
    """Make the world's process group, and DeepSpeed's on top of it.  A rank waits for the others up to ``timeout``.

    The operation deepspeed_shm_comm is taken out first: it would be compiled for 100 s at its first use, and every rank would
    leave 66 MiB in /dev/shm for ever (seen with DeepSpeed 0.19.8 on CPU).
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        tell_device(os.environ, device.index)
    if not dist.is_initialized():
        chosen = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl" if backend == "nccl" else backend
        dist.init_process_group(chosen, timeout=timeout)
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # DeepSpeed's calls
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend(), timeout=timeout, auto_mpi_discovery=False, verbose=False)


def leave_ranks() -> None:
    """End the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
