"""Single layers against references that share no code with them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from model.config import Layout
from model.implementations import TABLE
from model.kernels.activations import gelu_erf, gelu_tanh
from model.layers.attention import Drop
from model.layers.cache import LayerCache
from model.layers.dropout import PROBABILITIES, Dropout
from model.layers.positions import PlainHeads, Rotary
from model.parallel.groups import Groups, one_rank
from model.parallel.parameters import make_parameter, zeros

ATTENTION = {row.name: row.code for row in TABLE if row.operation == "attention"}


def attention_by_loops(q: np.ndarray, k: np.ndarray, v: np.ndarray, doc_ids: np.ndarray | None = None) -> np.ndarray:
    """softmax(q k / sqrt(H)) v, one query after another, in float64."""
    out = np.zeros_like(q)
    before = k.shape[2] - q.shape[2]
    for b, n, i in np.ndindex(q.shape[:3]):
        keys = [j for j in range(before + i + 1) if doc_ids is None or doc_ids[b, j] == doc_ids[b, i]]
        scores = np.array([q[b, n, i] @ k[b, n, j] / math.sqrt(q.shape[-1]) for j in keys])
        shares = np.exp(scores - scores.max())
        out[b, n, i] = (shares / shares.sum()) @ v[b, n, keys]
    return out


@pytest.mark.parametrize(("queries", "keys"), [(9, 9), (1, 9), (4, 9), (1, 1)])
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_the_softmax_over_the_tokens_before(name: str, queries: int, keys: int) -> None:
    q, k, v = _heads(queries, keys)
    found = ATTENTION[name](q, k, v, doc_ids_BQ=None, drop=None, softmax_in_fp32=False)
    np.testing.assert_allclose(found.numpy(), attention_by_loops(q.numpy(), k.numpy(), v.numpy()), atol=1e-12)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_stays_within_a_document(name: str) -> None:
    q, k, v = _heads(9, 9)
    doc_ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [5, 5, 5, 5, 5, 5, 6, 6, 5]], dtype=torch.int32)
    found = ATTENTION[name](q, k, v, doc_ids_BQ=doc_ids, drop=None, softmax_in_fp32=False)
    np.testing.assert_allclose(found.numpy(), attention_by_loops(q.numpy(), k.numpy(), v.numpy(), doc_ids.numpy()), atol=1e-12)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_has_the_gradient_of_its_formula(name: str) -> None:
    heads = tuple(part.requires_grad_() for part in _heads(5, 5))
    assert torch.autograd.gradcheck(
        lambda q, k, v: ATTENTION[name](q, k, v, doc_ids_BQ=None, drop=None, softmax_in_fp32=False), heads
    )


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_drops_shares_and_keeps_their_mean(name: str) -> None:
    q, k, _ = _heads(16, 16)
    torch.manual_seed(0)
    ones = torch.ones(2, 3, 16, 4, dtype=torch.float64)
    ours = Dropout(0.5, 1, 0, PROBABILITIES, one_rank())
    found = torch.stack(
        [
            ATTENTION[name](q, k, ones, doc_ids_BQ=None, drop=Drop(ours, torch.tensor([2 * n, 2 * n + 1])), softmax_in_fp32=False)
            for n in range(200)
        ]
    )
    assert found.std() > 0.1
    assert found.mean() == pytest.approx(1.0, abs=0.02)


def test_a_softmax_of_fp32_scores_is_more_exact_than_of_bf16_scores() -> None:
    q, k, v = (part.to(torch.bfloat16) for part in _heads(200, 200))
    exact = attention_by_loops(*(part.double().numpy() for part in (q, k, v)))
    eager = ATTENTION["eager"]
    errors = [
        np.abs(eager(q, k, v, doc_ids_BQ=None, drop=None, softmax_in_fp32=wide).double().numpy() - exact).mean()
        for wide in (False, True)
    ]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("dims", [2, 4, 8])
@pytest.mark.parametrize("start", [0, 5])
def test_rotary_turns_pairs_of_a_head_as_complex_numbers(dims: int, start: int) -> None:
    qkv = _qkv()
    parts = Rotary(dims, 100.0, 16).split(qkv, start)
    whole = qkv.numpy().reshape(2, 7, 3, 3, 8).transpose(3, 0, 2, 1, 4)
    turn = np.exp(1j * np.outer(np.arange(start, start + 7), 100.0 ** (-2 * np.arange(dims // 2) / dims)))
    for number in (0, 1):
        expected = whole[number].copy()
        pairs = (expected[..., : dims // 2] + 1j * expected[..., dims // 2 : dims]) * turn
        expected[..., : dims // 2], expected[..., dims // 2 : dims] = pairs.real, pairs.imag
        np.testing.assert_allclose(parts[number].numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(parts[2].numpy(), whole[2])


@pytest.mark.parametrize("positions", [Rotary(4, 100.0, 16), Rotary(8, 100.0, 16), PlainHeads()])
def test_positions_have_the_gradient_of_their_formula(positions: Any) -> None:
    assert torch.autograd.gradcheck(lambda qkv: positions.split(qkv, 3), (_qkv().requires_grad_(),), atol=1e-6)


def test_a_position_beyond_the_last_is_no_silent_mistake() -> None:
    with pytest.raises(AssertionError, match="position 16 of 16"):
        Rotary(4, 100.0, 16).split(_qkv(), 10)


def test_gelu_is_x_phi_of_x_and_its_approximation_another_function() -> None:
    x = torch.linspace(-4, 4, 63, dtype=torch.float64)
    exact = [value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x.tolist()]
    near = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x.tolist()]
    np.testing.assert_allclose(gelu_erf(x).numpy(), exact, atol=1e-12)
    np.testing.assert_allclose(gelu_tanh(x).numpy(), near, atol=1e-12)
    assert np.abs(np.subtract(exact, near)).max() > 1e-4


def test_a_cache_gives_back_what_it_was_given_in_order() -> None:
    cache, k = LayerCache(), torch.randn(2, 3, 150, 4)
    for start, end in ((0, 10), (10, 11), (11, 70), (70, 71), (71, 150)):
        assert cache.length == start
        keys, values = cache.append(k[:, :, start:end], -k[:, :, start:end])
        assert torch.equal(keys, k[:, :, :end])
        assert torch.equal(values, -k[:, :, :end])
    cache.keep(torch.tensor([1]))
    keys, _ = cache.append(k[1:, :, :1], k[1:, :, :1])
    assert torch.equal(keys, torch.cat([k[1:], k[1:, :, :1]], dim=2))


def test_a_dimension_that_does_not_divide_is_refused() -> None:
    groups = Groups(layout=Layout(world_size=3, tensor=3))
    with pytest.raises(ValueError, match="a dimension of 64 cannot be cut over model_parallel_size 3"):
        make_parameter((64, 8), zeros, groups, shard_dim=0)


def _heads(queries: int, keys: int) -> tuple[Any, Any, Any]:
    generator = torch.Generator().manual_seed(2)
    shapes = ((2, 3, queries, 4), (2, 3, keys, 4), (2, 3, keys, 4))
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return q, k, v


def _qkv() -> Any:
    """Two sequences of seven tokens, three heads of eight dimensions."""
    return torch.randn(2, 7, 3, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
