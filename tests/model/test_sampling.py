"""Choosing tokens: GPT-NeoX's rules, by frequencies and by hand."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from model.config.training import Generation
from model.gpt import GPT
from model.sampling import batches, continue_together, next_tokens, probabilities, uniforms
from tests.model.networks import VARIANTS, VOCAB, small_config

LOGITS = torch.tensor([[0.5, 2.0, -1.0, 1.0, 0.0]]).log_softmax(-1)


def keys(**values: Any) -> Generation:
    return Generation(**values)


def test_without_temperature_top_k_and_top_p_the_likeliest_token_is_taken() -> None:
    assert next_tokens(LOGITS, torch.tensor([0.99]), keys()).tolist() == [1]


def test_temperature_divides_the_logits() -> None:
    torch.testing.assert_close(probabilities(LOGITS, keys(temperature=0.5)), (LOGITS * 2).softmax(-1))


def test_without_temperature_top_k_and_top_p_draw_at_temperature_one() -> None:
    torch.testing.assert_close(probabilities(LOGITS, keys(top_k=5)), LOGITS.exp())


def test_top_k_keeps_the_likeliest() -> None:
    p = LOGITS.exp()[0]
    expected = torch.tensor([[0, p[1], 0, p[3], 0]]) / (p[1] + p[3])
    torch.testing.assert_close(probabilities(LOGITS, keys(temperature=1.0, top_k=2)), expected)


@pytest.mark.parametrize(("top_p", "kept"), [(0.01, {1}), (0.6, {1, 3}), (0.8, {1, 3, 0}), (1.0, {0, 1, 2, 3, 4})])
def test_top_p_keeps_the_token_that_passes_the_threshold(top_p: float, kept: set[int]) -> None:
    found = probabilities(LOGITS, keys(top_p=top_p))[0]
    assert {token for token in range(5) if found[token] > 0} == kept
    share = sum(float(LOGITS.exp()[0, token]) for token in kept)
    assert float(found[1]) == pytest.approx(float(LOGITS.exp()[0, 1]) / share)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    drawn = next_tokens(LOGITS.expand(4000, -1), uniforms(1, 2, 4000), keys(temperature=1.0))
    shares = torch.bincount(drawn, minlength=5) / 4000
    torch.testing.assert_close(shares, LOGITS.exp()[0], atol=0.03, rtol=0)


def test_a_token_without_probability_is_never_drawn() -> None:
    for uniform in (0.0, 0.5, 1 - 2**-53):
        assert next_tokens(LOGITS, torch.tensor([uniform], dtype=torch.float64), keys(top_k=2)).item() in (1, 3)


def test_a_sample_s_numbers_follow_from_seed_and_number_alone() -> None:
    assert torch.equal(uniforms(1, 2, 5), uniforms(1, 2, 9)[:5])
    numbers = {(seed, number): float(uniforms(seed, number, 1)) for seed in range(3) for number in range(3)}
    assert len(set(numbers.values())) == 9


def test_batches_hold_contexts_of_one_length_each_once() -> None:
    contexts = [[1], [1, 2], [3], [4], [5, 6]]
    assert batches(contexts, 2) == [[0, 2], [3], [1, 4]]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_cache_and_the_neighbours_change_no_sample(name: str) -> None:
    network = GPT(small_config(**VARIANTS[name]), VOCAB).double().eval()
    contexts = torch.randint(1, VOCAB, (6, 5), generator=torch.Generator().manual_seed(4))
    numbers = torch.stack([uniforms(9, number, 16) for number in range(6)])
    wanted, eod = keys(temperature=3.0), 7
    together = continue_together(network, contexts, numbers, wanted, eod=eod)
    recomputed = continue_together(network, contexts, numbers, keys(temperature=3.0, recompute=True), eod=eod)
    alone = [continue_together(network, contexts[i : i + 1], numbers[i : i + 1], wanted, eod=eod)[0] for i in range(6)]
    assert together == recomputed == alone
    assert len({sample.tokens for sample in together}) == 6
    assert all(eod not in s.tokens and s.finished == (len(s.tokens) < 16) for s in together)


def test_samples_end_with_the_document_at_different_lengths() -> None:
    network = GPT(small_config(), VOCAB).eval()
    contexts = torch.ones(40, 1, dtype=torch.int64)
    numbers = torch.stack([uniforms(0, number, 20) for number in range(40)])
    found = continue_together(network, contexts, numbers, keys(temperature=1000.0), eod=5)
    assert {sample.finished for sample in found} == {True, False}
    assert len({len(sample.tokens) for sample in found}) > 3


def test_the_padded_vocabulary_is_never_sampled() -> None:
    network = GPT(small_config(), VOCAB).eval()
    with torch.no_grad():
        network.head.weight[VOCAB:] = 1e4
        network.head.weight[VOCAB:, ::2] = -1e4
    numbers = torch.stack([uniforms(0, number, 20) for number in range(8)])
    found = continue_together(network, torch.ones(8, 3, dtype=torch.int64), numbers, keys(temperature=1.0), eod=None)
    assert all(len(sample.tokens) == 20 and max(sample.tokens) < VOCAB for sample in found)
