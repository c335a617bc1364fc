"""The base shapes of muP: made from a configuration, kept in a file (``base_shapes_file``); changes when the file has another form.

One file for every layout, by global names, where GPT-NeoX has one a rank.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from model.config import RunConfig
from model.gpt import make_layers
from model.implementations import choose
from model.mup import BaseShapes, kind_of
from model.parallel.groups import one_rank
from model.parallel.parameters import global_parameters


def base_shapes_of(config: RunConfig) -> BaseShapes:
    """A configuration as the base.  What grows with the width is seen from a second one, ``mup_width_scale`` times as wide.

    Raises:
        ValueError: the second one cannot be, or the architecture not be built.
    """
    narrow, wide = _shapes(config), _shapes(widened(config, config.maximal_update.mup_width_scale))
    shape = config.architecture
    growing = {
        kind: tuple(here if here != there else None for here, there in zip(sizes, wide[kind], strict=True))
        for kind, sizes in narrow.items()
    }
    return BaseShapes(hidden_size=shape.hidden_size, head_size=shape.head_size, shapes=growing)


def widened(config: RunConfig, times: int) -> RunConfig:
    """The same network ``times`` as wide, with as many heads."""
    shape = config.architecture
    inner = shape.intermediate_size
    return config.with_keys(hidden_size=shape.hidden_size * times, intermediate_size=inner and inner * times)


def write_base_shapes(config: RunConfig) -> Path:
    """Write ``base_shapes_file``; return its path."""
    path, text = _path(config), _text(base_shapes_of(config))
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"base_shapes_file: {path} cannot be written: {error.strerror}") from error
    return path


def read_base_shapes(config: RunConfig) -> BaseShapes | None:
    """What ``base_shapes_file`` says; ``None`` without muP.

    Raises:
        ValueError: the file is missing or holds something else.
    """
    if not config.maximal_update.use_mup:
        return None
    path = _path(config)
    fix = "a run of the base network with save_base_shapes: true writes it"
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        shapes = {
            str(kind): tuple(None if size is None else int(size) for size in sizes) for kind, sizes in written["shapes"].items()
        }
        return BaseShapes(hidden_size=int(written["hidden_size"]), head_size=int(written["head_size"]), shapes=shapes)
    except OSError as error:
        raise ValueError(f"base_shapes_file: {path} cannot be read: {error.strerror}\n  fix: {fix}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"base_shapes_file: {path} holds no base shapes: {error!r}\n  fix: {fix}") from error


def _text(base: BaseShapes) -> str:
    """JSON, a parameter a line."""
    shapes = ",\n".join(f"  {json.dumps(kind)}: {json.dumps(sizes)}" for kind, sizes in base.shapes.items())
    return f'{{\n "hidden_size": {base.hidden_size},\n "head_size": {base.head_size},\n "shapes": {{\n{shapes}\n }}\n}}\n'


def _path(config: RunConfig) -> Path:
    named = config.maximal_update.base_shapes_file
    assert named is not None, "use_mup without base_shapes_file is refused, but for the coordinate check"
    return Path(named)


def _shapes(config: RunConfig) -> dict[str, tuple[int, ...]]:
    """Kind of parameter -> whole shape, without memory for the values."""
    everything, alone = range(config.architecture.num_layers + 3), one_rank()
    with torch.device("meta"):
        table = choose(config, torch.device("cpu"))
        positions = table.positions.code(config, alone)
        layers = make_layers(config, config.padded_vocab_size(1), alone, table, positions, everything)
    shared = [positions.bias] if isinstance(positions.bias, nn.Module) else []
    return {kind_of(p.global_name): p.global_shape for layer in (*layers, *shared) for p in global_parameters(layer)}
