"""Every option of a manual's synopsis is accepted, and nothing else: over all tables."""

from __future__ import annotations

import operator
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fakes.engine import TABLES, Option, Refused, Table, read_line, read_table

PROGRAMS = sorted(path.stem for path in TABLES.glob("*.yml") if path.stem not in ("hydra", "flux-common"))
"""The other two hold what several programs share."""

STRANGERS = re.findall(
    r"\S+",
    """
mca gmca npernode npersocket rank-by rankfile tag-output timestamp-output allow-run-as-root oversubscribed nooversubscribe
display-map display-allocation launch-agent merge-stderr-to-stdout output-filename xterm cpu-set use-hwthread-cpus do-not-launch
leave-session-attached default-hostfile prtemca personality dvm-uri runtime-options nproc-per-node node-rank rdzv-backend
rdzv-endpoint master-addr master-port standalone max-restarts tee log-dir num_gpus num_nodes include no_ssh force_multi
launcher_args deepspeed_config enable_each_rank_log disable_rdzv_get cpu_mask gpus_per_tasks cpu-bin select walltime alloc_flag
fanout smpi-args gloo-timeout-seconds start-timeout cpus-per-pe pes-per-node tasks_per_r cpus-per-rank bynode byslot nnode
""",
)
"""Options of Open MPI, torchrun, DeepSpeed, PRRTE, Horovod and aprun, misspelt ones and short forms of right ones."""


def spelt(table: Table, option: Option, name: str) -> list[str]:
    """The words of one option, with those that it may not stand without."""
    needed = [rule["needs"][1] for rule in table.rules if rule.get("needs", [""])[0] == option.key]
    others = [other for other in table.options if other.key in needed]
    return [*(word for other in others for word in (other.names[0], *other.example)), *_written(option, name)]


def _written(option: Option, name: str) -> list[str]:
    """A name and a value; one that may be left out stands in the same word."""
    if option.takes == "optional":
        return [f"{name}={option.example[0]}" if name.startswith("--") else f"{name}{option.example[0]}"]
    return [name, *option.example]


def cases() -> list[tuple[str, str]]:
    return [(program, option.key) for program in PROGRAMS for option in read_table(program).options]


@pytest.mark.parametrize(("program", "key"), cases())
def test_every_option_of_the_synopsis_is_accepted_by_each_of_its_names(program: str, key: str) -> None:
    table = read_table(program)
    option = next(option for option in table.options if option.key == key)
    for name in option.names:
        line = read_line(table, [*spelt(table, option, name), "program"])
        assert key in line and line.given[key][-1] == option.example
        assert line.rest[-1:] == ("program",)


@pytest.mark.parametrize("program", PROGRAMS)
def test_fifty_options_that_are_not_in_the_manual_are_refused(program: str) -> None:
    table = read_table(program)
    dashes = "-" if any(re.match(r"-\w\w", name) for option in table.options for name in option.names) else "--"
    names = [name.lstrip("-") for option in table.options for name in option.names]
    near = (lambda word, name: name.startswith(word)) if table.abbreviations else operator.eq
    strangers = [word for word in STRANGERS if not any(near(word, name) for name in names)]
    assert len(strangers) >= 50
    for word in strangers:
        with pytest.raises(Refused, match=re.escape(word)) as refused:
            read_line(table, [f"{dashes}{word}", "1", "program"])
        assert refused.value.status == table.status


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_value_that_is_missing_is_refused(program: str) -> None:
    table = read_table(program)
    for option in (option for option in table.options if option.has_value):
        with pytest.raises(Refused):
            read_line(table, [option.names[-1]])


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_number_has_to_be_one(program: str) -> None:
    table = read_table(program)
    for option in (option for option in table.options if option.takes in ("count", "number") and not option.like):
        for wrong in ("x", "-1", "1.5", "") + (("0",) if option.takes == "count" else ()):
            with pytest.raises(Refused):
                read_line(table, [option.names[0], wrong, "program"])


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_excludes_each_other_is_refused_in_either_order(program: str) -> None:
    table = read_table(program)
    options = {option.key: option for option in table.options}
    for one, other in (rule["apart"] for rule in table.rules if "apart" in rule):
        for first, second in ((one[0], other[0]), (other[-1], one[-1])):
            words = [word for key in (first, second) for word in spelt(table, options[key], options[key].names[0])]
            with pytest.raises(Refused):
                read_line(table, [*words, "program"])


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_long_name_is_cut_short_only_where_the_program_takes_that(program: str) -> None:
    table = read_table(program)
    names = [name for option in table.options for name in option.names if name.startswith("--")]
    for name in names:
        short = name[:-1]
        if len([other for other in names if other.startswith(short)]) == 1 and len(short) > 3 and not table.abbreviations:
            with pytest.raises(Refused):
                read_line(table, [short, "1", "program"])


def test_letters_are_joined_with_their_values_and_with_each_other() -> None:
    table = read_table("jsrun")
    line = read_line(table, ["-n12", "-brs", "-dpacked", "--smpiargs=-gpu -x", "--nrs", "4", "./a.out", "-n", "7"])
    assert (line.text("nrs"), line.text("bind"), line.text("smpiargs")) == ("4", "rs", "-gpu -x")
    assert line.rest == ("./a.out", "-n", "7")
    assert {"verbose", "unbuffered", "label"} <= read_line(read_table("srun"), ["-vul", "hostname"]).given.keys()


def test_two_dashes_end_the_options() -> None:
    for program in ("jsrun", "pals", "flux-run"):
        assert read_line(read_table(program), ["-n", "2", "--", "-n", "3"]).rest == ("-n", "3")


PRINTS_AND_ENDS = ("help", "info")


def test_the_table_of_mvapich_is_what_a_real_hydra_reads(tmp_path: Path) -> None:
    """MPICH's, of which MVAPICH's is a copy.  It reads options in order: behind one that it takes it refuses the next."""
    hydra = shutil.which("mpiexec.hydra")
    if hydra is None:
        pytest.skip("no Hydra here: apt-get install --no-install-recommends mpich")
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost\n")
    files = dict.fromkeys(("hostfile", "machinefile", "configfile"), str(hosts))
    table = read_table("mvapich")
    for option in table.options:
        if option.key not in PRINTS_AND_ENDS:
            value = [files[option.key]] if option.key in files else option.example
            name = option.names[0]
            said = subprocess.run([hydra, name, *value, "-no-such-option", "true"], capture_output=True, text=True, timeout=20)
            assert "unrecognized argument no-such-option" in said.stderr, (name, said)
    for word in STRANGERS[::4]:
        said = subprocess.run([hydra, f"-{word}", "1", "true"], capture_output=True, text=True, timeout=20)
        assert f"unrecognized argument {word}" in said.stderr and said.returncode == table.status, said


def test_the_table_of_srun_is_the_synopsis_of_the_real_one(tmp_path: Path) -> None:
    """Slurm 22.05 lists its options by --help."""
    if shutil.which("srun") is None:
        pytest.skip("no srun here: apt-get install --no-install-recommends slurm-wlm")
    configuration = tmp_path / "slurm.conf"  # without one it does not even tell its options
    configuration.write_text("ClusterName=none\nSlurmctldHost=localhost\nNodeName=localhost\nPartitionName=none Nodes=ALL\n")
    environ = {**os.environ, "SLURM_CONF": str(configuration)}
    printed = subprocess.run(["srun", "--help"], capture_output=True, text=True, timeout=20, env=environ).stdout
    real = set(re.findall(r"^ {2,}(?:-\w, )?(--[a-z][\w-]+)", printed, re.MULTILINE))
    assert len(real) > 60, printed
    ours = {name for option in read_table("srun").options for name in option.names if name.startswith("--")}
    assert real <= ours | {"--whole"}, real - ours
