"""The loss without the logits: values and gradients against the formula."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from model.parallel import loss
from model.parallel.groups import one_rank
from model.parallel.loss import head_loss
from tests.ranks import RankPool

CASES = "tests.model.cases_loss"
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
"""Relative, of the largest entry: some roundings of the type."""


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("chunk", [1, 100 * 1000, 1 << 23])
def test_loss_and_gradients_follow_the_formula(dtype: Any, z_loss: float, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_CPU", chunk)
    x, weight, labels, mask = _case(dtype)
    value = head_loss(x, weight, labels, mask, one_rank(), z_loss=z_loss)
    (3 * value).backward()
    expected, dx, dw = _expected(x, weight, labels, mask, z_loss, 3.0)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (x.grad.dtype, weight.grad.dtype) == (dtype, dtype)
    assert value.item() == pytest.approx(expected, rel=TOLERANCES[dtype])
    assert _off(x.grad, dx) < TOLERANCES[dtype]
    assert _off(weight.grad, dw) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_in_the_type_itself_are_as_exact_as_products_in_fp32(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in fp32 stand in for units that the CPU lacks; both ways are tested on every CPU."""
    monkeypatch.setattr(loss, "CHUNK_CPU", 64 * 1000)
    for has_units in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has_units: {"avx512_bf16": has, "avx512_fp16": has})
        x, weight, labels, mask = _case(dtype)
        value = head_loss(x, weight, labels, mask, one_rank())
        value.backward()
        expected, dx, dw = _expected(x, weight, labels, mask, 0.0, 1.0)
        assert value.item() == pytest.approx(expected, rel=TOLERANCES[dtype])
        assert _off(x.grad, dx) < TOLERANCES[dtype]
        assert _off(weight.grad, dw) < TOLERANCES[dtype]


def test_the_gradient_is_that_of_finite_differences() -> None:
    x, weight, labels, mask = _case(torch.float64, tokens=(1, 5), width=3, vocab=7)
    head_loss(x, weight, labels, mask, one_rank(), z_loss=0.1).backward()
    for at in (x, weight):
        differences = torch.empty_like(at.grad)
        for entry in range(at.numel()):
            step = torch.zeros(at.numel(), dtype=at.dtype)
            step[entry] = 1e-5
            with torch.no_grad():
                ends = []
                for sign in (1, -1):
                    at.add_(sign * step.view_as(at))
                    ends.append(head_loss(x, weight, labels, mask, one_rank(), z_loss=0.1))
                    at.sub_(sign * step.view_as(at))
            differences.view(-1)[entry] = (ends[0] - ends[1]) / 2e-5
        assert _off(at.grad, differences) < 1e-8


def test_a_token_that_is_all_but_certain_still_has_a_gradient_in_half_precision() -> None:
    """p = 1 - 1e-4 rounds to 1 in bf16; its label's entry, p - 1, must not be 0."""
    weight = torch.tensor([[9.25], [0.0]], dtype=torch.bfloat16, requires_grad=True)
    x = torch.ones(1, 1, 1, dtype=torch.bfloat16)
    head_loss(x, weight, torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1), one_rank()).backward()
    probability = torch.tensor(9.25).sigmoid() - 1
    assert weight.grad[0].item() == pytest.approx(float(probability), rel=4e-3)


def test_a_label_of_vanishing_probability_has_its_loss_and_gradient() -> None:
    """exp(-300) is no number of fp32; the loss is 300, and the gradient that of a wrong guess."""
    weight = torch.tensor([[150.0], [-150.0]], requires_grad=True)
    value = head_loss(torch.ones(1, 1, 1), weight, torch.ones(1, 1, dtype=torch.int64), torch.ones(1, 1), one_rank())
    value.backward()
    assert value.item() == pytest.approx(300)
    assert weight.grad.flatten().tolist() == pytest.approx([1, -1])


def test_labels_that_do_not_count_are_nothing() -> None:
    x, weight, labels, mask = _case(torch.float32)
    value = head_loss(x, weight, labels, torch.zeros_like(mask), one_rank(), z_loss=0.1)
    value.backward()
    assert value.item() == 0
    assert not x.grad.any()
    assert not weight.grad.any()


def test_without_gradients_the_value_is_the_same_and_none_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, labels, mask = _case(torch.float32)
    expected = head_loss(x, weight, labels, mask, one_rank()).item()
    products = []
    product = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *args, **kwargs: products.append(args) or product(*args, **kwargs))
    with torch.no_grad():
        value = head_loss(x, weight, labels, mask, one_rank())
    assert value.item() == pytest.approx(expected, rel=1e-6)
    assert not value.requires_grad
    assert len(products) == 1
    frozen = head_loss(x.detach(), weight, labels, mask, one_rank())
    frozen.backward()
    assert x.grad is None
    assert weight.grad is not None


def test_a_second_backward_pass_is_an_error() -> None:
    x, weight, labels, mask = _case(torch.float32)
    value = head_loss(x, weight, labels, mask, one_rank())
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_backward_does_not_read_the_weight() -> None:
    """ZeRO-3 takes the gathered weight away after the forward pass."""
    x, weight, labels, mask = _case(torch.float32)
    value = head_loss(x, weight, labels, mask, one_rank())
    _, dx, dw = _expected(x, weight, labels, mask, 0.0, 1.0)
    weight.data.fill_(float("nan"))
    value.backward()
    assert _off(x.grad, dx) < 2e-6
    assert _off(weight.grad, dw) < 2e-6


def test_a_loss_in_the_precision_of_the_logits_has_its_rounding() -> None:
    x, weight, labels, mask = _case(torch.float16)
    expected, dx, dw = _expected(x, weight, labels, mask, 0.0, 1.0)
    exact = head_loss(x, weight, labels, mask, one_rank()).item()
    value = head_loss(x, weight, labels, mask, one_rank(), in_fp32=False)
    value.backward()
    assert value.item() != exact
    assert value.item() == pytest.approx(expected, rel=2e-3)
    assert _off(x.grad, dx) < 4e-3
    assert _off(weight.grad, dw) < 4e-3


@pytest.mark.parametrize("cut", ["column", "row"])
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("world", [2, 4])
def test_tensor_ranks_find_the_loss_and_gradients_of_one(rank_pool: Any, world: int, cut: str, sequence_parallel: bool) -> None:
    _compare(rank_pool(world), cut, sequence_parallel, torch.float32)


@pytest.mark.parametrize("cut", ["column", "row"])
@pytest.mark.parametrize("reduce_in_fp32", [False, True])
def test_tensor_ranks_agree_in_half_precision(two_ranks: RankPool, cut: str, reduce_in_fp32: bool) -> None:
    for sequence_parallel in (False, True):
        _compare(two_ranks, cut, sequence_parallel, torch.bfloat16, reduce_in_fp32=reduce_in_fp32)


def _compare(pool: RankPool, cut: str, sequence_parallel: bool, dtype: Any, **how: Any) -> None:
    x, weight, labels, mask = (t.detach() for t in _case(dtype, tokens=(3, 20)))
    expected, dx, dw = _expected(x, weight, labels, mask, 1e-2, 1.0)
    answers = pool.run(f"{CASES}:loss_on_ranks", x, weight, labels, mask, cut, sequence_parallel, how)
    values, dxs, dws = zip(*answers, strict=True)
    assert len({value.item() for value in values}) == 1
    assert values[0].item() == pytest.approx(expected, rel=TOLERANCES[dtype])
    assert _off(torch.cat(dws, dim=0 if cut == "column" else 1), dw) < TOLERANCES[dtype]
    if sequence_parallel:
        assert _off(torch.cat(dxs, dim=1), dx) < TOLERANCES[dtype]
        return
    assert all(torch.equal(found, dxs[0]) for found in dxs)
    assert _off(dxs[0], dx) < TOLERANCES[dtype]


def _case(dtype: Any, *, tokens: tuple[int, int] = (3, 63), width: int = 32, vocab: int = 1000) -> tuple[Any, Any, Any, Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*tokens, width, generator=generator).to(dtype).requires_grad_()
    weight = (0.5 * torch.randn(vocab, width, generator=generator)).to(dtype).requires_grad_()
    labels = torch.randint(0, vocab, tokens, generator=generator)
    return x, weight, labels, (torch.rand(tokens, generator=generator) > 0.2).float()


def _expected(x: Any, weight: Any, labels: Any, mask: Any, z_loss: float, scale: float) -> tuple[float, Any, Any]:
    """Value and gradients in fp64, by torch's own cross-entropy."""
    x, weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    z = (x @ weight.T).flatten(0, 1)
    each = torch.nn.functional.cross_entropy(z, labels.flatten(), reduction="none") + z_loss * z.logsumexp(-1) ** 2
    value = (each * mask.flatten()).sum() / mask.sum()
    (scale * value).backward()
    return value.item(), x.grad, weight.grad


def _off(found: Any, expected: Any) -> float:
    """Largest difference, relative to the largest entry."""
    return float((found.double() - expected).abs().max() / expected.abs().max())
