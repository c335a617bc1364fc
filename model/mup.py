"""The maximal update parametrization (muP): what depends on the width, so that hyperparameters of a narrow network fit a wide one.

Yang, Hu et al. 2022, "Tensor Programs V", arXiv:2203.03466, in the form of table 8, which allows a tied head; weight decay as in
microsoft/mup.  Relative to a base network, at whose sizes all is the standard parametrization.  With m the number of times that a
dimension has its base size:

    parameter                          deviation at first   Adam's rate   SGD's rate    the network multiplies
    matrix of two growing dimensions   base / sqrt(m_in)    1 / m_in      m_out / m_in
    of one (embedding, head, bias)     base                 1             m             the head's input by 1 / m
    of none                            base                 1             1
    attention scores                                                                    by sqrt(base head size) / head size

Weight decay is divided by what the rate is multiplied by, so that a step shrinks weights of every width alike.
Changes when the rules do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from model.config import RunConfig
from model.layers.init import Draw
from model.parallel.parameters import Growth

Rule = Literal["adam", "sgd"]


@dataclass(frozen=True, kw_only=True)
class BaseShapes:
    """The base network, as far as the rules ask."""

    hidden_size: int
    head_size: int
    shapes: Mapping[str, tuple[int | None, ...]]
    """Kind of parameter (:func:`kind_of`) -> its dimensions, outputs before inputs; ``None``: it does not grow with the width."""

    def growth(self, name: str, shape: Sequence[int]) -> Growth:
        """How many times its base size each dimension of a parameter has.

        Raises:
            ValueError: the base network has no such parameter.
        """
        base = self.shapes.get(kind_of(name))
        if base is None or len(base) != len(shape):
            fix = "write the file again, with save_base_shapes: true and this architecture at the base's width"
            raise ValueError(f"base_shapes_file: has no {kind_of(name)}: it is of another architecture\n  fix: {fix}")
        return tuple(None if size is None else here / size for size, here in zip(base, shape, strict=True))


@dataclass(frozen=True, kw_only=True)
class Multipliers:
    """What the network multiplies by, beside its parameters."""

    query: float = 1.0
    """Queries; attention divides their scores by the root of the head size in any case."""
    head: float = 1.0
    """The head's input."""


def multipliers(config: RunConfig, base: BaseShapes | None) -> Multipliers:
    """Those of a configuration; all are 1 without muP."""
    if base is None:
        return Multipliers()
    shape, keys = config.architecture, config.maximal_update
    query = math.sqrt(base.head_size / shape.head_size) / keys.mup_attn_temp
    return Multipliers(query=query, head=base.hidden_size / shape.hidden_size / keys.mup_output_temp)


def kind_of(name: str) -> str:
    """A parameter's global name without the layer's number: networks of other depths have the same kinds."""
    return re.sub(r"^layers\.\d+\.", "layers.", name)


def initial_factor(draw: Draw, shape: Sequence[int], growth: Growth, base: BaseShapes) -> float:
    """What a weight that ``draw`` has filled is multiplied by: from the deviation that the method has at this width to muP's.

    ``small_init``, ``wang_init``, the xavier and the orthogonal methods depend on the width themselves: the base's counts.
    """
    base_shape = [size if times is None else size / times for size, times in zip(shape, growth, strict=True)]
    at_base = draw.at_width(base.hidden_size).deviation(base_shape)
    narrower = math.sqrt(_fan_in(growth)) if _is_matrix(growth) else 1
    return at_base / narrower / draw.deviation(shape)


def rate_factor(growth: Growth, rule: Rule) -> float:
    """What the learning rate of a parameter is multiplied by."""
    if _is_matrix(growth):
        return (1 if rule == "adam" else _fan_out(growth)) / _fan_in(growth)
    return math.prod(times for times in growth if times is not None) if rule == "sgd" else 1.0


def split_by_width(groups: Sequence[dict[str, Any]], rule: Rule) -> list[dict[str, Any]]:
    """An optimizer's groups, each cut into parameters of the same factor, which stands in the new group as ``lr_scale``.

    Parameters that know no growth, those of a network without muP, stay as they are.
    """
    split: list[dict[str, Any]] = []
    for group in groups:
        by_factor: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            growth = getattr(parameter, "growth", None)
            by_factor.setdefault(1.0 if growth is None else rate_factor(growth, rule), []).append(parameter)
        for factor in sorted(by_factor, reverse=True):
            scaled = {} if factor == 1 else {"lr_scale": factor, "weight_decay": group["weight_decay"] / factor}
            split.append(group | {"params": by_factor[factor]} | scaled)
    return split


def _is_matrix(growth: Growth) -> bool:
    growing = sum(times is not None for times in growth)
    assert growing <= 2, "no rule is known for three growing dimensions"
    return growing == 2


def _fan_in(growth: Growth) -> float:
    return growth[-1] or 1.0


def _fan_out(growth: Growth) -> float:
    return growth[-2] or 1.0
