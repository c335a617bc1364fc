"""``neox-hpc plan``: the sizes that it shows, its exit codes, and that it leaves nothing behind."""

from __future__ import annotations

import pytest

from neox_hpc.cli.plan import name_layers
from neox_hpc.memory import PARTS, estimate_memory
from neox_hpc.vocabulary import BatchSizes, Layout
from tests.desk import Desk, desk
from tests.planning import plan, planned, shipped, slurm

__all__ = ["desk"]
SLURM = ("-s", "slurm", "--site-set", "node.gpus=4", "--site-set", "node.gpu_memory_gib=80")
PIPE = ("--set", "pipe_parallel_size=2", "--set", "gradient_accumulation_steps=3", "--set", "model_parallel_size=2")


def test_a_plan_shows_layout_tokens_node_hours_and_memory(desk: Desk) -> None:
    said = desk("plan", *SLURM, *PIPE, "-N", "2", "-t", "90m", "my.yml")
    assert said.code == 0
    rows = dict(line.strip().split("  ", 1) for line in said.out.splitlines() if line.startswith("  ") and "  " in line.strip())
    shown = {label: value.strip() for label, value in rows.items()}
    assert shown["layout"] == "tensor 2 x pipe 2 x data 2 = 8 ranks"
    assert shown["stages"] == "0: embedding, block 0"
    assert "1: block 1, final norm, head" in said.out
    assert shown["batch"] == "24 sequences a step = micro 4 x accumulation 3 x data 2"
    assert shown["tokens"] == "3,072 a step x 20 steps = 61,440"
    assert shown["pipeline"] == "stages wait 25.0% of a step"
    assert shown["walltime"] == "01:30:00"
    assert shown["node-hours"] == "3 at most"
    assert all(part.upper() in said.out for part in PARTS)


def test_json_holds_the_estimate_of_every_stage(desk: Desk) -> None:
    sizes = desk("plan", *SLURM, *PIPE, "--json", "my.yml").facts["sizes"]
    assert (sizes["tokens_a_step"], sizes["tokens"], sizes["bytes_a_rank"]) == (3 * 4 * 128, 20 * 3 * 4 * 128, 80 * 2**30)
    assert [stage["holds"] for stage in sizes["stages"]] == ["embedding, block 0", "block 1, final norm, head"]
    for stage in sizes["memory"]:
        assert stage["peak"] == max(moment["all"] for moment in stage["moments"].values())
        assert all(moment["all"] == sum(moment[part] for part in PARTS) for moment in stage["moments"].values())


def test_a_plan_writes_nothing_and_calls_no_scheduler(desk: Desk) -> None:
    for name in ("sbatch", "squeue", "sacct", "sinfo"):
        desk.program(name, "exit 1")
    before = sorted(desk.cwd.rglob("*"))
    assert desk("plan", *SLURM, "my.yml").code == 0
    assert (sorted(desk.cwd.rglob("*")), desk.calls) == (before, [])


def test_a_plan_exits_as_a_dry_run_does_and_shows_the_same_problems(desk: Desk) -> None:
    for more in ((), ("--set", "model_parallel_size=3"), ("--set", "data_path=absent"), ("--set", "pipe_parallel_size=9")):
        shown, tried = desk("plan", *SLURM, *more, "my.yml"), desk("submit", "--dry-run", *SLURM, *more, "my.yml")
        assert shown.code == tried.code
        after = tried.err.rpartition("\n\n")[2]  # what is shown of the ranks
        problems = [line for line in after.splitlines() if not line.startswith(("note: ", "no script"))]
        assert [line for line in shown.err.splitlines() if not line.startswith("note: ")] == problems


def test_sizes_are_shown_of_a_model_that_does_not_fit(desk: Desk) -> None:
    sets = ("--set", "hidden_size=8192", "--set", "num_layers=40")
    said = desk("plan", *SLURM, *sets, "my.yml")
    assert said.code == 2
    assert "GiB a GPU of weights, gradients and optimizer, and slurm has 80" in said.err
    assert "parameters  32," in said.out and "OPTIMIZER" in said.out


def test_node_hours_are_not_told_without_a_walltime(desk: Desk) -> None:
    said = desk("plan", *SLURM, "my.yml")
    assert "node-hours" not in said.out and "queue's own default" in said.out


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        (range(7), "embedding, blocks 0-3, final norm, head"),
        (range(1, 2), "block 0"),
        (range(1), "embedding"),
        (range(6, 7), "head"),
    ],
)
def test_layers_are_named(stage: range, name: str) -> None:
    outline = planned(slurm()).outline  # four blocks
    assert outline is not None
    assert name_layers(stage, outline) == name


def test_the_outline_is_that_of_the_plan() -> None:
    found = planned(slurm(), keys={"pipe_parallel_size": 2})
    assert found.outline is not None and found.plan is not None
    assert (found.outline.layout, found.outline.batch, found.outline.nodes) == (
        *(found.plan.layout, found.plan.batch),
        plan(slurm(), keys={"pipe_parallel_size": 2}).nodes,
    )


def test_stages_of_20b_hold_less_the_later_they_come() -> None:
    layout = Layout(world_size=96, tensor=2, pipe=4)
    sizes = BatchSizes(train=4 * 32 * 12, micro=4, accumulation=32, data=12)
    found = estimate_memory(shipped("20B").config, layout, sizes, 50277)
    assert found is not None
    held = [stage.moments[0].activations for stage in found[:3]]
    assert held == sorted(held, reverse=True) and held[0] > held[1]
