"""The run directory: whole or not at all; what is read back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from neox_hpc import rundir
from neox_hpc.errors import Failure, UserError
from neox_hpc.rundir import Receipt, RunDir, choose_path, open_run, write_receipt, write_run_dir
from neox_hpc.snapshot import Snapshot, take_snapshot

FILES = {"job.sh": "#!/bin/bash\n", "run.json": "{}\n", "plan.json": "{}\n"}
CODE = Snapshot(files={"model/__init__.py": b"", "model/a/b.py": b"x = 1\n"})


def test_a_run_directory_holds_its_files_and_code(tmp_path: Path) -> None:
    run = write_run_dir(tmp_path / "runs" / "a", FILES, CODE)
    assert (run.path / "job.sh").read_text() == FILES["job.sh"] and os.access(run.script, os.X_OK)
    assert take_snapshot(run.path / "code" / "model").sha256 == CODE.sha256
    assert (run.path / "logs").is_dir()


def test_nothing_is_left_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_run_dir(tmp_path / "a", FILES, CODE)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_never_written_again(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="exists already"):
        write_run_dir(tmp_path / "a", FILES, CODE)
    assert list((tmp_path / "a").iterdir()) == []


def test_the_slower_of_two_submits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = rundir._fill

    def slowly(folder: Path, *args: object) -> None:
        fill(folder, *args)  # type: ignore[arg-type]
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "job.sh").write_text("theirs")

    monkeypatch.setattr(rundir, "_fill", slowly)
    with pytest.raises(UserError, match="exists already"):
        write_run_dir(tmp_path / "a", FILES, CODE)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "job.sh").read_text() == "theirs"


def test_names_are_numbered_when_taken_even_by_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a.2").symlink_to(tmp_path / "nowhere")
    assert choose_path(tmp_path, "a", None) == tmp_path / "a.3"
    assert choose_path(tmp_path, "b", None) == tmp_path / "b"


def test_the_code_hash_sees_names_and_contents() -> None:
    moved = Snapshot(files={"model/__init__.py": b"x = 1\n", "model/a/b.py": b""})
    assert len({CODE.sha256, moved.sha256, Snapshot(files={}).sha256}) == 3


def test_the_snapshot_takes_sources_and_no_byte_code(tmp_path: Path) -> None:
    for name in ("model/a.py", "model/__pycache__/a.cpython-311.pyc", "model/.hidden/x", "model/kernels/k.cu"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert set(take_snapshot(tmp_path / "model").files) == {"model/a.py", "model/kernels/k.cu"}


def test_a_receipt_reads_back(tmp_path: Path) -> None:
    run = write_run_dir(tmp_path / "a", FILES, CODE)
    assert run.receipt is None
    receipt = Receipt(
        job_id="7", submitted_at="t", host="h", user="u", command=("sbatch", "x"), neox_hpc="0", code_sha256="1", script_sha256="2"
    )
    write_receipt(run, receipt)
    assert run.receipt == receipt


@pytest.mark.parametrize("text", ["", "[]", "{", '{"job_id": "7"}'])
def test_a_damaged_receipt_is_a_failure_that_names_it(tmp_path: Path, text: str) -> None:
    run = write_run_dir(tmp_path / "a", FILES, CODE)
    (run.path / "receipt.json").write_text(text)
    with pytest.raises(Failure, match=r"receipt\.json"):
        _ = run.receipt


def test_the_earliest_error_is_the_first_one_whatever_its_rank(tmp_path: Path) -> None:
    attempt = tmp_path / "logs" / "1"
    attempt.mkdir(parents=True)
    for rank, at_s in ((0, 30.0), (3, 10.0), (11, 20.0)):
        (attempt / f"rank{rank}.error").write_text(f"message {rank}\nTraceback")
        os.utime(attempt / f"rank{rank}.error", (at_s, at_s))
    error = RunDir(tmp_path).attempts[-1].first_error
    assert error is not None and (error.rank, error.message) == (3, "message 3")


def test_an_error_message_is_its_first_line_and_its_fix(tmp_path: Path) -> None:
    for text, message in (("a\n  fix: b\nTraceback", "a\n  fix: b"), ("a\nTraceback\n  fix: c", "a")):
        assert rundir.RankError(at_s=0.0, rank=0, text=text, path=tmp_path).message == message


def test_attempts_are_ordered_by_number(tmp_path: Path) -> None:
    for name in ("10", "9", "job.out", "1"):
        (tmp_path / "logs" / name).mkdir(parents=True)
    (tmp_path / "logs" / "10" / "outcome").write_text("exit_status=143\n")
    attempts = RunDir(tmp_path).attempts
    assert [attempt.number for attempt in attempts] == [1, 9, 10]
    assert [attempt.exit_status for attempt in attempts] == [None, None, 143]


def test_a_run_opens_by_its_directory_or_a_file_in_it(tmp_path: Path) -> None:
    run = write_run_dir(tmp_path / "a", FILES, CODE)
    assert open_run(run.path / "job.sh") == open_run(run.path / "run.json") == open_run(run.path) == run
    with pytest.raises(UserError, match="not a run directory"):
        open_run(tmp_path)
