"""First values of weights, by GPT-NeoX's names.

small_init: Nguyen and Salazar 2019, arXiv:1910.05895; wang_init: GPT-J; scaled_normal: GPT-2 (Radford et al. 2019, section 2.3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.config import RunConfig
from model.config.architecture import InitMethod
from model.parallel.parameters import Init


def normal(std: float) -> Init:
    """N(0, std)."""

    def fill(whole: Tensor, generator: torch.Generator) -> None:
        whole.normal_(0, std, generator=generator)

    return fill


def input_init(config: RunConfig) -> Init:
    """``init_method``: embeddings, QKV, the MLP's first matrix, the head."""
    return normal(standard_deviation(config.architecture.init_method, config))


def output_init(config: RunConfig) -> Init:
    """``output_layer_init_method``: the matrices that write to the residual stream."""
    return normal(standard_deviation(config.architecture.output_layer_init_method, config))


def standard_deviation(method: InitMethod, config: RunConfig) -> float:
    """Standard deviation of a normal method.

    Raises:
        ValueError: the method is not one of the normal ones.
    """
    shape = config.architecture
    table: dict[str, float] = {
        "normal": shape.init_method_std,
        "scaled_normal": shape.init_method_std / math.sqrt(2 * shape.num_layers),
        "single_residual_scaled_normal": shape.init_method_std / math.sqrt(shape.num_layers),
        "small_init": math.sqrt(2 / (5 * shape.hidden_size)),
        "wang_init": 2 / (shape.num_layers * math.sqrt(shape.hidden_size)),
    }
    if method not in table:
        raise ValueError(f"init method {method} does not train yet: write one of {', '.join(table)}")
    return table[method]
