"""The coordinate check of muP (arXiv:2203.03466, figure 5): how far activations move in the first steps, over widths.

With muP every kind of activation moves as far in a wide network as in a narrow one; in the standard parametrization logits and what
attention writes move farther.  Changes when other activations are measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from model.config import RunConfig
from model.data.batch import Batch
from model.gpt import GPT
from model.layers.block import Block
from model.layers.stage import Stage
from model.mup import BaseShapes
from model.mup_base import base_shapes_of, read_base_shapes, widened
from model.optim import give_rate, make_optimizer

STEPS = 4
FILE = "coordinates.json"
"""In the run directory."""


@dataclass(frozen=True, kw_only=True)
class Coordinate:
    """One point of the plot."""

    parametrization: str
    """muP, standard"""
    activation: str
    width: int
    step: int
    """Optimizer steps taken."""
    moved: float
    """Standard deviation, over tokens and dimensions, of what the activation is beyond what it was before the first step."""


def check_coordinates(config: RunConfig, batch: Batch, vocab_size: int, device: torch.device) -> list[Coordinate]:
    """Train networks of growing width for ``STEPS`` steps on one micro-batch, in fp32 at the peak learning rate, and measure.

    The narrowest is the base: of ``base_shapes_file``, or without one this configuration itself.
    """
    plain = config.with_keys(hidden_dropout=0.0, attention_dropout=0.0, checkpoint_activations=False)
    base = base_shapes_of(config) if config.maximal_update.base_shapes_file is None else read_base_shapes(config)
    assert base is not None, "the coordinate check is one of muP"
    found: list[Coordinate] = []
    for width in widths(config, base):
        wide = _at_width(plain, width)
        for name, one, its_base in (("muP", wide, base), ("standard", _without_mup(wide), None)):
            network = GPT(one, vocab_size, device=device, base=its_base).to(device)
            found += (replace(point, parametrization=name) for point in _measure(network, one, batch.to(device), width))
    return found


def widths(config: RunConfig, base: BaseShapes) -> list[int]:
    """From the base's width by factors of ``mup_width_scale`` to the configuration's, and four at least."""
    times, last = config.maximal_update.mup_width_scale, config.architecture.hidden_size
    found = [base.hidden_size]
    while len(found) < 4 or found[-1] * times <= last:
        found.append(found[-1] * times)
    return found


def slopes(points: Sequence[Coordinate]) -> dict[tuple[str, str], float]:
    """(parametrization, activation) -> the exponent e of moved ~ width^e after the last step, by least squares."""
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for point in points:
        if point.step == STEPS:
            place = (math.log(point.width), math.log(point.moved))
            lines.setdefault((point.parametrization, point.activation), []).append(place)
    return {which: _slope(line) for which, line in lines.items()}


def write_coordinates(points: Sequence[Coordinate], run_dir: Path) -> Path:
    """Write what ``neox-hpc plot`` draws."""
    path = run_dir / FILE
    path.write_text(json.dumps({"coordinates": [asdict(point) for point in points]}, indent=1) + "\n", encoding="utf-8")
    return path


def _measure(network: GPT, config: RunConfig, batch: Batch, width: int) -> Iterator[Coordinate]:
    optimizer = make_optimizer(config, network.parameters())
    give_rate(optimizer.param_groups, config.optimization.optimizer.params.lr)
    before = _activations(network, batch)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        network(batch).backward()
        optimizer.step()
        for name, value in _activations(network, batch).items():
            moved = float((value - before[name]).std())
            yield Coordinate(parametrization="", activation=name, width=width, step=step, moved=moved)


@torch.no_grad()
def _activations(network: GPT, batch: Batch) -> dict[str, Tensor]:
    """Embeddings, what the last block's parts write, the residual stream behind it, logits."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, given: tuple[object, ...], made: Stage | Tensor) -> None:
            seen[name] = made.x if isinstance(made, Stage) else made

        return module.register_forward_hook(hook)

    block = [layer for layer in network.layers if isinstance(layer, Block)][-1]
    parts = {"embedding": network.layers[0], "attention": block.attention, "MLP": block.mlp, "residual stream": block}
    hooks = [keep(name, module) for name, module in parts.items()]
    logits = network.logits(batch.tokens_BS)
    for hook in hooks:
        hook.remove()
    return seen | {"logits": logits}


def _at_width(config: RunConfig, width: int) -> RunConfig:
    shape = config.architecture
    if width >= shape.hidden_size and width % shape.hidden_size == 0:
        return widened(config, width // shape.hidden_size)
    inner = shape.intermediate_size
    return config.with_keys(hidden_size=width, intermediate_size=inner and inner * width // shape.hidden_size)


def _without_mup(config: RunConfig) -> RunConfig:
    keys = type(config.maximal_update).model_fields
    return config.with_keys(**{key: field.default for key, field in keys.items()})


def _slope(line: Sequence[tuple[float, float]]) -> float:
    middle_x, middle_y = (sum(values) / len(line) for values in zip(*line, strict=True))
    return sum((x - middle_x) * (y - middle_y) for x, y in line) / sum((x - middle_x) ** 2 for x, _ in line)
