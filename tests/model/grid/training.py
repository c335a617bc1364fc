"""What a cell trains on, and what one rank makes of it in a plain loop of torch: neither DeepSpeed nor our trainer.

That the network itself is right, tests/model/test_gpt.py shows against Hugging Face's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.config import RunConfig
from model.data.batch import Batch
from model.gpt import GPT
from model.mup_base import read_base_shapes
from model.parallel.parameters import global_parameters
from tests.model.grid.cells import BETAS, CLIP, EPSILON, PADDED, RATE, SEQUENCES, TOKENS, VOCAB, WEIGHT_DECAY

STEPS = 10


def samples(begin: int, count: int, tokens: int = TOKENS) -> Batch:
    """The samples ``begin`` and following of a text that has something to learn: few tokens are frequent.

    Every sample has as many labels that count, so that the mean over micro-batches is the mean over labels.
    """
    rows, masks = [], []
    for number in range(begin, begin + count):
        generator = torch.Generator().manual_seed(number)
        rows.append((torch.rand(tokens + 1, generator=generator) ** 3 * VOCAB).long())
        masks.append((torch.randperm(tokens, generator=generator) >= tokens // 4).float())
    text = torch.stack(rows)
    return Batch(
        tokens_BS=text[:, :-1].contiguous(),
        labels_BS=text[:, 1:].contiguous(),
        loss_mask_BS=torch.stack(masks),
        sample_B=torch.arange(begin, begin + count),
    )


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Of one rank, by global parameter name."""

    initial: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    """Of the first step, before clipping."""
    final: Mapping[str, Tensor]
    losses: tuple[float, ...]
    norms: tuple[float, ...]
    """Before clipping."""


def train_on_one_rank(
    network: Mapping[str, Any], steps: int = STEPS, factor: Callable[[str], float] = lambda name: 1.0
) -> Expected:
    """Steps of AdamW over whole batches.

    Args:
        factor: a parameter's name -> what its learning rate is multiplied by, and its weight decay divided.
    """
    config = RunConfig.from_keys({**network, "make_vocab_size_divisible_by": PADDED})
    model = GPT(config, VOCAB, base=read_base_shapes(config))
    parameters = {p.global_name: p for p in global_parameters(model)}
    groups = [
        {"params": [p], "lr": RATE * factor(name), "weight_decay": WEIGHT_DECAY / factor(name) if p.dim() > 1 else 0.0}
        for name, p in parameters.items()
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPSILON, foreach=False)
    initial = {name: p.detach().clone() for name, p in parameters.items()}
    gradients, losses, norms = {}, [], []
    for step in range(steps):
        loss = model(samples(step * SEQUENCES, SEQUENCES, network["seq_length"]))
        loss.backward()
        if step == 0:
            gradients = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP)))
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    final = {name: p.detach() for name, p in parameters.items()}
    return Expected(initial=initial, gradients=gradients, final=final, losses=tuple(losses), norms=tuple(norms))
