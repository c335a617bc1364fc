"""Our launchers as DeepSpeed's runners, beside the argv that DeepSpeed's own main starts: recording programs on PATH tell it."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("deepspeed", reason="the runners stand on DeepSpeed: pip install -e '.[train]'")

from deepspeed.launcher import runner as deepspeed_runner

from neox_hpc.launchers import LAUNCHERS, Step
from neox_hpc.launchers.deepspeed import PROGRAMS, choose_hosts, exported_names, make_runner, read_args, runner_of
from neox_hpc.launchers.differences import DIFFERENCES
from neox_hpc.launchers.hydra import ABORT

OURS = {"pdsh": "pdsh", "openmpi": "openmpi", "mpich": "mpich", "impi": "impi", "mvapich": "mvapich", "slurm": "srun"}
"""DeepSpeed's six names."""
REFUSE_FILTERS = {"openmpi", "mpich", "impi", "mvapich"}
"""DeepSpeed's runners that take no --include, --exclude, --num_nodes or --num_gpus; ours do."""
TWO = "n1 slots=2\nn2 slots=2\n"
THREE = "# a comment\nn1 slots=4\n\nn2 slots=4\nn3 slots=4\n"
ONE = "n1 slots=3\n"
ARGUMENTS: dict[str, tuple[str, list[str], str]] = {
    "as it is": (TWO, [], ""),
    "three hosts": (THREE, [], ""),
    "one host": (ONE, ["--force_multi"], ""),
    "included": (THREE, ["--include=n3@n1"], "filtered"),
    "excluded": (THREE, ["--exclude=n2"], "filtered"),
    "first slots": (THREE, ["--include=n1:0,1@n3:0,1"], "filtered"),
    "fewer hosts": (THREE, ["--num_nodes=2"], "fewer"),
    "fewer devices": (THREE, ["--num_gpus=2"], "num_gpus"),
    "a rendezvous": (TWO, ["--master_addr=n2", "--master_port=12802"], ""),
    "arguments": (TWO, ["--launcher_args=-v --opt 'two words'"], ""),
}
"""Hostfile, flags, and what of the table they bring in."""


@dataclass(frozen=True)
class Both:
    theirs: list[str]
    ours: list[str]
    facts: dict[str, str]
    environ: dict[str, str]


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory whose programs write down their arguments; DeepSpeed's main installs signal handlers."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name in ("pdsh", "mpirun", "mpiexec", "srun", "sinfo", "ompi_info", "jsrun", "flux"):
        (bin_ / name).write_text(f'#!/bin/sh\nprintf "%s\\0" {name} "$@" >"{tmp_path}/argv"\n')
    (bin_ / "mpiname").write_text("#!/bin/sh\necho MVAPICH2-GDR\n")
    (bin_ / "ssh").write_text("#!/bin/sh\necho n1 10.0.0.1\n")
    for path in bin_.iterdir():
        path.chmod(0o755)
    for name in [name for name in os.environ if name.startswith(("PYTHON", "UCX", "MV2", "MLFLOW", "NCCL"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{bin_}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONHASHSEED", "a value of words")
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


def theirs_of(name: str, words: list[str], folder: Path) -> list[str]:
    """What DeepSpeed's main starts."""
    deepspeed_runner.main([f"--hostfile={folder}/hosts", f"--launcher={name}", *words, "--module", "model.train", "run.json"])
    return (folder / "argv").read_text().split("\0")[:-1]


def step(folder: Path) -> Step:
    files = {name: str(folder / name) for name in ("hostfile", "nodefile", "rankfile")}
    return Step(nodes=1, ranks_per_node=1, python=sys.executable, module="", master_addr="", master_port="29500", **files)


def both(name: str, case: str, folder: Path) -> Both:
    text, words, _ = ARGUMENTS[case]
    (folder / "hosts").write_text(text)
    args = read_args([f"--hostfile={folder}/hosts", "--master_addr=n1", *words], "model.train", ["run.json"])
    pool = deepspeed_runner.fetch_hostfile(args.hostfile)
    active = choose_hosts(pool, args)
    given = step(folder)
    made = make_runner(OURS[name], type(given)(**{**given.__dict__, "master_port": str(args.master_port)}), args, active, pool)
    environ = dict(os.environ)
    for variable in exported_names(environ):
        made.add_export(variable, environ[variable])
    ours = made.get_cmd(environ, active)
    slots = len(next(iter(active.values())))
    world = base64.urlsafe_b64encode(json.dumps(active).encode()).decode()
    facts = {
        "ranks": str(slots * len(active)),
        "nodes": str(len(active)),
        "slots": str(slots),
        "hosts": ",".join(active),
        "their_hostfile": args.hostfile,
        "hostfile": given.hostfile,
        "nodefile": given.nodefile,
        "address": args.master_addr,
        "port": str(args.master_port),
        "cwd": str(folder),
        "world_info": world,
    }
    refused = name in REFUSE_FILTERS and ARGUMENTS[case][2]
    theirs = [] if refused else theirs_of(name, ["--master_addr=n1", *words], folder)
    return Both(theirs, ours, facts, environ)


def without_exports(name: str, argv: list[str]) -> list[str]:
    """DeepSpeed's argv without the variables that it exports, each by its launcher's own option."""
    if name == "slurm":
        return [word for word in argv if not word.startswith("--export=ALL")]
    if name == "pdsh":
        return [word for word in argv if not word.startswith("export ") and word]
    option = {"openmpi": "-x", "mpich": "-genv", "impi": "-genv", "mvapich": "-env"}[name]
    found = list(argv)
    for at in range(len(found) - 1, -1, -1):
        if found[at] == option and re.match(r"(PYTHON|MV2_|I_MPI_PIN)", found[at + 1]):
            del found[at : at + (2 if "=" in found[at + 1] else 3)]
    return found


def one_part(argv: list[str]) -> list[str]:
    """Intel MPI's argv with the first of its equal parts, without the variables that differ between them."""
    first = argv[: argv.index(":")] if ":" in argv else argv
    at = first.index("-env")
    return [*first[: at - 2], *first[at + 6 :]]


def far_words(argv: list[str]) -> list[str]:
    """pdsh's argv with the words of the far command as node.sh sees them: after the job's shell, the far one, and ``eval``."""
    far = argv.index("ranks") + 1
    here = (re.sub(r'\\([\\$`"])', r"\1", word) for word in argv[far:])
    return [*argv[:far], *(shlex.split(shlex.split(word)[0])[0] for word in here)]


def removed(argv: list[str], words: list[str], what: str) -> list[str]:
    for at in range(len(argv)):
        if argv[at : at + len(words)] == words:
            return argv[:at] + argv[at + len(words) :]
    raise AssertionError(f"{what}: {words} is not in {argv}")


def of_table(name: str, case: str, facts: dict[str, str]) -> Iterator[tuple[list[str], list[str]]]:
    helper = str(Path(deepspeed_runner.__file__).parent / "launcher_helper.py")
    for row in DIFFERENCES:
        if name in row.launchers and row.where in ("", ARGUMENTS[case][2]):
            theirs, ours = (
                [word.format(**facts, helper=helper, abort="{abort}") for word in text.split()] for text in (row.theirs, row.ours)
            )
            yield theirs, ["sh", "-c", ABORT, "sh"] if ours == ["{abort}"] else ours


@pytest.mark.parametrize("case", ARGUMENTS)
@pytest.mark.parametrize("name", OURS)
def test_the_argv_is_deepspeeds_but_for_the_table_of_differences(name: str, case: str, recording: Path) -> None:
    if name in REFUSE_FILTERS and ARGUMENTS[case][2]:
        with pytest.raises(ValueError, match="does not support"):
            theirs_of(name, [*ARGUMENTS[case][1], f"--hostfile={write(recording, case)}"], recording)
        both(name, case, recording)  # ours starts them
        return
    found = both(name, case, recording)
    theirs, ours = without_exports(name, found.theirs), found.ours
    if name == "impi":
        theirs = one_part(theirs)
        ours = removed(ours, ["-genv", "I_MPI_PIN", "0"], "ours")
    if name == "openmpi":
        ours = removed(ours, ["-x", "PYTHONHASHSEED"], "ours")
    if name == "pdsh":
        theirs, ours = [part for word in theirs for part in (word.split() if word.startswith("cd ") else [word])], far_words(ours)
    for row_theirs, row_ours in of_table(name, case, found.facts):
        theirs = removed(theirs, row_theirs, "DeepSpeed's") if row_theirs else theirs
        ours = removed(ours, row_ours, "ours") if row_ours else ours
    assert ours == theirs


def write(folder: Path, case: str) -> Path:
    (folder / "hosts").write_text(ARGUMENTS[case][0])
    return folder / "hosts"


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launcher_starts_a_module(name: str, tmp_path: Path) -> None:
    args = read_args([], "model.train", ["run.json"])
    args.launcher_args = ""
    found = make_runner(name, step(tmp_path), args, {"n1": [0, 1]}, {"n1": 2}).get_cmd({}, {"n1": [0, 1]})
    text = " ".join(found)
    assert re.search(r"(-m|--module) model\.train run\.json", text), text


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_program_that_is_no_module_is_refused(name: str, tmp_path: Path) -> None:
    args = deepspeed_runner.parse_args(["train.py"])
    with pytest.raises(ValueError, match="write --module"):
        make_runner(name, step(tmp_path), args, {"n1": [0]}, {"n1": 1})


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_launcher_exists_when_its_program_does(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_runner(name, step(tmp_path), read_args([], "model.train", []), {"n1": [0]}, {"n1": 1})
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not made.backend_exists()
    (tmp_path / PROGRAMS[name]).write_text("")
    (tmp_path / PROGRAMS[name]).chmod(0o755)
    assert made.backend_exists()


@pytest.mark.parametrize("name", LAUNCHERS)
def test_values_of_exported_variables_are_in_the_environment_alone(name: str, tmp_path: Path) -> None:
    value = 'spaces and "quotes" $HOME, a=b'
    made = make_runner(name, step(tmp_path), read_args([], "model.train", []), {"n1": [0]}, {"n1": 1})
    made.add_export("NCCL_DEBUG", value)
    environ: dict[str, str] = {}
    argv = made.get_cmd(environ, {"n1": [0]})
    assert environ["NCCL_DEBUG"] == value and not any("quotes" in word for word in argv)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_hosts_with_different_slots_are_refused(name: str) -> None:
    made = runner_of(name, step(Path("/")))
    with pytest.raises(ValueError, match="as many slots"):
        made.validate_active_resources({"n1": [0, 1], "n2": [0]})


@pytest.mark.parametrize("name", LAUNCHERS)
def test_devices_by_number_are_for_the_launchers_of_a_node(name: str) -> None:
    made = runner_of(name, step(Path("/")))
    if name in ("pdsh", "local"):
        made.validate_active_resources({"n1": [1, 3]})
    else:
        with pytest.raises(ValueError, match="devices by number"):
            made.validate_active_resources({"n1": [1, 3]})


def test_launchers_that_ask_the_scheduler_are_told_a_part_of_its_nodes(tmp_path: Path) -> None:
    args = read_args([], "model.train", [])
    pool = {"n1": 1, "n2": 1, "n3": 1}
    active: dict[str, Any] = {"n1": [0], "n3": [0]}
    assert "--nodelist=n1,n3" in make_runner("srun", step(tmp_path), args, active, pool).get_cmd({}, active)
    assert "--requires=hosts:n1,n3" in make_runner("flux", step(tmp_path), args, active, pool).get_cmd({}, active)
    with pytest.raises(ValueError, match="cannot be told"):
        make_runner("jsrun", step(tmp_path), args, active, pool).get_cmd({}, active)
