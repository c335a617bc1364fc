"""Cases of tests/model/test_parallel.py, called on the ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.config import Layout
from model.config.training import Generation
from model.gpt import GPT
from model.layers.norm import LayerNorm
from model.parallel.groups import make_groups, one_rank
from model.parallel.parameters import global_parameters, local_slice
from model.sampling import Continuation, continue_together, uniforms
from tests.model.networks import VOCAB, small_batch, small_config


def sums_over_axes(tensor: int) -> tuple[dict[str, int], dict[str, int | None]]:
    """Coordinates, and the sum of the ranks along each axis."""
    layout = Layout(world_size=dist.get_world_size(), tensor=tensor)
    groups = make_groups(layout, dist.get_rank())
    sums: dict[str, int | None] = {}
    for axis in ("tensor", "pipe", "data", "model"):
        group = getattr(groups, f"{axis}_group")
        total = torch.tensor(groups.rank)
        if group is not None:
            dist.all_reduce(total, group=group)
        sums[axis] = None if group is None else int(total)
    return {"tensor": groups.tensor_rank, "data": groups.data_rank, "pipe": groups.pipe_rank}, sums


def tensor_parallel_against_one_rank(keys: dict[str, Any]) -> dict[str, float]:
    """Largest differences between the network cut over all ranks and the whole one, both built here."""
    cut, whole = _both(keys)
    batch = small_batch()
    wholes = {p.global_name: p for p in global_parameters(whole)}
    initial = max(_difference(p, local_slice(p, wholes[p.global_name].detach())) for p in global_parameters(cut))
    loss_cut, loss_whole = cut(batch), whole(batch)
    loss_cut.backward()
    loss_whole.backward()
    gradients = []
    for p in global_parameters(cut):
        expected = wholes[p.global_name].grad
        assert expected is not None, p.global_name
        assert p.grad is not None, p.global_name
        gradients.append(_difference(p.grad, local_slice(p, expected)) / float(expected.abs().max()))
    with torch.no_grad():
        logits = _difference(cut.logits(batch.tokens_BS), whole.logits(batch.tokens_BS))
    return {"initial": initial, "loss": _difference(loss_cut, loss_whole), "logits": logits, "gradient": max(gradients)}


def tensor_parallel_training(keys: dict[str, Any], steps: int) -> tuple[list[float], list[float]]:
    """Losses of both networks over some steps of Adam.  eps 1e-4: a smaller one divides rounding by itself."""
    curves: tuple[list[float], list[float]] = ([], [])
    for network, curve in zip(_both(keys), curves, strict=True):
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, eps=1e-4)
        for _ in range(steps):
            optimizer.zero_grad()
            value = network(small_batch())
            value.backward()
            optimizer.step()
            curve.append(value.item())
    return curves


def dropout_on_tensor_ranks() -> tuple[float, float]:
    """The loss with dropout, and the norm of a replicated gradient: both must agree between tensor ranks."""
    cut, _ = _both({"hidden_dropout": 0.3, "gpt_j_residual": True})
    value = cut(small_batch())
    value.backward()
    norm = cut.layers[1].input_layernorm
    assert isinstance(norm, LayerNorm)
    assert norm.weight.grad is not None
    return value.item(), float(norm.weight.grad.norm())


def samples(keys: dict[str, Any], pipe: int = 1) -> tuple[list[Continuation], list[Continuation]]:
    """What the cut and the whole network write after the same contexts, in fp64."""
    contexts = torch.randint(1, VOCAB, (4, 5), generator=torch.Generator().manual_seed(4))
    numbers = torch.stack([uniforms(9, number, 12) for number in range(4)])
    wanted = Generation(temperature=2.0, top_k=20)
    cut, whole = (continue_together(n.double().eval(), contexts, numbers, wanted, eod=None) for n in _both(keys, pipe))
    return cut, whole


def _both(keys: dict[str, Any], pipe: int = 1) -> tuple[GPT, GPT]:
    tensor = dist.get_world_size() // pipe
    cut = {"model_parallel_size": tensor, "pipe_parallel_size": pipe, "make_vocab_size_divisible_by": 64 // tensor}
    config = small_config(**keys, **cut)
    groups = make_groups(config.layout(dist.get_world_size()), dist.get_rank())
    return GPT(config, VOCAB, groups), GPT(config, VOCAB, one_rank())


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a.detach() - b.detach()).abs().max())
