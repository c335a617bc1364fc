"""``neox-hpc launch``: its command line, its hosts, what it starts and how it ends."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("deepspeed", reason="launch stands on DeepSpeed's launcher: pip install -e '.[train]'")

from neox_hpc.errors import UserError
from neox_hpc.hostfile import parse_hostfile
from neox_hpc.launch import (
    FLAGS,
    Around,
    check_choice,
    check_hosts,
    choose_launcher,
    pool_of,
    read_command,
    read_environment_file,
    runner_words,
)
from neox_hpc.launch_page import EFFECTS, PAGE_COMMAND
from tests.desk import Desk, desk
from tests.planning import loaded, site, slurm

__all__ = ["desk"]

NOBODYS = ("SLURM_JOB_NODELIST", "PBS_NODEFILE", "LSB_DJOB_HOSTFILE", "FLUX_URI", "DLTS_HOSTFILE", "MASTER_ADDR")
THREE = "n1 slots=2\nn2 slots=2\nn3 slots=2\n"


@pytest.fixture(autouse=True)
def _no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NOBODYS:
        monkeypatch.delenv(name, raising=False)


# The command line -------------------------------------------------------------------------------------------------------------


def test_deepys_command_line_is_read_as_it_is() -> None:
    line = (
        "train.py -d configs 125M.yml local_setup.yml -H hosts --wandb_group g --wandb_team t --iteration 4 --eval_results_prefix p"
    )
    command = read_command(f"{line} -i prompts.txt -o out.txt --eval_tasks piqa lambada".split())
    assert (command.program, command.configs, command.given["conf_dir"]) == ("train", ("125M.yml", "local_setup.yml"), "configs")
    assert set(command.sets) == {
        'hostfile="hosts"',
        'wandb_group="g"',
        'wandb_team="t"',
        "iteration=4",
        'eval_results_prefix="p"',
        'sample_input_file="prompts.txt"',
        'sample_output_file="out.txt"',
        'eval_tasks=["piqa", "lambada"]',
    }


@pytest.mark.parametrize("script", ["train", "train.py", "./train.py"])
def test_the_script_may_be_called_as_gpt_neox_calls_it(script: str) -> None:
    assert read_command([script, "my.yml"]).program == "train"


def test_every_flag_of_deepspeeds_runner_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    from deepspeed.launcher.runner import parse_args

    with pytest.raises(SystemExit):
        parse_args(["--help"])
    theirs = set(re.findall(r"--[a-z]\w+", capsys.readouterr().out)) - {"--help"}
    assert theirs <= {name for flag in FLAGS for name in flag.names}


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag.refused], ids=lambda flag: flag.names[-1])
def test_a_flag_without_effect_is_refused_with_what_to_write_instead(flag: Any) -> None:
    value = [] if flag.options.get("action") == "store_true" else ["x"]
    with pytest.raises(UserError) as refused:
        read_command(["train", "my.yml", flag.names[-1], *value])
    assert refused.value.problems[0].where == flag.names[-1] and refused.value.problems[0].fix


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "my.yml", "--no_such"], "--no_such"),
        (["train", "my.yml", "--num_nodes", "two"], "num_nodes"),
        (["train"], "CONFIG"),
        (["pretrain", "my.yml"], "write one of train, eval, generate"),
        (["train", "my.yml", "--autotuning", "maybe"], "maybe"),
        (["train", "my.yml", "--host", "f"], "--host"),  # abbreviations are not guessed
    ],
)
def test_a_wrong_command_line_is_named(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        read_command(words)


@pytest.mark.parametrize(
    ("flags", "keys", "environ", "words"),
    [
        ("", {}, {}, []),
        ("", {"num_nodes": 2, "num_gpus": 4}, {}, ["--num_nodes=2", "--num_gpus=4"]),
        ("", {"include": "n1", "num_gpus": 4}, {}, ["--include=n1"]),
        ("", {"deepspeed_slurm": True}, {}, ["--force_multi"]),
        ("", {"deepspeed_mpi": True}, {}, ["--force_multi"]),
        ("", {"hostfile": "mine"}, {"DLTS_HOSTFILE": "job"}, ["--hostfile=job"]),
        ("", {}, {"MASTER_ADDR": "n1"}, ["--master_addr=n1"]),
        ("--launcher_args=-v --ssh_port 22 --no_ssh_check", {}, {}, ["--launcher_args=-v", "--ssh_port=22"]),
    ],
)
def test_the_runner_is_told_what_deepy_would_tell_it(
    flags: str, keys: dict[str, Any], environ: dict[str, str], words: list[str]
) -> None:
    assert runner_words(read_command(["train", "my.yml", *flags.split()]), loaded(**keys), environ) == words


def test_the_page_of_flags_and_keys_is_true(desk: Desk) -> None:
    said = desk("launch", "--markdown")
    assert said.out == (Path(__file__).parents[1] / "docs/launching.md").read_text(), PAGE_COMMAND


def test_the_page_tells_of_every_key_of_the_section() -> None:
    assert set(EFFECTS) == set(type(loaded().config.launch).model_fields)


# Hosts ------------------------------------------------------------------------------------------------------------------------


def test_a_scheduler_tells_the_hosts_and_a_hostfile_leaves_some_out() -> None:
    job = Around(allocation=("n1", "n2", "n3"))
    assert pool_of(slurm(), job) == {"n1": 4, "n2": 4, "n3": 4}
    some = Around(allocation=("n1", "n2", "n3"), hostfile=parse_hostfile("n3 slots=2\nn1 slots=2\n", "f"))
    assert pool_of(slurm(), some) == {"n1": 2, "n3": 2}


def test_a_hostfile_that_names_others_is_refused_by_its_line() -> None:
    job = Around(allocation=("n1",), hostfile=parse_hostfile("n1 slots=4\nm7 slots=4\n", "f"))
    with pytest.raises(UserError, match="f:2: m7 is no node of this job"):
        pool_of(slurm(), job)


def test_without_scheduler_and_hostfile_this_machine_is_used() -> None:
    assert pool_of(site("local", "node.gpus=0"), Around()) == {"localhost": 2}
    assert pool_of(site("local"), Around(devices=3)) == {"localhost": 3}


@pytest.mark.parametrize(
    ("nodes", "gpus", "filtered", "told"),
    [
        (4, -1, False, "4 hosts, and there are 3"),
        (-1, 3, False, "3, and n1 has 2 slots"),
        (0, -1, False, "0 is none"),
        (2, -1, True, "cannot stand beside"),
    ],
)
def test_numbers_that_cannot_be_had_are_refused(nodes: int, gpus: int, filtered: bool, told: str) -> None:
    pool = pool_of(slurm(), Around(hostfile=parse_hostfile(THREE, "f")))
    assert told in " ".join(map(str, check_choice(pool, nodes, gpus, filtered)))


def test_unequal_slots_are_refused_with_the_number_that_all_have() -> None:
    problem = next(iter(check_hosts({"n1": [0, 1, 2], "n2": [0, 1]}, "openmpi")))
    assert "n1 3, n2 2" in problem.wrong and "--num_gpus 2" in problem.fix


def test_devices_by_number_need_a_launcher_of_a_node() -> None:
    chosen = {"n1": [1, 3], "n2": [1, 3]}
    assert list(check_hosts(chosen, "pdsh")) == []
    assert "srun cannot be told which devices" in str(next(iter(check_hosts(chosen, "srun"))))


@pytest.mark.parametrize(
    ("named", "around", "force", "launcher"),
    [
        (None, Around(), False, "local"),
        (None, Around(), True, "pdsh"),
        (None, Around(hostfile=parse_hostfile("n1 slots=2\n", "f")), False, "pdsh"),
        ("slurm", Around(hostfile=parse_hostfile("n1 slots=2\n", "f")), False, "srun"),
        ("openmpi", Around(), False, "local"),
    ],
)
def test_a_hostfile_of_one_host_goes_through_the_named_launcher(
    named: str | None, around: Around, force: bool, launcher: str
) -> None:
    assert choose_launcher(site("local"), named, around, force=force) == launcher


def test_in_an_allocation_the_sites_launcher_wins() -> None:
    assert choose_launcher(slurm(), "openmpi", Around(allocation=("n1",)), force=False) == "srun"


# .deepspeed_env ---------------------------------------------------------------------------------------------------------------


def test_blank_and_comment_lines_are_passed_over() -> None:
    text = "# for the network\n\nNCCL_DEBUG=INFO\n  # more\nFI_PROVIDER = cxi \nEQUAL=a=b\nEMPTY=\n"
    assert read_environment_file(text, "f") == {"NCCL_DEBUG": "INFO", "FI_PROVIDER": "cxi", "EQUAL": "a=b", "EMPTY": ""}


def test_every_line_that_sets_nothing_is_named() -> None:
    with pytest.raises(UserError) as wrong:
        read_environment_file("A=1\nexport B=2\nnothing\n", "f")
    assert [problem.where for problem in wrong.value.problems] == ["f:2", "f:3"]


# The whole command ------------------------------------------------------------------------------------------------------------

PROGRAMS = {
    "pdsh": "pdsh",
    "openmpi": "mpirun",
    "mpich": "mpiexec",
    "slurm": "srun",
    "pals": "mpiexec",
    "jsrun": "jsrun",
    "flux": "flux",
}
RECORDS = 'printf "%s\\n" "$@" >"ARGV"; env >"ENV"'


@pytest.fixture
def launcher(desk: Desk) -> Callable[[str, str], Path]:
    """A launcher that writes down its arguments and its environment; ssh lets in."""

    def install(name: str, lines: str = RECORDS) -> Path:
        argv = desk.cwd / f"{name}.argv"
        desk.program(name, lines.replace("ARGV", str(argv)).replace("ENV", str(desk.cwd / f"{name}.env")))
        return argv

    desk.program("ssh", ":")
    (desk.cwd / "hosts").write_text("n1 slots=2\nn2 slots=2\n")
    return install


def launched(desk: Desk, *words: str) -> Any:
    return desk("launch", "train", "-s", "local", *words, "my.yml")


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_named_launcher_is_started_with_a_module_on_a_hostfile_of_one_host(desk: Desk, launcher: Any, name: str) -> None:
    (desk.cwd / "one").write_text("n1 slots=2\n")
    argv = launcher(PROGRAMS[name])
    said = launched(desk, "--launcher", name, "-H", "one", "--no_ssh_check")
    assert said.code == 0, said.err
    assert re.search(r"(-m|--module)\s+\"?model\.train", argv.read_text())
    assert (desk.cwd / "runs/my/hosts").read_text() == "n1 slots=2\n"


def test_variables_go_by_deepspeeds_rules_and_values_in_no_argument(
    desk: Desk, launcher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = launcher("mpirun")
    monkeypatch.setenv("UCX_TLS", "rc, $x")
    monkeypatch.setenv("MINE", "not exported")
    (desk.cwd / ".deepspeed_env").write_text("# two\n\nNCCL_DEBUG=a 'b'\n")
    assert launched(desk, "--launcher", "openmpi", "-H", "hosts").code == 0
    words = argv.read_text().splitlines()
    named = {words[at + 1] for at, word in enumerate(words) if word == "-x"}
    assert {"UCX_TLS", "NCCL_DEBUG"} <= named and "MINE" not in named
    assert "rc, $x" not in argv.read_text()
    seen = (desk.cwd / "mpirun.env").read_text().splitlines()
    assert "UCX_TLS=rc, $x" in seen and "NCCL_DEBUG=a 'b'" in seen


def test_address_and_port_are_those_that_were_named(desk: Desk, launcher: Any) -> None:
    launcher("mpirun")
    assert launched(desk, "--launcher", "openmpi", "-H", "hosts", "--master_addr", "n2-hsn", "--master_port", "12802").code == 0
    seen = (desk.cwd / "mpirun.env").read_text().splitlines()
    assert "MASTER_ADDR=n2-hsn" in seen and "MASTER_PORT=12802" in seen


def test_inside_a_job_its_nodes_are_used_and_the_sites_launcher(desk: Desk, launcher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = launcher("srun")
    desk.program("scontrol", 'printf "n1\\nn2\\n"')
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    words = ("launch", "train", "-s", "slurm", "--site-set", "node.gpus=2", "--set", "launcher=openmpi")
    said = desk(*words, "my.yml")
    assert said.code == 0, said.err
    assert "--nodes=2" in argv.read_text() and "--ntasks=4" in argv.read_text()
    assert "srun of slurm takes the place of openmpi" in said.err
    assert (desk.cwd / "runs/my/logs/1/hostfile").read_text() == "n1 slots=2\nn2 slots=2\n"
    assert desk(*words, "--include", "n2", "my.yml").code == 0
    assert "--nodelist=n2" in argv.read_text() and "--nodes=1" in argv.read_text()
    said = desk(*words, "--include", "m1", "my.yml")
    assert said.code == 2 and "m1" in said.err and "n1, n2" in said.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-H", "nowhere"], "--hostfile: nowhere cannot be read"),
        (["-H", "empty"], "empty: names no host"),
        (["-H", "double"], "double:2: n1 stands in line 1 already"),
        (["-H", "bad"], "bad:1: 'n1 4' is no host with its slots"),
        (["-H", "unequal"], "slots: differ between hosts (n1 2, n2 3)"),
        (["-H", "hosts", "--include", "n1", "--exclude", "n2"], "mutually exclusive"),
        (["-H", "hosts", "--include", "n9"], "n9"),
        (["-H", "hosts", "--include", "n1:7"], "No slot '7'"),
        (["-H", "hosts", "--exclude", "n1@n2"], "leave no host"),
        (["-H", "hosts", "--launcher", "teleport"], "launcher"),
        (["-H", "hosts", "--launcher", "openmpi", "--ssh_port", "2222"], "--ssh_port: openmpi cannot be told it"),
        (["-H", "hosts", "--launcher", "openmpi", "--launcher_args", "-np 3"], "-np is decided by the plan"),
        (["-H", "hosts", "--launcher", "openmpi", "--launcher_args", "--mca 'x"], "quot"),
        (["-H", "hosts", "--launcher", "jsrun"], "launcher jsrun: there is no jsrun on PATH"),
        (["--autotuning", "tune"], "autotuning_run"),
    ],
)
def test_a_wrong_launch_starts_nothing_and_says_why(desk: Desk, launcher: Any, words: list[str], told: str) -> None:
    argv = launcher("mpirun")
    for name, text in {
        "empty": "# none\n",
        "double": "n1 slots=2\nn1 slots=2\n",
        "bad": "n1 4\n",
        "unequal": "n1 slots=2\nn2 slots=3\n",
    }.items():
        (desk.cwd / name).write_text(text)
    said = launched(desk, *words)
    assert said.code == 2 and told in said.err, said
    assert not argv.exists() and not (desk.cwd / "runs").exists()


def test_a_host_that_ssh_does_not_reach_is_named(desk: Desk, launcher: Any) -> None:
    launcher("pdsh")
    desk.program("ssh", 'echo "ssh: connect to host n1 port 22: Connection refused" >&2; exit 255')
    said = launched(desk, "-H", "hosts")
    assert said.code == 2 and "n1: cannot be reached by ssh: ssh: connect to host n1 port 22: Connection refused" in said.err
    assert launched(desk, "-H", "hosts", "--no_ssh_check").code == 0


def test_nodes_that_ssh_does_not_reach_are_started_one_by_one(desk: Desk, launcher: Any) -> None:
    """DeepSpeed's launcher of one node is told all hosts, and which of them it is on."""
    record = desk.program("python-node", RECORDS.replace("ARGV", str(desk.cwd / "argv")).replace("ENV", str(desk.cwd / "env")))

    def words_of_node(node: str) -> tuple[str, ...]:
        return ("-H", "hosts", "--no_ssh", "--node_rank", node, "--site-set", f"software.python={record}")

    for node in ("0", "1"):
        said = launched(desk, *words_of_node(node))
        assert said.code == 0, said
    words = (desk.cwd / "argv").read_text().splitlines()
    world = next(word.partition("=")[2] for word in words if word.startswith("--world_info="))
    assert json.loads(base64.urlsafe_b64decode(world)) == {"n1": [0, 1], "n2": [0, 1]} and "--node_rank=1" in words
    assert words[words.index("--master_addr") + 1] == "n1" and words[words.index("--master_port") + 1] == "29500"
    assert words[-1] == str(desk.cwd / "runs/my/run.json")
    assert json.loads((desk.cwd / "runs/my/run.json").read_text())["world_size"] == 4
    said = launched(desk, *words_of_node("0"))
    assert said.code == 2 and "choose another --run-id" in said.err  # the nodes would not all mean the same run


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--no_ssh"], "one is without the other"),
        (["--node_rank", "0"], "one is without the other"),
        (["--no_ssh", "--node_rank", "2"], "--node_rank: 2, and there are 2 hosts: n1, n2"),
    ],
)
def test_a_node_that_cannot_find_the_others_is_not_started(desk: Desk, launcher: Any, words: list[str], told: str) -> None:
    said = launched(desk, "-H", "hosts", *words)
    assert said.code == 2 and told in said.err and not (desk.cwd / "runs").exists(), said


@pytest.mark.parametrize("program", ["eval", "generate"])
def test_what_is_planned_sets_its_keys_and_ends(desk: Desk, program: str) -> None:
    said = desk("launch", program, "-s", "local", "my.yml", "--iteration", "3", "--eval_results_prefix", "x")
    assert said.code == 2 and "planned" in said.err and "iteration" in said.err


def test_a_placeholder_for_a_hostfile_is_passed_over_with_a_word(desk: Desk, launcher: Any) -> None:
    said = launched(desk, "--set", "hostfile=/mock_path", "--dry-run")
    assert said.code == 0 and "this machine alone; there is no /mock_path" in said.err


def test_a_submit_to_hosts_without_a_scheduler_follows_the_same_keys(desk: Desk, launcher: Any) -> None:
    (desk.cwd / "pods.yml").write_text(f"extends: local\nmax_nodes: null\nlauncher: pdsh\nhostfile: {desk.cwd}/hosts\n")
    keys = ("include=n2", "launcher=openmpi", "master_addr=n2-hsn", "master_port=12802")
    words = [word for key in keys for word in ("--set", key)]
    said = desk("submit", "-s", "./pods.yml", "--dry-run", *words, "my.yml")
    assert said.code == 0, said.err
    assert "mpirun -n 2 " in said.out and "MASTER_ADDR=n2-hsn" in said.out and "MASTER_PORT=12802" in said.out
    assert "not used" not in said.err
    assert '-w "^$nodefile"' in desk("submit", "-s", "./pods.yml", "--dry-run", "my.yml").out


def test_keys_that_count_are_not_called_replaced(desk: Desk, launcher: Any) -> None:
    said = launched(desk, "-H", "hosts", "--launcher", "openmpi", "--include", "n1", "--set", "account=lab", "--dry-run")
    assert [line for line in said.err.splitlines() if "not used" in line and "include" in line] == []
    assert "account" in said.err


def test_a_dry_run_shows_what_would_run_and_writes_nothing(desk: Desk, launcher: Any) -> None:
    argv = launcher("mpirun")
    said = launched(desk, "--launcher", "openmpi", "-H", "hosts", "--dry-run")
    assert said.code == 0 and "mpirun -n 4 --hostfile" in said.out
    assert not argv.exists() and not (desk.cwd / "runs").exists()
    assert launched(desk, "--launcher", "openmpi", "-H", "hosts").code == 0
    assert (desk.cwd / "runs/my/job.sh").read_text() == said.out


def test_a_dry_run_in_a_process_of_its_own_says_nothing_but_the_script(desk: Desk, launcher: Any) -> None:
    launcher("mpirun")
    words = ["launch", "train", "-s", "local", "--launcher", "openmpi", "-H", "hosts", "--dry-run", "my.yml"]
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    argv = [sys.executable, "-m", "neox_hpc", *words]
    done = subprocess.run(argv, cwd=desk.cwd, env=environ, capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.startswith("#!/bin/bash\n") and done.stdout.endswith('exit "$status"\n')


def test_a_launch_is_a_run_that_status_knows(desk: Desk, launcher: Any) -> None:
    launcher("mpirun", "exit 3")
    assert launched(desk, "--launcher", "openmpi", "-H", "hosts").code == 3
    facts = desk("status", "runs/my", "--json").facts
    assert facts["state"] == "failed"
    assert "ended with exit status 3" in desk("logs", "runs/my").out


def test_a_launch_is_a_run_that_can_be_explained(desk: Desk, launcher: Any) -> None:
    launcher("mpirun")
    launched(desk, "--launcher", "openmpi", "-H", "hosts")
    said = desk("explain", "runs/my", "--json")
    assert (said.code, said.err) == (0, "")  # not another script than the run's
    script = (desk.cwd / "runs/my/job.sh").read_text()
    assert "\n".join(row["text"] for row in said.facts) == script.rstrip("\n")


# How it ends ------------------------------------------------------------------------------------------------------------------


class Started:
    """``neox-hpc launch`` as a process of its own."""

    def __init__(self, desk: Desk, *words: str) -> None:
        argv = [sys.executable, "-m", "neox_hpc", "launch", "train", "-s", "local", "--launcher", "openmpi", "-H", "hosts", *words]
        root = Path(__file__).parents[1]
        self.seen = desk.cwd / "pids"
        self.process = subprocess.Popen(
            [*argv, "my.yml"], cwd=desk.cwd, env=os.environ | {"PYTHONPATH": str(root)}, stdout=subprocess.DEVNULL
        )

    def wait_for_pids(self) -> list[int]:
        wait_until(lambda: self.seen.exists() and len(self.seen.read_text().split()) == 2, 90)
        return [int(text) for text in self.seen.read_text().split()]


@pytest.fixture
def started(desk: Desk, launcher: Any) -> Iterator[Callable[[str], Started]]:
    """A launcher with one rank; both write their process ids."""
    running: list[Started] = []

    def start(rank: str) -> Started:
        (desk.cwd / "rank").write_text(f"#!/bin/sh\n{rank}\nwhile :; do sleep 0.1; done\n")
        launcher("mpirun", f'sh {desk.cwd}/rank & echo "$$ $!" >"{desk.cwd}/pids"; wait')
        running.append(Started(desk))
        return running[-1]

    yield start
    for one in running:
        one.process.kill()
        one.process.wait()


def wait_until(true: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_launcher_killed_by_a_signal_gives_128_and_its_number_and_leaves_no_rank(started: Any) -> None:
    one = started("")
    launcher, rank = one.wait_for_pids()
    os.kill(launcher, signal.SIGKILL)
    assert one.process.wait(timeout=30) == 137
    wait_until(lambda: not lives(rank))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_no_process_behind(started: Any, number: signal.Signals) -> None:
    one = started("trap 'exit 0' TERM")
    pids = one.wait_for_pids()
    one.process.send_signal(number)
    assert one.process.wait(timeout=30) == 143
    wait_until(lambda: not any(map(lives, pids)))
