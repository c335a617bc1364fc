"""The quickstart: its promises, and its steps with a stand-in for Python."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from neox_hpc import proc
from neox_hpc.errors import Failure
from neox_hpc.quickstart import check_loss, check_sample, continuation, held_out_loss, join_samples
from neox_hpc.registry import Entry, read_registry, registry_file, remember
from neox_hpc.rundir import RunDir
from neox_hpc.settings import load_config
from neox_hpc.share import share
from tests.desk import Desk, desk

__all__ = ["desk"]


@pytest.mark.parametrize(
    ("loss", "kept"),
    [(2.59, [True, True]), (2.61, [False, True]), (3.01, [False, False])],
)
def test_loss_is_held_against_both_baselines(loss: float, kept: list[bool]) -> None:
    promises = check_loss(loss, {"unigram_entropy": 4.0, "bigram_loss": 3.0})
    assert [promise.kept for promise in promises] == kept
    assert "2.600" in promises[0].bound


@pytest.mark.parametrize(
    ("facts", "kept"),
    [
        ({"words": 200, "distinct": 60, "share": 0.9}, [True, True, True]),
        ({"words": 199, "distinct": 59, "share": 0.899}, [False, False, False]),
    ],
)
def test_a_sample_is_held_against_its_bounds(facts: dict[str, float], kept: list[bool]) -> None:
    assert [promise.kept for promise in check_sample(facts)] == kept


def test_the_last_validation_counts(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 5, "validation_loss": 3.0}\n{"step": 10, "validation_loss": 2.0}\n{"step": 10, "loss": 1.0}\n'
    )
    assert held_out_loss(RunDir(tmp_path)) == 2.0
    with pytest.raises(Failure, match="no validation loss"):
        held_out_loss(RunDir(tmp_path / "absent"))


def test_samples_are_their_texts() -> None:
    assert join_samples(['{"text": "a b"}', "", '{"text": "c"}']) == "a b\n\nc\n"
    with pytest.raises(Failure):
        join_samples([])


def test_the_newest_run_with_a_checkpoint_is_continued_for_half_as_long_again(tmp_path: Path) -> None:
    runs = [RunDir(tmp_path / name) for name in ("new", "old")]
    for run in runs:
        (run.path / "checkpoints").mkdir(parents=True)
        (run.path / "plan.json").write_text('{"train_iters": 1500}')
    assert continuation(runs) is None
    (runs[1].path / "checkpoints" / "latest").write_text("global_step1500")
    assert continuation(runs) == (runs[1], 2250)


def test_the_quickstarts_schedule_does_not_change_when_it_is_prolonged() -> None:
    path = share("configs") / "quickstart.yml"
    short, longer = load_config([path]).config, load_config([path], sets=["train_iters=2250"]).config
    assert short.lr_decay_steps == longer.lr_decay_steps == short.training.train_iters
    assert not short.untrained()


STAND_IN = """\
echo "$*" >>"{log}"
case "$*" in
  *"submit "*) exec "{python}" "{program}" "$@" ;;
  *model.generate*) cp "{samples}" "$(dirname "$3")/samples.jsonl" ;;
  *--sample*) echo '{{"unigram_entropy": 4.0, "bigram_loss": 3.0, "words": 210, "distinct": 70, "share": {share}}}' ;;
esac
"""

SUBMIT = """\
import json, os, pathlib, sys
from neox_hpc.registry import Entry, registry_file, remember
name = "quickstart.2" if pathlib.Path("runs/quickstart").exists() else "quickstart"
run = pathlib.Path("runs", name).absolute()
(run / "checkpoints").mkdir(parents=True)
(run / "checkpoints/latest").write_text("x")
(run / "plan.json").write_text(json.dumps({"train_iters": 1500}))
(run / "run.json").write_text(json.dumps({"config": {"generation": {"temperature": 0.8}}}))
(run / "metrics.jsonl").write_text('{"step": 1500, "validation_loss": 2.25}')
remember(Entry(path=str(run), job_id="1", site="local", submitted_at="t"), registry_file(os.environ))
"""


def stand_in(desk: Desk, monkeypatch: pytest.MonkeyPatch, share_known: float) -> Path:
    """A Python that does what each step's program would leave behind, and logs its arguments."""
    log, program, samples = (desk.programs / name for name in ("python.log", "submit.py", "samples.jsonl"))
    program.write_text(SUBMIT)
    samples.write_text(json.dumps({"text": "def main ( ) :"}) + "\n")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    body = STAND_IN.format(log=log, python=sys.executable, program=program, samples=samples, share=share_known)
    path = desk.program("fakepython", body)
    monkeypatch.setattr(sys, "executable", str(path))
    return log


def test_every_step_is_shown_as_a_command_and_run_as_shown(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    log = stand_in(desk, monkeypatch, 0.95)
    said = desk("quickstart")
    assert said.code == 0, said
    shown = [line[2:] for line in said.out.splitlines() if line.startswith("$ ")]
    ran = [line.replace("-m neox_hpc ", "neox-hpc ") for line in log.read_text().splitlines()]
    assert [line.removeprefix("python ") for line in shown] == ran
    assert [line.split()[0] for line in shown] == ["python", "neox-hpc", "neox-hpc", "python", "python"]
    assert "2.250" in said.out and "at most 0.65 x unigram entropy 4.000 = 2.600" in said.out
    assert "runs/quickstart/sample.txt" in said.out


def test_the_baselines_say_what_the_promises_read(tmp_path: Path) -> None:
    """The real program, on a corpus of two words."""
    np, tokens = pytest.importorskip("numpy"), pytest.importorskip("model.data.tokens")
    for name in ("train", "heldout"):
        with tokens.TokenFileWriter(tmp_path / name, np.uint16) as writer:
            writer.add(np.array([0, 1, 0, 1, 1], dtype=np.uint16))
    (tmp_path / "words.txt").write_text("one\ntwo\n")
    (tmp_path / "sample").write_text("one two three")
    argv = [
        "--train",
        str(tmp_path / "train"),
        "--heldout",
        str(tmp_path / "heldout"),
        "--sample",
        str(tmp_path / "sample"),
        "--json",
    ]
    said = proc.run([sys.executable, "-m", "model.data.baselines", *argv], timeout_s=60, cwd=Path(__file__).parent.parent)
    assert len(check_loss(1.0, json.loads(said))) == 2
    assert [promise.measured for promise in check_sample(json.loads(said))] == ["3", "3", "66.7%"]


def test_a_second_call_continues_the_first(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    log = stand_in(desk, monkeypatch, 0.95)
    assert desk("quickstart").code == 0
    log.unlink()
    assert desk("quickstart").code == 0
    submits = [line for line in log.read_text().splitlines() if "submit" in line]
    assert len(submits) == 1
    assert submits[0].endswith("--set load=runs/quickstart/checkpoints --set train_iters=2250")


def test_a_broken_promise_is_a_failure(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(desk, monkeypatch, 0.85)
    said = desk("quickstart")
    assert said.code == 1
    assert "NO" in next(line for line in said.out.splitlines() if "85.0%" in line)


def test_a_step_that_fails_ends_the_quickstart_and_is_named(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    path = desk.program("fakepython", "exit 3")
    monkeypatch.setattr(sys, "executable", str(path))
    said = desk("quickstart")
    assert said.code == 1
    assert "`python -m model.data.prepare stdlib -d data/stdlib` failed with exit status 3" in said.err


def test_the_registry_passes_over_torn_lines(tmp_path: Path) -> None:
    file = registry_file({"HOME": str(tmp_path)})
    entry = Entry(path="/x/a", job_id="1", site="s", submitted_at="t")
    assert remember(entry, file)
    with file.open("a") as registry:
        registry.write('{"path": "/x/b"}\nnot json\n' + json.dumps({"path": "/x/c"})[:-3] + "\n")
    assert read_registry(file) == (entry,)
