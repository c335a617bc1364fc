"""Starting programs: what they say, that they hang, that they are absent."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from neox_hpc import proc
from neox_hpc.errors import UserError


def test_run_returns_what_was_printed() -> None:
    assert proc.run(["sh", "-c", "echo out; echo err >&2"], timeout_s=5) == "out\n"


def test_a_refusal_holds_the_command_and_its_own_words() -> None:
    with pytest.raises(UserError) as caught:
        proc.run(["sh", "-c", "echo no such queue >&2; exit 3"], timeout_s=5)
    assert "sh -c 'echo no such queue" in str(caught.value) and "exit status 3: no such queue" in str(caught.value)


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(proc.NoAnswer, match=r"no answer within 0\.3 s"):
        proc.ask(["sh", "-c", f"sleep 60 & echo $! >{tmp_path}/pid; wait"], timeout_s=0.3)
    assert time.monotonic() - began < 10
    _wait_gone(int((tmp_path / "pid").read_text()))


def test_an_absent_program_and_an_absent_directory_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sbatchx: there is no such program on PATH"):
        proc.run(["sbatchx"], timeout_s=5)
    with pytest.raises(UserError, match="no such directory"):
        proc.run(["sh", "-c", ":"], timeout_s=5, cwd=tmp_path / "absent")


def test_output_that_is_no_utf8_is_read() -> None:
    assert proc.run(["printf", r"\377"], timeout_s=5) == "\ufffd"


def test_show_counts_signals_as_shells_do() -> None:
    assert proc.show(["sh", "-c", "kill -9 $$"]) == 137


def test_a_detached_program_is_known_by_number_and_start(tmp_path: Path) -> None:
    process = proc.start_detached(["sleep", "60"], log=tmp_path / "log", cwd=tmp_path)
    assert proc.is_alive(process)
    assert not proc.is_alive(proc.ProcessId(pid=process.pid, started=process.started + 1))
    assert os.getsid(process.pid) == process.pid
    assert proc.end_session(process, grace_s=5)
    assert not proc.is_alive(process)
    assert not proc.end_session(process, grace_s=5)


def test_a_detached_program_that_ignores_term_is_killed(tmp_path: Path) -> None:
    process = proc.start_detached(
        ["sh", "-c", "trap '' TERM; echo on; while :; do sleep 0.1; done"], log=tmp_path / "log", cwd=tmp_path
    )
    while not (tmp_path / "log").read_text():
        time.sleep(0.01)
    assert proc.end_session(process, grace_s=0.3)
    _wait_gone(process.pid)


def test_children_that_outlive_a_detached_program_are_found_and_ended(tmp_path: Path) -> None:
    script = f"sleep 60 & echo $! >{tmp_path}/pid; kill -9 $$"
    process = proc.start_detached(["sh", "-c", script], log=tmp_path / "log", cwd=tmp_path)
    while proc.is_alive(process):
        time.sleep(0.01)
    assert proc.has_survivors(process)
    assert not proc.has_survivors(proc.ProcessId(pid=os.getpid(), started=1))  # the number is another process's now
    assert proc.end_session(process, grace_s=5)
    _wait_gone(int((tmp_path / "pid").read_text()))
    assert not proc.has_survivors(process)


def _wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while (stat := Path(f"/proc/{pid}/stat")).exists() and ") Z" not in stat.read_text():
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.02)
