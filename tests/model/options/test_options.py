"""Every option against its reference and on every layout; this folder's docstring says how to add one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, get_args

import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
pytest.importorskip("deepspeed", reason="pip install deepspeed==0.19.8")

from torch import Tensor
from torch.nn import functional as F

from model.config import RunConfig
from model.config.architecture import Architecture
from model.config.keys import trained_values
from model.config.partition import layer_parameters
from model.config.run import TRAINED_ATTENTION
from model.gpt import GPT
from model.parallel.groups import Groups
from model.parallel.parameters import global_parameters
from tests.model import options
from tests.model.grid.cells import PADDED, SEQUENCES, VOCAB
from tests.model.grid.comparison import differences
from tests.model.grid.training import Expected, samples, train_on_one_rank
from tests.model.options.option import LAYOUTS, STEPS, Option
from tests.ranks import RankPool


def _found() -> dict[str, Option]:
    """Option by "file: name", over the files of this folder."""
    names = sorted(info.name for info in pkgutil.iter_modules(options.__path__) if not info.name.startswith("test_"))
    modules = {name: importlib.import_module(f"{options.__name__}.{name}") for name in names}
    return {f"{name}: {key}": option for name, found in modules.items() for key, option in getattr(found, "OPTIONS", {}).items()}


OPTIONS = _found()
each = pytest.mark.parametrize("name", OPTIONS)

KEYS_WITH_VALUES = ("norm", "activation", "pos_emb")
"""Keys of which every value that trains stands in an option."""


@each
def test_logits_and_gradients_equal_the_reference(name: str) -> None:
    option = OPTIONS[name]
    network, batch = _disturbed(_network(option.network)), samples(0, SEQUENCES, option.network["seq_length"])
    weights = {p.global_name: p.detach().clone().requires_grad_() for p in global_parameters(network)}
    expected_BSV = option.reference(weights, option.network, batch.tokens_BS)
    with torch.no_grad():
        found_BSV = network.eval().logits(batch.tokens_BS)
    assert expected_BSV.std() > 0.3, "else a wrong network would be near, too"
    assert _off(found_BSV, expected_BSV[..., :VOCAB]) < 1e-5
    if option.dropping is not None:
        expected_BSV = option.dropping(weights, option.network, batch.tokens_BS)
    losses_T = F.cross_entropy(expected_BSV.flatten(0, 1), batch.labels_BS.flatten(), reduction="none")
    expected = (losses_T * batch.loss_mask_BS.flatten()).sum() / batch.loss_mask_BS.sum()
    gradients = torch.autograd.grad(expected, list(weights.values()), allow_unused=True)
    loss = network.train()(batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for parameter, gradient in zip(global_parameters(network), gradients, strict=True):
        assert gradient is not None, f"the reference does not use {parameter.global_name}"
        assert _relative(parameter.grad, gradient) < 1e-5, parameter.global_name


@each
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_as_a_plain_loop_does(
    name: str, layout: str, plain: Plain, rank_pool: Callable[[int], RankPool]
) -> None:
    ranks, keys = OPTIONS[name].on(layout)
    found = rank_pool(ranks).run("tests.model.grid.cases:train_cell", keys, None, STEPS)
    report = [str(difference) for difference in differences(found, plain(name))]
    assert not report, "\n".join([f"{len(report)} differences", *report[:20]])


@each
def test_the_loss_falls(name: str, plain: Plain) -> None:
    """Else equal curves would say little."""
    losses = plain(name).losses
    assert losses[-1] < losses[0]


@each
@pytest.mark.parametrize("parts", [[7, 1, 1], [1] * 9])
def test_a_cache_changes_no_logits(name: str, parts: list[int]) -> None:
    network = _disturbed(_network(OPTIONS[name].network)).double().eval()
    tokens_BS = samples(0, 2, sum(parts)).tokens_BS
    with torch.no_grad():
        cache = network.new_cache()
        found = [network.logits(part, cache) for part in tokens_BS.split(parts, dim=1)]
        torch.testing.assert_close(torch.cat(found, dim=1), network.logits(tokens_BS), atol=1e-9, rtol=1e-9)


@each
@pytest.mark.parametrize("granularity", ["full", "selective"])
def test_recomputing_changes_no_gradient(name: str, granularity: str) -> None:
    keys = OPTIONS[name].network
    again = {"checkpoint_activations": True, "neox_hpc": keys.get("neox_hpc", {}) | {"recompute_granularity": granularity}}
    found, expected = (_gradients(keys | more) for more in (again, {}))
    for parameter, gradient in expected.items():
        assert _relative(found[parameter], gradient) < 1e-6, parameter


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: make test-gpu on a machine with one")
@each
def test_a_gpu_computes_as_a_cpu_does(name: str) -> None:
    keys = {**OPTIONS[name].network, "hidden_dropout": 0.0, "attention_dropout": 0.0}  # a GPU draws others
    found, expected = _gradients(keys, "cuda"), _gradients(keys)
    for parameter, gradient in expected.items():
        assert _relative(found[parameter].cpu(), gradient) < 1e-3, parameter


@each
@pytest.mark.parametrize("tensor", [1, 2])
def test_parameters_are_as_many_as_are_counted(name: str, tensor: int) -> None:
    keys = OPTIONS[name].network | {"model_parallel_size": tensor, "make_vocab_size_divisible_by": PADDED // tensor}
    config = RunConfig.from_keys(keys)
    network = GPT(config, VOCAB, Groups(layout=config.layout(tensor)))
    found = tuple(sum(p.numel() for p in layer.parameters()) for layer in (*network.layers, network.head))
    assert found == layer_parameters(config, PADDED, tensor)


@pytest.mark.parametrize("key", KEYS_WITH_VALUES)
def test_every_value_of_a_key_is_an_option(key: str) -> None:
    field = Architecture.model_fields[key]
    trained = set(trained_values(field) or get_args(field.annotation))
    assert trained == {option.network.get(key, field.default) for option in OPTIONS.values()}


def test_every_kind_of_attention_that_trains_is_an_option() -> None:
    networks = (RunConfig.from_keys(option.network) for option in OPTIONS.values())
    assert {kind for config in networks for kind in config.architecture.attention_kinds} == TRAINED_ATTENTION


def test_no_two_options_are_the_same_network() -> None:
    networks = [str(sorted(option.network.items())) for option in OPTIONS.values()]
    assert len(set(networks)) == len(networks)


Plain = Callable[[str], Expected]


@pytest.fixture(scope="module")
def plain() -> Plain:
    """The option trained on one rank in a plain loop of torch, once."""
    known: dict[str, Expected] = {}

    def train(name: str) -> Expected:
        if name not in known:
            known[name] = train_on_one_rank(OPTIONS[name].network, STEPS)
        return known[name]

    return train


def _network(keys: Mapping[str, Any]) -> GPT:
    return GPT(RunConfig.from_keys({**keys, "make_vocab_size_divisible_by": PADDED}), VOCAB)


def _disturbed(network: GPT) -> GPT:
    """Gains and biases begin at 1 and 0, where a wrong use of them would not show."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in global_parameters(network):
            if p.dim() == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return network


def _gradients(keys: Mapping[str, Any], device: str = "cpu") -> dict[str, Tensor]:
    network = _network(keys).to(device)
    network(samples(0, 2, keys["seq_length"]).to(torch.device(device))).backward()
    return {p.global_name: p.grad for p in global_parameters(network)}


def _off(found: Tensor, expected: Tensor) -> float:
    """The largest difference, beside the largest value."""
    return float((found.double() - expected.detach().double()).abs().max() / expected.detach().abs().max())


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))
