"""``--auto``: what is proposed is the fastest cut that fits, a plan takes it as printed, and the training stays the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import yaml

from neox_hpc.auto import Proposals, propose
from neox_hpc.errors import UserError
from neox_hpc.memory import HEADROOM, fullest
from neox_hpc.outline import Outline
from neox_hpc.plan import make_plan
from neox_hpc.settings import Loaded
from neox_hpc.site import Site
from neox_hpc.vocabulary import ConfigError, RunConfig
from tests.desk import CONFIG, Desk, desk
from tests.planning import TWO_CORES, loaded, request, shipped, site, slurm

__all__ = ["desk"]
FACTS = {
    "speed.peak_tflops.bf16": "312",
    "speed.memory_gb_s": "1555",
    "speed.gpu_link_gb_s": "300",
    "speed.node_link_gb_s": "100",
    "node.gpu_memory_gib": "6",
}
NETWORK: dict[str, Any] = {
    "num_layers": 6,
    "hidden_size": 1536,
    "num_attention_heads": 12,
    "seq_length": 1024,
    "max_position_embeddings": 1024,
    "precision": "bfloat16",
    "train_batch_size": 48,
    "train_micro_batch_size_per_gpu": None,
    "zero_optimization": {"stage": 1, "reduce_bucket_size": 50_000_000, "overlap_comm": True},
}


def machine(**facts: str) -> Site:
    """Nodes of four GPUs with little memory; ``__`` stands for a dot."""
    given = FACTS | {fact.replace("__", "."): value for fact, value in facts.items()}
    return slurm(*(f"{fact}={value}" for fact, value in given.items()))


def outlined(given: Loaded, where: Site, nodes: int) -> Outline | None:
    """The sizes of a configuration that a plan accepts."""
    found = make_plan(given, where, request(nodes=nodes), TWO_CORES)
    return found.outline if found.plan is not None else None


def peak_of(outline: Outline) -> int:
    """Bytes of the fullest rank."""
    assert outline.memory is not None
    return fullest(outline.memory).peak


def written(given: Loaded, keys: dict[str, Any]) -> Loaded:
    """A configuration with keys in place of its own, as if they stood in its file."""
    return Loaded(config=given.config.with_keys(**keys), places={}, files=given.files)


def every_cut(given: Loaded, where: Site, nodes: int) -> Iterator[Outline]:
    """The plans of all cuts, each made by itself."""
    recomputes: tuple[dict[str, Any], ...] = ({"checkpoint_activations": False}, {"checkpoint_activations": True})
    recomputes += ({"checkpoint_activations": True, "neox_hpc": {"recompute_granularity": "selective"}},)
    zero = given.config.deepspeed.zero_optimization.model_dump(exclude_unset=True)
    for tensor, pipe, stage, micro, recompute in product((1, 2, 4), (1, 2, 4), (1, 2), (1, 2, 3, 4, 6, 8, 12, 24, 48), recomputes):
        data, rest = divmod(nodes * 4, tensor * pipe)
        if rest or 48 % (micro * data):
            continue
        keys = {"model_parallel_size": tensor, "pipe_parallel_size": pipe, "zero_optimization": zero | {"stage": stage}}
        batch = {"train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": 48 // micro // data}
        try:
            outline = outlined(written(given, keys | batch | recompute), where, nodes)
        except ConfigError:
            continue
        if outline is not None and peak_of(outline) <= (outline.room or 0) * HEADROOM:
            yield outline


def proposed(given: Loaded, where: Site, nodes: int) -> Proposals:
    return propose(given, where, nodes, 50277)


@pytest.mark.parametrize("memory", ["4", "20"])
def test_of_the_fastest_cuts_that_a_plan_accepts_and_that_fit_it_is_the_emptiest(memory: str) -> None:
    given, where = loaded(**NETWORK), machine(node__gpu_memory_gib=memory)
    best = proposed(given, where, 2).best[0]
    found = [(outline.step.seconds, peak_of(outline)) for outline in every_cut(given, where, 2) if outline.step is not None]
    fastest = min(found)[0]
    assert best.peak == min(peak for seconds, peak in found if seconds <= fastest * 1.02)
    assert fastest <= best.timed.seconds <= fastest * 1.02


def test_every_proposal_is_a_plan_with_the_time_and_memory_that_were_told() -> None:
    given, where = loaded(**NETWORK), machine()
    for proposal in proposed(given, where, 2).best:
        outline = outlined(written(given, proposal.keys), where, 2)
        assert outline is not None and outline.step is not None and outline.memory is not None
        assert (outline.layout, outline.batch) == (proposal.timed.made.layout, proposal.timed.made.batch)
        assert outline.step.seconds == pytest.approx(proposal.timed.seconds)
        assert fullest(outline.memory).peak == proposal.peak <= 6 * 2**30 * HEADROOM


def test_other_proposals_come_fastest_first_and_each_cut_once() -> None:
    best = proposed(loaded(**NETWORK), machine(), 2).best
    times, pairs = [proposal.timed.seconds for proposal in best[1:]], [proposal.cut[:2] for proposal in best]
    assert times == sorted(times) and len(set(pairs)) == len(pairs) > 2


@pytest.mark.parametrize(
    ("batch", "train"),
    [
        ({"train_batch_size": 48, "train_micro_batch_size_per_gpu": None}, 48),
        ({"train_batch_size": None, "train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 2}, 48),
    ],
)
def test_a_step_has_as_many_sequences_as_before(batch: dict[str, Any], train: int) -> None:
    for proposal in proposed(loaded(**NETWORK | batch), machine(), 2).best:
        assert proposal.timed.made.batch.train == train
        assert (
            proposal.keys["train_micro_batch_size_per_gpu"]
            * proposal.keys["gradient_accumulation_steps"]
            * (8 // (proposal.cut.tensor * proposal.cut.pipe))
            == train
        )


def test_tensor_groups_stay_inside_a_node_and_cut_the_heads_evenly() -> None:
    found = proposed(loaded(**NETWORK | {"num_attention_heads": 6}), machine(), 4)
    assert {proposal.cut.tensor for proposal in found.best} <= {1, 2}


def test_zero_3_is_proposed_where_nothing_else_fits() -> None:
    """One block of one head can be cut by no other means."""
    whole = {"stage3_max_live_parameters": 10_000_000, "stage3_prefetch_bucket_size": 10_000_000, "reduce_bucket_size": 10_000_000}
    network = {"num_layers": 1, "num_attention_heads": 1, "hidden_size": 3072, "no_weight_tying": True}
    given = loaded(**NETWORK | network | {"zero_optimization": {"stage": 1, **whole}})
    roomy, narrow = (proposed(given, machine(node__gpu_memory_gib=gib), 2).best[0].cut.zero for gib in ("8", "3"))
    assert (roomy, narrow) == (2, 3)
    links = {"speed__gpu_link_gb_s": "100000", "speed__node_link_gb_s": "100000"}  # where its estimate is the shortest
    assert proposed(given, machine(node__gpu_memory_gib="3.3", **links), 2).best[0].cut.zero == 2


def test_other_keys_of_a_changed_section_stay() -> None:
    keys = proposed(loaded(**NETWORK), machine(), 2).best[0].keys
    assert keys["zero_optimization"] | {"stage": 1} == NETWORK["zero_optimization"]


def test_an_offloaded_optimizer_keeps_its_stage() -> None:
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    found = proposed(loaded(**NETWORK | {"zero_optimization": zero}), machine(node__gpu_memory_gib="20"), 2)
    assert {proposal.cut.zero for proposal in found.best} == {2}


def test_what_does_not_go_with_other_keys_is_not_proposed() -> None:
    """DeepSpeed's partitioned activations are of whole blocks."""
    found = proposed(loaded(**NETWORK | {"partition_activations": True}), machine(node__gpu_memory_gib="2.2"), 2)
    assert {proposal.cut.recompute for proposal in found.best} <= {"nothing", "full"}
    assert len(found.best) > 1


def test_reasons_name_what_less_would_need_and_what_more_would_cost() -> None:
    found = proposed(loaded(**NETWORK), machine(node__gpu_memory_gib="4"), 2)
    told = dict(found.reasons)
    names = ("tensor", "pipe", "ZeRO", "recompute", "micro-batch")
    assert set(told) <= {f"{name} {value}" for name, value in zip(names, found.best[0].cut, strict=True)}
    assert any("GiB" in reason for reason in told.values()) and any("slower" in reason for reason in told.values())


@pytest.mark.parametrize(
    ("facts", "keys", "says"),
    [
        ({"speed__memory_gb_s": "null"}, {}, "not known for the site slurm: speed.memory_gb_s"),
        ({"node__gpu_memory_gib": "null"}, {}, "not known for the site slurm: what fits"),
        ({"node__gpu_memory_gib": "0.5"}, {}, "none fits"),
        ({}, {"train_batch_size": None}, "cannot be told"),
        ({}, {"train_batch_size": 7, "num_layers": 1, "num_attention_heads": 1}, "multiplies out with 7 sequences"),
    ],
)
def test_where_nothing_can_be_proposed_it_says_why(facts: dict[str, str], keys: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        proposed(loaded(**NETWORK | keys), machine(**facts), 2)


def test_shipped_configurations_are_cut_for_a_large_machine() -> None:
    found = proposed(shipped("20B"), site("frontier"), 12)
    assert found.best[0].timed.made.batch.train == 12 * 4 * 32
    assert found.best[0].peak <= 64 * 2**30 * HEADROOM


# The command ------------------------------------------------------------------------------------------------------------------

ASKED = (
    "-s",
    "slurm",
    "--site-set",
    "node.gpus=4",
    "-N",
    "2",
    *(word for fact in FACTS for word in ("--site-set", f"{fact}={FACTS[fact]}")),
)
BF16 = CONFIG + "precision: bfloat16\nzero_optimization: {stage: 1, reduce_bucket_size: 1000000}\n"


def test_what_plan_auto_prints_is_a_configuration_with_that_plan(desk: Desk) -> None:
    (desk.cwd / "my.yml").write_text(BF16)
    said = desk("plan", *ASKED, "--auto", "my.yml")
    assert said.code == 0, said.err
    _, _, rest = said.out.partition("to write, in place of these keys:\n")
    block = rest.split("\n\n")[0]
    keys = yaml.safe_load(block)
    (desk.cwd / "my.yml").write_text(yaml.safe_dump(yaml.safe_load(BF16) | keys))
    again = desk("plan", *ASKED, "my.yml")
    assert again.code == 0, again.err
    assert said.out.endswith(again.out)


def test_a_script_of_auto_is_the_script_of_what_was_proposed(desk: Desk) -> None:
    (desk.cwd / "my.yml").write_text(BF16)
    keys = desk("plan", *ASKED, "--auto", "--json", "my.yml").facts["proposals"][0]["keys"]
    one = desk("submit", "--dry-run", "--json", *ASKED, "--auto", "my.yml").facts["files"]
    (desk.cwd / "my.yml").write_text(yaml.safe_dump(yaml.safe_load(BF16) | keys))
    two = desk("submit", "--dry-run", "--json", *ASKED, "my.yml").facts["files"]
    assert one == two


def test_auto_asks_for_the_number_of_nodes(desk: Desk) -> None:
    (desk.cwd / "my.yml").write_text(BF16)
    without = [word for word in ASKED if word not in ("-N", "2")]
    said = desk("plan", *without, "--auto", "my.yml")
    assert said.code == 2 and "write --nodes N" in said.err
    none = desk("plan", *without, "-N", "0", "--auto", "my.yml")
    assert none.code == 2 and "0 nodes" in none.err and "ask for at least 1" in none.err and "not told" not in none.err


def test_a_dry_run_says_what_auto_chose(desk: Desk) -> None:
    (desk.cwd / "my.yml").write_text(BF16)
    said = desk("submit", "--dry-run", *ASKED, "--auto", "my.yml")
    assert re.search(r"note: auto: tensor \d x pipe \d x data \d, ZeRO \d, micro-batch \d+ x accumulation \d+, recompute", said.err)


def test_auto_is_for_gpus_and_for_networks_that_are_estimated(desk: Desk) -> None:
    on_cpu = desk("plan", "-s", "local", "--auto", "my.yml")
    assert on_cpu.code == 2 and "times are estimated for GPUs" in on_cpu.err
    other = desk("plan", *ASKED, "--auto", "my.yml", "--set", "attention_config=[[[mamba], all]]")
    assert other.code == 2 and "not estimated yet" in other.err


def test_auto_tells_which_speeds_a_site_lacks(desk: Desk) -> None:
    said = desk("plan", "-s", "slurm", "--site-set", "node.gpus=4", "-N", "2", "--auto", "my.yml")
    assert said.code == 2 and "speed.peak_tflops.fp32, speed.memory_gb_s" in said.err


def test_a_plan_without_auto_tells_the_time_of_its_own_cut(desk: Desk) -> None:
    (desk.cwd / "my.yml").write_text(BF16)
    said = desk("plan", *ASKED, "my.yml")
    assert "tokens/s" in said.out and "20 steps take about" in said.out and "The best of" not in said.out
    lacking = desk("plan", "-s", "slurm", "--site-set", "node.gpus=4", "-N", "2", "my.yml")
    assert "not estimated: speed.peak_tflops.bf16" in lacking.out


def test_a_configuration_is_changed_in_its_cut_only() -> None:
    given = loaded(**NETWORK)
    proposal = proposed(given, machine(), 2).best[0]
    before, after = given.config.keys(), RunConfig.from_keys(written(given, proposal.keys).config.keys()).keys()
    assert {key for key in before if before[key] != after[key]} <= set(proposal.keys)
