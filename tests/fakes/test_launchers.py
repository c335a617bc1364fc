"""The pretended launchers place ranks as the manuals' examples show, and refuse what is known to be wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fakes.engine import Refused
from tests.fakes.machine import Host, Machine, shapes
from tests.fakes.program import install, place
from tests.fakes.ranks import Launch

HOSTS = ("node1", "node2")


def machine(name: str, home: Path) -> Machine:
    return Machine(
        home=home,
        shape=shapes()[name],
        nodes=tuple(Host(name=host) for host in HOSTS),
        launch_node=Host(name="batch1") if name == "summit" else None,
        policy={},
    )


def environ_of(launcher: str, folder: Path) -> dict[str, str]:
    """A job's variables on two nodes, as its scheduler sets them."""
    (folder / "hosts").write_text("".join(f"{host}\n" for host in HOSTS))
    (folder / "slots").write_text("batch1\n" + "".join(f"{host}\n" * 42 for host in HOSTS))
    (folder / "instance").write_text(json.dumps({"hosts": HOSTS, "jobid": "ƒ1"}))
    return {
        "jsrun": {"LSB_JOBID": "7", "LSB_DJOB_HOSTFILE": str(folder / "slots")},
        "pals": {"PBS_JOBID": "7.pbs", "PBS_NODEFILE": str(folder / "hosts")},
        "srun": {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]"},
        "flux": {"FLUX_URI": f"local://{folder / 'instance'}"},
        "impi": {"PBS_NODEFILE": str(folder / "hosts")},
        "mvapich": {"PBS_NODEFILE": str(folder / "hosts")},
    }[launcher]


def launch(launcher: str, line: str, where: str, folder: Path, **environ: str) -> Launch:
    return place(launcher, line.split(), machine(where, folder), environ_of(launcher, folder) | environ)


def threads(found: Launch) -> list[int | None]:
    """The first hardware thread of each rank on Summit, as the guide's test program prints it."""
    return [rank.cores[0] * 4 if rank.cores else None for rank in found.ranks]


SUMMIT = [
    # the guide's command, what its program printed: RankCore and number of GPUs of the ranks on the first node
    ("-n12 -r6 -a1 -g1 -c1 ./a.out", [0, 4, 8, 88, 92, 96], 1),
    ("-n12 -a2 -g1 -c2 -dpacked ./a.out", [0, 4, 8, 12, 16, 20, 88, 92, 96, 100, 104, 108], 1),
    ("-n 4 -a 6 -c 6 -g 3 -d packed -l GPU-CPU ./a.out", [0, 4, 8, 12, 16, 20, 88, 92, 96, 100, 104, 108], 3),
    ("-n12 -a1 -c4 -g1 -b packed:4 -d packed ./a.out", [0, 16, 32, 88, 104, 120], 1),
]
"""https://docs.olcf.ornl.gov/systems/summit_user_guide.html, "Jsrun Examples" and "Using Multithreading in a Job"."""


@pytest.mark.parametrize(("line", "printed", "gpus"), SUMMIT)
def test_jsrun_places_tasks_as_the_summit_guide_shows(line: str, printed: list[int], gpus: int, tmp_path: Path) -> None:
    found = launch("jsrun", line, "summit", tmp_path)
    assert threads(found) == printed * 2
    assert [rank.host for rank in found.ranks] == ["node1"] * len(printed) + ["node2"] * len(printed)
    assert {rank.env["CUDA_VISIBLE_DEVICES"] for rank in found.ranks} == {",".join(map(str, range(gpus)))}
    assert [rank.env["OMPI_COMM_WORLD_LOCAL_RANK"] for rank in found.ranks] == [str(n) for n in range(len(printed))] * 2


def test_jsrun_sets_openmp_as_the_summit_guide_shows(tmp_path: Path) -> None:
    found = launch("jsrun", "-n1 -a2 -c8 -g1 -bpacked:4 -dpacked csh", "summit", tmp_path, OMP_NUM_THREADS="16")
    assert [rank.env["OMP_PLACES"] for rank in found.ranks] == ["{0:4},{4:4},{8:4},{12:4}", "{16:4},{20:4},{24:4},{28:4}"]
    assert "OMP_NUM_THREADS" not in found.ranks[0].env
    assert launch("jsrun", "-n1 -a2 -c8 -g1 -brs csh", "summit", tmp_path).ranks[0].env["OMP_NUM_THREADS"] == "32"


def test_a_resource_set_may_span_the_sockets(tmp_path: Path) -> None:
    found = launch("jsrun", "-n2 -r1 -a6 -c42 -g6 -b packed:7 x", "summit", tmp_path)
    assert [rank.cores for rank in found.ranks[:6]] == [tuple(range(n, n + 7)) for n in (0, 7, 14, 22, 29, 36)]
    assert {rank.env["CUDA_VISIBLE_DEVICES"] for rank in found.ranks} == {"0,1,2,3,4,5"}


def test_pals_puts_the_first_rank_on_the_first_cores_with_depth(tmp_path: Path) -> None:
    """ALCF, docs/polaris/running-jobs: with 4 ranks and depth 8 rank 0 is on cores 0-7, beside GPU 3."""
    found = launch("pals", "-n 8 --ppn 4 --depth=8 --cpu-bind depth x", "polaris", tmp_path)
    assert [rank.cores for rank in found.ranks[:4]] == [tuple(range(n, n + 8)) for n in (0, 8, 16, 24)]
    assert [rank.host for rank in found.ranks] == ["node1"] * 4 + ["node2"] * 4


def test_pals_lists_have_a_set_a_rank_between_colons(tmp_path: Path) -> None:
    found = launch("pals", "-n 8 -ppn 4 --cpu-bind list:24-31:16-23:8-15:0-7 x", "polaris", tmp_path)
    assert [rank.cores and rank.cores[0] for rank in found.ranks] == [24, 16, 8, 0] * 2


def test_pals_has_no_size_of_its_own_and_pmis_only_without_pmix(tmp_path: Path) -> None:
    cray, pmix = (launch("pals", f"-n 8 --ppn 4 --pmi={pmi} x", "polaris", tmp_path).ranks[5].env for pmi in ("cray", "pmix"))
    assert (cray["PMI_RANK"], cray["PMI_SIZE"], cray["PALS_LOCAL_RANKID"]) == ("5", "8", "1")
    assert "PALS_SIZE" not in cray and "PMI_SIZE" not in pmix


def test_srun_masks_are_core_numbers(tmp_path: Path) -> None:
    masks = "0x00fe000000000000,0xfe00000000000000,0x0000000000fe0000,0x00000000fe000000"
    found = launch("srun", f"-n8 --ntasks-per-node=4 -c7 --cpu-bind=mask_cpu:{masks} x", "frontier", tmp_path)
    assert [rank.cores and rank.cores[0] for rank in found.ranks] == [49, 57, 17, 25] * 2


def test_srun_gives_a_task_its_own_gpus_only_where_asked(tmp_path: Path) -> None:
    every = launch("srun", "-n16 --ntasks-per-node=8 -c7 --gpus-per-node=8 x", "frontier", tmp_path)
    single = launch("srun", "-n16 --ntasks-per-node=8 -c7 --gpus-per-task=1 --gpu-bind=closest x", "frontier", tmp_path)
    assert {rank.env["ROCR_VISIBLE_DEVICES"] for rank in every.ranks} == {"0,1,2,3,4,5,6,7"}
    assert {rank.env["ROCR_VISIBLE_DEVICES"] for rank in single.ranks} == {"0"}


def test_srun_export_keeps_its_own_value_over_a_listed_one_and_cuts_at_commas(tmp_path: Path) -> None:
    """src/srun/launch.c: with ALL the own environment goes over the list."""
    found = launch("srun", "-n1 --export=ALL,A=1,B=x,y x", "frontier", tmp_path, A="own")
    inherited = found.environment(found.ranks[0])
    assert (inherited["A"], inherited["B"]) == ("own", "x")


def test_flux_spreads_tasks_in_blocks_and_sets_cudas_variable_on_amd(tmp_path: Path) -> None:
    line = "-N2 -n8 -c21 --exclusive -o cpu-affinity=per-task -o gpu-affinity=per-task x"
    found = launch("flux", line, "tuolumne", tmp_path)
    assert [rank.env["FLUX_TASK_LOCAL_ID"] for rank in found.ranks] == ["0", "1", "2", "3"] * 2
    assert [rank.cores for rank in found.ranks[:4]] == list(shapes()["tuolumne"].sockets)
    assert [rank.env["CUDA_VISIBLE_DEVICES"] for rank in found.ranks[:4]] == ["0", "1", "2", "3"]


def test_flux_affinity_by_map_and_off(tmp_path: Path) -> None:
    mapped = launch("flux", "-N2 --tasks-per-node=2 -o cpu-affinity=map:63-83;0-20 -o gpu-affinity=off x", "tuolumne", tmp_path)
    assert [rank.cores and rank.cores[0] for rank in mapped.ranks] == [63, 0, 63, 0]
    assert "CUDA_VISIBLE_DEVICES" not in mapped.ranks[0].env
    assert launch("flux", "-N2 -n4 -o cpu-affinity=off x", "tuolumne", tmp_path).ranks[0].cores is None


def test_hydra_binds_by_its_own_words_and_by_variables(tmp_path: Path) -> None:
    user = launch("mvapich", "-n 4 -ppn 2 -bind-to user:16-31,0+2+4 x", "cluster", tmp_path)
    assert [rank.cores for rank in user.ranks[:2]] == [tuple(range(16, 32)), (0, 2, 4)]
    mapping = launch("mvapich", "-n 4 -ppn 2 x", "cluster", tmp_path, MV2_CPU_MAPPING="0-3:16-19")
    assert [rank.cores for rank in mapping.ranks[:2]] == [(0, 1, 2, 3), (16, 17, 18, 19)]
    masks = launch("impi", "-n 4 -ppn 2 x", "cluster", tmp_path, I_MPI_PIN_DOMAIN="[ff0000,ff]")
    assert [rank.cores for rank in masks.ranks[:2]] == [tuple(range(16, 24)), tuple(range(8))]
    assert launch("impi", "-n 4 -ppn 2 x", "cluster", tmp_path, I_MPI_PIN="0").ranks[0].cores is None


def test_hydra_passes_only_the_named_variables_to_other_hosts(tmp_path: Path) -> None:
    found = launch("mvapich", "-n 4 -ppn 2 -genvlist A,B -genv C 3 x", "cluster", tmp_path, A="1", B="x y", SECRET="s", HOME="/h")
    far = found.environment(found.ranks[3])
    assert {name: far[name] for name in "ABC"} == {"A": "1", "B": "x y", "C": "3"}
    assert "SECRET" not in far and far["HOME"] == "/h"


def test_hydra_sets_the_variables_that_a_real_one_sets(tmp_path: Path) -> None:
    """But for PMI_FD: there is no process manager behind the pretended one."""
    hydra = shutil.which("mpiexec.hydra")
    if hydra is None:
        pytest.skip("no Hydra here: apt-get install --no-install-recommends mpich")
    words = [hydra, "-n", "2", "sh", "-c", "env | grep -E '^(PMI|MPI_LOCAL)' | sort | tr '\\n' ' '; echo"]
    real = subprocess.run(words, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin"}).stdout
    told = sorted(" ".join(word for word in line.split() if not word.startswith("PMI_FD")) for line in real.splitlines())
    ours = [
        sorted(f"{name}={value}" for name, value in rank.env.items())
        for rank in launch("impi", "-n 2 -ppn 2 x", "cluster", tmp_path).ranks
    ]
    assert [" ".join(words) for words in ours] == told


WRONG = [
    ("jsrun", "-g6 -n12 -r6 x", "summit", "Not enough resources"),
    ("jsrun", "-n12 -r6 -c8 -a1 -g1 x", "summit", "Not enough resources"),
    ("jsrun", "-n2 -r1 -a6 -c42 -g6 -b packed:8 x", "summit", "Not enough resources"),
    ("jsrun", "-n 2 --gpus_per_rs 1 x", "summit", "unrecognized option '--gpus_per_rs'"),
    ("jsrun", "-n 12 -E UNSET x", "summit", "UNSET is not set"),
    ("pals", "-n 8 -host node1:4,node2:4 x", "polaris", "invalid entry: node1:4"),
    ("pals", "-n 8 --npernode 4 x", "polaris", "unrecognized option '--npernode'"),
    ("pals", "-n 8 --bind-to none x", "polaris", "unrecognized option '--bind-to'"),
    ("pals", "-n 8 -genv A 1 x", "polaris", "unrecognized option '-genv'"),
    ("pals", "-x A -n 8 x", "polaris", "unrecognized option '-x'"),
    ("pals", "-n 24 --ppn 12 --cpu-bind list:0-7:8-15 x", "aurora", "may not use"),
    ("srun", "-n16 --ntasks-per-node=8 -c8 x", "frontier", "More processors requested than permitted"),
    ("srun", "-n16 --cpu-bind=cpu_mask:0xfe x", "frontier", 'unrecognized --cpu-bind argument "cpu_mask'),
    ("srun", "-n16 -c7 --cpu-bind=mask_cpu:0xff x", "frontier", "Unable to satisfy cpu bind request"),
    ("srun", "-N2 --gpus-per-task=1 x", "frontier", "Invalid generic resource"),
    ("srun", "-n16 --include=node1 x", "frontier", "unrecognized option '--include'"),
    ("flux", "-N2 -n8 --time=10m x", "tuolumne", "unrecognized arguments: --time"),
    ("flux", "-N2 -t 00:30:00 x", "tuolumne", "invalid value '00:30:00'"),
    ("flux", "-N2 -n8 --tasks-per-node=4 x", "tuolumne", "Per-resource options can't be used with per-task options"),
    ("flux", "-N2 -n8 -c24 x", "tuolumne", "unsatisfiable request"),
    ("mvapich", "-n 4 --mca btl ^openib x", "cluster", "unrecognized argument mca"),
    ("mvapich", "-n 4 -genvlist A -genvnone x", "cluster", "duplicate environment setting"),
    ("impi", "-n 4 -bind-to core x", "cluster", "unrecognized argument bind-to"),
]
"""What scripts in the wild, peers and drafts of ours have written; most are in the sites' pages or in issues."""


@pytest.mark.parametrize(("launcher", "line", "where", "message"), WRONG)
def test_known_wrong_lines_are_refused(launcher: str, line: str, where: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        found = launch(launcher, line, where, tmp_path)
        found.environment(found.ranks[0])
    assert message in refused.value.message and refused.value.status > 0


def test_jsrun_does_not_start_with_tmpdir_set_nor_outside_of_a_job(tmp_path: Path) -> None:
    for environ in ({"TMPDIR": "/tmp", **environ_of("jsrun", tmp_path)}, {}):
        with pytest.raises(Refused):
            place("jsrun", ["-n2", "x"], machine("summit", tmp_path), environ)


def test_hydra_does_not_read_open_mpis_host_file(tmp_path: Path) -> None:
    (tmp_path / "hostfile").write_text("node1 slots=2\nnode2 slots=2\n")
    for launcher in ("mvapich", "impi"):
        with pytest.raises(Refused, match="token slots not supported"):
            launch(launcher, f"-f {tmp_path}/hostfile -n 4 -ppn 2 x", "cluster", tmp_path)


RANK = """printf '%s %s\\n' "$OMPI_COMM_WORLD_RANK" "$(env | grep -c '^SLURM_')"; exit $((OMPI_COMM_WORLD_RANK == 2 ? 7 : 0))"""


def test_a_fake_really_starts_its_ranks_and_exits_as_they_do(tmp_path: Path) -> None:
    where = machine("summit", tmp_path / "home")
    install(tmp_path / "bin", where, "jsrun")
    environ = {"PATH": "/usr/bin:/bin", **environ_of("jsrun", tmp_path)}
    said = subprocess.run(
        [tmp_path / "bin" / "jsrun", "-n4", "-r2", "--stdio_mode", "prepended", "sh", "-c", RANK],
        env=environ,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert said.returncode in (7, 128 + 15), said  # the others are ended, or have ended before
    assert {"2: 2 0"} <= set(said.stdout.splitlines()) <= {f"{rank}: {rank} 0" for rank in range(4)}
    [note] = (tmp_path / "home" / "launches").iterdir()
    assert [rank["host"] for rank in json.loads(note.read_text())["ranks"]] == ["node1", "node1", "node2", "node2"]


def test_a_refusal_is_on_stderr_with_the_programs_status(tmp_path: Path) -> None:
    install(tmp_path / "bin", machine("polaris", tmp_path / "home"), "pals")
    said = subprocess.run([tmp_path / "bin" / "mpiexec", "--mca", "x"], env={}, capture_output=True, text=True, timeout=20)
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr.startswith("mpiexec: unrecognized option '--mca'\nUsage: mpiexec [global_options]")
