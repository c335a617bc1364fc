"""Blocks under torch.compile: the same network, compiled once for all blocks."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from model.gpt import GPT
from tests.model.networks import VOCAB, small_batch, small_config
from tests.ranks import RankPool

CASES = "tests.model.cases_parallel"
COMPILED = {"neox_hpc": {"compile": True}}
NEEDS_COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler: apt-get install g++")


@NEEDS_COMPILER
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_blocks_have_the_loss_and_gradients_of_eager_ones_and_are_compiled_once(dtype: Any) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    keys = {"num_layers": 10, "gpt_j_residual": True, "scaled_upper_triang_masked_softmax_fusion": True}
    eager, compiled = (GPT(small_config(**keys, **more), VOCAB).to(dtype) for more in ({}, COMPILED))
    values = []
    for network in (eager, compiled):
        values.append(network(small_batch()))
        values[-1].backward()
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    assert values[1].item() == pytest.approx(values[0].item(), rel=tolerance)
    for expected, found in zip(eager.parameters(), compiled.parameters(), strict=True):
        assert float((found.grad - expected.grad).norm() / expected.grad.norm()) < tolerance
    assert counters["stats"]["unique_graphs"] <= 2  # the first block fills the table of cosines, the others share a graph
    assert not counters["graph_break"]


@NEEDS_COMPILER
@pytest.mark.full
@pytest.mark.parametrize(
    "keys",
    [
        {"pos_emb": "alibi", "sliding_window_width": 5},
        {"pos_emb": "rpe", "scaled_upper_triang_masked_softmax_fusion": True},
        {"attention_config": ["local", "local"], "sparsity_config": {"block": 4}},
    ],
    ids=str,
)
def test_compiled_blocks_see_through_masks_as_eager_ones_do(keys: dict[str, Any]) -> None:
    torch._dynamo.reset()
    eager, compiled = (GPT(small_config(**keys, **more), VOCAB) for more in ({}, COMPILED))
    for number in range(2):  # the first pass makes the masks
        for network in (eager, compiled):
            network.zero_grad()
            network(small_batch(seed=number)).backward()
        for expected, found in zip(eager.parameters(), compiled.parameters(), strict=True):
            assert float((found.grad - expected.grad).norm() / expected.grad.norm()) < 1e-5


def test_sampling_compiles_nothing() -> None:
    """Every token would be another shape."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    eager, compiled = (GPT(small_config(**more), VOCAB).eval() for more in ({}, COMPILED))
    tokens = small_batch().tokens_BS
    with torch.no_grad():
        cache = compiled.new_cache()
        found = torch.cat([compiled.logits(part, cache) for part in tokens.split(5, dim=1)], dim=1)
        torch.testing.assert_close(found, eager.logits(tokens), atol=1e-5, rtol=1e-5)
    assert not counters["stats"]


@NEEDS_COMPILER
@pytest.mark.full
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_compiled_blocks_on_two_ranks_equal_the_whole_network(two_ranks: RankPool, sequence_parallel: bool) -> None:
    keys = {"gpt_j_residual": True, "sequence_parallel": sequence_parallel} | COMPILED
    for difference in two_ranks.run(f"{CASES}:tensor_parallel_against_one_rank", keys, timeout_s=400):
        assert difference["initial"] == 0
        assert difference["gradient"] < 1e-5


def test_a_cpu_without_a_compiler_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"no C\+\+ compiler \(no-such-compiler\)"):
        GPT(small_config(**COMPILED), VOCAB)
