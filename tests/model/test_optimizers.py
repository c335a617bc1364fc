"""Every optimizer: against its paper's formula, over layouts and stages of ZeRO, through checkpoints, and where it is refused."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from model.config import ConfigError, RunConfig
from model.config.optimizers import OPTIMIZERS
from model.engine.cpu_adam import load_operation
from model.gpt import GPT
from model.optim import make_optimizer
from model.parallel.parameters import global_parameters
from tests.model.tiny import KEYS, curve, write_tiny_run
from tests.ranks import RankPool

TRAIN = "tests.model.cases_training:train"
REFUSAL = "tests.model.cases_training:refusal"
Array = np.ndarray[Any, np.dtype[np.float64]]
LR, DECAY = 0.02, 0.3


# Formulas ----------------------------------------------------------------------------------------------------------------


def adam(w: Array, gradients: list[Array], decay: float, *, l2: bool = False) -> Array:
    """arXiv:1412.6980, algorithm 1; decoupled decay of arXiv:1711.05101, algorithm 2."""
    m = v = np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        if l2:
            g = g + decay * w
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        step = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-6)
        w = w - LR * (step + (0 if l2 else decay * w))
    return w


def sgd(w: Array, gradients: list[Array], decay: float) -> Array:
    """Polyak 1964, with the decay in the gradient."""
    v = np.zeros_like(w)
    for g in gradients:
        v = 0.7 * v + g + decay * w
        w = w - LR * v
    return w


def lion(w: Array, gradients: list[Array], decay: float) -> Array:
    """arXiv:2302.06675, algorithm 2."""
    m = np.zeros_like(w)
    for g in gradients:
        w = w - LR * (np.sign(0.8 * m + 0.2 * g) + decay * w)
        m = 0.95 * m + 0.05 * g
    return w


def madgrad(w: Array, gradients: list[Array], decay: float) -> Array:
    """arXiv:2101.11075, algorithm 1, the rate raised by eps as its authors do; decay before the step."""
    first, s, v = w, np.zeros_like(w), np.zeros_like(w)
    for k, g in enumerate(gradients):
        size = (LR + 1e-6) * math.sqrt(k + 1)
        s, v = s + size * g, v + size * g**2
        z = first - s / (np.cbrt(v) + 1e-6)
        w = 0.9 * w * (1 - (LR + 1e-6) * decay) + 0.1 * z
    return w


def muon(w: Array, gradients: list[Array], decay: float) -> Array:
    """https://kellerjordan.github.io/posts/muon/ with the size of arXiv:2502.16982, equation 4; vectors are AdamW's."""
    if w.ndim == 1:
        return adam(w, gradients, decay)
    m = np.zeros_like(w)
    for g in gradients:
        m = 0.95 * m + 0.05 * g
        x = g + 0.95 * (m - g)
        x = x / np.linalg.norm(x)
        for _ in range(5):
            square = x.T @ x
            x = 3.4445 * x - 4.7750 * x @ square + 2.0315 * x @ square @ square
        w = w - LR * (0.2 * math.sqrt(max(w.shape)) * x + decay * w)
    return w


def sm3(w: Array, gradients: list[Array], decay: float, *, momentum: float = 0.6, beta: float = 0.0) -> Array:
    """arXiv:1901.11150, SM3-II over rows and columns (of a vector: elements), with GPT-NeoX's momentum and beta."""
    dims = range(w.ndim)
    others = [tuple(other for other in dims if other != dim) for dim in dims]
    largest = [np.zeros_like(w).max(axis=axes, keepdims=True) for axes in others]
    m = np.zeros_like(w)
    for g in gradients:
        n = np.minimum.reduce(np.broadcast_arrays(*largest)) * (beta or 1) + (1 - beta) * g**2
        m = momentum * m + (1 - momentum) * g / np.sqrt(n + 1e-30)
        w = w - LR * m
        largest = [np.maximum(a, n.max(axis=axes, keepdims=True)) for a, axes in zip(largest, others, strict=True)]
    return w


FREEZE = 8


def onebit_adam(w: Array, gradients: list[Array], decay: float) -> Array:
    """The same as of one rank alone."""
    return onebit_adam_of_ranks(w, [[g] for g in gradients], decay, [(0, w.size)])


def onebit_adam_of_ranks(w: Array, gradients: list[list[Array]], decay: float, chunks: list[tuple[int, int]]) -> Array:
    """arXiv:2102.02888, algorithm 1; ``gradients`` of every step and rank, ``chunks`` of the mean that each rank compresses."""
    m, v = np.zeros(w.size), np.zeros(w.size)
    worker, server = np.zeros((len(chunks), w.size)), np.zeros(w.size)

    def sign(x: Array) -> Array:
        return np.where(x >= 0, 1.0, -1.0) * np.linalg.norm(x) / math.sqrt(max(1, x.size))

    for t, step in enumerate(gradients, 1):
        flat = [g.reshape(-1) for g in step]
        if t <= FREEZE:
            g = np.mean(flat, axis=0)
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        else:
            own = [0.8 * m + 0.2 * g + error for g, error in zip(flat, worker, strict=True)]
            worker = np.array([x - sign(x) for x in own])
            mean = np.mean([sign(x) for x in own], axis=0) + server
            m = np.concatenate([sign(mean[begin:end]) for begin, end in chunks])
            server = mean - m
        w = w - LR * (m / (np.sqrt(v) + 1e-6)).reshape(w.shape) - LR * decay * w
    return w


BETAS = {"betas": [0.8, 0.95]}
ADAM = BETAS | {"eps": 1e-6}
FORMULAS: dict[str, tuple[Callable[..., Array], dict[str, Any]]] = {
    "adam": (adam, ADAM),
    "adamw": (adam, ADAM),
    "cpu_torch_adam": (adam, ADAM),
    "adam8bit": (adam, ADAM),  # moments of fewer than 4096 elements are not in 8 bits
    "cpu_adam": (adam, ADAM),
    "onebitadam": (onebit_adam, ADAM | {"freeze_step": FREEZE}),
    "sm3": (sm3, {"momentum": 0.6}),
    "muon": (muon, ADAM),
    "sgd": (sgd, {"momentum": 0.7}),
    "lion": (lion, BETAS),
    "madgrad_wd": (madgrad, {}),
}
"""Optimizer -> the formula of its source, and the numbers that stand in it."""


def chosen(*left_out: str) -> Any:
    """The optimizers, with what a test of each needs."""
    marks: dict[str, Any] = {
        "adam8bit": pytest.mark.skipif(not find_spec("bitsandbytes"), reason="pip install 'bitsandbytes>=0.50'"),
        "cpu_adam": pytest.mark.full,  # its operation takes two minutes to build
    }
    names = [name for name in OPTIMIZERS if name not in left_out]
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks.get(name, ())) for name in names])


@pytest.fixture(scope="session")
def operation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeepSpeed's CPUAdam, built; or the one that NEOX_HPC_CPU_ADAM_OP names, which saves two minutes."""
    known = os.environ.get("NEOX_HPC_CPU_ADAM_OP")
    if known:
        return Path(known)
    file = tmp_path_factory.mktemp("operation") / "cpu_adam.so"
    subprocess.run([sys.executable, "-m", "model.engine.cpu_adam", str(file)], check=True)
    return file


ROUNDED = {"muon": 0.02}
"""Of the way that a weight goes, what an optimizer that computes in bfloat16 may miss."""
IN_NODE = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


def keys_of(name: str, **params: Any) -> dict[str, Any]:
    """Keys by which an optimizer is chosen, and without which it is refused."""
    kind = OPTIMIZERS[name]
    keys: dict[str, Any] = {"optimizer": {"type": "adam" if name == "adam8bit" else name, "params": FORMULAS[name][1] | params}}
    keys |= {"use_bnb_optimizer": True} if name == "adam8bit" else {}
    return keys | (IN_NODE if kind.in_memory_of_node else {}) | ({} if kind.decays else {"weight_decay": 0.0})


def config(name: str, **changes: Any) -> RunConfig:
    return RunConfig.from_keys(KEYS | {"weight_decay": DECAY} | keys_of(name, lr=LR) | changes)


def test_every_optimizer_has_a_formula_here() -> None:
    assert set(FORMULAS) == set(OPTIMIZERS)


def stepped(made: torch.optim.Optimizer, weights: list[nn.Parameter], gradients: list[list[Array]]) -> list[Array]:
    for step in gradients:
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = torch.tensor(gradient, dtype=torch.float32)
        made.step()
    return [weight.detach().double().numpy() for weight in weights]


def drawn() -> tuple[list[Array], list[list[Array]]]:
    """A matrix and a vector, and gradients of 20 steps."""
    random = np.random.default_rng(5)
    shapes = ((63, 5), (7,))
    return [random.normal(size=shape) for shape in shapes], [[random.normal(size=shape) for shape in shapes] for _ in range(20)]


@chosen()
def test_an_optimizer_follows_the_formula_of_its_source(name: str, request: pytest.FixtureRequest) -> None:
    if name == "cpu_adam":
        load_operation(str(request.getfixturevalue("operation")))
    first, gradients = drawn()
    weights = [nn.Parameter(torch.tensor(w, dtype=torch.float32)) for w in first]
    made = make_optimizer(config(name), weights)
    decay = DECAY if OPTIMIZERS[name].decays else 0.0
    for number, found in enumerate(stepped(made, weights, gradients)):
        wanted = FORMULAS[name][0](first[number], [step[number] for step in gradients], decay if number == 0 else 0.0)
        way = ROUNDED.get(name, 0.0) * np.abs(wanted - first[number]).max() if number == 0 else 0.0
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 + way)


@pytest.mark.parametrize("params", [{"beta": 0.9}, {"momentum": 0.3, "beta": 0.5}], ids=str)
def test_sm3_follows_gpt_neox_with_beta(params: dict[str, float]) -> None:
    first, gradients = drawn()
    weights = [nn.Parameter(torch.tensor(w, dtype=torch.float32)) for w in first]
    made = make_optimizer(config("sm3", optimizer={"type": "sm3", "params": {"lr": LR} | params}), weights)
    for number, found in enumerate(stepped(made, weights, gradients)):
        wanted = sm3(first[number], [step[number] for step in gradients], 0.0, **{"momentum": 0.0} | params)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [7, 8, 63, 1000])
def test_1_bit_adam_of_two_ranks_follows_the_paper(two_ranks: RankPool, size: int) -> None:
    """The first rank compresses the first half of the mean, in whole bytes."""
    random = np.random.default_rng(7)
    first, gradients = random.normal(size=size), random.normal(size=(20, 2, size))
    half = -(-size // 16) * 8
    wanted = onebit_adam_of_ranks(first, [list(step) for step in gradients], 0.0, [(0, half), (half, size)])
    keys = KEYS | keys_of("onebitadam", lr=LR)
    for found in two_ranks.run("tests.model.cases_optimizers:steps_of_own_gradients", keys, first, gradients):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_1_bit_adam_leaves_alone_what_had_no_gradient_in_the_warm_up(two_ranks: RankPool) -> None:
    random = np.random.default_rng(9)
    first, gradients, met = random.normal(size=63), random.normal(size=(20, 2, 63)), np.arange(63) % 3 > 0
    gradients[:FREEZE, :, ~met] = 0
    half, whole = int(met[:32].sum()), int(met.sum())
    others = gradients[:, :, met]
    wanted = first.copy()
    wanted[met] = onebit_adam_of_ranks(first[met], [list(step) for step in others], 0.0, [(0, half), (half, whole)])
    keys = KEYS | keys_of("onebitadam", lr=LR)
    for found in two_ranks.run("tests.model.cases_optimizers:steps_of_own_gradients", keys, first, gradients):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_1_bit_adam_needs_a_step_of_warm_up() -> None:
    assert set(problems(**keys_of("onebitadam", freeze_step=0))) == {"optimizer.params.freeze_step"}


@pytest.mark.skipif(not find_spec("bitsandbytes"), reason="pip install 'bitsandbytes>=0.50'")
def test_8_bit_moments_take_a_quarter_and_go_nearly_where_32_bits_do() -> None:
    random = np.random.default_rng(3)
    first, gradients = random.normal(size=(64, 100)), list(random.normal(size=(20, 64, 100)))
    weight = nn.Parameter(torch.tensor(first, dtype=torch.float32))
    made = make_optimizer(config("adam8bit"), [weight])
    found = stepped(made, [weight], [[g] for g in gradients])[0]
    wanted = adam(first, gradients, DECAY)
    assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted - first)
    held = sum(value.nbytes for key, value in made.state[weight].items() if key.startswith(("state", "absmax")))
    assert held == OPTIMIZERS["adam8bit"].bytes_a_weight({}) * weight.numel()


def test_adam_puts_the_decay_into_the_gradient_where_adam_w_mode_is_false() -> None:
    first, gradients = drawn()
    weights = [nn.Parameter(torch.tensor(first[0], dtype=torch.float32))]
    made = make_optimizer(config("adam", optimizer={"params": {"lr": LR, "adam_w_mode": False} | ADAM}), weights)
    found = stepped(made, weights, [step[:1] for step in gradients])[0]
    np.testing.assert_allclose(found, adam(first[0], [step[0] for step in gradients], DECAY, l2=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "madgrad_wd"])
def test_without_momentum_less_is_kept_and_the_first_step_is_the_whole_one(name: str) -> None:
    """With momentum 0.5 MADGRAD makes half of a step, SGD the same; a second equal gradient tells them apart."""
    ends = {}
    for momentum in (0.0, 0.5):
        given = config(name, optimizer={"type": name, "params": {"lr": 0.1, "momentum": momentum}}, weight_decay=0.0)
        weight = nn.Parameter(torch.ones(2, 2))
        made = make_optimizer(given, [weight])
        for _ in range(2):
            weight.grad = torch.ones(2, 2)
            made.step()
        ends[momentum] = float(weight.detach()[0, 0])
        kept = {key for key, value in made.state[weight].items() if isinstance(value, torch.Tensor) and value.dim()}
        assert kept == set(given.optimizer_states)
    lr, root = 0.1 + 1e-6, math.sqrt(2)
    after = [1 - lr / (np.cbrt(lr) + 1e-6), 1 - lr * (1 + root) / (np.cbrt(lr * (1 + root)) + 1e-6)]
    wanted = {0.0: after[1], 0.5: 0.5 * (0.5 + 0.5 * after[0]) + 0.5 * after[1]}
    if name == "sgd":
        wanted = {0.0: 1 - 0.1 - 0.1, 0.5: 1 - 0.1 - 0.15}
    assert ends == pytest.approx(wanted, rel=1e-5)


# Layouts, stages of ZeRO, checkpoints ------------------------------------------------------------------------------------

TENSOR_2 = {"model_parallel_size": 2}
LEGS: tuple[tuple[int, dict[str, Any]], ...] = (
    (2, {"zero_optimization": {"stage": 1}}),
    (2, {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}),
    (2, TENSOR_2),
    (2, {"zero_optimization": {"stage": 2}}),
    (1, {"zero_optimization": {"stage": 0}}),
)


def cut(name: str, keys: dict[str, Any]) -> dict[str, Any]:
    """The keys of a leg, with a stage of ZeRO and the offload where the optimizer needs them; of the pipe where it bears none."""
    if OPTIMIZERS[name].whole_because:
        left = {key: keys[key] for key in keys if key == "model_parallel_size" and not OPTIMIZERS[name].uncut_because}
        return {"pipe_parallel_size": 2} if keys == LEGS[0][1] else left
    if not OPTIMIZERS[name].in_memory_of_node:
        return keys
    zero = keys.get("zero_optimization", {"stage": 0})
    return keys | {"zero_optimization": zero | {"stage": max(zero["stage"], 1), "offload_optimizer": {"device": "cpu"}}}


RATES = {"lion": 1e-3, "sgd": 0.1, "madgrad_wd": 0.01}


def small(name: str) -> dict[str, Any]:
    """A run of ten steps, whose loss falls."""
    params: dict[str, Any] = {"lr": RATES.get(name, 0.01)}
    params |= {"eps": 1e-4} if "eps" in OPTIMIZERS[name].reads else {}  # else Adam makes rounding as large as what it rounds
    params |= {"freeze_step": 100} if name == "onebitadam" else {}  # after it the number of data ranks matters
    keys: dict[str, Any] = {"train_iters": 10, "eval_iters": 0, "hidden_dropout": 0.0}
    return keys | keys_of(name, **params)


@chosen("adamw")
def test_a_run_goes_from_one_cut_to_another_as_if_it_had_stayed_on_one_rank(
    tmp_path: Path, rank_pool: Callable[[int], RankPool], name: str, request: pytest.FixtureRequest
) -> None:
    """Each leg trains two steps from the checkpoint of the one before it.  Blocks of 8 bits lie elsewhere at every cut."""
    keys = small(name)
    if name == "cpu_adam":
        keys["neox_hpc"] = {"cpu_adam_op": str(request.getfixturevalue("operation"))}
    rank_pool(1).run(TRAIN, write_tiny_run(tmp_path / "whole", save=None, **keys))
    found: list[float] = []
    for number, (ranks, leg) in enumerate(LEGS):
        load = str(tmp_path / f"leg{number - 1}" / "checkpoints") if number else None
        rank_pool(ranks).run(TRAIN, write_tiny_run(tmp_path / f"leg{number}", load=load, exit_interval=2, **keys | cut(name, leg)))
        found += curve(tmp_path / f"leg{number}")
    whole = curve(tmp_path / "whole")
    assert whole[0] - whole[-1] > 0.2
    assert found == pytest.approx(whole, rel={"adam8bit": 1e-2, "muon": 1e-3}.get(name, 2e-5))


BF16: dict[str, dict[str, Any]] = {
    "stage 1": {"zero_optimization": {"stage": 1}},
    "stage 2": {"zero_optimization": {"stage": 2}},
    "stage 3": {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}},
    "two stages": {"zero_optimization": {"stage": 1}, "pipe_parallel_size": 2},
    "stage 1 offloaded": {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}},
    "stage 3 offloaded": {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}},
}
IN_CI = {("madgrad_wd", "stage 1"), ("lion", "stage 3")}


def bf16_cells() -> Iterator[Any]:
    """Every optimizer that ZeRO may cut, in every form of it; most of them in the long suite only."""
    for name, kind in OPTIMIZERS.items():
        for cell in BF16:
            offloaded = "offloaded" in cell
            if kind.whole_because or name == "adamw" or (offloaded and name == "adam8bit"):
                continue
            if not kind.in_memory_of_node or offloaded:
                yield pytest.param(name, cell, marks=[] if (name, cell) in IN_CI else pytest.mark.full)


@pytest.mark.parametrize(("name", "cell"), list(bf16_cells()))
def test_in_bf16_a_run_follows_one_rank_and_continues_bit_for_bit(
    tmp_path: Path, rank_pool: Callable[[int], RankPool], name: str, cell: str, request: pytest.FixtureRequest
) -> None:
    keys = small(name) | {"precision": "bfloat16"}
    if name == "cpu_adam":
        keys["neox_hpc"] = {"cpu_adam_op": str(request.getfixturevalue("operation"))}
    rank_pool(1).run(TRAIN, write_tiny_run(tmp_path / "one", save=None, **keys))
    rank_pool(2).run(TRAIN, write_tiny_run(tmp_path / "whole", **keys | BF16[cell]))
    rank_pool(2).run(TRAIN, write_tiny_run(tmp_path / "cut", exit_interval=6, **keys | BF16[cell]))
    rank_pool(2).run(TRAIN, write_tiny_run(tmp_path / "cut", **keys | BF16[cell]))
    assert curve(tmp_path / "one")[0] - curve(tmp_path / "one")[-1] > 0.2
    assert curve(tmp_path / "whole") == pytest.approx(curve(tmp_path / "one"), rel=1e-2)
    assert curve(tmp_path / "cut") == pytest.approx(curve(tmp_path / "whole"), rel=1e-3 if name == "adam8bit" else 0, abs=0)


@pytest.mark.parametrize(("ranks", "pipe"), [(2, 1), pytest.param(4, 2, marks=pytest.mark.full)])
def test_1_bit_adam_is_given_each_ranks_own_gradient_after_its_warm_up(
    rank_pool: Callable[[int], RankPool], ranks: int, pipe: int
) -> None:
    keys = (
        KEYS | keys_of("onebitadam", freeze_step=2) | {"pipe_parallel_size": pipe, "hidden_dropout": 0.0, "gradient_clipping": 0.0}
    )
    found = rank_pool(ranks).run("tests.model.cases_optimizers:gradients_by_step", keys, 4)
    for stage in range(pipe):
        one, other = (rest for place, *rest in found if place == stage)
        assert [a == b for a, b in zip(one[0], other[0], strict=True)] == [True, True, False, False]
        assert one[1] == other[1]


def test_1_bit_adam_trains_on_two_ranks_and_two_stages_past_its_warm_up(
    tmp_path: Path, rank_pool: Callable[[int], RankPool]
) -> None:
    """Every data rank has the same weights then: the loss of a step, and the checkpoint, are those of all."""
    keys = small("onebitadam") | {"train_iters": 30, "train_batch_size": 8}
    keys["optimizer"]["params"] |= {"freeze_step": 10, "lr": 0.003}
    rank_pool(4).run(TRAIN, write_tiny_run(tmp_path / "run", pipe_parallel_size=2, **keys))
    losses = curve(tmp_path / "run")
    assert min(losses[10:]) < losses[9] - 0.1 and all(math.isfinite(loss) for loss in losses)
    assert max(curve(tmp_path / "run", "grad_norm")[10:]) < 10 * curve(tmp_path / "run", "grad_norm")[9]


# Refusals ----------------------------------------------------------------------------------------------------------------


def problems(**keys: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_keys(KEYS | keys)
    return {problem.key: f"{problem.wrong} / {problem.fix}" for problem in caught.value.problems}


def test_a_misspelt_optimizer_is_told_the_nearest() -> None:
    assert "did you mean lion?" in problems(optimizer={"type": "Lyon"})["optimizer.type"]


def test_a_number_that_the_optimizer_does_not_have_is_refused() -> None:
    found = problems(optimizer={"type": "sgd", "params": {"betas": [0.9, 0.95]}})
    assert found == {"optimizer.params.betas": "sgd has none; it reads lr, momentum / remove it"}


@pytest.mark.parametrize("name", [name for name, kind in OPTIMIZERS.items() if kind.in_memory_of_node])
def test_an_optimizer_of_the_node_needs_to_be_offloaded(name: str) -> None:
    assert "offload_optimizer: {device: cpu}" in problems(optimizer={"type": name})["optimizer.type"]


@pytest.mark.parametrize("name", [name for name, kind in OPTIMIZERS.items() if kind.whole_because])
@pytest.mark.parametrize(
    ("keys", "why"), [({"zero_optimization": {"stage": 2}}, "stage 2"), ({"precision": "bfloat16"}, "bfloat16 runs as stage 1")]
)
def test_an_optimizer_of_whole_weights_is_refused_where_zero_cuts_them(name: str, keys: dict[str, Any], why: str) -> None:
    found = problems(**keys_of(name) | keys)["optimizer.type"]
    assert f"{name} {OPTIMIZERS[name].whole_because}" in found and f"({why})" in found and "stage: 0" in found


def test_muon_is_refused_where_tensor_ranks_cut_matrices() -> None:
    found = problems(optimizer={"type": "muon"}, model_parallel_size=2)["optimizer.type"]
    assert "tensor parallelism cuts them / write model_parallel_size: 1" in found


def test_muon_takes_the_two_matrices_of_a_gated_mlp_each_by_itself() -> None:
    pair = nn.Parameter(torch.randn(2, 24, 16))
    alone = [nn.Parameter(matrix.clone()) for matrix in pair.detach()]
    together, apart = (make_optimizer(config("muon"), weights) for weights in ([pair], alone))
    for _ in range(3):
        pair.grad = torch.randn(pair.shape) * torch.tensor([1.0, 30.0])[:, None, None]
        for weight, gradient in zip(alone, pair.grad, strict=True):
            weight.grad = gradient.clone()
        together.step()
        apart.step()
    torch.testing.assert_close(pair.detach(), torch.stack([weight.detach() for weight in alone]))


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_muon_leaves_embedding_head_norms_and_biases_to_adamw(activation: str) -> None:
    network = GPT(RunConfig.from_keys(KEYS | {"activation": activation}), 512)
    made = make_optimizer(config("muon"), network.parameters())
    for weight in network.parameters():
        weight.grad = torch.ones_like(weight)
    made.step()
    orthogonal = {p.global_name for p in global_parameters(network) if "momentum_buffer" in made.state[p]}
    parts = ("attention.query_key_value", "attention.dense", "mlp.linear1", "mlp.linear2")
    assert orthogonal == {f"layers.{layer}.{part}.weight" for layer in (0, 1) for part in parts}


FORCE = "deepspeed_extra_args.zero_force_ds_cpu_optimizer"


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"optimizer": {"type": "lion"}, "use_bnb_optimizer": True}, "use_bnb_optimizer"),
        (IN_NODE | {"use_bnb_optimizer": True}, "use_bnb_optimizer"),
        ({"optimizer": {"params": {"adam_w_mode": False}}, "use_bnb_optimizer": True}, "optimizer.params.adam_w_mode"),
        ({"deepspeed_extra_args": {"zero_force_ds_cpu_optimizer": True}}, FORCE),
        (IN_NODE | {"optimizer": {"type": "lion"}, "deepspeed_extra_args": {"zero_force_ds_cpu_optimizer": True}}, FORCE),
        (IN_NODE | {"optimizer": {"type": "lion"}, "deepspeed_extra_args": {"zero_force_ds_cpu_optimizer": False}}, FORCE),
        ({"neox_hpc": {"cpu_adam_op": "/x.so"}}, "neox_hpc.cpu_adam_op"),
        ({"optimizer": {"type": "sm3"}}, "weight_decay"),
        ({"optimizer": {"type": "adamw", "params": {"adam_w_mode": False}}}, "optimizer.params.adam_w_mode"),
    ],
    ids=str,
)
def test_a_key_that_would_choose_nothing_is_refused(keys: dict[str, Any], key: str) -> None:
    assert set(problems(**keys)) == {key}


def forced(asked: str, force: bool | None) -> str:
    extra = {} if force is None else {"deepspeed_extra_args": {"zero_force_ds_cpu_optimizer": force}}
    return RunConfig.from_keys(KEYS | IN_NODE | {"optimizer": {"type": asked}} | extra).optimizer_name


def test_deepspeeds_adam_on_the_cpu_runs_where_it_is_asked_for_and_not_forbidden() -> None:
    assert [forced("adam", force) for force in (None, True, False)] == ["adam", "cpu_adam", "adam"]
    assert [forced("cpu_adam", force) for force in (None, True, False)] == ["cpu_adam", "cpu_adam", "cpu_torch_adam"]


def test_an_operation_that_is_not_built_stops_the_run_before_its_first_step(tmp_path: Path, two_ranks: RankPool) -> None:
    keys = KEYS | keys_of("cpu_adam")
    said = two_ranks.run("tests.model.keys.cases:refused_operation", keys)
    assert len(set(said)) == 1 and "is not built" in said[0] and "zero_force_ds_cpu_optimizer: false" in said[0]
    (tmp_path / "other.so").write_bytes(b"no library")
    said = two_ranks.run(
        "tests.model.keys.cases:refused_operation", keys | {"neox_hpc": {"cpu_adam_op": str(tmp_path / "other.so")}}
    )
    assert "other.so cannot be loaded" in said[0] and "python -m model.engine.cpu_adam" in said[0]


def test_a_package_that_is_missing_stops_the_run_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("model.optimizers.adam8bit", "bitsandbytes", "bitsandbytes.optim", "bitsandbytes.functional"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"pip install 'bitsandbytes>=0\.50'"):
        make_optimizer(config("adam8bit"), [nn.Parameter(torch.ones(2, 2))])


def test_a_checkpoint_of_another_optimizer_is_refused_and_its_weights_alone_are_taken(
    tmp_path: Path, rank_pool: Callable[[int], RankPool]
) -> None:
    one = rank_pool(1)
    one.run(TRAIN, write_tiny_run(tmp_path / "first", **small("sgd") | {"train_iters": 2}))
    load = str(tmp_path / "first" / "checkpoints")
    keys = small("lion") | {"load": load, "train_iters": 4}
    said = one.run(REFUSAL, write_tiny_run(tmp_path / "second", **keys))[0]
    assert "lion keeps exp_avg, and " in said and "is of sgd, with momentum_buffer\n  fix: write no_load_optim: true" in said
    one.run(TRAIN, write_tiny_run(tmp_path / "third", no_load_optim=True, **keys))
    assert len(curve(tmp_path / "third")) == 2


# The curve of a checkpoint -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, rank_pool: Callable[[int], RankPool]) -> Path:
    """Checkpoints of a run of two steps with rate 0.01."""
    run_dir = tmp_path_factory.mktemp("curve") / "run"
    rank_pool(1).run(TRAIN, write_tiny_run(run_dir, **small("adam") | {"lr_decay_iters": 10, "train_iters": 2}))
    return run_dir / "checkpoints"


def continued(saved: Path, **changes: Any) -> dict[str, Any]:
    keys = small("adam") | {"lr_decay_iters": 10, "train_iters": 4, "load": str(saved)}
    return keys | {"optimizer": {"params": {"lr": 0.002, "eps": 1e-4} | FORMULAS["adam"][1]}, "min_lr": 0.001} | changes


def test_a_checkpoint_of_another_curve_is_refused(tmp_path: Path, saved: Path, rank_pool: Callable[[int], RankPool]) -> None:
    said = rank_pool(1).run(REFUSAL, write_tiny_run(tmp_path / "run", **continued(saved)))[0]
    assert "lr 0.002 (the checkpoint: 0.01), min_lr 0.001 (the checkpoint: 0.0)\n  fix: write override_lr_scheduler: true" in said
    assert "decay_steps" not in said


@pytest.mark.parametrize(
    ("key", "peak", "floor"), [("override_lr_scheduler", 0.002, 0.001), ("use_checkpoint_lr_scheduler", 0.01, 0.0)]
)
def test_a_run_follows_the_curve_that_it_prefers(
    tmp_path: Path, saved: Path, rank_pool: Callable[[int], RankPool], key: str, peak: float, floor: float
) -> None:
    rank_pool(1).run(TRAIN, write_tiny_run(tmp_path / "run", **continued(saved, **{key: True})))
    linear = [max(floor, peak * (1 - (step - 0.1) / 9.9)) for step in (2, 3)]
    assert curve(tmp_path / "run", "lr") == pytest.approx(linear)


def test_it_cannot_prefer_both() -> None:
    found = problems(override_lr_scheduler=True, use_checkpoint_lr_scheduler=True)
    assert any("keep one" in text for text in found.values())
