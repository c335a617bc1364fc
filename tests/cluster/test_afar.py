"""Submitting from afar: a real sshd between the command and a scheduler that is played by a program.

Commands run in this process, so that a test costs a connection and no interpreter; those that ask on a terminal, and all with a
real Slurm behind the sshd, are in test_afar_slurm.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from neox_hpc import far, follow
from neox_hpc.transport import connect_paramiko
from tests.cluster.login import Laptop, Login, obstacle, running_login, write_ssh_config
from tests.cluster.slurm import REQUIRED
from tests.desk import Desk, Said, desk

__all__ = ["desk"]
pytestmark = pytest.mark.cluster

SITE = ("-s", "slurm", "--site-set", "node.gpus=4", "--site-set", "software.python=/bin/sh")
SBATCH = """\
if [ -n "$SBATCH_TIMELIMIT" ]; then echo "sbatch: a hostile variable" >&2; exit 1; fi
number=$(($(cat "$HOME/taken" 2>/dev/null | wc -l) + 4711))
echo "$number $*" >>"$HOME/taken"
echo $number"""


@pytest.fixture(scope="module")
def login() -> Iterator[Login]:
    """A login node whose user has data, and an sbatch that takes every job."""
    if reason := obstacle():
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{REQUIRED}=1, and {reason}")
        pytest.skip(reason)
    with running_login() as running:
        (running.user_home / "data").mkdir()
        for name in ("train.bin", "train.idx"):
            (running.user_home / "data" / name).write_bytes(b"")
        yield running


@dataclass(frozen=True)
class Afar:
    """A user's desk, and the login node that it submits at."""

    desk: Desk
    login: Login

    def __call__(self, *argv: str) -> Said:
        return self.desk(*argv)

    def submit(self, *more: str) -> Said:
        """Submit the desk's configuration there."""
        return self.desk("submit", *SITE, "--host", "login", *more, "my.yml")

    def program(self, name: str, body: str) -> None:
        """A program of that name over there."""
        path = self.login.home / "bin" / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    @property
    def taken(self) -> list[str]:
        """The jobs that sbatch took."""
        file = self.login.user_home / "taken"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def runs(self) -> Path:
        """Where they are made."""
        return self.login.user_home / "runs"


@pytest.fixture
def afar(desk: Desk, login: Login, monkeypatch: pytest.MonkeyPatch) -> Iterator[Afar]:
    """Nothing is left of other tests."""
    monkeypatch.setattr(far, "PAUSES_S", (0.1, 0.1))
    monkeypatch.setattr(follow, "FAR_LOOK_S", 0.2)
    write_ssh_config(Path(os.environ["HOME"]), {"login": login})
    login.cuts.clear()
    user = Afar(desk, login)
    user.program("sbatch", SBATCH)
    yield user
    for path in sorted(login.user_home.rglob("*"), reverse=True):
        if "data" not in path.relative_to(login.user_home).parts[:1]:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in (login.home / "bin").iterdir():
        path.unlink()


def test_a_job_is_submitted_there_as_the_dry_run_showed_it(afar: Afar) -> None:
    dry = afar.submit("--dry-run")
    assert dry.code == 0, dry
    said = afar.submit()
    assert said.code == 0, said
    run = afar.runs / "my"
    assert (run / "job.sh").read_text() == dry.out
    assert afar.taken == [f"4711 --parsable {run}/job.sh"]
    assert f"login:{run}" in said.out and "job 4711 on slurm" in said.out


def test_what_arrives_is_a_whole_run_directory(afar: Afar) -> None:
    assert afar.submit().code == 0
    run = afar.runs / "my"
    written = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert {"job.sh", "run.json", "plan.json", "receipt.json", "code/model/train.py"} <= written
    assert json.loads((run / "run.json").read_text())["config"]["data"]["data_path"] == f"{afar.login.user_home}/data/train"
    assert oct((run / "job.sh").stat().st_mode)[-3:] == "755" and oct((run / "code/model/train.py").stat().st_mode)[-3:] == "444"
    assert [path.name for path in afar.runs.iterdir()] == ["my"]
    local = afar("render", *SITE, "--account", "x", "--set", f"data_path={afar.login.user_home}/data/train", "my.yml")
    here = Path(local.out.strip())
    assert {path.relative_to(here).as_posix() for path in (here / "code").rglob("*")} == {
        path.relative_to(run).as_posix() for path in (run / "code").rglob("*")
    }


def test_the_receipt_lies_on_both_sides(afar: Afar) -> None:
    assert afar.submit().code == 0
    there = json.loads((afar.runs / "my" / "receipt.json").read_text())
    here = next(Path(os.environ["HOME"]).rglob("receipt.json"))
    assert json.loads(here.read_text()) == there
    assert there["job_id"] == "4711" and there["user"] == "root" and there["command"][0] == "sbatch"


def test_a_second_submit_takes_the_next_name(afar: Afar) -> None:
    assert afar.submit().code == afar.submit().code == 0
    assert sorted(path.name for path in afar.runs.iterdir()) == ["my", "my.2"]
    assert len(afar.taken) == 2


def test_what_does_not_exist_there_is_refused_before_anything_is_sent(afar: Afar) -> None:
    said = afar.submit("--set", "data_path=elsewhere/train", "--set", "vocab_file=/dev/null/x")
    assert said.code == 2
    assert f"{afar.login.user_home}/elsewhere/train.bin" in said.err
    assert not afar.runs.exists() and afar.taken == []


def test_a_refusal_is_shown_in_slurms_words_and_leaves_nothing_on_either_side(afar: Afar) -> None:
    afar.program("sbatch", "echo 'sbatch: error: Invalid account' >&2; exit 1")
    said = afar.submit()
    assert said.code == 2 and "Invalid account" in said.err and "nothing is queued and no file was kept" in said.err
    assert list(afar.runs.iterdir()) == [] and list(Path(os.environ["HOME"]).rglob("far.json")) == []
    afar.program("sbatch", SBATCH)
    assert afar.submit().code == 0 and (afar.runs / "my").is_dir()


def test_an_absent_scheduler_is_named_with_the_host(afar: Afar) -> None:
    site = ("-s", "pbs", "--site-set", "node.gpus=4", "--site-set", "software.python=/bin/sh", "--site-set", "node.cores=8")
    said = afar("submit", *site, "--host", "login", "my.yml")
    assert said.code == 2 and "qsub: there is no such program on PATH of login" in said.err, said
    assert list(afar.runs.iterdir()) == []


def test_status_logs_cancel_and_list_need_no_flags(afar: Afar) -> None:
    assert afar.submit().code == 0
    run = afar.runs / "my"
    afar.program("squeue", "echo '4711|RUNNING|None'")
    (run / "logs" / "1").mkdir()
    (run / "logs" / "1" / "hostfile").write_text("n1 slots=4\n")
    (run / "logs" / "job.out").write_bytes(b"first\n\x00second\n")
    (run / "metrics.jsonl").write_text('{"step": 3, "loss": 2.5, "step_time_s": 1.0}\n')
    facts = afar("status", "my", "--json").facts
    assert (facts["state"], facts["step"], facts["loss"], facts["job_id"]) == ("running", 3, 2.5, "4711")
    assert facts["run_dir"] == f"login:{run}"
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 2.0, "step_time_s": 1.0}\n')
    assert afar("status", "4711", "--json").facts["step"] == 4
    assert "first\n" in afar("logs", "my").out and "first" not in afar("logs", "-n", "1", "my").out
    assert f"login:{run}" in afar("list").out
    afar.program("scancel", f'echo "$*" >"{afar.login.user_home}/cancelled"')
    assert afar("cancel", "my").code == 0
    assert (afar.login.user_home / "cancelled").read_text() == "4711\n"
    assert json.loads((run / "cancelled.json").read_text())["user"]


def test_a_log_is_followed_to_the_end_of_its_job(afar: Afar) -> None:
    assert afar.submit().code == 0
    run = afar.runs / "my"
    (run / "logs" / "1").mkdir()
    (run / "logs" / "1" / "hostfile").touch()
    (run / "logs" / "job.out").write_text("begins\n")
    afar.program("squeue", f"if [ -e {run}/logs/1/outcome ]; then echo '4711|COMPLETED|None'; else echo '4711|RUNNING|None'; fi")

    def trains() -> None:
        for line in range(3):
            time.sleep(0.3)
            with (run / "logs" / "job.out").open("a") as file:
                file.write(f"line {line}\n")
        (run / "logs" / "1" / "outcome").write_text("exit_status=0\n")

    thread = threading.Thread(target=trains)
    thread.start()
    said = afar("logs", "-f", "my")
    thread.join()
    assert said.code == 0 and said.out == "begins\nline 0\nline 1\nline 2\n" and said.err.endswith("my  DONE\n")


def test_a_run_is_watched_to_its_end_and_its_curve_drawn(afar: Afar) -> None:
    pytest.importorskip("matplotlib", reason="the extra plot: pip install -e '.[plot]'")
    trains = """run=${2%/*}; mkdir "$run/logs/1"; i=0
while [ $i -lt 3000 ]; do i=$((i + 1)); echo "{\\"step\\": $i, \\"loss\\": 2.5, \\"step_time_s\\": 0.1}"; done >"$run/metrics.jsonl"
echo exit_status=0 >"$run/logs/1/outcome" """
    afar.program("sbatch", f"{trains}\n{SBATCH}")
    afar.program("squeue", "echo '4711|COMPLETED|None'")
    said = afar.submit("--watch")
    assert said.code == 0 and "step   3000/20" in said.out and "my  DONE" in said.out, said
    drawn = afar("plot", "my", "--json").facts
    assert [point[0] for point in drawn["curves"][0]["training"]] == list(range(1, 3001))


def test_render_writes_there_and_submits_nothing(afar: Afar) -> None:
    said = afar("render", *SITE, "--host", "login", "my.yml")
    assert said.code == 0 and said.out == f"login:{afar.runs}/my\n"
    assert (afar.runs / "my" / "job.sh").exists() and afar.taken == []


def test_the_earliest_error_of_a_rank_is_shown(afar: Afar) -> None:
    assert afar.submit().code == 0
    attempt = afar.runs / "my" / "logs" / "1"
    attempt.mkdir()
    for rank, age_s in ((0, 10), (1, 60), (2, 30)):
        (attempt / f"rank{rank}.error").write_text(f"rank {rank} is to blame\n")
        os.utime(attempt / f"rank{rank}.error", (1.8e9 - age_s, 1.8e9 - age_s))
    (attempt / "outcome").write_text("exit_status=1\n")
    afar.program("squeue", "echo '4711|FAILED|None'")
    facts = afar("status", "my", "--json").facts
    assert facts["state"] == "failed" and facts["first_error"]["rank"] == 1


def test_a_long_log_is_not_fetched_for_a_status_and_is_for_logs(afar: Afar) -> None:
    assert afar.submit().code == 0
    log = afar.runs / "my" / "logs" / "job.out"
    log.write_bytes(b"".join(b"%07d\n" % line for line in range(500_000)))
    afar.program("squeue", "echo '4711|RUNNING|None'")
    before = len(afar.login.carried)
    assert afar("status", "my").code == 0
    assert sum(afar.login.carried[before:]) < 200_000
    assert afar("logs", "-n", "2", "my").out == "0499998\n0499999\n"
    assert afar("logs", "my").out.encode() == log.read_bytes()


# What goes wrong -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "share", [pytest.param(0.3, marks=pytest.mark.full), 0.7, pytest.param(0.97, marks=pytest.mark.full), 0.999]
)
def test_a_transfer_that_breaks_anywhere_is_gone_on_with(afar: Afar, share: float) -> None:
    assert afar.submit("--name", "whole").code == 0
    afar.login.cuts.append(int(share * afar.login.carried[-1]))
    said = afar.submit()
    assert said.code == 0, said
    assert len(afar.taken) == 2 and sorted(path.name for path in afar.runs.iterdir()) == ["my", "whole"]
    assert (afar.runs / "my" / "submitted.lock").is_dir()


def test_a_command_that_ended_before_it_knew_is_gone_on_with_by_the_next(afar: Afar) -> None:
    assert afar.submit("--name", "whole").code == 0
    afar.login.cuts += [int(0.99 * afar.login.carried[-1]), *[0] * 5]
    said = afar.submit()
    assert said.code == 1 and "submits no second job" in said.err, said
    afar.login.cuts.clear()
    again = afar.submit()
    assert again.code == 0, again
    assert len(afar.taken) == 2 and sorted(path.name for path in afar.runs.iterdir()) == ["my", "whole"]


def test_another_configuration_after_a_broken_submission_is_another_run(afar: Afar) -> None:
    assert afar.submit("--name", "whole").code == 0
    afar.login.cuts += [int(0.99 * afar.login.carried[-1]), *[0] * 5]
    assert afar.submit().code == 1
    afar.login.cuts.clear()
    assert afar.submit("--set", "train_iters=21").code == 0
    assert (afar.runs / "my.2").is_dir()


@contextmanager
def cut_once(login: Login, happened: Callable[[], bool]) -> Iterator[None]:
    """The cable is cut for good when something has happened."""

    def wait() -> None:
        while not happened():
            time.sleep(0.01)
        login.cuts += [0] * 50
        login.cut()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    yield
    thread.join(timeout=20)
    login.cuts.clear()


def test_a_job_whose_answer_was_lost_is_found_by_status(afar: Afar) -> None:
    afar.program("sbatch", SBATCH.replace("echo $number", "sleep 1; echo $number"))
    with cut_once(afar.login, lambda: afar.taken != []):
        assert afar.submit().code == 1
    while not (afar.runs / "my" / "submitted.lock" / "status").exists():
        time.sleep(0.05)
    afar.program("squeue", "echo '4711|PENDING|Priority'")
    facts = afar("status", "my", "--json").facts
    assert (facts["state"], facts["job_id"]) == ("pending", "4711")
    assert (afar.runs / "my" / "receipt.json").exists()
    assert len(afar.taken) == 1


def test_a_job_whose_answer_was_lost_is_not_submitted_again(afar: Afar) -> None:
    afar.program("sbatch", SBATCH.replace("echo $number", "sleep 1; echo $number"))
    with cut_once(afar.login, lambda: afar.taken != []):
        assert afar.submit().code == 1
    said = afar.submit("--json")
    assert said.code == 0 and said.facts["job_id"] == "4711"
    assert len(afar.taken) == 1


def test_a_submission_that_left_no_answer_is_not_repeated_and_says_where_to_look(
    afar: Afar, monkeypatch: pytest.MonkeyPatch
) -> None:
    afar.program("sbatch", f"{SBATCH}; kill -9 $PPID")  # the login node's session dies with what it knows
    said = afar.submit()
    assert said.code == 1 and "look for it in the queue" in said.err and "submitted.lock" in said.err, said
    assert len(afar.taken) == 1
    assert afar.submit().code == 1 and len(afar.taken) == 1


def test_two_submissions_at_once_are_one_job_each_or_a_clear_error(afar: Afar) -> None:
    """The same run from two machines, which know nothing of each other."""
    assert afar.submit("--name", "first").code == 0
    argv = (sys.executable, "-m", "neox_hpc", "submit", *SITE, "--host", "login", "--run-id", "both", "my.yml")
    afar.program("sbatch", SBATCH.replace("echo $number", "sleep 1; echo $number"))
    homes = [Path(os.environ["HOME"]), afar.desk.cwd / "second"]
    shutil.copytree(homes[0] / ".ssh", homes[1] / ".ssh")
    checkout = str(Path(__file__).parents[2])
    environs = [{**os.environ, "HOME": str(home), "PYTHONPATH": checkout} for home in homes]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(argv, env=environ, stdout=pipe, stderr=pipe, text=True) for environ in environs]
    ended = sorted((process.wait(timeout=60), *process.communicate()) for process in started)
    assert [code for code, _, _ in ended] == [0, 2], ended
    assert "exists already" in ended[1][2] or "has come to be in the meantime" in ended[1][2]
    assert len(afar.taken) == 2


def test_a_run_directory_that_was_moved_is_said_to_be_gone_and_nothing_is_lost(afar: Afar) -> None:
    assert afar.submit().code == 0
    run = afar.runs / "my"
    (run / "logs" / "job.out").write_text("hello\n")
    assert "hello" in afar("logs", "my").out
    run.rename(afar.runs / "elsewhere")
    afar.program("squeue", "echo '4711|RUNNING|None'")
    for verb in ("status", "logs"):
        said = afar(verb, "my")
        assert said.code == 2 and f"login:{run}" in said.err and "moved or removed" in said.err, said
    (afar.runs / "elsewhere").rename(run)
    assert afar("status", "my", "--json").facts["state"] == "running"


def test_a_full_disk_there_is_told_and_leaves_nothing(afar: Afar) -> None:
    small = afar.login.user_home / "small"
    small.mkdir()
    afar.login.inside = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=200k tmpfs "{small}"; exec "$0" "$@"')
    try:
        said = afar.submit("-o", str(small / "runs"))
    finally:
        afar.login.inside = ()
    assert said.code == 2 and "No space left on device" in said.err and "no file was kept" in said.err, said
    assert afar.taken == [] and list(Path(os.environ["HOME"]).rglob("far.json")) == []


def test_a_far_side_without_sha256_compares_the_checksum_of_posix(afar: Afar) -> None:
    for program in ("sha256sum", "shasum", "openssl"):
        afar.login.hide(program)
    try:
        assert afar.submit().code == 0
    finally:
        afar.login.hidden.clear()
    assert len(afar.taken) == 1


@pytest.mark.parametrize(
    "shell",
    ["/usr/bin/tcsh", "/usr/bin/rbash", *(pytest.param(path, marks=pytest.mark.full) for path in ("/bin/bash", "/usr/bin/fish"))],
)
def test_any_login_shell_will_do_even_one_that_prints(afar: Afar, shell: str) -> None:
    if not Path(shell).exists():
        pytest.skip(f"no {shell}: apt-get install tcsh fish bash")
    before, afar.login.shell = afar.login.shell, shell
    home = afar.login.user_home
    for name in (".bashrc", ".tcshrc"):
        (home / name).write_text("echo Welcome to the machine\necho answered 0\n")
    (home / ".config" / "fish").mkdir(parents=True)
    (home / ".config" / "fish" / "config.fish").write_text("echo Welcome to the machine\n")
    try:
        assert afar.submit().code == 0
        afar.program("squeue", "echo '4711|RUNNING|None'")
        assert afar("status", "my", "--json").facts["state"] == "running"
    finally:
        afar.login.shell = before
    assert len(afar.taken) == 1


def test_a_host_that_refuses_the_connection_is_named_with_its_port(afar: Afar) -> None:
    config = Path(os.environ["HOME"]) / ".ssh" / "config"
    config.write_text(config.read_text().replace(f"Port {afar.login.port}", "Port 9"))
    said = afar.submit()
    assert said.code == 1 and "login: 127.0.0.1 port 9: Connection refused" in said.err and "fix:" in said.err


def test_a_host_whose_key_has_changed_is_not_talked_to(afar: Afar) -> None:
    known = Path(os.environ["HOME"]) / ".ssh" / "known_hosts"
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1vYj0QyqGm6gXrBm3WkA5nq0aB8hYkGq7kq9yq2o0F"
    known.write_text(f"[127.0.0.1]:{afar.login.port} {other}\n")
    said = afar.submit()
    assert said.code == 2 and "its host key is not the known one" in said.err and "ssh-keygen -R" in said.err
    known.write_text("")
    unknown = afar.submit()
    assert unknown.code == 2 and "not known here" in unknown.err and "SHA256:" in unknown.err
    assert afar.taken == []


def test_a_host_that_is_silent_is_given_up(afar: Afar) -> None:
    config = Path(os.environ["HOME"]) / ".ssh" / "config"
    config.write_text(config.read_text() + "  ConnectTimeout 1\n")
    afar.login.frozen = True
    try:
        said = afar.submit()
    finally:
        afar.login.frozen = False
        afar.login.cut()
    assert said.code == 1 and "login" in said.err and "Traceback" not in said.err, said


def test_a_line_that_falls_silent_in_the_middle_is_made_anew(afar: Afar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far, "SUBMIT_TIMEOUT_S", 3.0)

    def freeze() -> None:
        while not afar.taken:
            time.sleep(0.01)
        afar.login.freeze()

    afar.program("sbatch", SBATCH.replace("echo $number", "sleep 0.5; echo $number"))
    thread = threading.Thread(target=freeze, daemon=True)
    thread.start()
    said = afar.submit()
    thread.join()
    assert said.code == 0 and len(afar.taken) == 1, said


@pytest.mark.parametrize("method", ["keyboard-interactive", "password"])
def test_a_wrong_code_or_password_is_told_and_a_right_one_lets_in(afar: Afar, method: str) -> None:
    afar.login.configure(method, UsePAM="yes", PasswordAuthentication="yes")
    desk, home = afar.desk, afar.desk.cwd / "laptop"
    laptop = Laptop(home=home, cwd=desk.cwd, hidden=desk.programs, checkout=Path(__file__).parents[2])
    home.mkdir()
    write_ssh_config(home, {"login": afar.login})
    try:
        said = laptop("submit", *SITE, "--host", "login", "my.yml", answers=["1", "2", "3"]).said
        assert said.code == 2 and "refused what was typed (wrong, expired, or used before)" in said.err, said
        assert "nothing was sent" in said.err and afar.taken == []
        code = afar.login.add_code("4")
        typed = laptop("submit", *SITE, "--host", "login", "my.yml", answers=["9", code])
        assert typed.said.code == 0 and "9" not in typed.terminal, typed
        closed = afar("status")
        assert closed.code == 2 and "is asked for, and there is no terminal" in afar.submit().err
    finally:
        afar.login.configure()
    assert len(afar.taken) == 1


def test_a_code_that_is_used_up_when_the_connection_breaks_costs_no_second_job(afar: Afar) -> None:
    afar.login.configure("keyboard-interactive", UsePAM="yes")
    afar.program("sbatch", SBATCH.replace("echo $number", "sleep 1; echo $number"))
    desk, home = afar.desk, afar.desk.cwd / "laptop"
    laptop = Laptop(home=home, cwd=desk.cwd, hidden=desk.programs, checkout=Path(__file__).parents[2])
    home.mkdir()
    write_ssh_config(home, {"login": afar.login})
    argv = ("submit", *SITE, "--host", "login", "my.yml")

    def cut() -> None:
        while not afar.taken:
            time.sleep(0.01)
        afar.login.cut()

    thread = threading.Thread(target=cut, daemon=True)
    thread.start()
    try:
        code = afar.login.add_code("41")
        said = laptop(*argv, answers=[code] * 4).said
        thread.join(timeout=20)
        assert said.code == 1 and "wrong, expired, or used before" in said.err and "the same command again" in said.err, said
        again = laptop(*argv, answers=[afar.login.add_code("42")]).said
    finally:
        afar.login.configure()
    assert again.code == 0 and "my  job 4711" in again.out, again
    assert len(afar.taken) == 1 and [path.name for path in afar.runs.iterdir()] == ["my"]


@dataclass
class Typing:
    """A person who has these answers."""

    answers: list[str]

    def secret(self, _prompt: str) -> str:
        return self.answers.pop(0)

    def confirm(self, _question: str) -> bool:
        return self.answers.pop(0) == "yes"


def test_keys_of_an_agent_and_keys_with_a_passphrase_let_in(afar: Afar, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path(os.environ["HOME"])
    key = home / "key"
    key.write_bytes(afar.login.key.read_bytes())
    key.chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "open sesame", "-f", str(key)], check=True)
    config = home / ".ssh" / "config"
    config.write_text(config.read_text().replace(str(afar.login.key), str(key)))
    person = Typing(["open sesame"])
    connection = connect_paramiko("login", person, home)
    assert connection.run("echo in", timeout_s=20).out == b"in\n" and person.answers == []
    connection.close()
    config.write_text(config.read_text().replace(str(key), str(home / "absent")))
    socket = home / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        while not socket.exists():
            time.sleep(0.01)
        subprocess.run(["ssh-add", "-q", str(afar.login.key)], check=True)
        connection = connect_paramiko("login", Typing([]), home)
        assert connection.run("echo in", timeout_s=20).out == b"in\n"
        connection.close()
    finally:
        agent.terminate()
        agent.wait()


def test_an_unknown_host_is_known_once_it_is_confirmed(afar: Afar) -> None:
    home = Path(os.environ["HOME"])
    known = home / ".ssh" / "known_hosts"
    before = known.read_text()
    known.write_text("")
    connect_paramiko("login", Typing(["yes"]), home).close()
    assert known.read_text().split() == before.split()
    connect_paramiko("login", Typing([]), home).close()


def test_the_login_of_the_users_file_is_the_default(afar: Afar, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(os.environ["HOME"]) / ".config" / "neox-hpc" / "config.yml"
    own.parent.mkdir(parents=True)
    own.write_text("sites: {pbs: {login: 'login:project'}}\n")
    (afar.login.user_home / "project" / "data").mkdir(parents=True)
    for name in ("train.bin", "train.idx"):
        (afar.login.user_home / "project" / "data" / name).touch()
    afar.program("qsub", "echo 4711.pbs")
    site = ("-s", "pbs", "--site-set", "node.gpus=4", "--site-set", "software.python=/bin/sh", "--site-set", "node.cores=8")
    said = afar("submit", *site, "--json", "my.yml")
    assert said.code == 0, said
    assert said.facts["run_dir"] == f"login:{afar.login.user_home}/project/runs/my"
    here = afar("submit", *site, "--host", "none", "my.yml")
    assert here.code == 2 and f"{afar.desk.cwd}/runs" not in here.out and "qsub: there is no such program on PATH" in here.err


@pytest.mark.parametrize("host", ["-oProxyCommand=touch /tmp/x", "a b", "login:dir\nx", ""])
def test_a_host_that_is_none_is_refused(afar: Afar, host: str) -> None:
    said = afar("submit", *SITE, f"--host={host}", "my.yml")
    assert said.code == 2 and said.err.startswith("--host: ") and afar.taken == []
