"""The pretended queues read scripts, start them and tell of them as the manuals say, and refuse what is known to be wrong."""

from __future__ import annotations

import io
import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.batch import ENDED, find
from tests.fakes.engine import Refused
from tests.fakes.machine import Host, Machine, policy_of, shapes
from tests.fakes.program import QUEUES, install, run

LIMIT_S = 60.0
ALCF = "#PBS -A project\n#PBS -l filesystems=home\n"


@dataclass(frozen=True, kw_only=True)
class Queue:
    """A login node of a pretended machine."""

    machine: Machine
    programs: Path
    home: Path
    cwd: Path

    def __call__(self, *argv: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command."""
        known = {"HOME": str(self.home), "PATH": f"{self.programs}:{os.defpath}", "LANG": "C.UTF-8", "LOGNAME": "user"}
        return subprocess.run(argv, input=stdin, env=known | environ, cwd=self.cwd, capture_output=True, text=True, timeout=LIMIT_S)

    def script(self, text: str, name: str = "job.sh") -> str:
        path = self.cwd / name
        path.write_text(text)
        return str(path)

    def wait(self, number: int = 41) -> None:
        """Until a job has ended."""
        deadline = time.monotonic() + LIMIT_S
        while (job := find(self.machine, number)) is None or job.state != ENDED:
            trouble = self.machine.home / "jobs" / str(number) / "trouble"
            assert time.monotonic() < deadline, (job, trouble.read_text())
            time.sleep(0.02)

    def wait_for(self, what: Callable[[], bool]) -> None:
        """Until something is so."""
        deadline = time.monotonic() + LIMIT_S
        while not what():
            assert time.monotonic() < deadline
            time.sleep(0.02)


def queue_of(name: str, folder: Path, **policy: float) -> Queue:
    """A queue before two nodes."""
    where = Machine(
        home=folder / "machine",
        shape=shapes()[name],
        nodes=(Host(name="node1"), Host(name="node2")),
        launch_node=Host(name="batch1") if name == "summit" else None,
        policy=policy_of(name) | policy,
    )
    for part in ("home", "work"):
        (folder / part).mkdir()
    install(folder / "bin", where, *QUEUES)
    return Queue(machine=where, programs=folder / "bin", home=folder / "home", cwd=folder / "work")


def refused(queue: Queue, *argv: str) -> Refused:
    """What a command says that does nothing; in this process, its scripts named in full."""
    with pytest.raises(Refused) as found:
        run(argv[0], list(argv[1:]), queue.machine, {"HOME": str(queue.home)})
    assert not (queue.machine.home / "jobs").exists()
    return found.value


# ---------------------------------------------------------------------------------------------------------------------- PBS


def test_pbs_starts_a_script_in_the_home_directory_with_a_clean_environment(tmp_path: Path) -> None:
    queue = queue_of("polaris", tmp_path)
    (queue.home / ".bash_profile").write_text("export FROM_LOGIN=1\n")
    body = 'pwd; echo "$FROM_LOGIN-${OWN-unset}-${NAMED-unset}"; sort "$PBS_NODEFILE" | uniq -c; env >"$PBS_O_WORKDIR/env"\n'
    directives = (
        f"{ALCF}#PBS -l select=2:ncpus=64:mpiprocs=4\n#PBS -l place=scatter\n#PBS -j oe\n#PBS -S /bin/bash\n#PBS -v NAMED\n"
    )
    said = queue("qsub", queue.script(f"#!/bin/bash\n{directives}{body}"), OWN="1", NAMED="2", PBS_O_HOST="leaks")
    assert said.stdout == "41.pbs.hsn.cm.polaris.alcf.anl.gov\n", said
    queue.wait()
    domain = ".hsn.cm.polaris.alcf.anl.gov"
    assert (queue.cwd / "job.sh.o41").read_text().split() == [
        str(queue.home),
        "1-unset-2",
        *("4", f"node1{domain}", "4", f"node2{domain}"),
    ]
    variables = dict(line.split("=", 1) for line in (queue.cwd / "env").read_text().splitlines() if "=" in line)
    assert variables["PBS_ENVIRONMENT"] == "PBS_BATCH" and variables["PBS_O_WORKDIR"] == str(queue.cwd)
    assert variables["OMP_NUM_THREADS"] == "64" and variables["PBS_O_HOST"] == "login"


def test_qsub_stops_reading_directives_at_the_first_command_and_prefers_its_command_line(tmp_path: Path) -> None:
    queue = queue_of("polaris", tmp_path)
    text = f"#!/bin/sh\n{ALCF}#PBS -N of-script -l walltime=0:10:00\n\n: no command\n#PBS -q first # remark\necho\n#PBS -q late\n"
    queue("qsub", "-N", "of-line", queue.script(text))
    job = find(queue.machine, 41)
    assert job is not None and (job.name, job.queue, job.account) == ("of-line", "first", "project")
    assert json.loads(job.facts["resources"]) == {"filesystems": "home", "walltime": "0:10:00"}


def test_chunks_share_a_node_unless_they_are_scattered(tmp_path: Path) -> None:
    """Which is why a selection needs a place: PBS' own default is ``free``."""
    queue = queue_of("polaris", tmp_path)
    for place, nodes in (("", 1), ("#PBS -l place=scatter\n", 2), ("#PBS -l place=pack\n", 1)):
        queue("qsub", "-l", "select=2:ncpus=16", queue.script(f"{ALCF}{place}true\n"))
        job = find(queue.machine, 40 + len(list((queue.machine.home / "jobs").iterdir())))
        assert job is not None and len(job.nodes) == nodes, place


def test_qstat_tells_of_a_job_from_its_queue_to_its_end(tmp_path: Path) -> None:
    queue = queue_of("polaris", tmp_path)
    hold = queue.machine.home / "hold"
    hold.touch()
    queue("qsub", "-o", str(queue.cwd / "out"), "-j", "oe", "-k", "doe", queue.script(f"{ALCF}echo started; sleep 60\n"))

    def state(*more: str) -> str:
        said = queue("qstat", "-f", "-F", "json", *more, "41")
        return str(json.loads(said.stdout)["Jobs"]["41.pbs.hsn.cm.polaris.alcf.anl.gov"]["job_state"])

    assert state() == "Q"
    hold.unlink()
    queue.wait_for(lambda: (queue.cwd / "out").exists() and "started" in (queue.cwd / "out").read_text())
    assert state() == "R"
    queue("qdel", "41")
    queue.wait()
    gone = queue("qstat", "-f", "-F", "json", "41")
    assert (gone.returncode, "Jobs" in json.loads(gone.stdout), "finished, use -x" in gone.stderr) == (35, False, True)
    assert state("-x") == "F"
    ended = json.loads(queue("qstat", "-x", "-f", "-F", "json", "41").stdout)["Jobs"]
    assert [job["Exit_status"] for job in ended.values()] == [256 + 15]
    unknown = queue("qstat", "99")
    assert (unknown.returncode, unknown.stderr) == (153, "qstat: Unknown Job Id 99\n")


def test_a_signal_reaches_the_script_and_the_login_shell_above_it(tmp_path: Path) -> None:
    """OpenPBS, src/resmom: the path of the script is written to a login shell, and a signal goes to the whole session."""
    queue = queue_of("polaris", tmp_path)
    body = "trap 'echo told' USR1\ntouch ready\nfor i in $(seq 100); do sleep 0.05; done\n"
    queue("qsub", "-j", "oe", "-k", "doe", "-o", str(queue.cwd / "out"), queue.script(f"#!/bin/sh\n{ALCF}{body}"))
    queue.wait_for((queue.home / "ready").exists)
    assert queue("qsig", "-s", "SIGUSR1", "41").returncode == 0
    queue.wait_for(lambda: "told" in (queue.cwd / "out").read_text())
    queue.wait()
    assert '"Exit_status": 266' in queue("qstat", "-x", "-f", "-F", "json", "41").stdout


def test_output_is_copied_to_its_place_at_the_end_unless_it_is_written_there(tmp_path: Path) -> None:
    queue = queue_of("polaris", tmp_path)
    body = f"{ALCF}echo begun\ntouch begun.$PBS_JOBNAME\nuntil [ -e go ]; do sleep 0.05; done\n"
    queue("qsub", "-N", "late", "-j", "oe", "-o", str(queue.cwd / "late"), queue.script(body))
    queue("qsub", "-N", "now", "-j", "oe", "-o", str(queue.cwd / "now"), "-k", "doe", queue.script(body))
    queue.wait_for(lambda: all((queue.home / f"begun.{name}").exists() for name in ("late", "now")))
    assert not (queue.cwd / "late").exists() and "begun" in (queue.cwd / "now").read_text()
    (queue.home / "go").touch()
    queue.wait(41)
    queue.wait(42)
    assert "begun" in (queue.cwd / "late").read_text()


WRONG_PBS = [
    ("", f"{ALCF}#PBS -l select=1:gpus=4\n", "Unknown resource: gpus"),
    ("", "#PBS -l filesystems=home\n", "qsub: Account_Name is required to be set."),
    ("", "#PBS -A project\n", "qsub: Resource: filesystems is required to be set."),
    ("", "#PBS -A project\n#PBS -l filesystems=scratch\n", "scratch"),
    ("-N a-name-with-sixteen", ALCF, "qsub: illegal -N value"),
    ("", f"{ALCF}#PBS -l walltime=30m\n", "Illegal attribute or resource value for  Resource_List.walltime"),
    ("", f"{ALCF}#PBS -l select=1 -l nodes=1\n", 'cannot be used with "select"'),
    ("", f"{ALCF}#PBS --nodes=2\n", "directive error"),
    ("-j on", ALCF, "illegal -j value"),
    ("", f"#!/bin/sh\necho\n{ALCF}", "Account_Name is required"),
]


@pytest.mark.parametrize(("line", "script", "message"), WRONG_PBS)
def test_qsub_refuses_what_is_known_to_be_wrong(line: str, script: str, message: str, tmp_path: Path) -> None:
    queue = queue_of("polaris", tmp_path)
    said = refused(queue, "qsub", *line.split(), queue.script(script))
    assert message in said.message and said.status > 0


# ---------------------------------------------------------------------------------------------------------------------- LSF


def test_easy_mode_runs_on_the_launch_node_and_lists_it_first(tmp_path: Path) -> None:
    queue = queue_of("summit", tmp_path)
    body = 'head -n 1 "$LSB_DJOB_HOSTFILE"; uniq -c <"$LSB_DJOB_HOSTFILE" | tr -s " "; echo "$OWN $LSB_JOBID"; pwd\n'
    said = queue(
        "bsub", queue.script(f"#!/bin/bash\n#BSUB -P abc123\n#BSUB -W 0:30\n#BSUB -nnodes 2\n#BSUB -o out.%J\n{body}"), OWN="1"
    )
    assert said.stdout == "Job <41> is submitted to default queue <batch>.\n", said
    queue.wait()
    assert (queue.cwd / "out.41").read_text().splitlines() == [
        *("batch1", " 1 batch1", " 42 node1", " 42 node2", "1 41", str(queue.cwd)),
    ]
    job = find(queue.machine, 41)
    assert job is not None and job.host == "batch1"


def test_dropping_the_first_line_of_the_sorted_host_file_drops_a_compute_node_where_names_sort_before_batch(tmp_path: Path) -> None:
    """``sort -u | tail -n +2`` is in DeepSpeed's and others' scripts for Summit: it works for h41n05, and not for a01n05."""
    queue = queue_of("summit", tmp_path)
    queue("bsub", queue.script("#BSUB -P a\n#BSUB -W 30\n#BSUB -nnodes 2\ncp $LSB_DJOB_HOSTFILE hosts\n"))
    queue.wait()
    renamed = (queue.cwd / "hosts").read_text().replace("node", "a01n")
    assert sorted(set(renamed.split()))[1:] == ["a01n2", "batch1"]


def test_only_the_last_alloc_flags_count(tmp_path: Path) -> None:
    queue = queue_of("summit", tmp_path)
    flags = '#BSUB -alloc_flags "gpumps"\n#BSUB -alloc_flags "nvme"\n'
    assert queue("bsub", queue.script(f"#BSUB -P a\n#BSUB -W 30\n#BSUB -nnodes 2\n{flags}true\n")).returncode == 0
    job = find(queue.machine, 41)
    assert job is not None and job.facts["alloc_flags"] == "nvme"


def test_stock_lsf_reads_directives_on_standard_input_only(tmp_path: Path) -> None:
    queue = queue_of("cluster", tmp_path)
    directives = '#BSUB -J named\n#BSUB -n 8\n#BSUB -R "span[ptile=4]"\n#BSUB -o out\n#BSUB -env none\n'
    text = f'#!/bin/bash\n{directives}echo "${{OWN-unset}}"; uniq -c $LSB_DJOB_HOSTFILE\n'
    queue("bsub", stdin=text, OWN="1", PATH=f"{queue.programs}:{os.defpath}")
    queue.wait(41)
    job = find(queue.machine, 41)
    assert job is not None and (job.name, job.host) == ("named", "node1")
    assert (queue.cwd / "out").read_text().split() == ["unset", "4", "node1", "4", "node2"]
    queue("bsub", queue.script(text))
    job = find(queue.machine, 42)
    assert job is not None and job.name.endswith("/job.sh") and len(job.nodes) == 1


def test_bjobs_tells_of_a_job_from_its_queue_to_its_end(tmp_path: Path) -> None:
    queue = queue_of("cluster", tmp_path)
    hold = queue.machine.home / "hold"
    hold.touch()
    queue("bsub", "-o", "out", stdin="trap 'exit 4' INT\necho started\nwhile :; do sleep 0.05; done\n")

    def record(*fields: str) -> dict[str, str]:
        said = json.loads(queue("bjobs", "-o", " ".join(fields), "-json", "41").stdout)
        assert (said["COMMAND"], said["JOBS"]) == ("bjobs", 1)
        return dict(said["RECORDS"][0])

    assert record("jobid", "stat") == {"JOBID": "41", "STAT": "PEND"}
    hold.unlink()
    queue.wait_for(lambda: (queue.cwd / "out").exists() and "started" in (queue.cwd / "out").read_text())
    assert record("stat", "exit_code") == {"STAT": "RUN", "EXIT_CODE": ""}
    assert queue("bkill", "41").stdout == "Job <41> is being terminated\n"
    queue.wait()
    ended = record("stat", "exit_code", "exit_reason")
    assert ended == {"STAT": "EXIT", "EXIT_CODE": "4", "EXIT_REASON": "TERM_OWNER: job killed by owner"}
    missing = json.loads(queue("bjobs", "-o", "stat", "-json", "99").stdout)
    assert missing["RECORDS"] == [{"JOBID": "99", "ERROR": "Job <99> is not found"}]


@pytest.mark.parametrize(
    ("where", "submit", "said"),
    [
        ("polaris", f"qsub:{ALCF}#PBS -l walltime=1\n", '"Exit_status": -29'),
        ("summit", "bsub:#BSUB -P a\n#BSUB -W 1\n#BSUB -nnodes 2\n", '"EXIT_REASON": "TERM_RUNLIMIT'),
        ("tuolumne", "flux batch:#flux: -N2 -t 1m\n", '"result": "TIMEOUT"'),
    ],
)
def test_a_job_whose_time_is_over_ends_and_its_queue_says_so(where: str, submit: str, said: str, tmp_path: Path) -> None:
    queue = queue_of(where, tmp_path, minute_s=1.0)
    command, _, directives = submit.partition(":")
    job = queue(*command.split(), queue.script(f"#!/bin/sh\n{directives}exec sleep 60\n"))
    assert job.returncode == 0, job
    queue.wait()
    asked = {"qsub": "qstat -x -f -F json 41", "bsub": "bjobs -a -json -o exit_reason", "flux batch": "flux jobs -a --json"}
    told = queue(*asked[command].split(), *(["41"] if command == "bsub" else []))
    assert said in told.stdout, told


WRONG_LSF = [
    ("summit", "#BSUB -P a\n#BSUB -W 30:00:00\n#BSUB -nnodes 2\n", "Bad argument for option -W. Job not submitted."),
    ("summit", "#BSUB -P a\n#BSUB -W 30\n#BSUB -n 84\n", "The '-n <slots>' flag is no longer supported."),
    ("summit", "#BSUB -P a\n#BSUB -W 30\n#BSUB -nnodes 2\n#BSUB -n 84\n", "1 ERROR(S) FOUND.  JOB NOT SUBMITTED."),
    ("summit", '#BSUB -P a\n#BSUB -W 30\n#BSUB -nnodes 2\n#BSUB -R "span[ptile=1]"\n', "JOB NOT SUBMITTED"),
    ("summit", "#BSUB -nnodes 2\n", "2 ERROR(S) FOUND"),
    ("cluster", "#BSUB -nnodes 2\n", "-nnodes: Illegal option"),
    ("cluster", "#BSUB --nodes=2\n", "Illegal option. Job not submitted."),
    ("cluster", "#BSUB -n two\n", "Bad argument for option -n"),
    ("cluster", "#BSUB -n8\n", "Illegal option"),
    ("cluster", "#BSUB -wa USR1\n", "-wa and -wt must be specified together"),
]


@pytest.mark.parametrize(("where", "script", "message"), WRONG_LSF)
def test_bsub_refuses_what_is_known_to_be_wrong(
    where: str, script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = queue_of(where, tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(script))
    said = refused(queue, "bsub", *([queue.script(script)] if where == "summit" else []))
    assert message in said.message and said.status == 255


def test_easy_mode_refuses_a_script_on_standard_input(tmp_path: Path) -> None:
    said = queue_of("summit", tmp_path)("bsub", stdin="#BSUB -P a\n#BSUB -W 30\n#BSUB -nnodes 2\n")
    assert (said.returncode, said.stdout) == (255, "")


# --------------------------------------------------------------------------------------------------------------------- Flux


def test_flux_starts_a_script_where_it_was_submitted_without_variables_of_other_launchers(tmp_path: Path) -> None:
    queue = queue_of("tuolumne", tmp_path)
    body = 'flux hostlist --expand local; flux getattr jobid; pwd; env | grep -cE "^(SLURM|PMI|FLUX_TASK)_"\n'
    text = f"#!/bin/bash\n#flux: --nodes=2\n#flux: --job-name=named # remark\n#flux: --output={{{{name}}}}.log\n\n{body}"
    said = queue("flux", "batch", queue.script(text), SLURM_NTASKS="7", PMI_RANK="1", FLUX_TASK_RANK="3", FLUX_F58_FORCE_ASCII="1")
    assert said.stdout.startswith("f") and said.returncode == 0, said
    queue.wait()
    assert (queue.cwd / "named.log").read_text().splitlines() == ["node1 node2", said.stdout.strip(), str(queue.cwd), "0"]


def test_flux_passes_on_the_environment_by_rules(tmp_path: Path) -> None:
    queue = queue_of("tuolumne", tmp_path)
    rules = "#flux: -N1 --output=out\n#flux: --env-remove=*\n#flux: --env=PATH --env=A=x$B\n"
    queue("flux", "batch", queue.script(f"#!/bin/sh\n{rules}env | cut -d= -f1 | sort; echo $A\n"), B="1", C="2")
    queue.wait()
    said = (queue.cwd / "out").read_text().split()
    assert {"A", "FLUX_URI", "PATH", "x1"} <= set(said) and not {"B", "C", "HOME"} & set(said)


def test_flux_jobs_tells_of_a_job_from_its_queue_to_its_end(tmp_path: Path) -> None:
    queue = queue_of("tuolumne", tmp_path)
    hold = queue.machine.home / "hold"
    hold.touch()
    text = "#!/bin/sh\n#flux: -N2 --output=out\necho started; exec sleep 60\n"
    job = queue("flux", "batch", queue.script(text)).stdout.strip()
    assert job.startswith("ƒ")

    def facts(*more: str) -> dict[str, object]:
        return dict(json.loads(queue("flux", "jobs", "--json", *more, job).stdout))

    assert facts()["state"] == "SCHED"
    hold.unlink()
    queue.wait_for(lambda: (queue.cwd / "out").exists() and "started" in (queue.cwd / "out").read_text())
    assert (facts()["state"], facts()["nodelist"]) == ("RUN", "node[1-2]")
    assert queue("flux", "cancel", job).returncode == 0
    queue.wait()
    ended = facts("-a")
    assert (ended["state"], ended["result"], ended["returncode"]) == ("INACTIVE", "CANCELED", -15)
    assert json.loads(queue("flux", "jobs", "--json").stdout) == {"jobs": []}


WRONG_FLUX = [
    ("", "#flux: -N2\n# flux: -t 10m\n", "sentinel changed from '#flux:' to '# flux:'"),
    ("", "#flux: -N2\necho\n#flux: -t 10m\n", "orphan '#flux:' detected"),
    ("", "#flux: -N2 --time=10m\n", "unrecognized arguments: --time"),
    ("", "#flux: -t 10m\n", "Number of slots to allocate must be specified"),
    ("", "#flux: -N2 -t 1:00:00\n", "invalid value '1:00:00'"),
    ("--tasks-per-node=4", "#flux: -N2\n", "unrecognized arguments: --tasks-per-node"),
    ("", "#flux: -N2 --account=me\n", "unrecognized arguments: --account"),
    ("", "#flux: -n4 --exclusive\n", "exclusive can only be set with a node count"),
    ("", "#flux: -N2 --requires\n", "expected one argument"),
    ("", "#SBATCH -N2\n", "Number of slots to allocate must be specified"),
]


@pytest.mark.parametrize(("line", "script", "message"), WRONG_FLUX)
def test_flux_batch_refuses_what_is_known_to_be_wrong(line: str, script: str, message: str, tmp_path: Path) -> None:
    queue = queue_of("tuolumne", tmp_path)
    said = refused(queue, "flux", "batch", *line.split(), queue.script(f"#!/bin/sh\n{script}"))
    assert message in said.message and said.status > 0


def test_queues_tell_what_nodes_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the forms of pbsnodes(8B), bqueues(1) and flux-resource(1)."""

    def said(where: str, *words: str) -> str:
        (tmp_path / where).mkdir()
        run(words[0], list(words[1:]), queue_of(where, tmp_path / where).machine, {})
        return capsys.readouterr().out

    nodes = json.loads(said("polaris", "pbsnodes", "-a", "-v", "-F", "json"))["nodes"]
    assert {name: node["pcpus"] for name, node in nodes.items()} == {"node1": 64, "node2": 64}
    header, queue = said("cluster", "bqueues").splitlines()
    assert header.split()[:3] == ["QUEUE_NAME", "PRIO", "STATUS"] and queue.split()[:3] == ["normal", "30", "Open:Active"]
    free = said("tuolumne", "flux", "resource", "list").splitlines()[1]
    assert free.split() == ["free", "2", "168", "8", "node[1-2]"]
