"""muP: rules by the paper's table, the network against a closed form, every layout against a plain loop, the coordinate check."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from torch import Tensor
from torch.nn import functional as F

from model.config import ConfigError, RunConfig, RunFile
from model.config.architecture import InitMethod
from model.generate import generate_run
from model.gpt import GPT
from model.mup import BaseShapes, rate_factor, split_by_width
from model.mup_base import base_shapes_of, read_base_shapes, write_base_shapes
from model.mup_check import STEPS, check_coordinates, slopes, widths
from model.optim import make_optimizer, parameter_groups
from model.parallel.parameters import global_parameters
from model.ranks import Ranks
from tests.model.grid.comparison import differences
from tests.model.grid.training import train_on_one_rank
from tests.model.networks import VOCAB, small_batch, small_config
from tests.model.options.option import NETWORK
from tests.model.options.reference import ClosedForm
from tests.ranks import RankPool

BASE: dict[str, Any] = {"use_mup": True, "base_shapes_file": "unused", "hidden_size": 8, "rotary_pct": 1.0}
"""Four heads of two dimensions."""
WIDE = BASE | {"hidden_size": 32}


def base_of(**keys: Any) -> BaseShapes:
    return base_shapes_of(small_config(**BASE | keys))


def network(**keys: Any) -> GPT:
    """Four times as wide as its base, whose other keys are the same."""
    return GPT(small_config(**WIDE | keys), VOCAB, base=base_of(**keys))


def rate_by_the_paper(name: str) -> float:
    """Table 8 for Adam where the width is four times the base's."""
    hidden = ("query_key_value.weight", "query_weight", "key_value_weight", "dense.weight", "linear1.weight", "linear2.weight")
    return 1 / 4 if name.endswith(hidden) else 1.0


def sgd_rate_by_the_paper(name: str) -> float:
    """Table 8 for SGD: all hidden matrices are as much taller as they are wider."""
    return 1.0 if rate_by_the_paper(name) < 1 else 4.0


# The rules ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"num_kv_heads": 2, "no_weight_tying": False, "intermediate_size": 48},
        {"activation": "swiglu", "intermediate_size": 48, "norm": "rmsnorm"},
    ],
    ids=["plain", "grouped", "gated"],
)
def test_learning_rates_are_those_of_the_paper_s_table(keys: dict[str, Any]) -> None:
    wide = GPT(small_config(**WIDE | keys), VOCAB, base=base_of(**keys | ({"intermediate_size": 12} if keys else {})))
    for p in global_parameters(wide):
        assert p.growth is not None
        assert rate_factor(p.growth, "adam") == rate_by_the_paper(p.global_name), p.global_name
        assert rate_factor(p.growth, "sgd") == sgd_rate_by_the_paper(p.global_name), p.global_name


def test_the_rate_of_a_matrix_that_grows_on_one_side_only() -> None:
    wider_outside = GPT(small_config(**WIDE, intermediate_size=64), VOCAB, base=base_of(intermediate_size=64))
    growth = {p.global_name: p.growth for p in global_parameters(wider_outside) if p.growth is not None}
    first, second = growth["layers.0.mlp.linear1.weight"], growth["layers.0.mlp.linear2.weight"]
    assert (first, second) == ((1.0, 4.0), (4.0, 1.0))
    assert (rate_factor(first, "adam"), rate_factor(second, "adam")) == (1 / 4, 1.0)
    assert (rate_factor(first, "sgd"), rate_factor(second, "sgd")) == (1 / 4, 4.0)


def test_groups_keep_their_parameters_and_what_a_step_decays() -> None:
    wide = network()
    whole = parameter_groups(wide.parameters(), 0.1)
    split = split_by_width(whole, "adam")
    assert [(len(group["params"]), group.get("lr_scale"), group["weight_decay"]) for group in split] == [
        (2, None, 0.1),
        (8, 0.25, 0.4),
        (len(whole[1]["params"]), None, 0.0),
    ]
    assert {id(p) for group in split for p in group["params"]} == {id(p) for p in wide.parameters()}


def test_rates_of_moments_in_8_bits_are_adam_s() -> None:
    pytest.importorskip("bitsandbytes", reason="pip install 'bitsandbytes>=0.50'")

    def rates(**keys: Any) -> list[Any]:
        made = make_optimizer(small_config(**WIDE | keys), network().parameters())
        return [(group.get("lr_scale"), group["weight_decay"]) for group in made.param_groups]

    assert rates(use_bnb_optimizer=True) == rates() == [(None, 0.1), (0.25, 0.4), (None, 0.0)]


def test_without_mup_groups_stay_as_they_are() -> None:
    groups = parameter_groups(GPT(small_config(), VOCAB).parameters(), 0.1)
    assert split_by_width(groups, "sgd") == groups


@pytest.mark.parametrize("method", get_args(InitMethod))
def test_first_weights_have_the_base_s_deviation_but_for_hidden_matrices(method: str) -> None:
    keys: dict[str, Any] = {"init_method": method, "output_layer_init_method": method, "activation": "swiglu", "num_layers": 2}
    narrow = GPT(small_config(hidden_size=48, **keys), VOCAB)
    base = base_shapes_of(small_config(**BASE | keys | {"hidden_size": 48}))
    wide = GPT(small_config(**BASE | keys | {"hidden_size": 192, "mup_init_scale": 3.0}), VOCAB, base=base)
    for small, large in zip(global_parameters(narrow), global_parameters(wide), strict=True):
        if small.dim() == 1:
            assert set(large.tolist()) == set(small.tolist()), large.global_name
            continue
        expected = 3.0 * float(small.detach().std()) * math.sqrt(rate_by_the_paper(small.global_name))
        assert float(large.detach().std()) == pytest.approx(expected, rel=0.06), large.global_name


def test_at_the_base_s_width_all_is_as_without_mup() -> None:
    plain, ours = GPT(small_config(rotary_pct=1.0), VOCAB), GPT(small_config(**WIDE), VOCAB, base=base_of(hidden_size=32))
    for one in (plain, ours):
        one(small_batch()).backward()
    for p, q in zip(global_parameters(plain), global_parameters(ours), strict=True):
        assert torch.equal(p, q) and torch.equal(p.grad, q.grad)
    assert len(split_by_width(parameter_groups(ours.parameters(), 0.1), "adam")) == 2


# The network --------------------------------------------------------------------------------------------------------------


class Maximal(ClosedForm):
    """Head size 8 where the base has 2, width 32 where it has 8."""

    def embed(self, tokens_BS: Tensor) -> Tensor:
        places_SD = self.w["embedding.position_embeddings.weight"][: tokens_BS.shape[1]]
        return self.keys["mup_embedding_mult"] * (super().embed(tokens_BS) + self.keys["mup_rp_embedding_mult"] * places_SD)

    def scores(self, scores_BNQK: Tensor, layer: int) -> Tensor:
        by_the_paper = scores_BNQK * math.sqrt(8) / 8  # q k / 8
        return by_the_paper * math.sqrt(2) / self.keys["mup_attn_temp"]  # q k / sqrt(2) at the base

    def head(self, x_BSD: Tensor) -> Tensor:
        head = "embedding.word_embeddings" if not self.keys["no_weight_tying"] else "head.final_linear"
        return x_BSD @ self.w[f"{head}.weight"].T / 4 / self.keys["mup_output_temp"]


@pytest.mark.parametrize("untied", [True, False])
@pytest.mark.parametrize("kind", ["global", "flash"])
def test_logits_and_gradients_equal_a_closed_form(kind: str, untied: bool) -> None:
    keys = {
        "pos_emb": "learned",
        "mup_rp_embedding_mult": 0.5,
        "attention_config": [[[kind], "all"]],
        "no_weight_tying": untied,
        "mup_embedding_mult": 1.5,
        "mup_attn_temp": 0.25,
        "mup_output_temp": 0.125,
    }
    ours, batch = network(**keys), small_batch()
    weights = {p.global_name: p.detach().clone().requires_grad_() for p in global_parameters(ours)}
    expected_BSV = Maximal.logits(weights, small_config(**WIDE | keys).keys(), batch.tokens_BS)
    assert expected_BSV.std() > 0.3
    torch.testing.assert_close(ours.logits(batch.tokens_BS).double(), expected_BSV[..., :VOCAB], atol=1e-5, rtol=1e-5)
    losses_T = F.cross_entropy(expected_BSV.flatten(0, 1), batch.labels_BS.flatten(), reduction="none")
    expected = (losses_T * batch.loss_mask_BS.flatten()).sum() / batch.loss_mask_BS.sum()
    loss = ours(batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = torch.autograd.grad(expected, list(weights.values()))
    for p, gradient in zip(global_parameters(ours), gradients, strict=True):
        difference = (p.grad.double() - gradient.double()).norm() / gradient.double().norm().clamp(min=1e-30)
        assert float(difference) < 1e-5, p.global_name


CELLS = {
    "T1": (1, {}),
    "T2": (2, {"model_parallel_size": 2, "sequence_parallel": True, "zero_optimization": {"stage": 1}}),
    "P2": (2, {"pipe_parallel_size": 2}),
    "D2, ZeRO-3": (2, {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 100}}),
}


@pytest.mark.parametrize("cell", CELLS)
def test_every_layout_trains_as_a_plain_loop_with_the_paper_s_rates(
    cell: str, tmp_path: Path, rank_pool: Callable[[int], RankPool]
) -> None:
    ranks, layout = CELLS[cell]
    keys = NETWORK | {"use_mup": True, "base_shapes_file": str(tmp_path / "base.json"), "init_method_std": 0.6}
    write_base_shapes(RunConfig.from_keys(keys | {"hidden_size": 8}))
    expected = train_on_one_rank(keys, 3, rate_by_the_paper)
    cut = keys | layout | {"make_vocab_size_divisible_by": 64 // layout.get("model_parallel_size", 1)}
    found = rank_pool(ranks).run("tests.model.grid.cases:train_cell", cut, None, 3)
    assert not [str(difference) for difference in differences(found, expected)][:20]


def test_sampling_is_given_the_base(tmp_path: Path) -> None:
    keys = {"base_shapes_file": str(tmp_path / "base.json"), "tokenizer_type": "CharLevelTokenizer", "maximum_tokens": 2}
    config = small_config(**WIDE | keys)
    write_base_shapes(config.with_keys(hidden_size=8))
    weights = {p.global_name: p.detach() for p in global_parameters(GPT(config, 512, base=base_of()))}
    with (
        mock.patch("model.generate.find_checkpoint", return_value=tmp_path),
        mock.patch("model.generate.load_weights", return_value=weights),
        mock.patch("model.generate.GPT", wraps=GPT) as built,
    ):
        generate_run(RunFile(name="wide", device="cpu", config=config), tmp_path, Ranks(rank=0, world_size=1, local_rank=0), None)
    assert built.call_args.kwargs["base"] == base_of()
    assert (tmp_path / "samples.txt").read_text().count("\n") == config.generation.num_samples


# The file ------------------------------------------------------------------------------------------------------------------


def test_base_shapes_come_back_from_their_file_and_serve_other_depths_and_vocabularies(tmp_path: Path) -> None:
    config = small_config(**WIDE | {"base_shapes_file": str(tmp_path / "base.json"), "hidden_size": 16})
    assert write_base_shapes(config) == tmp_path / "base.json"
    base = read_base_shapes(config)
    assert base == base_shapes_of(config)
    deep = GPT(config.with_keys(num_layers=3, hidden_size=32), 500, base=base)
    growth = {p.global_name: p.growth for p in global_parameters(deep)}
    assert growth["layers.2.mlp.linear2.weight"] == (2.0, 2.0)
    assert growth["embedding.word_embeddings.weight"] == (None, 2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "base.json cannot be read: No such file or directory"),
        ("{", "base.json holds no base shapes"),
        ('{"hidden_size": 8}', "base.json holds no base shapes"),
        ('{"hidden_size": 8, "head_size": 2, "shapes": {"x": ["a"]}}', "base.json holds no base shapes"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=rf"base_shapes_file: .*{message}(.|\n)*fix: a run of the base network"):
        read_base_shapes(small_config(**WIDE | {"base_shapes_file": str(path)}))


def test_base_shapes_of_another_architecture_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has no layers.attention.query_key_value.bias: it is of another architecture"):
        GPT(small_config(**WIDE), VOCAB, base=base_of(use_bias_in_attn_linear=False))


@pytest.mark.parametrize(
    ("keys", "key", "wrong"),
    [
        ({"use_mup": True}, "use_mup", "base_shapes_file is not given"),
        ({"mup_init_scale": 2.0}, "mup_init_scale", "use_mup is false"),
        ({"coord_check": True}, "coord_check", "use_mup is false"),
        (WIDE | {"coord_check": True, "save_base_shapes": True}, "save_base_shapes", "two things"),
        (WIDE | {"optimizer": {"type": "sm3"}, "weight_decay": 0.0}, "optimizer.type", "no rule for the learning rates of sm3"),
        (WIDE | {"scheduler": {"type": "WarmupLR", "params": {}}}, "scheduler", "one learning rate"),
        (WIDE | {"norm": "scalenorm"}, "norm", "what scalenorm makes does not keep its size"),
        (WIDE | {"pos_emb": "rpe"}, "pos_emb", "what rpe makes does not keep its size"),
        (WIDE | {"mup_rp_embedding_mult": 2.0}, "mup_rp_embedding_mult", "pos_emb is rotary"),
    ],
)
def test_keys_that_cannot_stand_together_are_refused(keys: dict[str, Any], key: str, wrong: str) -> None:
    with pytest.raises(ConfigError) as refused:
        small_config(**keys)
    assert [problem.key for problem in refused.value.problems] == [key]
    assert wrong in refused.value.problems[0].wrong


# The coordinate check -------------------------------------------------------------------------------------------------------

CHECK: dict[str, Any] = {
    "use_mup": True,
    "coord_check": True,
    "init_method_std": 0.05,
    "optimizer": {"type": "Adam", "params": {"lr": 0.003}},
}


@pytest.fixture(scope="module")
def checked() -> dict[tuple[str, str], float]:
    points = check_coordinates(small_config(**CHECK), small_batch(), VOCAB, torch.device("cpu"))
    assert {point.width for point in points} == {32, 64, 128, 256}
    assert {point.step for point in points} == set(range(1, STEPS + 1))
    return slopes(points)


@pytest.mark.parametrize("activation", ["embedding", "attention", "MLP", "residual stream"])
def test_activations_move_as_far_at_every_width_with_mup(activation: str, checked: dict[tuple[str, str], float]) -> None:
    assert abs(checked["muP", activation]) < 0.15


def test_logits_do_not_move_farther_in_wider_networks_with_mup(checked: dict[tuple[str, str], float]) -> None:
    """At small widths they move less: what a random head makes of a change falls with the root of the width to what it learns."""
    assert -0.5 < checked["muP", "logits"] < 0.05


@pytest.mark.parametrize("activation", ["attention", "MLP", "residual stream", "logits"])
def test_activations_move_farther_in_wider_networks_without(activation: str, checked: dict[tuple[str, str], float]) -> None:
    assert checked["standard", activation] > 0.5


def test_widths_go_from_the_base_s_to_the_configuration_s() -> None:
    config = small_config(**CHECK | {"hidden_size": 512, "mup_width_scale": 2})
    assert widths(config, base_of(hidden_size=16)) == [16, 32, 64, 128, 256, 512]
    assert widths(config, base_shapes_of(config)) == [512, 1024, 2048, 4096]


def test_a_run_writes_the_coordinates_and_says_how_they_grow(tmp_path: Path, two_ranks: RankPool) -> None:
    from tests.model.tiny import write_tiny_run

    keys: dict[str, Any] = {"num_layers": 1, "hidden_size": 16, "rotary_pct": 1.0, "save": None}
    run_file = write_tiny_run(tmp_path / "run", use_mup=True, coord_check=True, **keys)
    two_ranks.run("tests.model.cases_training:train", run_file)
    points = json.loads((tmp_path / "run" / "coordinates.json").read_text())["coordinates"]
    assert len(points) == 2 * 4 * STEPS * 5
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
