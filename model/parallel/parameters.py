"""A parameter's life over ranks: its global name and shape, the slice that lies here, and its first value."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from model.parallel.groups import Groups

Init = Callable[[Tensor, torch.Generator], None]
"""Fills a whole tensor in place, drawing from the generator."""
Growth = tuple[float | None, ...]
"""How many times its size in muP's base network each dimension of a parameter has; ``None``: it does not grow with the width."""


def zeros(whole: Tensor, generator: torch.Generator) -> None:
    """Biases."""
    whole.zero_()


def ones(whole: Tensor, generator: torch.Generator) -> None:
    """Gains of norms."""
    whole.fill_(1)


class GlobalParameter(nn.Parameter):
    """A parameter that knows what it is a slice of.  The names are DeepSpeed's and ours; see ``reset_parameters``."""

    global_name: str
    global_shape: tuple[int, ...]
    shard_dim: int | None
    """The dimension that tensor parallelism cuts; ``None``: the whole tensor lies on every rank."""
    shard_offset: int
    init: Init
    growth: Growth | None
    """``None``: without muP."""
    tensor_model_parallel: bool
    """DeepSpeed counts a parameter's gradient in the norm on every tensor rank if this is true, else on the first only."""


def make_parameter(shape: tuple[int, ...], init: Init, groups: Groups, *, shard_dim: int | None = None) -> GlobalParameter:
    """A parameter of global ``shape``, cut along ``shard_dim`` over the tensor ranks.  Its values come later.

    Raises:
        ValueError: the dimension does not divide.
    """
    local = list(shape)
    offset = 0
    if shard_dim is not None:
        parts = groups.layout.tensor
        if shape[shard_dim] % parts:
            raise ValueError(f"a dimension of {shape[shard_dim]} cannot be cut over model_parallel_size {parts}")
        local[shard_dim] //= parts
        offset = groups.tensor_rank * local[shard_dim]
    parameter = GlobalParameter(torch.empty(local))
    parameter.global_name, parameter.global_shape = "", shape
    parameter.shard_dim, parameter.shard_offset = shard_dim, offset
    parameter.init, parameter.tensor_model_parallel = init, shard_dim is not None
    parameter.growth = None
    return parameter


def global_parameters(module: nn.Module) -> Iterator[GlobalParameter]:
    """The parameters, each once."""
    for parameter in module.parameters():
        assert isinstance(parameter, GlobalParameter), "layers make their parameters with make_parameter"
        yield parameter


def name_parameters(layers: Iterable[tuple[str, nn.Module]]) -> None:
    """Give every parameter its global name: the layer's and the path below it, wherever the layer is registered."""
    for layer_name, layer in layers:
        for name, parameter in layer.named_parameters():
            assert isinstance(parameter, GlobalParameter)
            parameter.global_name = f"{layer_name}.{name}"


def reset_parameters(
    module: nn.Module, seed: int, device: torch.device, factor: Callable[[GlobalParameter], float] = lambda parameter: 1.0
) -> None:
    """Draw the first values: a pure function of ``seed``, the global name and the kind of device, whatever the layout.

    Every rank draws the whole tensor on ``device`` and keeps its slice times ``factor``; one tensor at a time is in memory.
    """
    with torch.no_grad():
        for parameter in global_parameters(module):
            whole = torch.empty(parameter.global_shape, device=device)
            parameter.init(whole, _generator(seed, parameter.global_name, device))
            parameter.copy_(local_slice(parameter, whole)).mul_(factor(parameter))


def fill_parameters(module: nn.Module, weights: Mapping[str, Tensor], *, whole: bool) -> None:
    """Set every parameter to its slice of the whole tensor of its global name.

    Args:
        whole: all layers are here, not one pipeline stage's: the weights hold nothing else.

    Raises:
        ValueError: a tensor is absent, too many, or has another shape: the weights are of another architecture.
    """
    parameters = {parameter.global_name: parameter for parameter in global_parameters(module)}
    if odd := sorted(parameters.keys() ^ weights.keys() if whole else parameters.keys() - weights.keys()):
        place = "the weights lack" if odd[0] in parameters else "this architecture has no"
        raise ValueError(f"{place} {odd[0]}: they are of another architecture ({len(odd)} names differ)")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if tuple(weights[name].shape) != parameter.global_shape:
                raise ValueError(f"{name} is {list(weights[name].shape)} in the weights, {list(parameter.global_shape)} here")
            parameter.copy_(local_slice(parameter, weights[name]))


def local_slice(parameter: GlobalParameter, whole: Tensor) -> Tensor:
    """The part of a whole tensor that this parameter holds."""
    if parameter.shard_dim is None:
        return whole
    return whole.narrow(parameter.shard_dim, parameter.shard_offset, parameter.shape[parameter.shard_dim])


def _generator(seed: int, name: str, device: torch.device) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:4], "little"))  # the CPU's uses 32 bits of a seed, not more
