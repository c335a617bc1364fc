"""First site files: what each scheduler's own commands print, as their manuals show it, and the file that comes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neox_hpc.errors import UserError
from neox_hpc.gpus import dtypes_of
from neox_hpc.site_draft import SOURCES, DraftQueue, NodeKind, Told, parse_flux, parse_lsf, parse_pbs, parse_slurm, write_draft
from neox_hpc.site_facts import check_site
from neox_hpc.site_files import load_site
from tests.desk import Desk, desk

__all__ = ["desk"]

SINFO = """\
gpu*|96|1-00:00:00|128|515000|gpu:a100:4(S:0-1),nvme:1|2:32:2
long|32|infinite|128|515000|gpu:a100:4(S:0-1),nvme:1|2:32:2
gpu*|8|1-00:00:00|128|1030000|gpu:a100:4(S:0-1),nvme:1|2:32:2
debug|2|30:00|64|257000|(null)|2:32:1
"""
"""sinfo --exact: a row for each partition and kind of node; a node in two partitions is in two rows."""
PBSNODES = {
    "nodes": {
        **{
            f"x300{n}c0s13b0n0": {
                "Mom": f"x300{n}",
                "state": "free",
                "resources_available": {"arch": "linux", "mem": "527672492kb", "ncpus": 64, "ngpus": 4, "host": f"x300{n}"},
            }
            for n in range(3)
        },
        "login1": {"state": "free", "resources_available": {"arch": "linux", "mem": "128gb", "ncpus": 16}},
    }
}
QSTAT = {
    "Queue": {
        "debug": {
            "queue_type": "Execution",
            "enabled": "True",
            "resources_max": {"nodect": 2, "walltime": "01:00:00"},
            "resources_min": {"nodect": 1},
        },
        "prod": {"queue_type": "Route", "enabled": "True", "resources_max": {"nodect": 496}, "resources_min": {"nodect": 10}},
        "old": {"queue_type": "Execution", "enabled": "False"},
    }
}
BHOSTS = """\
HOST_NAME          STATUS          JL/U    MAX  NJOBS    RUN  SSUSP  USUSP    RSV
hostA              ok              -        42      0      0      0      0      0
hostB              closed_Full     -        42     42     42      0      0      0
hostC              ok              -        16      0      0      0      0      0
"""
LSHOSTS = """\
HOST_NAME                       type       model  cpuf ncpus maxmem maxswp server RESOURCES
hostA                        LINUXPPC64LE   POWER9  25.0    42   512G      -    Yes (mg)
hostB                        LINUXPPC64LE   POWER9  25.0    42   512G      -    Yes (mg)
hostC                        X86_64    Intel_EM64T  12.5    16 64224M      -    Yes ()
"""
LSHOSTS_GPU = """\
HOST_NAME   gpu_id       gpu_model   gpu_driver   gpu_factor      numa_id
hostA            0 TeslaV100_SXM2_       396.37          7.0            0
                 1 TeslaV100_SXM2_       396.37          7.0            8
hostB            0 TeslaV100_SXM2_       396.37          7.0            0
                 1 TeslaV100_SXM2_       396.37          7.0            8
"""
BQUEUES = """\

QUEUE: normal
  -- For normal low priority jobs.  This is the default queue.

PARAMETERS/STATISTICS
PRIO NICE STATUS          MAX JL/U JL/P JL/H NJOBS  PEND   RUN SSUSP USUSP  RSV PJOBS
 30   20  Open:Active       -    -    -    -     0     0     0     0     0    0     0
Interval for a host to accept two jobs is 0 seconds

 RUNLIMIT
 720.0 min

SCHEDULING PARAMETERS

QUEUE: killable
  -- Jobs that may be ended

PARAMETERS/STATISTICS
PRIO NICE STATUS          MAX JL/U JL/P JL/H NJOBS  PEND   RUN SSUSP USUSP  RSV PJOBS
  1   20  Open:Active       -    -    -    -     0     0     0     0     0    0     0
"""


def test_slurm_tells_partitions_kinds_of_nodes_and_limits() -> None:
    told = parse_slurm({"sinfo": SINFO})
    assert told.queues == {
        "gpu": DraftQueue(max_nodes=104, walltime_s=86400, default=True),
        "long": DraftQueue(max_nodes=32),
        "debug": DraftQueue(max_nodes=2, walltime_s=1800),
    }
    assert told.kinds[0] == NodeKind(
        count=96, gpus=4, gpu_name="a100", cpus=128, threads_per_core=2, by_threads=True, memory_gib=502
    )
    assert (told.usual.count, told.usual.cores, [kind.count for kind in told.kinds]) == (96, 64, [96, 8, 2])


@pytest.mark.parametrize(
    ("gres", "gpus", "name"),
    [
        ("gpu:4", 4, None),
        ("gpu:a100:4(S:0-1)", 4, "a100"),
        ("shard:8,gpu:h100:8", 8, "h100"),
        ("gpu:a100_1g.5gb:7", 7, "a100_1g.5gb"),
        ("(null)", 0, None),
        ("nvme:1", 0, None),
    ],
)
def test_gres_of_every_form_are_read(gres: str, gpus: int, name: str | None) -> None:
    [kind] = parse_slurm({"sinfo": f"p|1|1:00:00|64|1000|{gres}|2:32:1"}).kinds
    assert (kind.gpus, kind.gpu_name) == (gpus, name)


@pytest.mark.parametrize(
    ("cpus", "built", "cores", "counted"),
    [(128, "2:32:2", 64, "threads"), (64, "2:32:2", 64, "cores"), (64, "2:32:1", 64, "cores"), (160, "2:20:4", 40, "threads")],
)
def test_a_draft_says_what_slurm_counts(tmp_path: Path, cpus: int, built: str, cores: int, counted: str) -> None:
    told = parse_slurm({"sinfo": f"p|1|1:00:00|{cpus}|1000|gpu:4|{built}"})
    (tmp_path / "lab.yml").write_text(write_draft("lab", "slurm", told, "2026-11-21"))
    node = load_site("lab.yml", cwd=tmp_path).node
    assert (node.cores, node.scheduler_cpus) == (cores, counted)


def test_pbs_tells_nodes_and_queues() -> None:
    told = parse_pbs({"pbsnodes": json.dumps(PBSNODES), "qstat": json.dumps(QSTAT)})
    assert told.usual == NodeKind(count=3, gpus=4, cpus=64, memory_gib=503)
    assert told.queues == {
        "debug": DraftQueue(max_nodes=2, min_nodes=1, walltime_s=3600),
        "prod": DraftQueue(max_nodes=496, min_nodes=10),
    }


def test_lsf_tells_hosts_their_gpus_and_queues() -> None:
    told = parse_lsf({"bhosts": BHOSTS, "lshosts": LSHOSTS, "gpus": LSHOSTS_GPU, "bqueues": BQUEUES})
    assert told.usual == NodeKind(count=2, gpus=2, gpu_name="TeslaV100_SXM2_", cpus=42, memory_gib=512)
    assert told.kinds[1] == NodeKind(count=1, gpus=0, cpus=16, memory_gib=63)
    assert told.queues == {"normal": DraftQueue(walltime_s=43200, default=True), "killable": DraftQueue()}


@pytest.mark.parametrize(("limit", "seconds"), [("8h", 28800), ("1.5h", 5400), ("30m", 1800), ("2d", 172800), ("inf", None)])
def test_flux_tells_resources_and_queues(limit: str, seconds: int | None) -> None:
    told = parse_flux({"resource": "1152|110592|4608\n", "queue": f"pbatch*|{limit}|0|512\npdebug |1h|0|inf\n"})
    assert told.usual == NodeKind(count=1152, gpus=4, cpus=96)
    assert told.queues["pbatch"] == DraftQueue(max_nodes=512, min_nodes=0, walltime_s=seconds, default=True)
    assert told.queues["pdebug"] == DraftQueue(min_nodes=0, walltime_s=3600)


@pytest.mark.parametrize("scheduler", SOURCES)
@pytest.mark.parametrize("said", ["", "garbage\n", "{", "[]", "a|b|c|d|e|f|g\n", "HOST_NAME\n", "\x00\xff" * 100])
def test_an_answer_that_says_nothing_gives_an_empty_draft(scheduler: str, said: str) -> None:
    told = SOURCES[scheduler].parse(dict.fromkeys(SOURCES[scheduler].commands, said))
    assert told.usual.gpus is None or told.usual.gpus >= 0


ANSWERS = {
    "slurm": {"sinfo": SINFO},
    "pbs": {"pbsnodes": json.dumps(PBSNODES), "qstat": json.dumps(QSTAT)},
    "lsf": {"bhosts": BHOSTS, "lshosts": LSHOSTS, "gpus": LSHOSTS_GPU, "bqueues": BQUEUES},
    "flux": {"resource": "1152|110592|4608\n", "queue": "pbatch*|8h|0|512\n"},
}


@pytest.mark.parametrize("scheduler", SOURCES)
@pytest.mark.parametrize("silent", [False, True])
def test_a_draft_is_a_sound_site_file(tmp_path: Path, scheduler: str, silent: bool) -> None:
    answers = {} if silent else ANSWERS[scheduler]
    text = write_draft("lab", scheduler, SOURCES[scheduler].parse(answers), "2026-11-21", ["x: no answer"] if silent else [])
    (tmp_path / "lab.yml").write_text(text)
    site = load_site("lab.yml", cwd=tmp_path)
    assert [str(problem) for problem in check_site(site)] == []
    assert site.scheduler == scheduler
    assert (site.node.gpus is None) == silent
    assert set(site.queues or {}) == set(SOURCES[scheduler].parse(answers).queues)


def test_a_draft_says_what_was_told_and_leaves_the_rest_open(tmp_path: Path) -> None:
    (tmp_path / "lab.yml").write_text(write_draft("lab", "slurm", parse_slurm({"sinfo": SINFO}), "2026-11-21"))
    site = load_site("lab.yml", cwd=tmp_path)
    node = site.node
    assert (node.gpus, node.gpu_name, node.accelerator, node.cores, node.threads_per_core) == (4, "a100", "cuda", 64, 2)
    assert (node.scheduler_cpus, node.dtypes) == ("threads", ("fp32", "fp16", "bf16"))
    assert (site.max_nodes, site.default_queue, node.gpu_memory_gib) == (96, ("gpu",), None)
    assert site.queues is not None and site.queues["gpu"].bins[0].walltime == 86400 and site.queues["long"].bins == ()
    assert "also 2 nodes of no GPUs, 64 cores, 250 GiB" in (tmp_path / "lab.yml").read_text()


@pytest.mark.parametrize(
    ("gpu", "accelerator"), [("a100", "cuda"), ("TeslaV100_SXM2_", "cuda"), ("gh200", "cuda"), ("mi250x", "rocm"), ("thing", None)]
)
def test_an_accelerator_is_told_by_its_name_or_not_at_all(tmp_path: Path, gpu: str, accelerator: str | None) -> None:
    told = Told(kinds=(NodeKind(count=1, gpus=4, gpu_name=gpu),))
    (tmp_path / "lab.yml").write_text(write_draft("lab", "slurm", told, "2026-11-21"))
    assert load_site("lab.yml", cwd=tmp_path).node.accelerator == accelerator


# Types by the name of a GPU: https://developer.nvidia.com/cuda-gpus has the compute capability of each; bf16 begins with 8.0.
@pytest.mark.parametrize("name", ["v100", "TeslaV100_SXM2_", "tesla_v100s", "V100-SXM2-16GB", "t4", "NVIDIA TITAN V", "rtx_2080"])
def test_gpus_before_ampere_are_known_to_lack_bf16(name: str) -> None:
    assert dtypes_of(name) == ("fp32", "fp16")


@pytest.mark.parametrize(
    "name",
    [
        *("a100", "A100 64 GB", "NVIDIA A100-SXM4-80GB", "nvidia_a100-sxm4-40gb", "a100_1g.5gb", "h100", "nvidia_h100_80gb_hbm3"),
        *("GH200", "gh200", "b200", "a40", "a10g", "l40s", "rtx_3090", "MI250X GCD", "mi210", "MI300A", "Instinct MI300X"),
    ],
)
def test_gpus_from_ampere_and_cdna_on_are_known_to_have_bf16(name: str) -> None:
    assert dtypes_of(name) == ("fp32", "fp16", "bf16")


@pytest.mark.parametrize("name", ["", "thing", "Max 1550 tile", "gpu", "a1000", "k80", "mi60", "xt4"])
def test_of_other_names_nothing_is_known(name: str) -> None:
    assert dtypes_of(name) is None


def test_evil_names_of_queues_and_gpus_stay_text(tmp_path: Path) -> None:
    evil = "a: {b}\n- 'c' \"d\" # e"
    told = Told(kinds=(NodeKind(count=1, gpus=1, gpu_name=evil),), queues={evil: DraftQueue(default=True), "no": DraftQueue()})
    (tmp_path / "lab.yml").write_text(write_draft("lab", "slurm", told, "2026-11-21"))
    site = load_site("lab.yml", cwd=tmp_path)
    assert (site.node.gpu_name, site.default_queue, set(site.queues or {})) == (evil, (evil,), {evil, "no"})


# The command ------------------------------------------------------------------------------------------------------------------


def test_sites_new_writes_a_file_that_sites_check_takes(desk: Desk) -> None:
    desk.program("sinfo", f"cat <<'END'\n{SINFO}END")
    said = desk("sites", "new", "lab")
    path = desk.cwd.parent / "home/.config/neox-hpc/sites/lab.yml"
    assert said.code == 0 and said.out.startswith(f"{path}: ")
    assert desk.calls[0].startswith("sinfo --exact --noheader")
    assert desk("sites", "check", "lab").code == 0
    assert "software.python" in desk("sites", "show", "lab").out
    said = desk("submit", "--dry-run", "-s", "lab", "my.yml")
    assert said.code == 0 and "#SBATCH --partition=gpu" in said.out and "#SBATCH --time=1-00:00:00" in said.out


def test_sites_new_overwrites_nothing(desk: Desk) -> None:
    desk.program("sinfo", "echo")
    assert desk("sites", "new", "lab").code == 0
    path = desk.cwd.parent / "home/.config/neox-hpc/sites/lab.yml"
    path.write_text("mine")
    said = desk("sites", "new", "lab")
    assert (said.code, path.read_text()) == (2, "mine") and "nothing is overwritten" in said.err
    assert desk("sites", "new", "lab", "--stdout").out.startswith("# lab: a draft")


def test_sites_new_says_which_commands_gave_no_answer(desk: Desk) -> None:
    desk.program("pbsnodes", f"cat <<'END'\n{json.dumps(PBSNODES)}\nEND")
    desk.program("qstat", "echo 'cannot connect to server' >&2; exit 1")
    said = desk("sites", "new", "lab", "--stdout", "--scheduler", "pbs")
    assert said.code == 0 and "# no answer: qstat -Q -f -F json" in said.out and "gpus: 4" in said.out
    desk.program("pbsnodes", "exit 1")
    said = desk("sites", "new", "lab", "--stdout", "--scheduler", "pbs")
    assert said.code == 2 and said.err.count("run it on a login node") == 2


@pytest.mark.parametrize("name", ["../x", "a/b", ".x", "-x", "", "a b"])
def test_a_name_that_is_no_file_name_is_refused(desk: Desk, name: str) -> None:
    desk.program("sinfo", "echo")
    assert desk("sites", "new", "--stdout", "--", name).code == 2


def test_a_machine_without_a_scheduler_is_told_where_to_ask(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(desk.programs))
    assert "none of sinfo, pbsnodes, bqueues, flux is on PATH" in desk("sites", "new", "lab").err
    assert "write one of slurm, pbs, lsf, flux" in desk("sites", "new", "lab", "--scheduler", "sge").err


def test_a_file_of_the_users_own_that_is_damaged_is_an_error_and_not_detected(desk: Desk) -> None:
    own = desk.cwd.parent / "home/.config/neox-hpc/sites"
    own.mkdir(parents=True)
    (own / "bad.yml").write_text("scheduler: slrum\n")
    assert desk("sites", "detect").code == 1
    with pytest.raises(UserError, match="slrum"):
        load_site(own / "bad.yml")
