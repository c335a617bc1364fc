"""First values of weights: GPT-NeoX's methods by their formulas, and the same on every layout."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from model.config import Layout
from model.config.architecture import InitMethod
from model.gpt import GPT
from model.layers.init import Draw, input_init, output_init
from model.parallel.groups import Groups
from model.parallel.parameters import global_parameters, local_slice
from tests.model.networks import VOCAB, small_config

METHODS = get_args(InitMethod)
SHAPES = ((63, 250), (250, 63), (120, 120))
STD, LAYERS, WIDTH = 0.3, 6, 40
DEVIATIONS = {
    "normal": lambda n, m: STD,
    "scaled_normal": lambda n, m: STD / math.sqrt(12),
    "single_residual_scaled_normal": lambda n, m: STD / math.sqrt(6),
    "small_init": lambda n, m: math.sqrt(2 / 200),
    "wang_init": lambda n, m: 2 / 6 / math.sqrt(40),
    "xavier_uniform": lambda n, m: math.sqrt(6 / (n + m)) / math.sqrt(3),
    "xavier_normal": lambda n, m: math.sqrt(2 / (n + m)),
    "orthogonal": lambda n, m: math.sqrt(2 * min(n, m) / (n * m)),
    "scaled_orthogonal": lambda n, m: math.sqrt(2 / 6 * min(n, m) / (n * m)),
}
"""Method -> the root mean square of an n x m matrix; of an orthogonal one the min(n, m) singular values are all the gain."""


def drawn(method: Any, shape: tuple[int, int]) -> Any:
    whole = torch.empty(shape)
    draw = Draw(method=method, std=STD, layers=LAYERS, hidden_size=WIDTH)
    draw(whole, torch.Generator().manual_seed(5))
    return whole


def test_every_method_has_its_formula_here() -> None:
    assert set(DEVIATIONS) == set(METHODS)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_entries_have_the_deviation_of_their_method(method: Any, shape: tuple[int, int]) -> None:
    draw = Draw(method=method, std=STD, layers=LAYERS, hidden_size=WIDTH)
    expected = DEVIATIONS[method](*shape)
    assert draw.deviation(shape) == pytest.approx(expected, rel=1e-12)
    whole = drawn(method, shape)
    assert float(whole.square().mean().sqrt()) == pytest.approx(expected, rel=0.03)
    assert abs(float(whole.mean())) < 0.03 * expected


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("method", "square"), [("orthogonal", 2), ("scaled_orthogonal", 2 / LAYERS)])
def test_an_orthogonal_matrix_keeps_lengths_but_for_its_gain(method: str, square: float, shape: tuple[int, int]) -> None:
    whole = drawn(method, shape)
    narrow = whole if shape[0] >= shape[1] else whole.T
    assert torch.allclose(narrow.T @ narrow, square * torch.eye(min(shape)), atol=1e-5)


def test_xavier_uniform_fills_its_interval_evenly() -> None:
    shape = (300, 500)
    share = drawn("xavier_uniform", shape) / math.sqrt(6 / 800)
    counts = torch.histc(share, bins=10, min=-1, max=1) / share.numel()
    assert float(counts.sum()) == 1
    assert counts.tolist() == pytest.approx([0.1] * 10, abs=0.005)


def test_the_two_keys_are_for_what_reads_and_what_writes_the_residual_stream() -> None:
    config = small_config(init_method="xavier_uniform", output_layer_init_method="scaled_orthogonal", init_method_std=0.1)
    assert input_init(config) == Draw(method="xavier_uniform", std=0.1, layers=2, hidden_size=32)
    network = GPT(config, VOCAB)
    by_method = {True: output_init(config), False: input_init(config)}
    for parameter in global_parameters(network):
        if parameter.dim() == 2:
            writes = parameter.global_name.endswith(("dense.weight", "linear2.weight"))
            assert parameter.init == by_method[writes]


@pytest.mark.parametrize("method", METHODS)
def test_a_rank_holds_its_slice_of_the_same_weights_on_every_layout(method: str) -> None:
    keys: dict[str, Any] = {"init_method": method, "output_layer_init_method": method, "num_kv_heads": 2}
    wholes = {p.global_name: p.detach() for p in global_parameters(GPT(small_config(**keys), VOCAB))}
    layout = Layout(world_size=4, tensor=2, pipe=2)
    seen = set()
    for rank in range(4):
        config = small_config(**keys, model_parallel_size=2, pipe_parallel_size=2)
        for parameter in global_parameters(GPT(config, VOCAB, Groups(layout=layout, rank=rank))):
            assert torch.equal(parameter, local_slice(parameter, wholes[parameter.global_name])), parameter.global_name
            seen.add(parameter.global_name)
    assert seen == wholes.keys()
