"""Where a number that is none came from: the first layer, micro-batch and rank; changes when more can be told.

A step whose gradient is not finite has not changed the weights, so its forward pass can be taken again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from model.agreement import from_all_ranks
from model.data.batch import Batch
from model.gpt import GPT
from model.layers.stage import Stage
from model.parallel.groups import Groups
from model.parallel.parameters import GlobalParameter, global_parameters

Found = tuple[int, int, str]
"""Micro-batch (from 0), place among all layers of the model, and what is not finite."""


@contextmanager
def watch_layers(model: GPT, found: list[Found]) -> Iterator[None]:
    """Note the first layer of each forward pass whose output is not finite."""
    passes = {"number": -1}

    def begin(*_: Any) -> None:
        passes["number"] += 1

    def check(at: int, what: str) -> Any:
        def hook(layer: Any, given: Any, out: Stage | Tensor) -> None:
            x = out.x if isinstance(out, Stage) else out
            if not bool(x.isfinite().all()):
                found.append((passes["number"], model.first_layer + at, what))

        return hook

    watched = [(layer, f"the output of {_name(layer)}") for layer in model.layers]
    if model.head is not None:
        watched.append((model.head, "the loss"))
    handles = [layer.register_forward_hook(check(at, what)) for at, (layer, what) in enumerate(watched)]
    handles.append(watched[0][0].register_forward_pre_hook(begin))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def bad_parameters(model: GPT) -> list[Found]:
    """Weights that are not finite themselves.  ZeRO-3 holds pieces: what it has not gathered is not looked at."""
    bad = (p.global_name for p in global_parameters(model) if p.numel() and not bool(p.detach().isfinite().all()))
    return [(-1, 0, f"the weight {name}") for name in bad]


@torch.no_grad()
def forward_again(model: GPT, batches: Sequence[Batch], device: torch.device) -> list[Found]:
    """What is not finite in the forward passes of a model on one pipeline stage."""
    found: list[Found] = []
    with watch_layers(model, found):
        for batch in batches:
            model(batch.to(device))
    return found


def first_of_all(found: Sequence[Found], groups: Groups) -> tuple[int, str]:
    """The rank that met it first and where; collective.  Without any the gradient alone is not finite."""
    everyone = from_all_ranks(min(found, default=None), groups)
    met = [(at, rank) for rank, at in enumerate(everyone) if at is not None]
    if not met:
        return 0, "every layer's output is finite, the gradient is not"
    (micro, _, what), rank = min(met)
    return rank, f"{what} is the first that is not finite" + (f", in micro-batch {micro + 1}" if micro >= 0 else "")


def _name(layer: nn.Module) -> str:
    parameter = next(layer.parameters())
    assert isinstance(parameter, GlobalParameter)
    parts = parameter.global_name.split(".")
    return ".".join(parts[:2]) if parts[0] == "layers" else parts[0]
