"""Starting programs: what they say, that they hang, that they are absent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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


# A program in the foreground ----------------------------------------------------------------------------------------------------

SUPERVISES = """
import os, pathlib, sys
from neox_hpc import proc
folder = pathlib.Path(sys.argv[1])
started = lambda process: (folder / "leader").write_text(str(process.pid))
where = {"environ": os.environ, "cwd": folder, "log": folder / "log"}
sys.exit(proc.supervise(["sh", "-c", sys.argv[2]], **where, started=started, grace_s=0.5))
"""


def supervised(tmp_path: Path, lines: str) -> subprocess.Popen[str]:
    """A process of ours that runs these lines of shell; the file ``ready`` tells that they are under way."""
    argv = [sys.executable, "-c", SUPERVISES, str(tmp_path), lines]
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(argv, env=environ, text=True, stdout=subprocess.PIPE)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_output_goes_to_the_log_and_to_our_own(tmp_path: Path) -> None:
    process = supervised(tmp_path, "echo out; echo err >&2; exit 5")
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said, (tmp_path / "log").read_text()) == (5, "out\nerr\n", "out\nerr\n")


@pytest.mark.parametrize(("number", "status"), [("KILL", 137), ("SEGV", 139), ("TERM", 143)])
def test_a_signal_that_ends_the_program_is_its_status(tmp_path: Path, number: str, status: int) -> None:
    process = supervised(tmp_path, f"kill -{number} $$")
    process.communicate(timeout=60)
    assert process.returncode == status


def test_what_ignores_a_signal_to_stop_is_killed_with_its_children(tmp_path: Path) -> None:
    ignores = (
        f"trap '' TERM INT HUP; sh -c 'echo $$ >{tmp_path}/pid; mv {tmp_path}/pid {tmp_path}/ready; while :; do sleep 1; done'"
    )
    process = supervised(tmp_path, ignores)
    wait_for(tmp_path / "ready")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 137
    _wait_gone(int((tmp_path / "ready").read_text()))


def test_what_a_program_leaves_behind_is_killed(tmp_path: Path) -> None:
    process = supervised(tmp_path, f"sleep 300 & echo $! >{tmp_path}/ready")
    process.communicate(timeout=60)
    assert process.returncode == 0
    _wait_gone(int((tmp_path / "ready").read_text()))


def test_usr1_goes_on_and_ends_nothing(tmp_path: Path) -> None:
    lines = f"trap 'echo heard; exit 0' USR1; touch {tmp_path}/ready; while :; do sleep 0.05; done"
    process = supervised(tmp_path, lines)
    wait_for(tmp_path / "ready")
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "heard\n")
