"""``neox-hpc plan``: the sizes that it shows, its exit codes, and that it leaves nothing behind."""

from __future__ import annotations

import pytest

from neox_hpc.memory import PARTS, estimate_memory
from neox_hpc.outline import name_layers
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


# Queues and start -------------------------------------------------------------------------------------------------------------

QUEUES = """\
extends: slurm
node: {gpus: 4}
default_queue: [prod, debug]
queues:
  prod: {bins: [{min_nodes: 10, max_nodes: 64, walltime: 24h}]}
  debug: {bins: [{max_nodes: 2, walltime: 1h, min_walltime: 10m}]}
  long: {bins: [{max_nodes: 64, node_hours: 12}]}
  strange: {}
"""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), ("it takes 10 to 64 nodes", True, True)),
        (("-N", "16"), (True, "it takes 1 to 2 nodes", True)),
        (("-t", "2h"), ("it takes 10 to 64 nodes", "1 node get at most 01:00:00", True)),
        (("-t", "5m"), ("it takes 10 to 64 nodes", "it takes no job shorter than 00:10:00", True)),
        (("-t", "13h"), ("it takes 10 to 64 nodes", "1 node get at most 01:00:00", "1 node get at most 12:00:00")),
    ],
)
def test_a_plan_says_which_queues_take_the_job_and_why_others_do_not(
    desk: Desk, more: tuple[str, ...], said: tuple[object, ...]
) -> None:
    (desk.cwd / "lab.yml").write_text(QUEUES)
    found = {offer["queue"]: offer for offer in desk("plan", "-s", "./lab.yml", *more, "--json", "my.yml").facts["queues"]}
    assert tuple(found[name]["takes"] or found[name]["why"] for name in ("prod", "debug", "long")) == said
    assert found["strange"] == {"queue": "strange", "takes": True, "why": "its limits are not known"}


def test_the_chosen_queue_is_marked_among_the_others(desk: Desk) -> None:
    (desk.cwd / "lab.yml").write_text(QUEUES)
    rows = [" ".join(line.split()) for line in desk("plan", "-s", "./lab.yml", "my.yml").out.splitlines()]
    assert "queues prod does not take it: it takes 10 to 64 nodes" in rows
    assert "> debug takes it, up to 01:00:00" in rows
    assert "long takes it, up to 12:00:00" in rows


WILL = "cat >judged; echo 'sbatch: Job 9 to start at 2026-11-21T15:00:00 using 4 processors on nodes n1' >&2"


def test_start_is_what_the_scheduler_says_of_the_very_script(desk: Desk) -> None:
    desk.program("sbatch", WILL)
    rows = [" ".join(line.split()) for line in desk("plan", *SLURM, "--start", "my.yml").out.splitlines()]
    assert "start about 2026-11-21 15:00:00, as the queue is now (sbatch --test-only)" in rows
    assert desk.calls == ["sbatch --test-only"]
    assert (desk.cwd / "judged").read_text() == desk("submit", *SLURM, "--dry-run", "my.yml").out
    assert desk("plan", *SLURM, "--start", "--json", "my.yml").facts["start"]["at"] == "2026-11-21T15:00:00"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("echo 'allocation failure: Invalid account' >&2; exit 1", "Invalid account"),
        ("echo 'sbatch: something else' >&2", "not told by sbatch --test-only: something else"),
    ],
)
def test_a_scheduler_that_does_not_tell_a_start_is_quoted(desk: Desk, body: str, told: str) -> None:
    desk.program("sbatch", body)
    said = desk("plan", *SLURM, "--start", "my.yml")
    assert said.code == 0 and any(line.strip().startswith("start ") and told in line for line in said.out.splitlines())


def test_where_no_command_estimates_a_start_that_is_said(desk: Desk) -> None:
    said = desk("plan", *SLURM, "--site-set", "scheduler=pbs", "--site-set", "launcher=mpich", "--start", "my.yml")
    assert "pbs has no command that estimates it" in said.out


def test_neither_a_plan_nor_a_dry_run_asks_by_itself(desk: Desk) -> None:
    desk.program("sbatch", WILL)
    desk("plan", *SLURM, "my.yml")
    desk("submit", *SLURM, "--dry-run", "my.yml")
    desk("explain", *SLURM, "my.yml")
    desk("diff", *SLURM, "-s", "slurm", "my.yml")
    assert desk.calls == []
