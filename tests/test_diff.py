"""``neox-hpc diff``: two runs, two machines, two versions of a profile."""

from __future__ import annotations

import dataclasses

import click
import pytest

from neox_hpc.diff import Comparison, compare, make_side
from neox_hpc.inputs import Inputs
from tests.desk import Desk, desk
from tests.planning import shipped
from tests.test_every_site import SITES
from tests.test_explain import golden, inputs, on_a_terminal, slurm

__all__ = ["desk"]


def compared(left: Inputs, right: Inputs) -> Comparison:
    return compare(make_side("left", left), make_side("right", right))


def named(found: object) -> dict[str, tuple[str | None, str | None]]:
    assert isinstance(found, tuple)
    return {each.what: (each.left and each.left.text, each.right and each.right.text) for each in found}


@pytest.mark.parametrize("name", SITES)
def test_nothing_differs_between_a_job_and_itself_in_another_directory(name: str) -> None:
    job = golden(name, "none", None)
    other = dataclasses.replace(job, request=dataclasses.replace(job.request, run_dir="/scratch/runs/other"))
    assert compared(job, other).is_empty


def test_two_machines_are_told_apart_in_words_and_sizes() -> None:
    twenty = shipped("20B")
    left = dataclasses.replace(inputs("frontier", account="lab42"), loaded=twenty)
    right = dataclasses.replace(inputs("polaris", account="lab42"), loaded=twenty)
    found = compared(left, right)
    first, second, *_ = found.sentences
    assert first == "The same model, cut alike (tensor 2 x pipe 4): 8 ranks on 1 node of left, 16 on 4 of right."
    assert second.startswith(
        "A step sees 128 sequences on left and 256 on right, because the number of data-parallel ranks differs"
    )
    sizes = named(found.sizes)
    assert sizes["scheduler"] == ("slurm", "pbs") and sizes["launcher"] == ("srun", "pals")
    assert sizes["layout"] == ("tensor 2 x pipe 4 x data 1 = 8 ranks", "tensor 2 x pipe 4 x data 2 = 16 ranks")
    assert sizes["nodes"] == ("1 x 8 MI250X GCD", "4 x 4 A100")
    assert {"parameters", "account"} <= set(found.same) and not found.keys and not found.facts
    variables = named(found.variables)
    assert variables["OMP_NUM_THREADS"] == ("7", "8") and variables["NCCL_CROSS_NIC"] == ("1", None)
    assert named(found.modules)["rocm"] == ("rocm/7.1.1", None)


def test_estimated_times_are_the_best_that_may_be_in_numbers_of_digits() -> None:
    twenty = shipped("20B")
    left, right = (dataclasses.replace(inputs("frontier", account="lab42", nodes=nodes), loaded=twenty) for nodes in (12, 64))
    found = compared(left, right)
    told = [sentence for sentence in found.sentences if sentence.startswith("By estimate")]
    told += [text or "" for what, pair in named(found.sizes).items() if what in ("step", "to the end") for text in pair]
    assert len(told) == 3 and all("at best" in text and "e+" not in text for text in told), told


def test_two_versions_of_a_profile_differ_in_facts_with_their_places() -> None:
    found = compared(slurm(), slurm('modules.load=["cuda/12"]', "env.A=b", "queues.gpu={bins: [{max_nodes: 4, walltime: 2h}]}"))
    facts = {each.what: each for each in found.facts}
    assert {what: each.right.text for what, each in facts.items() if each.right} == {
        "modules.load.0": "cuda/12",
        "env.A.0.value": "b",
        "queues.gpu.bins.0.max_nodes": "4",
        "queues.gpu.bins.0.walltime": "02:00:00",
    }
    added = facts["modules.load.0"]
    assert added.left is None and added.right is not None and added.right.place == '--site-set modules.load=["cuda/12"]'
    assert named(found.modules) == {"cuda": (None, "cuda/12")} and named(found.variables) == {"A": (None, "b")}


def test_keys_of_the_configuration_have_file_and_line_or_are_the_default() -> None:
    left = inputs("slurm", "node.gpus=4", keys={"train_iters": 20})
    right = inputs(
        "slurm", "node.gpus=4", keys={"train_iters": 30, "seed": 7, "optimizer": {"type": "Adam", "params": {"lr": 0.5}}}
    )
    found = {each.what: each for each in compared(left, right).keys}
    iters, seed = found["train_iters"], found["seed"]
    assert iters.left is not None and (iters.left.text, iters.left.place) == ("20", left.loaded.places["train_iters"])
    assert seed.left is not None and seed.right is not None and (seed.left.place, seed.right.text) == ("", "7")
    assert "optimizer.params.lr" in found


def test_directives_are_compared_where_the_scheduler_is_the_same() -> None:
    found = compared(slurm(nodes=2, walltime_s=3600), slurm(nodes=4, walltime_s=3600, directives=("--mem=0",)))
    assert named(found.directives) == {"--nodes": ("--nodes=2", "--nodes=4"), "--mem": (None, "--mem=0")}
    assert not compared(slurm(), inputs("local")).directives


def test_a_machine_that_cannot_run_it_is_told_first() -> None:
    found = compared(slurm(), slurm(nodes=0))
    assert found.sentences[0].startswith("right cannot run it: ")


# The command ------------------------------------------------------------------------------------------------------------------

SITE = ("-s", "slurm", "--site-set", "node.gpus=4")


def test_two_runs_are_compared_by_what_they_keep(desk: Desk) -> None:
    desk("render", *SITE, "my.yml")
    desk("render", *SITE, "my.yml", "--set", "train_iters=30", "-t", "1h")
    (desk.cwd / "my.yml").unlink()
    said = desk("diff", "runs/my", "runs/my.2")
    assert said.code == 0 and said.out.startswith("my | my.2\n")
    rows = [" ".join(line.split()) for line in said.out.splitlines()]
    assert "train_iters 20 (my.yml:8) → 30 (--set train_iters=30)" in rows
    assert "walltime — 01:00:00" in rows
    assert any(row.startswith("the same: nodes, layout") for row in rows)


def test_a_run_is_compared_with_a_submit_of_now(desk: Desk) -> None:
    desk("render", *SITE, "my.yml")
    text = (desk.cwd / "my.yml").read_text()
    (desk.cwd / "my.yml").write_text(text.replace("num_layers: 2", "num_layers: 4"))
    shown = desk("diff", "runs/my", *SITE, "my.yml", "--json").facts
    assert [side["name"] for side in shown["sides"]] == ["my", "slurm"]
    assert [(each["what"], each["left"]["text"], each["right"]["text"]) for each in shown["keys"]] == [("num_layers", "2", "4")]


def test_two_files_of_one_name_are_called_by_their_paths(desk: Desk) -> None:
    (desk.cwd / "slurm.yml").write_text("extends: slurm\nenv: {A: b}\n")
    said = desk("diff", *SITE, "-s", "./slurm.yml", "my.yml")
    assert said.code == 0, said.err
    assert said.out.splitlines()[0].startswith("sites/slurm.yml | ") and said.out.splitlines()[0].endswith("/slurm.yml")
    assert "slurm.yml:2" in said.out and "env.A.0.value" in said.out


def test_the_same_job_twice_differs_in_nothing(desk: Desk) -> None:
    assert "nothing differs" in desk("diff", *SITE, "-s", "slurm", "my.yml").out


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_of_any_width_shows_all_differences_and_no_line_that_it_would_fold(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    argv = ("diff", "-s", "frontier", "-s", "polaris", "-A", "lab42", "my.yml")
    piped = desk(*argv).out
    on_a_terminal(monkeypatch, columns)
    shown = click.unstyle(desk(*argv).out)
    assert "".join(shown.split()) == "".join(piped.split())
    assert max(map(len, shown.splitlines())) <= columns < max(map(len, piped.splitlines()))


def test_scripts_are_shown_line_by_line(desk: Desk) -> None:
    (desk.cwd / "lab.yml").write_text("extends: slurm\nenv: {A: b}\n")
    said = desk("diff", *SITE, "-s", "./lab.yml", "--script", "my.yml")
    assert "+export A=b" in said.out.splitlines()


@pytest.mark.parametrize(
    "argv", [("one",), ("one", "two", "three"), ("-s", "slurm", "my.yml"), ("-s", "a", "-s", "b", "-s", "c", "x.yml")]
)
def test_what_does_not_name_two_jobs_is_refused(desk: Desk, argv: tuple[str, ...]) -> None:
    said = desk("diff", *argv)
    assert said.code == 2 and "two jobs are compared" in said.err
