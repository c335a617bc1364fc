"""What is run on another machine, run on this one: in every shell that is here, broken off at every place, by two at once."""

from __future__ import annotations

import base64
import io
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import paramiko
import pytest

from neox_hpc import far as far_module
from neox_hpc.cli import far as cli_far
from neox_hpc.cli import run_command_line
from neox_hpc.cli.far import OnTerminal
from neox_hpc.cli.prepare import Prepared
from neox_hpc.errors import Failure, Problem, UserError
from neox_hpc.far import FarMachine, Question, checksum, is_of_run, join, pack, read_news, script
from neox_hpc.rundir import RunDir, keep_piece, known_part
from neox_hpc.transport import (
    CONNECT,
    Connection,
    Local,
    Lost,
    Said,
    TimedOut,
    check_key,
    connect_paramiko,
    keys_of,
    known_keys,
    read_address,
    read_config,
    read_hop,
    seal,
    way_to,
)
from tests.desk import Desk, desk

__all__ = ["desk"]

FOLDER = Path(__file__).parents[1] / "neox_hpc" / "templates" / "far"
SHELLS = (
    ("sh",),
    ("dash",),
    ("bash",),
    ("bash", "--posix"),
    ("bash", "--restricted"),
    ("busybox", "sh"),
    ("tcsh",),
    ("fish",),
    ("zsh",),
)
FILES = {"job.sh": "#!/bin/bash\n", "plan.json": "{}\n"}
CODE = {"model/__init__.py": b"", "model/train.py": b"\x00\xff'!$(\n" * 1000}


@pytest.fixture(params=SHELLS, ids=" ".join)
def shell(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """How a log-in runs a command."""
    words: tuple[str, ...] = (*request.param, "-c")
    if shutil.which(words[0]) is None:
        pytest.skip(f"no {words[0]}: apt-get install {words[0]}")
    return words


def machine(shell: Sequence[str] = ("sh", "-c"), path: str | None = None) -> FarMachine:
    environ = None if path is None else {**os.environ, "PATH": path}
    return FarMachine(host="there", connect=lambda: Local(tuple(shell), environ), sleep=lambda _: None)


def sbatch(folder: Path, body: str = "echo 4711") -> list[str]:
    """A program that counts its calls."""
    path = folder / "sbatch"
    path.write_text(f'#!/bin/sh\necho "$*" >>"{folder}/calls"\n{body}\n')
    path.chmod(0o755)
    return [str(path), "--parsable"]


def calls(folder: Path) -> int:
    file = folder / "calls"
    return len(file.read_text().splitlines()) if file.exists() else 0


def submit(far: FarMachine, run: Path, argv: Sequence[str], archive: bytes | None = None, token: str = "ours") -> str:
    """The answer in short."""
    content = pack(FILES, CODE) if archive is None else archive
    outcome = far.submit(str(run), token, content, argv, dict, reads_script=False)
    return f"{outcome.kind} {outcome.words} {outcome.out.strip()}".strip()


def test_every_login_shell_runs_the_same_script_with_the_same_arguments(shell: tuple[str, ...]) -> None:
    words = ["a'b", 'c "d"', "!e $f `g`", "h\ni", "", "*", "-n"]
    said = Local(shell).run("""printf '<%s>' "$@"; cat; echo done >&2; exit 7""", words, stdin=b"\x00\xff\n!", timeout_s=20)
    assert said.out == "".join(f"<{word}>" for word in words).encode() + b"\x00\xff\n!"
    assert said.status == 7 and said.err.endswith("done\n")


def test_what_a_terminal_would_obey_is_left_out_of_a_machines_words() -> None:
    said = Local().run(r"printf 'no such account\033]0;x\007\nask us\n' >&2; exit 1", timeout_s=20)
    assert said.err == "no such account ]0;x \nask us\n"


def test_what_a_login_shell_prints_itself_is_left_out() -> None:
    noisy = ("sh", "-c", 'echo "Welcome"; echo "at our site" >&2; eval "$1"', "sh")
    assert Local(noisy).run("echo hello", timeout_s=20).out == b"hello\n"


def test_a_machine_that_runs_nothing_is_quoted() -> None:
    closed = ("sh", "-c", 'echo "This account is currently not available."', "sh")
    with pytest.raises(Failure, match=r"does not run what it is given; it says: This account is currently not available\."):
        Local(closed).run("echo hello", timeout_s=20)


@pytest.mark.parametrize("length", [0, 1, 10, 50, 100, 150, 175, -3, -2, -1])
def test_a_script_that_arrives_in_part_does_nothing(tmp_path: Path, length: int) -> None:
    envelope = seal(f'touch "{tmp_path}/touched"\ntouch "{tmp_path}/again"', [])
    part = envelope.script[: length if length >= 0 else len(envelope.script) + length]
    subprocess.run(["sh", "-c", envelope.command], input=part, capture_output=True, check=False)
    assert list(tmp_path.iterdir()) == []


def test_an_answer_without_its_end_is_no_answer() -> None:
    envelope = seal("echo hello", [])
    with pytest.raises(Lost):
        envelope.open("there", f"\n{envelope.mark}\nhello\n".encode(), "")


def test_a_silent_script_is_given_up() -> None:
    with pytest.raises(TimedOut):
        Local().run("sleep 60 >/dev/null 2>&1", timeout_s=0.3)


@pytest.mark.parametrize("size", [0, 1, 3, 255, 256, 1000, 65537])
@pytest.mark.parametrize(("how", "program"), [("cksum", ["cksum"]), ("sha256sum", ["sha256sum"])])
def test_a_checksum_is_that_of_the_program_over_there(size: int, how: str, program: list[str]) -> None:
    content = bytes(number * 7 % 256 for number in range(size))
    said = subprocess.run(program, input=content, capture_output=True, check=True).stdout.decode()
    assert said.startswith(f"{checksum(how, content)} ") or said.strip() == checksum(how, content)


@pytest.mark.parametrize("how", ["sha256sum", "shasum", "openssl", "cksum"])
def test_a_run_is_made_whole_with_whatever_makes_checksums(tmp_path: Path, how: str) -> None:
    if shutil.which(how) is None:
        pytest.skip(f"no {how}")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("cat", "chmod", "date", "dd", "env", "id", "mkdir", "mv", "rm", "sed", "sh", "sleep", "tar", "tr", "uname", how):
        (programs / name).symlink_to(str(shutil.which(name)))
    far = machine(path=str(programs))
    assert far.hello.checksum == how
    run = tmp_path / "runs" / "my"
    assert submit(far, run, sbatch(tmp_path)) == "answered 0 4711"
    assert (run / "code/model/train.py").read_bytes() == CODE["model/train.py"] and os.access(run / "job.sh", os.X_OK)
    assert {path.name for path in run.iterdir()} == {*FILES, "code", "logs", "submission", "submitted.lock"}
    assert [path.name for path in run.parent.iterdir()] == ["my"]


def test_the_same_call_again_submits_no_second_job(tmp_path: Path) -> None:
    argv, run = sbatch(tmp_path), tmp_path / "my"
    assert [submit(machine(), run, argv) for _ in range(3)] == ["answered 0 4711"] * 3
    assert calls(tmp_path) == 1


def test_two_calls_at_once_submit_one_job_and_both_know_it(tmp_path: Path) -> None:
    argv, run = sbatch(tmp_path, "sleep 1; echo 4711"), tmp_path / "my"
    said: list[str] = []
    threads = [threading.Thread(target=lambda: said.append(submit(machine(), run, argv))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls(tmp_path) == 1 and said == ["answered 0 4711"] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calls", "my", "sbatch"]


def test_a_directory_of_another_is_left_alone(tmp_path: Path) -> None:
    run = tmp_path / "my"
    run.mkdir()
    assert submit(machine(), run, sbatch(tmp_path)) == "taken"
    assert list(run.iterdir()) == [] and calls(tmp_path) == 0
    assert submit(machine(), tmp_path / "mine", sbatch(tmp_path)) == "answered 0 4711"
    assert submit(machine(), tmp_path / "mine", sbatch(tmp_path), token="another's") == "taken"


@pytest.mark.parametrize("length", [0, 1, 512, 5000, -1])
def test_an_archive_that_arrives_in_part_makes_nothing(tmp_path: Path, length: int) -> None:
    whole = pack(FILES, CODE)
    args = [
        str(tmp_path / "runs" / "my"),
        "ours",
        "sha256sum",
        checksum("sha256sum", whole),
        "",
        "/dev/null",
        "",
        *sbatch(tmp_path),
    ]
    said = Local().run(script("submit"), args, stdin=whole[:length], timeout_s=20)
    assert said.out == b"failed what arrived is not what was sent\n"
    assert list((tmp_path / "runs").iterdir()) == [] and calls(tmp_path) == 0


def test_a_refusal_leaves_nothing_and_may_be_tried_again(tmp_path: Path) -> None:
    run = tmp_path / "my"
    outcome = machine().submit(
        str(run), "ours", pack(FILES, CODE), sbatch(tmp_path, "echo no >&2; exit 1"), dict, reads_script=False
    )
    assert (outcome.kind, outcome.words, outcome.err) == ("answered", "1", "no\n") and not run.exists()
    assert submit(machine(), run, sbatch(tmp_path)) == "answered 0 4711"


def test_a_submission_that_was_killed_is_unclear_and_is_not_repeated(tmp_path: Path) -> None:
    run = tmp_path / "my"
    assert submit(machine(), run, sbatch(tmp_path, "kill -9 $PPID")) == "unclear"
    assert submit(machine(), run, sbatch(tmp_path)) == "unclear" and calls(tmp_path) == 1


@pytest.mark.parametrize("signal", ["HUP", "INT", "TERM", "PIPE"])
def test_what_is_begun_is_ended_though_its_session_goes(tmp_path: Path, signal: str) -> None:
    said = submit(machine(), tmp_path / "my", sbatch(tmp_path, f"kill -{signal} $PPID; sleep 0.1; echo 4711"))
    assert said == "answered 0 4711"


def test_a_script_is_read_by_a_scheduler_that_wants_it_so(tmp_path: Path) -> None:
    argv = sbatch(tmp_path, "cat")
    outcome = machine().submit(str(tmp_path / "my"), "ours", pack(FILES, CODE), argv, dict, reads_script=True)
    assert outcome.out.strip() == "#!/bin/bash"


def test_variables_go_and_come_as_the_scheduler_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_X", "leaks")
    monkeypatch.setenv("KEPT", "is kept")
    far = machine()
    said = far.ask(
        ["sh", "-c", 'echo "${SBATCH_X-none} $KEPT $NEW"'],
        clean=lambda environ: {name: value for name, value in environ.items() if name != "SBATCH_X"} | {"NEW": "1"},
        timeout_s=20,
    )
    assert said.stdout == "none is kept 1\n"


def test_questions_are_answered_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("some\n\nlines")
    (tmp_path / "file.2").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    asked = [
        ("exists", "file"),
        ("exists", "absent"),
        ("exists", "no/such/folder"),
        ("text", "file"),
        ("names", "file"),
        ("real", "link"),
    ]
    answers = machine().look([Question(what=what, path=f"{tmp_path}/{name}") for what, name in asked])
    assert [answer.decode().rstrip("\n") for answer in answers] == [
        "yes",
        "no",
        "no",
        "some\n\nlines",
        "file\nfile.2",
        os.path.realpath(tmp_path / "file"),
    ]


def test_only_what_is_new_is_fetched(tmp_path: Path) -> None:
    run = tmp_path / "my"
    (run / "logs").mkdir(parents=True)
    (run / "plan.json").touch()
    log = run / "logs" / "job.out"
    log.write_bytes(b"0123456789")
    far = machine()

    def fetched(start: str) -> tuple[int, bytes]:
        news = far.fetch(str(run), {"logs/job.out": start})
        assert news is not None
        return news.pieces[-1].start, news.pieces[-1].content

    assert fetched("4") == (4, b"456789") and fetched("10") == (10, b"") and fetched("11") == (0, b"0123456789")
    assert (
        fetched("-3") == (7, b"789")
        and fetched("9-3") == (9, b"9")
        and fetched("2-3") == (7, b"789")
        and fetched("-30") == (0, b"0123456789")
    )
    log.write_bytes(b"a\nb\n\nc\n")
    assert fetched("~2") == (4, b"\nc\n") and fetched("~0") == (7, b"") and fetched("~9") == (0, b"a\nb\n\nc\n")


def test_names_that_lead_out_of_a_run_are_not_believed() -> None:
    assert is_of_run("logs/1/outcome") and not is_of_run("../x") and not is_of_run("/etc/passwd") and not is_of_run("a/../../b")
    with pytest.raises(ValueError, match="x"):
        read_news(b"here 0 yes\n0 0 1 ../x\nA", 0.0)
    with pytest.raises(ValueError, match="y"):
        read_news(b"here 0 yes\n0 0 9 y\nA", 0.0)


def test_a_copy_knows_what_it_holds(tmp_path: Path) -> None:
    run = RunDir(tmp_path)

    def keep(start: int, content: bytes) -> tuple[tuple[int, int], bytes]:
        keep_piece(run, "log", start=start, content=content, mtime_s=1.0)
        return known_part(run, "log"), (tmp_path / "log").read_bytes()

    assert keep(5, b"56") == ((5, 7), b"\0\0\0\0\x0056")
    assert keep(7, b"78") == ((5, 9), b"\0\0\0\0\x005678"[:5] + b"5678")
    assert keep(6, b"678") == ((5, 9), b"\0" * 5 + b"5678")
    assert keep(20, b"x") == ((20, 21), b"\0" * 20 + b"x")
    assert keep(0, b"ab") == ((0, 2), b"ab")


def test_paths_are_of_the_machine_over_there() -> None:
    assert join("/project", "/home/me", "runs") == "/project/runs"
    assert join("/project", "/home/me", "~/runs") == "/home/me/runs"
    assert join("/project", "/home/me", "/scratch/../x") == "/x"


@pytest.mark.parametrize(
    ("text", "host", "folder"),
    [("me@login.lab.org", "me@login.lab.org", ""), ("alias:/scratch/a b", "alias", "/scratch/a b"), ("u.v+w@h:x", "u.v+w@h", "x")],
)
def test_an_address_is_read_as_ssh_and_scp_read_it(text: str, host: str, folder: str) -> None:
    assert (read_address(text).host, read_address(text).folder) == (host, folder)


def test_the_archive_holds_nothing_of_its_maker() -> None:
    with tarfile.open(fileobj=io.BytesIO(pack(FILES, CODE))) as archive:
        assert {(entry.uid, entry.uname, entry.gname) for entry in archive.getmembers()} == {(0, "", "")}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.sh") if path.stem != "common"))
def test_shellcheck_finds_nothing_in_what_is_run_there(name: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here: apt-get install shellcheck")
    # not every script calls all that common.sh has; /etc/profile is not here
    command = ["shellcheck", "--shell=sh", "--exclude=SC1091,SC2317,SC2329", "-"]
    done = subprocess.run(command, input=script(name), text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_missing_program_is_looked_for_where_a_login_finds_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such program on PATH of there"):
        machine().ask(["no-such-program-xyz"], clean=dict, timeout_s=20)


SSH_CONFIG = """\
Include more.conf
Host login
  HostName login.lab.org
  User me
  Include ports/*
Host behind
  ProxyJump me@gate:2222, login
  HostKeyAlias behind.lab.org
  IdentityFile ~/.ssh/special
  IdentitiesOnly yes
  StrictHostKeyChecking accept-new
  UserKnownHostsFile ~/.ssh/known_there /dev/null
  ConnectTimeout 7
Host *
  User everybody
"""


def test_the_configuration_of_ssh_is_read_with_what_it_includes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".ssh"
    (folder / "ports").mkdir(parents=True)
    (folder / "config").write_text(SSH_CONFIG)
    (folder / "more.conf").write_text("Host included\n  ProxyCommand nc %h %p\n")
    (folder / "ports" / "port").write_text("Port 2022\n")
    config = read_config(tmp_path)
    login, behind, included = (read_hop(config, name, tmp_path) for name in ("login", "behind", "included"))
    assert (login.address, login.port, login.user, login.key_name) == ("login.lab.org", 2022, "me", "[login.lab.org]:2022")
    assert login.known_hosts[0] == folder / "known_hosts" and login.unknown == "ask" and not login.identities_only
    assert (behind.jumps, behind.user, behind.key_name) == (("me@gate:2222", "login"), "everybody", "behind.lab.org")
    assert (behind.identities, behind.identities_only) == ((folder / "special",), True)
    assert (behind.unknown, behind.known_hosts[0], behind.timeout_s) == ("accept-new", folder / "known_there", 7.0)
    assert included.proxy_command == "nc included 22"
    gate = read_hop(config, behind.jumps[0], tmp_path)
    assert (gate.address, gate.port, gate.user) == ("gate", 2222, "me")


SUBMIT = (
    "submit",
    "-s",
    "slurm",
    "--site-set",
    "node.gpus=4",
    "--site-set",
    "software.python=/bin/sh",
    "--host",
    "there",
    "my.yml",
)


@dataclass
class Interrupted:
    """This machine; something comes between the end of a submission over there and its answer."""

    after: Callable[[], object]

    def run(self, text: str, args: Sequence[str] = (), *, stdin: bytes = b"", timeout_s: float) -> Said:
        said = Local().run(text, args, stdin=stdin, timeout_s=timeout_s)
        if text == script("submit"):
            self.after()
        return said

    def close(self) -> None:
        """There is nothing to end."""


def breaks() -> None:
    raise Lost("there: the connection broke")


def logins(monkeypatch: pytest.MonkeyPatch, *ways: Connection | Exception) -> None:
    """What becomes of the next log-ins."""
    left = list(ways)

    def connect(*_: object) -> Connection:
        way = left.pop(0) if left else Local()
        if isinstance(way, Exception):
            raise way
        return way

    monkeypatch.setitem(CONNECT, "paramiko", connect)
    monkeypatch.setattr(far_module, "PAUSES_S", (0.0,))


def test_a_job_is_not_submitted_twice_by_who_is_not_let_in_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.program("sbatch", "echo 4711")
    logins(monkeypatch, Interrupted(after=breaks), UserError(Problem("there", "has refused the code", "nothing was sent")))
    said = desk(*SUBMIT)
    assert said.code == 1 and "there: has refused the code\n  fix: the same command again" in said.err, said
    again = desk(*SUBMIT)
    assert again.code == 0 and "my  job 4711" in again.out, again
    assert len(desk.calls) == 1 and [path.name for path in (desk.cwd / "runs").iterdir()] == ["my"]


def test_of_two_configurations_at_once_neither_is_lost(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.program("sbatch", "echo 4711")
    keep = cli_far.FarDesk.keep
    inner: list[int] = []

    def after_another(self: cli_far.FarDesk, prepared: Prepared) -> RunDir:
        if not inner:
            inner.append(0)
            inner.append(run_command_line([*SUBMIT, "--set", "train_iters=22"]))
        return keep(self, prepared)

    monkeypatch.setattr(cli_far.FarDesk, "keep", after_another)
    logins(monkeypatch)
    said = desk(*SUBMIT, "--set", "train_iters=21")
    assert inner == [0, 0] and said.code == 2 and "has come to be in the meantime" in said.err and "submit again" in said.err, said
    assert desk(*SUBMIT, "--set", "train_iters=21").code == 0
    assert len(desk.calls) == 2 and sorted(path.name for path in (desk.cwd / "runs").iterdir()) == ["my", "my.2"]


HOST_KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIJ1vYj0QyqGm6gXrBm3WkA5nq0aB8hYkGq7kq9yq2o0F"
OTHER_KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIHxH7yHB8GvJTCO8n5MXAQtpiLbi8sD0JNOO7dWFJcP1"


def key_of(text: str) -> paramiko.PKey:
    return paramiko.PKey.from_type_string("ssh-ed25519", base64.b64decode(text))


@pytest.mark.parametrize(
    ("known_hosts", "wrong"),
    [
        (f"@cert-authority *.org {OTHER_KEY}\nlogin ssh-ed25519 {HOST_KEY}\n", ""),
        (f"login ssh-ed25519 AAAAC3NzaC1lZDI1NTE5\nlogin ssh-ed25519 a\nx\nlogin ssh-ed25519 {HOST_KEY}\n", ""),
        (f"# \xff\nlogin ssh-ed25519 {HOST_KEY}\n", ""),
        (f"login ssh-ed25519 {OTHER_KEY}\nlogin,login2 ssh-ed25519 {HOST_KEY}\n", ""),
        (f"@revoked login ssh-ed25519 {HOST_KEY}\nlogin ssh-ed25519 {HOST_KEY}\n", "its host key is revoked"),
        (f"@revoked login ssh-ed25519 {HOST_KEY}\n", "its host key is revoked"),
        (f"login ssh-ed25519 {OTHER_KEY}\n", "its host key is not the known one"),
        (f"@cert-authority login ssh-ed25519 {HOST_KEY}\n", "its host key is not known here"),
    ],
    ids=["authority", "damaged", "no UTF-8", "two log-in nodes", "revoked", "only revoked", "changed", "only authority"],
)
def test_known_hosts_is_read_as_ssh_reads_it(tmp_path: Path, known_hosts: str, wrong: str) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("Host login\n  GlobalKnownHostsFile none\n")
    (tmp_path / ".ssh" / "known_hosts").write_bytes(known_hosts.encode("latin-1"))
    hop = read_hop(read_config(tmp_path), "login", tmp_path)
    if not wrong:
        check_key(hop, *known_keys(hop), key_of(HOST_KEY), OnTerminal())
        return
    with pytest.raises(UserError, match=wrong):
        check_key(hop, *known_keys(hop), key_of(HOST_KEY), OnTerminal())


@pytest.mark.parametrize(
    "line", ["Port ssh", "Include 'more", "Match tagged x", "no-value", "HostName a..b", "Port 99999", "ProxyCommand 'nc"]
)
def test_what_is_wrong_in_the_configuration_of_ssh_is_told(tmp_path: Path, line: str) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text(f"Host login\n{line}\n")
    with pytest.raises((UserError, Failure), match=r"~/.ssh/config"):
        connect_paramiko("login", OnTerminal(), tmp_path)


def test_the_same_command_after_a_commit_is_the_same_job_and_another_is_told_of_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.program("sbatch", "echo 4711")
    logins(monkeypatch, Interrupted(after=breaks), Failure("there: does not answer"))
    assert desk(*SUBMIT).code == 1
    commit = ("-c", "user.name=me", "-c", "user.email=me@here", "commit", "-q", "--allow-empty", "-m", "x")
    for words in (("init", "-q"), commit):
        subprocess.run(["git", *words], cwd=desk.cwd, check=True)
    other = desk(*SUBMIT, "--set", "train_iters=22", "--dry-run")
    assert "runs/my.2" in other.out and "has left no answer yet: neox-hpc status my tells" in other.err, other
    assert desk(*SUBMIT).code == 0 and len(desk.calls) == 1


@pytest.mark.parametrize("where", [SUBMIT, [word for word in SUBMIT if word not in ("--host", "there")]], ids=["far", "here"])
def test_a_refusal_that_comes_too_late_is_none_for_sure(desk: Desk, monkeypatch: pytest.MonkeyPatch, where: Sequence[str]) -> None:
    late = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    desk.program("sbatch", f"echo '{late}' >&2; exit 1")
    logins(monkeypatch)
    said = desk(*where)
    assert said.code == 1 and late in said.err and "queue" in said.err and "nothing is queued" not in said.err, said
    assert (desk.cwd / "runs" / "my" / "job.sh").exists()
    if "--host" in where:
        assert desk(*where).code == 1 and len(desk.calls) == 1


def interrupts() -> None:
    raise KeyboardInterrupt


def test_a_job_whose_submission_is_interrupted_is_in_the_list(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.program("sbatch", "echo 4711")
    desk.program("squeue", "echo '4711|PENDING|None'")
    logins(monkeypatch, Interrupted(after=interrupts))
    assert desk(*SUBMIT).code == 130
    facts = desk("status", "--json").facts  # the newest that is known
    assert (facts["state"], facts["job_id"]) == ("pending", "4711")


@pytest.mark.parametrize(
    ("config", "way"),
    [
        ("Host inner\n  ProxyJump middle\nHost middle\n  ProxyJump outer\n", ["outer", "middle", "inner"]),
        ("Host inner\n  ProxyJump a,b\nHost a\n  ProxyJump outer\nHost b\n  ProxyJump x\n", ["outer", "a", "b", "inner"]),
        ("Host *\n  ProxyJump gate\n", ["gate", "inner"]),
        ("Host inner\n  ProxyJump gate\nHost gate\n  ProxyJump inner\n", ["gate", "inner"]),
    ],
)
def test_hosts_on_the_way_are_reached_as_their_own_entries_say(tmp_path: Path, config: str, way: list[str]) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text(config)
    assert [hop.name for hop in way_to("inner", read_config(tmp_path), tmp_path)] == way


def test_a_passphrase_is_asked_for_when_no_other_key_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen: apt-get install openssh-client")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, word in (("locked", "open sesame"), ("free", "")):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", word, "-f", str(tmp_path / name)], check=True)
    (tmp_path / ".ssh").mkdir()
    names = "".join(f"  IdentityFile ~/{name}\n" for name in ("locked", "free"))
    (tmp_path / ".ssh" / "config").write_text(f"Host login\n{names}")
    person = OneWord()
    found = keys_of(read_hop(read_config(tmp_path), "login", tmp_path), person)
    assert (next(found).get_base64(), person.asked) == ((tmp_path / "free.pub").read_text().split()[1], 0)
    assert (next(found).get_base64(), person.asked) == ((tmp_path / "locked.pub").read_text().split()[1], 1)


@dataclass
class OneWord:
    """A person who knows one passphrase."""

    asked: int = 0

    def secret(self, _prompt: str) -> str:
        self.asked += 1
        return "open sesame"

    def confirm(self, _question: str) -> bool:
        return False
