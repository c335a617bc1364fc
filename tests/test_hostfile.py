"""Hosts that no scheduler gives: the hostfile of DeepSpeed and GPT-NeoX, in the plan and in the job; and ``neox-hpc hostfile``."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from neox_hpc.decisions import choose_hostfile, hostfile_paths
from neox_hpc.errors import UserError
from neox_hpc.hostfile import parse_hostfile
from neox_hpc.plan import Plan, Planned
from neox_hpc.probe import Facts, read_hostfile
from neox_hpc.render import render_script
from neox_hpc.site import Site
from tests.desk import Desk, desk
from tests.planning import TWO_CORES, loaded, planned, request, site, wrongs

__all__ = ["desk"]

TWO = "# the cluster\nn1 slots=2\n\nn2  slots=4  # a larger one\n"


def test_a_hostfile_beside_a_scheduler_that_gives_nodes_is_refused() -> None:
    with pytest.raises(UserError, match="slurm gives a job its nodes"):
        site("slurm", "hostfile=/job/hostfile")


def pods(*sets: str) -> Site:
    """Machines without a scheduler; srun stands for a launcher of several nodes."""
    return site("local", "hostfile=/job/hostfile", "max_nodes=null", "launcher=srun", *sets)


def found(text: str) -> Facts:
    return dataclasses.replace(TWO_CORES, hostfile=parse_hostfile(text, "/job/hostfile"))


def job(text: str = TWO, *sets: str, nodes: int | None = None) -> Planned:
    return planned(pods(*sets), facts=found(text), asked={"nodes": nodes})


# The file ---------------------------------------------------------------------------------------------------------------------


def test_hosts_and_slots_are_read() -> None:
    hosts = parse_hostfile(TWO, "f").hosts
    assert [(host.name, host.slots, host.line) for host in hosts] == [("n1", 2, 2), ("n2", 4, 4)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("n1 slots=2\nn2 slots=2\nn1 slots=2\n", "f:3: n1 stands in line 1 already"),
        ("n1\n", "f:1: 'n1' is no host with its slots"),
        ("n1 slots=two\n", "f:1: 'n1 slots=two' is no host with its slots"),
        ("n1 slots=0\n", "f:1: 'n1 slots=0' is no host with its slots"),
        ("n1 slots=2 slots=3\n", "f:1: 'n1 slots=2 slots=3' is no host"),
        ("$(id) slots=2\n", "f:1: '$(id) slots=2' is no host"),
        ("-x slots=2\n", "f:1: '-x slots=2' is no host"),
        ("# nothing\n", "f: names no host"),
    ],
)
def test_a_wrong_line_is_named(text: str, problem: str) -> None:
    assert str(parse_hostfile(text, "f").problems[0]).startswith(problem)


def test_all_wrong_lines_are_told_at_once() -> None:
    assert len(parse_hostfile("n1\nn2 slots=1\nn2 slots=1\n;\n", "f").problems) == 3


# The plan ---------------------------------------------------------------------------------------------------------------------


def test_a_job_takes_all_hosts_of_the_file() -> None:
    plan = job("n1 slots=2\nn2 slots=2\nn3 slots=2\n").plan
    assert plan is not None and (plan.nodes, plan.ranks_per_node, plan.hostfile) == (3, 2, "/job/hostfile")


def test_the_fewest_slots_are_the_ranks_of_a_node_whose_gpus_are_not_known() -> None:
    plan = job().plan
    assert plan is not None and (plan.nodes, plan.ranks_per_node) == (2, 2)
    gpus = dataclasses.replace(found("n1 slots=8\n"), machine=dataclasses.replace(TWO_CORES.machine, gpu_ids=tuple("01234567")))
    plan = planned(pods(), facts=gpus).plan
    assert plan is not None and (plan.gpus_per_node, plan.ranks_per_node) == (8, 8)


def test_more_nodes_than_hosts_are_refused() -> None:
    assert wrongs(job(nodes=3)) == ["--nodes: 3 nodes, and /job/hostfile names 2 hosts / ask for fewer, or add hosts"]


def test_too_few_slots_are_refused_by_the_hosts_line() -> None:
    told = wrongs(job(TWO, "node.gpus=0", "node.cpu_ranks=4"))
    assert told == ["/job/hostfile:2: n1 has 2 slots, and a node of local runs 4 ranks / write slots=4, or --site-set node.gpus=2"]


def test_problems_of_the_file_are_problems_of_the_plan() -> None:
    assert any("/job/hostfile:2: n1 stands in line 1 already" in told for told in wrongs(job("n1 slots=2\nn1 slots=2\n")))


def test_the_address_of_a_host_is_not_that_of_the_script() -> None:
    assert any("network.address" in told for told in wrongs(job(TWO, "network.address=ip")))


def test_elsewhere_the_hosts_are_not_counted_which_is_told() -> None:
    elsewhere = planned(pods("node.gpus=0"), asked={"nodes": 2})
    assert elsewhere.plan is not None and elsewhere.plan.hostfile == "/job/hostfile"
    assert any("no hostfile here" in note for note in elsewhere.notes)


def test_gpt_neoxs_order_of_places_and_a_placeholder_is_passed_over(tmp_path: Path) -> None:
    asked = request(cwd="/home/user", environment_hostfile="/elsewhere/hosts")
    given = loaded(hostfile="mine")
    assert hostfile_paths(given, pods(), asked) == ("/home/user/mine", "/elsewhere/hosts", "/job/hostfile")
    assert hostfile_paths(given, site("local"), asked) == ()
    assert choose_hostfile(given, pods(), asked, None) == "/elsewhere/hosts"
    assert choose_hostfile(given, pods(), request(), None) == "/job/hostfile"
    (tmp_path / "hosts").write_text("n1 slots=2\n")
    assert read_hostfile("/mock_path") is None
    there = read_hostfile(str(tmp_path / "hosts"))
    assert there is not None and choose_hostfile(given, pods(), asked, there) == str(tmp_path / "hosts")


# The job ----------------------------------------------------------------------------------------------------------------------


def run_job(tmp_path: Path, plan: Plan, shell: str) -> subprocess.CompletedProcess[str]:
    """The script with a launcher that ends at once."""
    for folder in ("run/logs", "run/code", "bin"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / "bin" / "srun").write_text(f'#!/bin/sh\necho "$MASTER_ADDR" >"{tmp_path}/started"\n')
    (tmp_path / "bin" / "srun").chmod(0o755)
    (tmp_path / "run" / "job.sh").write_text(render_script(plan))
    environ = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
    return subprocess.run([shell, "run/job.sh"], cwd=tmp_path, env=environ, text=True, capture_output=True, timeout=20, check=False)


def placed(tmp_path: Path, text: str, nodes: int = 2) -> Plan:
    (tmp_path / "hosts").write_text(text)
    where = site("local", f"hostfile={tmp_path}/hosts", "max_nodes=null", "launcher=srun", "node.gpus=0", "node.cpu_ranks=2")
    plan = planned(where, asked={"nodes": nodes, "run_dir": str(tmp_path / "run")}).plan
    assert plan is not None
    return plan


@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_a_job_reads_the_file_when_it_starts(tmp_path: Path, shell: str) -> None:
    done = run_job(tmp_path, placed(tmp_path, "# pods\nn2 slots=2\nn1 slots=4 # more\nn3 slots=2\n"), shell)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/logs/1/hostfile").read_text() == "n2 slots=2\nn1 slots=2\n"
    assert (tmp_path / "started").read_text() == "n2\n"


@pytest.mark.parametrize("shell", ["bash", "dash"])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("n1 slots=2\nn1 slots=2\n", "hosts:2: n1 stands there twice"),
        ("n1 slots=2\nn2\n", "hosts:2: write NAME slots=N"),
        ("n1 slots=2\n$(id) slots=2\n", "hosts:2: write NAME slots=N"),
        ("n1 slots=2\nn2 slots=1\n", "hosts:2: n2 has fewer slots than the 2 ranks of a node"),
        ("n1 slots=2\n", "the job has 1 nodes and was planned for 2"),
        (None, "hosts, which names this job's hosts"),
    ],
)
def test_a_wrong_file_ends_the_job_before_ranks_start(tmp_path: Path, shell: str, text: str | None, told: str) -> None:
    plan = placed(tmp_path, text or "")
    if text is None:
        (tmp_path / "hosts").unlink()
    done = run_job(tmp_path, plan, shell)
    assert done.returncode == 1 and told in done.stderr
    assert not (tmp_path / "started").exists()
    assert (tmp_path / "run/logs/1/outcome").read_text() == "exit_status=1\n"


def test_shellcheck_finds_nothing_in_it(tmp_path: Path) -> None:
    script = render_script(placed(tmp_path, TWO))
    try:
        done = subprocess.run(["shellcheck", "--shell=sh", "-"], input=script, text=True, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no shellcheck here: apt-get install shellcheck")
    assert "SC" not in done.stdout, done.stdout


# The verb ---------------------------------------------------------------------------------------------------------------------

INSIDE = {
    "slurm": {"SLURM_JOB_NODELIST": "n[1-2]"},
    "pbs": {"PBS_NODEFILE": "HOSTS"},
    "lsf": {"LSB_DJOB_HOSTFILE": "HOSTS"},
    "flux": {"FLUX_URI": "local:///x"},
}


@pytest.mark.parametrize("scheduler", INSIDE)
def test_inside_a_job_its_hosts_are_printed(desk: Desk, monkeypatch: pytest.MonkeyPatch, scheduler: str) -> None:
    desk.program("scontrol", '[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"')
    desk.program("flux", '[ "$*" = "hostlist --expand local" ] && echo n1 n2')
    (desk.cwd / "hosts").write_text("n1\nn1\nn2\nn2\n")
    for name, value in INSIDE[scheduler].items():
        monkeypatch.setenv(name, value.replace("HOSTS", str(desk.cwd / "hosts")))
    said = desk("hostfile", "--slots", "4")
    assert (said.code, said.out) == (0, "n1 slots=4\nn2 slots=4\n"), said.err
    said = desk("hostfile")
    assert said.code == 2 and "--slots" in said.err


def test_a_sites_scheduler_says_which_of_them_are_nodes(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    (desk.cwd / "hosts").write_text("batch2\na2\na2\na1\na1\n")
    monkeypatch.setenv("LSB_DJOB_HOSTFILE", str(desk.cwd / "hosts"))
    (desk.cwd / "mine.yml").write_text("extends: slurm\nscheduler: lsf-csm\nnode: {gpus: 2}\n")
    assert desk("hostfile", "--site", "./mine.yml").out == "a1 slots=2\na2 slots=2\n"


def test_a_given_file_is_checked_and_printed(desk: Desk) -> None:
    (desk.cwd / "hosts").write_text(TWO)
    assert desk("hostfile", "--file", "hosts").out == "n1 slots=2\nn2 slots=4\n"
    (desk.cwd / "hosts").write_text("n1 slots=2\nn1 slots=2\n")
    said = desk("hostfile", "--file", "hosts")
    assert said.code == 2 and "hosts:2: n1 stands in line 1 already" in said.err
    assert desk("hostfile", "--file", "absent").code == 2


def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DLTS_HOSTFILE", *(name for names in INSIDE.values() for name in names)):
        monkeypatch.delenv(name, raising=False)


def test_outside_a_job_the_variables_file_is_read_then_the_sites(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    outside(monkeypatch)
    (desk.cwd / "hosts").write_text(TWO)
    (desk.cwd / "own").write_text("n9 slots=9\n")
    (desk.cwd / "mine.yml").write_text(f"extends: pods\nhostfile: {desk.cwd}/own\n")
    assert desk("hostfile", "--site", "./mine.yml").out == "n9 slots=9\n"
    monkeypatch.setenv("DLTS_HOSTFILE", str(desk.cwd / "hosts"))
    for words in ((), ("--site", "./mine.yml"), ("--site", "slurm")):
        assert desk("hostfile", *words).out == "n1 slots=2\nn2 slots=4\n"
    monkeypatch.setenv("PBS_NODEFILE", str(desk.cwd / "nodes"))
    (desk.cwd / "nodes").write_text("n3\n")
    assert desk("hostfile", "--slots", "4").out == "n3 slots=4\n"  # inside a job its scheduler knows


def test_slots_beside_a_file_that_says_them_are_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    outside(monkeypatch)
    (desk.cwd / "hosts").write_text(TWO)
    said = desk("hostfile", "--slots", "4", "--file", "hosts")
    assert (said.code, said.out) == (2, "") and "--slots: hosts says how many slots each host has" in said.err
    monkeypatch.setenv("DLTS_HOSTFILE", str(desk.cwd / "hosts"))
    assert desk("hostfile", "--slots", "4").code == 2


def test_outside_a_job_there_is_nothing_to_print(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    outside(monkeypatch)
    said = desk("hostfile", "--slots", "4")
    assert said.code == 2 and "this is no job of any scheduler" in said.err and "--file" in said.err


def test_a_submit_reads_the_file_that_the_variable_names(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    (desk.cwd / "hosts").write_text("n1 slots=3\nn2 slots=3\n")
    monkeypatch.setenv("DLTS_HOSTFILE", str(desk.cwd / "hosts"))
    sets = [word for fact in ("hostfile=/job/hostfile", "max_nodes=null", "launcher=srun") for word in ("--site-set", fact)]
    said = desk("submit", "-s", "local", *sets, "--dry-run", "my.yml")
    assert said.code == 0, said.err
    assert f"given={desk.cwd}/hosts" in said.out and "6 ranks, 3 a node" in said.out
