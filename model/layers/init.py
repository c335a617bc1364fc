"""First values of weights, by GPT-NeoX's names; changes with another method.

scaled_normal: GPT-2 (Radford et al. 2019, section 2.3); small_init: Nguyen and Salazar 2019, arXiv:1910.05895; wang_init: GPT-J;
xavier: Glorot and Bengio 2010, equation 16; orthogonal: Saxe, McClelland and Ganguli 2013, arXiv:1312.6120.

A method sees the whole matrix, never a rank's share of it: GPT-NeoX's xavier and orthogonal are those of a share, and change with
the tensor parallelism.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from model.config import RunConfig
from model.config.architecture import InitMethod


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A method with all that it depends on but the matrix: a :data:`model.parallel.parameters.Init`."""

    method: InitMethod
    std: float
    """``init_method_std``"""
    layers: int
    hidden_size: int

    def __call__(self, whole: Tensor, generator: torch.Generator) -> None:
        """Fill a whole matrix, or each of several that stand behind each other (a gated MLP's)."""
        for matrix in whole.view(-1, *whole.shape[-2:]):
            if self.method in ("orthogonal", "scaled_orthogonal"):
                nn.init.orthogonal_(matrix, self.gain, generator)
            elif self.method == "xavier_uniform":
                nn.init.xavier_uniform_(matrix, generator=generator)
            else:
                matrix.normal_(0, self.deviation(matrix.shape), generator=generator)

    def deviation(self, shape: Sequence[int | float]) -> float:
        """Standard deviation of an entry of a matrix of ``shape``, outputs before inputs."""
        outputs, inputs = shape[-2:]
        table: dict[str, float] = {
            "normal": self.std,
            "scaled_normal": self.std / math.sqrt(2 * self.layers),
            "single_residual_scaled_normal": self.std / math.sqrt(self.layers),
            "small_init": math.sqrt(2 / (5 * self.hidden_size)),
            "wang_init": 2 / (self.layers * math.sqrt(self.hidden_size)),
            "xavier_uniform": math.sqrt(2 / (outputs + inputs)),
            "xavier_normal": math.sqrt(2 / (outputs + inputs)),
            "orthogonal": self.gain / math.sqrt(max(outputs, inputs)),
            "scaled_orthogonal": self.gain / math.sqrt(max(outputs, inputs)),
        }
        return table[self.method]

    @property
    def gain(self) -> float:
        """Singular values of an orthogonal matrix."""
        return math.sqrt(2 / self.layers) if self.method == "scaled_orthogonal" else math.sqrt(2)

    def at_width(self, hidden_size: int) -> Draw:
        """The same in a network of another width."""
        return replace(self, hidden_size=hidden_size)


def input_init(config: RunConfig) -> Draw:
    """``init_method``: embeddings, QKV, the MLP's first matrix, the head."""
    return _draw(config, config.architecture.init_method)


def output_init(config: RunConfig) -> Draw:
    """``output_layer_init_method``: the matrices that write to the residual stream."""
    return _draw(config, config.architecture.output_layer_init_method)


def drawing_device(config: RunConfig, device: torch.device) -> torch.device:
    """Where weights are drawn: where the network will run, unless ``use_cpu_initialization``.

    A CPU draws the same numbers everywhere; a GPU is faster and draws those of its kind.
    """
    return torch.device("cpu") if config.architecture.use_cpu_initialization else device


def _draw(config: RunConfig, method: InitMethod) -> Draw:
    shape = config.architecture
    return Draw(method=method, std=shape.init_method_std, layers=shape.num_layers, hidden_size=shape.hidden_size)
