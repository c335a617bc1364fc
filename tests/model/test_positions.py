"""Positions and masks by themselves, at real sizes, against transformers and the rules as they were published.

Whole networks with them are compared in tests/model/options/.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from model.config import Layout, RunConfig
from model.config.architecture import Sparsity
from model.config.own import RopeScaling
from model.gpt import GPT
from model.layers.masks import Mask, Window, over_pairs
from model.layers.patterns import LAYOUTS
from model.layers.positions import frequencies
from model.layers.positions_bias import Alibi, buckets, slopes
from model.parallel.groups import Groups, one_rank
from tests.model.networks import VOCAB, small_batch, small_config

CPU = torch.device("cpu")
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    "yarn": {"factor": 16.0, "original_max_position_embeddings": 4096},
}
"""Type -> the values of a published model: LongChat, Llama 3.1, Yarn-Llama-2."""


@pytest.mark.parametrize("dims", [32, 128])
@pytest.mark.parametrize("kind", SCALINGS)
def test_scaled_frequencies_are_those_of_transformers(kind: str, dims: int) -> None:
    rope = pytest.importorskip("transformers.modeling_rope_utils", reason="pip install transformers")
    transformers = pytest.importorskip("transformers")
    scaling = {"rope_type": kind} | SCALINGS[kind]
    theirs = transformers.LlamaConfig(
        hidden_size=128, num_attention_heads=1, head_dim=dims, max_position_embeddings=65536,
        rope_parameters=scaling | {"rope_theta": 500000.0},
    )  # fmt: skip
    expected, length = rope.ROPE_INIT_FUNCTIONS[kind](theirs, CPU)
    found, found_length = frequencies(dims, 500000, RopeScaling.model_validate(scaling))
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=2e-6)
    assert found_length == pytest.approx(length)
    assert not np.allclose(found.numpy(), frequencies(dims, 500000)[0].numpy())


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 6, 8, 12, 20, 32, 71])
def test_slopes_are_those_of_transformers_for_any_number_of_heads(heads: int) -> None:
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom", reason="pip install transformers")
    expected = bloom.build_alibi_tensor(torch.ones(1, 2), heads, torch.float64)[:, 0, 1]
    np.testing.assert_allclose(slopes(heads), expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize(("count", "furthest"), [(32, 128), (8, 20), (64, 1000), (7, 63)])
def test_buckets_are_t5_s(count: int, furthest: int) -> None:
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5", reason="pip install transformers")
    expected = t5.T5Attention._relative_position_bucket(-torch.arange(2000), False, count, furthest)
    assert torch.equal(buckets(2000, count, furthest), expected)


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_a_tensor_rank_has_the_slopes_of_its_own_heads(tensor: int) -> None:
    config = small_config(pos_emb="alibi", hidden_size=48, num_attention_heads=12)
    layout = Layout(world_size=tensor, tensor=tensor)
    parts = [Alibi(config, Groups(layout=layout, rank=rank)).by_distance(5) for rank in range(tensor)]
    np.testing.assert_allclose(torch.cat(parts).numpy(), -np.outer(slopes(12), np.arange(5)), rtol=1e-6)


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (1, 7), (3, 7), (1, 1)])
def test_a_bias_by_distance_stands_at_every_pair_and_its_gradient_is_summed_along_diagonals(queries: int, keys: int) -> None:
    bias_ND = torch.randn(2, keys, dtype=torch.float64, requires_grad=True)
    found = over_pairs(bias_ND, queries)
    for i, j in np.ndindex(queries, keys):
        distance = keys - queries + i - j
        assert torch.equal(found[:, i, j], bias_ND[:, distance] if distance >= 0 else torch.zeros(2, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda bias: over_pairs(bias, queries), (bias_ND,))


@pytest.mark.parametrize("width", [1, 3, 6, 7])
def test_a_window_is_no_mask_where_it_hides_nothing(width: int) -> None:
    mask = Mask([Window(width)], None)
    assert (mask(7, 7, CPU, torch.float32) is None) == (width >= 6)
    if (seen := mask(2, 7, CPU, torch.float32)) is not None:
        assert seen[0].sum(-1).tolist() == [min(6, width + 1), min(7, width + 1)]


def test_a_mask_is_made_once_for_all_layers() -> None:
    network = GPT(small_config(pos_emb="alibi", sliding_window_width=5, num_layers=3), VOCAB)
    masks = {id(block.attention._mask) for block in network.blocks}
    assert len(masks) == 1
    network(small_batch())
    kept = network.blocks[0].attention._mask._added
    network(small_batch(seed=1))
    assert network.blocks[0].attention._mask._added is kept


# Patterns ----------------------------------------------------------------------------------------------------------------


def layout(kind: str, blocks: int, head: int = 0, seed: int = 1, **keys: Any) -> np.ndarray:
    """What is seen at or below the diagonal."""
    return np.tril(LAYOUTS[kind](Sparsity.model_validate(keys), blocks, head, seed))


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("blocks", [1, 2, 7, 16])
def test_a_block_sees_itself_in_every_pattern(kind: str, blocks: int) -> None:
    assert np.diagonal(layout(kind, blocks)).all()


@pytest.mark.parametrize(
    ("blocks", "window", "last", "head"), [(10, 4, 1, 0), (10, 4, 1, 2), (7, 3, 1, 0), (13, 6, 2, 1), (3, 4, 1, 0)]
)
def test_a_last_window_that_is_not_full_has_its_representatives_at_its_end(blocks: int, window: int, last: int, head: int) -> None:
    """DeepSpeed's loops, once more."""
    expected = np.zeros((blocks, blocks), dtype=bool)
    for begin in range(0, blocks, window):
        expected[begin : begin + window, begin : begin + window] = True
    first, whole = window - (1 + head % 3) * last, blocks - blocks % window
    for column in range(first, whole, window):
        expected[:, column : column + last] = True
    if whole < blocks:
        start = min(whole + first, blocks - last)
        expected[:, start : start + last] = True
    keys = {"num_local_blocks": window, "num_global_blocks": last, "num_different_global_patterns": 3}
    found = layout("sparse_fixed", blocks, head, different_layout_per_head=True, **keys)
    np.testing.assert_array_equal(found, np.tril(expected))


@pytest.mark.parametrize("kind", ["bigbird", "sparse_variable"])
def test_random_blocks_are_of_the_seed_and_the_head_and_none_lies_ahead(kind: str) -> None:
    without, one = (layout(kind, 40, num_random_blocks=count) for count in (0, 3))
    assert np.array_equal(one, layout(kind, 40, num_random_blocks=3))
    assert not np.array_equal(one, layout(kind, 40, head=1, num_random_blocks=3))
    assert not np.array_equal(one, layout(kind, 40, seed=2, num_random_blocks=3))
    added = (one & ~without).sum(-1)
    assert added.max() == 3
    assert added.sum() > 60, "of three in a row hardly one falls on what is seen anyway"
    everything = layout(kind, 40, num_random_blocks=40)
    assert np.array_equal(everything, np.tri(40, dtype=bool))


@pytest.mark.parametrize(("apart", "masks"), [(False, 1), (True, 4)])
def test_heads_share_a_mask_unless_their_layouts_differ(apart: bool, masks: int) -> None:
    sparse = {"block": 2, "different_layout_per_head": apart}
    network = GPT(small_config(attention_config=["bigbird", "bigbird"], sparsity_config=sparse), VOCAB)
    found = network.blocks[0].attention._mask(24, 24, CPU, torch.float32)
    assert found.shape == (masks, 24, 24)
    assert len({row.numpy().tobytes() for row in found}) == masks


# Networks ----------------------------------------------------------------------------------------------------------------


def test_a_document_does_not_see_the_one_before_it_through_any_mask() -> None:
    documents = (torch.arange(24) >= 10).int().expand(3, -1)
    for keys in (
        {"pos_emb": "alibi"},
        {"pos_emb": "rpe", "rpe_num_buckets": 8},
        {"pos_emb": "alibi", "attention_config": ["flash", "flash"]},
        {"pos_emb": "none", "sliding_window_width": 4},
    ):
        network, tokens = GPT(small_config(**keys), VOCAB).eval(), small_batch().tokens_BS
        other = torch.cat([(tokens[:, :10] + 7) % VOCAB, tokens[:, 10:]], dim=1)
        with torch.no_grad():
            first, second = (
                network.run_layers(network.stage_of(small_batch(doc_ids=documents))._replace(x=x)).x for x in (tokens, other)
            )
        torch.testing.assert_close(first[:, 10:], second[:, 10:], atol=1e-6, rtol=1e-6)
        assert not torch.allclose(first[:, :10], second[:, :10])


@pytest.mark.parametrize("keys", [{"pos_emb": "alibi"}, {"pos_emb": "rpe"}, {"sliding_window_width": 3}], ids=str)
def test_bf16_scores_are_masked_and_their_softmax_in_fp32_takes_an_exact_bias(keys: dict[str, Any]) -> None:
    tokens = small_batch().tokens_BS
    exact = GPT(small_config(init_method_std=0.1, **keys), VOCAB).eval()
    for more in ({}, {"attention_softmax_in_fp32": True}, {"attention_config": ["flash", "flash"]}):
        short = GPT(small_config(init_method_std=0.1, **keys, **more), VOCAB).bfloat16().eval()
        with torch.no_grad():
            torch.testing.assert_close(short.logits(tokens).float(), exact.logits(tokens), atol=0.15, rtol=0.1)


def test_a_stage_without_a_block_cannot_share_the_table_of_relative_positions() -> None:
    config = small_config(pos_emb="rpe", num_layers=1, pipe_parallel_size=4, pipe_partition_method="uniform")
    with pytest.raises(ValueError, match=r"pos_emb rpe: pipeline stage 0 has no block"):
        GPT(config, VOCAB, Groups(layout=config.layout(4)))


def test_a_sequence_longer_than_the_positions_is_no_silent_mistake() -> None:
    for keys in ({"pos_emb": "learned"}, {"pos_emb": "sinusoidal"}, {"attention_config": ["local", "local"]}):
        with pytest.raises(AssertionError, match="24"):
            GPT(small_config(**keys), VOCAB).logits(torch.zeros(1, 25, dtype=torch.int64))


def test_mup_multiplies_positions_apart_from_words() -> None:
    plain, more = (
        GPT(_without_mup_checks(small_config(pos_emb="sinusoidal"), mup_rp_embedding_mult=times), VOCAB).layers[0]
        for times in (1.0, 3.0)
    )
    stage = GPT(small_config(), VOCAB).stage_of(small_batch())
    words = plain.word_embeddings(stage.x)
    np.testing.assert_allclose((more(stage).x - words).detach().numpy(), 3 * (plain(stage).x - words).detach().numpy(), atol=1e-5)


def _without_mup_checks(config: RunConfig, **keys: Any) -> RunConfig:
    return config.model_copy(update={"maximal_update": config.maximal_update.model_copy(update=keys)})


def test_sinusoids_have_a_row_for_an_odd_width() -> None:
    from model.layers.positions_added import Sinusoids

    config = small_config(hidden_size=33, num_attention_heads=1, pos_emb="sinusoidal")
    added = Sinusoids(config, one_rank())(torch.zeros(1, 3, 33), 2)
    assert added.shape == (1, 3, 33)
    assert float(added[0, 0, 0]) == pytest.approx(math.sin(2))
