"""What is true of a run: the judgement, without files; and the follower's patience."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from neox_hpc.follow import ASK_S, LOST_GRACE_S, follow
from neox_hpc.jobs import Answer
from neox_hpc.logs import Stream, tail, tail_offset
from neox_hpc.metrics import Follower, Progress, progress_of, read_progress
from neox_hpc.rundir import RunDir
from neox_hpc.schedulers import JobState, JobStatus
from neox_hpc.status import State, Verdict, explain_exit, judge, look

GONE = Answer()
SILENT = Answer(silence="squeue: no answer")


def said(state: JobState, word: str = "WORD", exit_code: int | None = None) -> Answer:
    return Answer(status=JobStatus(state, word, exit_code))


@pytest.mark.parametrize(
    ("answer", "facts", "expected"),
    [
        (said(JobState.RUNNING), {"exit_status": 0}, State.RUNNING),  # its outcome is written, its epilogue runs
        (said(JobState.PENDING), {"exit_status": 1}, State.PENDING),  # requeued after a failure
        (said(JobState.CANCELLED), {"exit_status": 143}, State.CANCELLED),
        (said(JobState.TIMEOUT), {"exit_status": 143}, State.TIMEOUT),
        (said(JobState.DONE), {"exit_status": 3}, State.FAILED),  # the scheduler saw another step's status
        (said(JobState.UNKNOWN, "NEW_WORD"), {}, State.UNKNOWN),
        (said(JobState.UNKNOWN, "NEW_WORD"), {"exit_status": 0}, State.DONE),
        (GONE, {"exit_status": 0, "cancelled": True}, State.DONE),  # it ended before the cancel reached it
        (GONE, {"exit_status": 143, "cancelled": True}, State.CANCELLED),
        (GONE, {"cancelled": True}, State.CANCELLED),
        (GONE, {}, State.LOST),
        (SILENT, {}, State.UNKNOWN),
        (SILENT, {"cancelled": True}, State.UNKNOWN),
        (SILENT, {"submitted": False, "attempts": 0}, State.NOT_SUBMITTED),
    ],
)
def test_judgement(answer: Answer, facts: dict[str, object], expected: State) -> None:
    given = {"submitted": True, "cancelled": False, "attempts": 1, "exit_status": None} | facts
    assert judge(answer=answer, **given).state is expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("verdict", "code"),
    [
        (Verdict(state=State.DONE, exit_status=0), 0),
        (Verdict(state=State.FAILED, exit_status=1), 1),
        (Verdict(state=State.FAILED, exit_status=2), 2),
        (Verdict(state=State.FAILED, exit_status=137), 1),
        (Verdict(state=State.LOST), 1),
        (Verdict(state=State.TIMEOUT, exit_status=2), 1),
    ],
)
def test_a_verdict_is_an_exit_code(verdict: Verdict, code: int) -> None:
    assert verdict.exit_code == code


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (1, "exit status 1"),
        (137, "exit status 137: killed by SIGKILL: often out of memory"),
        (143, "exit status 143: killed by SIGTERM"),
        (247, "exit status 247: a rank was killed by SIGKILL: often out of memory"),
        (255, "exit status 255: a rank was killed by SIGHUP"),
        (127, "exit status 127"),
    ],
)
def test_an_exit_status_is_explained(status: int, words: str) -> None:
    assert explain_exit(status) == words


def make_run(path: Path) -> RunDir:
    (path / "logs" / "1").mkdir(parents=True)
    (path / "logs" / "1" / "hostfile").write_text("n1\n")
    (path / "plan.json").write_text(json.dumps({"scheduler": "slurm", "site": "x", "train_iters": 100}))
    receipt = dict.fromkeys(("submitted_at", "host", "user", "neox_hpc", "code_sha256", "script_sha256"), "") | {
        "job_id": "7",
        "command": [],
    }
    (path / "receipt.json").write_text(json.dumps(receipt))
    return RunDir(path)


def test_a_running_job_without_steps_for_long_is_called_quiet(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.metrics.write_text('{"step": 1, "loss": 2.0, "step_time_s": 1.0}\n')
    written = run.metrics.stat().st_mtime
    running = said(JobState.RUNNING)
    assert look(run, lambda: running, now_s=written + 100).quiet_s is None
    assert look(run, lambda: running, now_s=written + 200).quiet_s == pytest.approx(200)
    run.metrics.write_text('{"step": 1, "loss": 2.0, "step_time_s": 60.0}\n')
    assert look(run, lambda: running, now_s=run.metrics.stat().st_mtime + 200).quiet_s is None
    assert look(run, lambda: GONE, now_s=written + 9999).quiet_s is None


class Clock:
    """Time that passes only in sleep."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_a_shared_scheduler_is_asked_ever_more_rarely(tmp_path: Path) -> None:
    clock, asked = Clock(), []

    def ask() -> Answer:
        asked.append(clock.now_s)
        return said(JobState.RUNNING if clock.now_s < 600 else JobState.DONE)

    states = [s.verdict.state for s in follow(make_run(tmp_path), ask, shared=True, clock=clock, sleep=clock.sleep)]
    assert states[-1] is State.DONE
    gaps = [after - before for before, after in itertools.pairwise(asked)]
    assert gaps == sorted(gaps) and gaps[0] == ASK_S[1] and gaps[-1] == ASK_S[-1]
    assert len(asked) < 20


def test_a_site_may_forbid_questions_within_a_minute(tmp_path: Path) -> None:
    clock, run, asked = Clock(), make_run(tmp_path), []
    (run.path / "plan.json").write_text(json.dumps({"scheduler": "slurm", "site": "x", "train_iters": 100, "poll_s": 60.0}))

    def ask() -> Answer:
        asked.append(clock.now_s)
        return said(JobState.RUNNING if clock.now_s < 300 else JobState.DONE)

    for _ in follow(run, ask, shared=True, clock=clock, sleep=clock.sleep):
        if clock.now_s == 100.0:  # what happens in the run directory makes no exception
            (run.path / "logs" / "2").mkdir()
    assert min(after - before for before, after in itertools.pairwise(asked)) == 60.0


def test_an_outcome_that_appears_makes_the_next_question_come_at_once(tmp_path: Path) -> None:
    clock, run, asked = Clock(), make_run(tmp_path), []

    def ask() -> Answer:
        asked.append(clock.now_s)
        return said(JobState.RUNNING) if clock.now_s < 100 else GONE

    for _ in follow(run, ask, shared=True, clock=clock, sleep=clock.sleep):
        if clock.now_s == 100.0:
            (run.path / "logs" / "1" / "outcome").write_text("exit_status=0\n")
    assert asked[-1] <= 101.0


def test_a_lost_job_is_looked_for_again_before_it_is_given_up(tmp_path: Path) -> None:
    clock, run = Clock(), make_run(tmp_path)
    states = [s.verdict.state for s in follow(run, lambda: GONE, shared=True, clock=clock, sleep=clock.sleep)]
    assert set(states) == {State.LOST} and clock.now_s >= LOST_GRACE_S
    clock, states = Clock(), []
    for standing in follow(run, lambda: GONE, shared=True, clock=clock, sleep=clock.sleep):
        states.append(standing.verdict.state)
        if clock.now_s == 5.0:  # NFS shows the file late
            (run.path / "logs" / "1" / "outcome").write_text("exit_status=0\n")
    assert states[-1] is State.DONE


def test_progress_is_the_newest_step_and_the_mean_of_speeds() -> None:
    lines = [{"step": step, "loss": float(step), "step_time_s": 1.0 if step <= 10 else 3.0} for step in range(1, 31)]
    progress = progress_of([*lines, {"step": 20, "validation_loss": 7.0}])
    assert progress == Progress(step=30, loss=30.0, step_time_s=3.0, validation_step=20, validation_loss=7.0)
    assert progress_of(lines[:20]).step_time_s == pytest.approx(2.0)


def test_a_torn_last_line_is_left_for_the_next_look(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    assert follower.new_lines() == []
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert [line["step"] for line in follower.new_lines()] == [1]
    assert read_progress(path).step == 1
    with path.open("a") as file:
        file.write('ss": 1.0}\nnot json\n[1]\n')
    assert [line["step"] for line in follower.new_lines()] == [2]


def test_a_file_that_a_resumed_run_shortened_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    path.write_text("".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in range(1, 6)))
    assert len(follower.new_lines()) == 5
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 1.0}\n')
    assert [line["step"] for line in follower.new_lines()] == [1, 2]


@pytest.mark.parametrize("lines", [0, 1, 2, 3, 1000, 20000, 30000])
def test_tail_is_the_last_lines_across_blocks(tmp_path: Path, lines: int) -> None:
    text = [f"line {number} {'x' * (number % 7)}" for number in range(20000)]
    (tmp_path / "log").write_text("\n".join(text) + "\n")
    assert tail(tmp_path / "log", lines) == (text[-lines:] if lines else [])
    (tmp_path / "log").write_text("\n".join(text))  # the last line is being written
    assert tail(tmp_path / "log", lines) == (text[-lines:] if lines else [])


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 7])
def test_tail_is_right_wherever_a_block_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr("neox_hpc.logs.BLOCK_BYTES", block_bytes)
    (tmp_path / "log").write_text("first\n\nthird line\nfourth\n")
    assert [tail(tmp_path / "log", lines) for lines in (1, 2, 3)] == [
        ["fourth"],
        ["third line", "fourth"],
        ["", "third line", "fourth"],
    ]


def test_a_stream_waits_for_its_file_and_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "log"
    stream = Stream(path, tail_offset(path, 10))
    assert list(stream.new_blocks()) == [] and not stream.has_begun
    path.write_bytes(b"one\n\xff")
    assert b"".join(stream.new_blocks()) == b"one\n\xff" and stream.has_begun
    with path.open("ab") as file:
        file.write(b"two")
    assert b"".join(stream.new_blocks()) == b"two"
