"""``neox_hpc.compile``: blocks as torch.compile makes them; changes when other parts are compiled, or otherwise.

Blocks and not the whole network: equal blocks are one graph, compiled once.  The head and its loss stay as they are: three matrix
products and a softmax, for which torch has kernels; compiled forms of it were not faster on a CPU.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

COMPILERS = ("clang++",) if sys.platform == "darwin" else ("g++",)
"""What inductor calls where CXX does not say otherwise."""


def compile_blocks(blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Let every block be compiled at its first call.

    Raises:
        ValueError: the CPU's code cannot be compiled here.
    """
    wanted = (os.environ["CXX"],) if "CXX" in os.environ else COMPILERS
    if device.type == "cpu" and not any(shutil.which(name) for name in wanted):
        raise ValueError(
            f"neox_hpc.compile: no C++ compiler ({', '.join(wanted)}) is on the PATH of this machine\n"
            "  fix: install one, name it in CXX, or remove neox_hpc.compile"
        )
    options: dict[str, Any] = {}
    if device.type == "cpu":  # two equal sums in one bf16 kernel, as of the gradients of two biases, are C++ that does not compile
        options["cpp.max_horizontal_fusion_size"] = 0  # torch 2.13
    for block in blocks:
        block.compile(dynamic=False, options=options)


def eagerly(compiled: bool) -> AbstractContextManager[Any]:
    """Where this is entered, what was ``compiled`` runs as it was written."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
