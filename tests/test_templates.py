"""Job scripts are run, under bash and dash, with the programs around them faked: scontrol, srun and the ranks' Python.

The fakes record what arrives and behave as they are told; nothing of ours is replaced.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from neox_hpc.launchers import LAUNCHERS, Shell
from neox_hpc.plan import Plan
from neox_hpc.render import render_script
from neox_hpc.schedulers import SCHEDULERS
from neox_hpc.site import EnvValue
from tests.planning import TWO_CORES, plan, site

RECORDER = """#!/bin/sh
printf '%s\\0' "$0" "$@" >"$RECORD/argv"
env -0 >"$RECORD/env"
pwd >"$RECORD/cwd"
if [ -e "$RECORD/behave" ]; then . "$RECORD/behave"; fi
"""
SCONTROL = """#!/bin/sh
[ "$1 $2" = "show hostnames" ] || exit 9
echo "$3" | tr , '\\n'
"""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A run directory, the fake programs and what they recorded."""

    root: Path
    shell: str

    @property
    def run(self) -> Path:
        return self.root / "run"

    def start(self, job: Plan, *, hosts: str = "n1,n2", behave: str = "", **environ: str) -> subprocess.Popen[str]:
        """Start the job's script as its scheduler would."""
        (self.root / "record" / "behave").write_text(behave)
        script = self.run / "job.sh"
        script.write_text(render_script(job))
        clean = {
            "PATH": f"{self.root / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.root / "home"),
            "RECORD": str(self.root / "record"),
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NODELIST": hosts,
        }
        command = [self.shell, str(script)]
        return subprocess.Popen(command, env=clean | environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/")

    def finish(self, job: Plan, **options: Any) -> tuple[int, str]:
        """Exit status and output."""
        process = self.start(job, **options)
        output, _ = process.communicate(timeout=20)
        return process.returncode, output

    def program(self, name: str) -> None:
        """A program of that name that records."""
        (self.root / "bin" / name).write_text(RECORDER)
        (self.root / "bin" / name).chmod(0o755)

    def argv(self) -> list[str]:
        return (self.root / "record" / "argv").read_text().split("\0")[:-1]

    def env(self) -> dict[str, str]:
        pairs = (self.root / "record" / "env").read_text().split("\0")[:-1]
        return dict(pair.split("=", 1) for pair in pairs)

    def outcome(self, attempt: int = 1) -> str:
        return (self.run / "logs" / str(attempt) / "outcome").read_text()

    def wait_for_ranks(self) -> None:
        """Until the launcher runs and has set what it was told to."""
        deadline = time.monotonic() + 10
        while not (self.root / "record" / "ready").exists():
            assert time.monotonic() < deadline, "the launcher was not started"
            time.sleep(0.01)


@pytest.fixture(params=["bash", "dash"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    if shutil.which(request.param) is None:
        pytest.skip(f"no {request.param} here: apt-get install {request.param}")
    for folder in ("run/logs", "run/code", "bin", "record", "home"):
        (tmp_path / folder).mkdir(parents=True)
    for name, text in (("srun", RECORDER), ("python", RECORDER), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return Stage(root=tmp_path, shell=request.param)


def slurm_job(stage: Stage, *sets: str, nodes: int = 2) -> Plan:
    """Two nodes of two ranks."""
    given = ("node.gpus=0", "node.cpu_ranks=2", f"software.python={stage.root / 'bin' / 'python'}")
    return plan(site("slurm", *given, *sets), nodes=nodes, run_dir=str(stage.run))


def queued_job(stage: Stage, scheduler: str) -> Plan:
    """The same under any scheduler, by a launcher that starts ranks in a job of any."""
    stage.program("mpiexec")
    return slurm_job(stage, f"scheduler={scheduler}", "launcher=mpich")


def local_job(stage: Stage) -> Plan:
    return plan(site("local", f"software.python={stage.root / 'bin' / 'python'}"), facts=TWO_CORES, run_dir=str(stage.run))


def test_launcher_gets_the_argv_that_its_function_gives_for_that_address_and_port(stage: Stage) -> None:
    for job, address, port in ((slurm_job(stage), "n1", "13456"), (local_job(stage), "127.0.0.1", None)):
        status, output = stage.finish(job)
        assert (status, output.count("neox-hpc:")) == (0, 1), output
        arrived, env = stage.argv(), stage.env()
        step = dataclasses.replace(
            job.step, master_addr=address, master_port=port or env["MASTER_PORT"], module_args=(str(stage.run / "run.json"),)
        )
        expected = LAUNCHERS[job.site.launcher](step)
        assert [Path(arrived[0]).name, *arrived[1:]] == [Path(expected[0]).name, *expected[1:]]
        assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == (address, port or env["MASTER_PORT"])
        assert 10000 <= int(env["MASTER_PORT"]) < 30000


BINDING = ("node.cores=4", 'node.cpu_masks=["2-3", "0-1"]')


@pytest.mark.parametrize("name", sorted(set(LAUNCHERS) - {"local"}))
def test_every_launcher_gets_the_argv_that_its_function_gives_for_the_files_of_the_job(stage: Stage, name: str) -> None:
    """Hosts of a hostfile: with those any of them works."""
    (stage.root / "hosts").write_text("n1 slots=2\nn2 slots=2\n")
    hosts = ("scheduler=local", f"hostfile={stage.root / 'hosts'}")
    job = slurm_job(stage, *hosts, f"launcher={name}", *BINDING, "launcher_args=[\"--verbose 'a b'\"]")
    stage.program(LAUNCHERS[name](job.step)[0])
    status, output = stage.finish(job)
    assert status == 0, output
    logs = stage.run / "logs" / "1"
    files = {"hostfile": str(logs / "hostfile"), "nodefile": str(logs / "nodefile"), "rankfile": str(logs / "rankfile")}
    here = {"master_addr": "n1", "master_port": stage.env()["MASTER_PORT"], "module_args": (str(stage.run / "run.json"),)}
    expected = LAUNCHERS[name](dataclasses.replace(job.step, **files, **({} if name == "pdsh" else here)))
    if name == "pdsh":  # the shells of the nodes know the rest by themselves
        expected = [expand(word, node_sh=f"'{logs / 'node.sh'}'") if isinstance(word, Shell) else word for word in expected]
    assert [Path(stage.argv()[0]).name, *stage.argv()[1:]] == expected
    assert stage.argv()[stage.argv().index("--verbose") + 1] == "a b"


def expand(word: str, **variables: str) -> str:
    """A word in double quotes, as a shell reads it."""
    return subprocess.run(["sh", "-c", f'printf %s "{word}"'], env=variables, capture_output=True, text=True, check=True).stdout


def test_open_mpi_finds_each_ranks_cores_in_a_file(stage: Stage) -> None:
    stage.program("mpirun")
    stage.finish(slurm_job(stage, "launcher=openmpi", *BINDING))
    assert (stage.run / "logs/1/rankfile").read_text().splitlines() == [
        "rank 0=n1 slot=2-3",
        "rank 1=n1 slot=0-1",
        "rank 2=n2 slot=2-3",
        "rank 3=n2 slot=0-1",
    ]


def far_command(words: list[str]) -> str:
    """What pdsh sends: its words from the command on, with spaces between them."""
    return " ".join(words[words.index("sh") :])


def far_node(stage: Stage, number: int, command: str = "") -> subprocess.Popen[str]:
    """What pdsh asks of a node's shell, in an environment that knows nothing of the job."""
    command = (command or far_command(stage.argv())).replace("%n", str(number)).replace("%%", "%")
    clean = {"PATH": os.defpath, "RECORD": str(stage.root / "record"), "HOME": str(stage.root / "home")}
    return subprocess.Popen([stage.shell, "-c", command], stdin=subprocess.PIPE, env=clean, cwd="/", text=True)


def pdsh_job(stage: Stage, **env: str) -> Plan:
    stage.program("pdsh")
    return slurm_job(stage, "launcher=pdsh", *(f"env.{name}={value!r}" for name, value in env.items()))


def test_pdsh_starts_deepspeeds_launcher_on_a_node_with_the_jobs_variables(stage: Stage) -> None:
    folder = stage.root / "home/.config/neox-hpc"
    folder.mkdir(parents=True)
    (folder / "secrets.env").write_text("WANDB_API_KEY='s3 cret'\n")
    stage.finish(pdsh_job(stage, EVIL="it's $HOME `id` %n (x2)"))
    assert (stage.run / "logs/1/node.sh").stat().st_mode & 0o777 == 0o600
    assert "s3 cret" not in (stage.run / "logs/1/node.sh").read_text()
    assert far_node(stage, 1).wait(timeout=10) == 0
    words, env = stage.argv(), stage.env()
    [world] = [word.partition("=")[2] for word in words if word.startswith("--world_info=")]
    assert json.loads(base64.urlsafe_b64decode(world)) == {"n1": [0, 1], "n2": [0, 1]}
    assert words[1:4] == ["-u", "-m", "deepspeed.launcher.launch"] and "--node_rank=1" in words
    assert words[words.index("--master_addr") :][:4] == ["--master_addr", "n1", "--master_port", "13456"]
    assert words[-2:] == ["model.train", str(stage.run / "run.json")]
    assert (env["EVIL"], env["WANDB_API_KEY"]) == ("it's $HOME `id` %n (x2)", "s3 cret")
    assert (stage.root / "record" / "cwd").read_text().strip() == str(stage.run / "code")


@pytest.mark.parametrize("end", ["pdsh is gone", "another node fails"])
def test_a_node_ends_when(stage: Stage, end: str) -> None:
    stage.finish(pdsh_job(stage))
    (stage.root / "record" / "behave").write_text('touch "$RECORD/ready"\nexec sleep 30\n')
    node = far_node(stage, 0)
    stage.wait_for_ranks()
    assert node.stdin is not None
    if end == "pdsh is gone":
        node.stdin.close()
    else:
        (stage.run / "logs/1/failed-node").mkdir()
    assert node.wait(timeout=10) == (143 if end == "pdsh is gone" else 0)  # the node that failed has the status that counts


def test_the_node_that_fails_first_has_its_status_and_tells_the_others(stage: Stage) -> None:
    stage.finish(pdsh_job(stage))
    (stage.root / "record" / "behave").write_text("exit 7\n")
    command = far_command(stage.argv())
    assert [far_node(stage, number, command).wait(timeout=10) for number in (1, 0)] == [7, 0]


def test_a_program_that_is_no_training_runs_on_a_node_after_another_one_has_failed(stage: Stage) -> None:
    job = pdsh_job(stage)
    stage.finish(job)
    (stage.run / "logs/1/failed-node").mkdir()
    words = LAUNCHERS["pdsh"](dataclasses.replace(job.step, program=(str(stage.root / "bin" / "python"), "to clean", "up")))
    words = [expand(word, node_sh=str(stage.run / "logs/1/node.sh")) if isinstance(word, Shell) else word for word in words]
    assert far_node(stage, 0, far_command(words)).wait(timeout=10) == 0
    assert stage.argv()[1:] == ["to clean", "up"]


def test_ranks_start_in_the_snapshot_of_the_code(stage: Stage) -> None:
    stage.finish(slurm_job(stage))
    assert (stage.root / "record" / "cwd").read_text().strip() == str(stage.run / "code")


def test_hostfile_lists_every_node_with_its_slots_and_only_the_address_has_the_sites_suffix(stage: Stage) -> None:
    stage.finish(slurm_job(stage, "network.host_suffix=i"))
    assert (stage.run / "logs/1/hostfile").read_text() == "n1 slots=2\nn2 slots=2\n"
    assert (stage.run / "logs/1/nodefile").read_text() == "n1\nn2\n"
    assert stage.env()["MASTER_ADDR"] == "n1i"


def allocation(stage: Stage, scheduler: str) -> dict[str, str]:
    """What a scheduler shows to the script of job 123456 (Flux: f2ab) on n1 and n2, two slots each."""
    answers = '"getattr jobid") echo f2ab ;; "hostlist --expand local") echo n1 n2 ;; *) exit 9 ;;'
    (stage.root / "bin" / "flux").write_text(f'#!/bin/sh\ncase "$*" in {answers} esac\n')
    (stage.root / "bin" / "flux").chmod(0o755)
    hosts = stage.root / "hosts"
    hosts.write_text("batch2\nn2\nn2\nn1\nn1\n" if scheduler == "lsf-csm" else "n1\nn1\nn2\nn2\n")
    lsf = {"LSB_JOBID": "123456", "LSB_DJOB_HOSTFILE": str(hosts)}
    return {
        "slurm": {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "n1,n2"},
        "pbs": {"PBS_JOBID": "123456.pbs.example.gov", "PBS_NODEFILE": str(hosts)},
        "lsf": lsf,
        "lsf-csm": lsf,
        "flux": {},
    }[scheduler]


def port_of(job_id: str) -> int:
    """By cksum(1), for an id that is no number."""
    said = subprocess.run(["cksum"], input=job_id, text=True, capture_output=True, check=True).stdout
    return 10000 + (int(job_id) if job_id.isdecimal() else int(said.split()[0])) % 20000


QUEUED = [name for name, scheduler in SCHEDULERS.items() if scheduler.starts_job]


@pytest.mark.parametrize("scheduler", QUEUED)
def test_nodes_and_rendezvous_come_from_the_jobs_own_scheduler(stage: Stage, scheduler: str) -> None:
    status, output = stage.finish(queued_job(stage, scheduler), **allocation(stage, scheduler))
    assert status == 0, output
    assert (stage.run / "logs/1/nodefile").read_text() == "n1\nn2\n"
    assert (stage.run / "logs/1/hostfile").read_text() == "n1 slots=2\nn2 slots=2\n"
    assert stage.env()["MASTER_ADDR"] == "n1"
    assert int(stage.env()["MASTER_PORT"]) == port_of("f2ab" if scheduler == "flux" else "123456")


def test_shellcheck_finds_nothing_in_the_script_of_any_scheduler(stage: Stage) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here: apt-get install shellcheck")
    for scheduler in QUEUED:
        (stage.root / f"{scheduler}.sh").write_text(render_script(queued_job(stage, scheduler)))
    # 2016: words in single quotes are for the shell of a rank
    command = ["shellcheck", "--shell=sh", "--format=gcc", "--exclude=SC2016", *(f"{name}.sh" for name in QUEUED)]
    done = subprocess.run(command, cwd=stage.root, text=True, capture_output=True, check=False)
    assert done.stdout == ""


def test_scripts_of_two_schedulers_differ_in_directives_clean_up_job_and_hosts_only(stage: Stage) -> None:
    bodies = []
    for scheduler in QUEUED:
        lines = render_script(queued_job(stage, scheduler)).splitlines()
        own = (
            "#!",
            "#SBATCH",
            "#PBS",
            "#BSUB",
            "#flux:",
            "job=",
            "# small on",
            "# --export",
            "export SLURM_EXPORT_ENV",
            "# The file",
        )
        bodies.append(
            [line for line in lines if line and not line.startswith(own) and not re.search(r"\| unique$|^unique <|no job of", line)]
        )
    assert bodies == [bodies[0]] * len(QUEUED)


def test_a_second_start_in_the_same_job_has_a_port_of_its_own(stage: Stage) -> None:
    ports = []
    for _ in range(3):
        stage.finish(slurm_job(stage))
        ports.append(int(stage.env()["MASTER_PORT"]))
    assert len(set(ports)) == 3 and all(10000 <= port < 30000 for port in ports)


@pytest.mark.parametrize("scheduler", [name for name in QUEUED if name != "slurm"])
def test_outside_a_job_the_script_does_not_start_ranks(stage: Stage, scheduler: str) -> None:
    status, _ = stage.finish(queued_job(stage, scheduler))
    assert (status != 0, (stage.root / "record" / "argv").exists()) == (True, False)


@pytest.mark.parametrize(("printed", "address"), [("10.1.2.3", "10.1.2.3"), ("10.1.2.3 10.9.9.9 ", "10.1.2.3")])
def test_a_site_may_call_the_first_node_by_its_address(stage: Stage, printed: str, address: str) -> None:
    (stage.root / "bin" / "hostname").write_text(f"#!/bin/sh\n[ $1 = -i ] && echo '{printed}'\n")
    (stage.root / "bin" / "hostname").chmod(0o755)
    stage.finish(slurm_job(stage, "network.address=ip"))
    assert stage.env()["MASTER_ADDR"] == address


def test_an_address_that_other_nodes_cannot_reach_ends_the_job(stage: Stage) -> None:
    (stage.root / "bin" / "hostname").write_text("#!/bin/sh\necho 127.0.1.1\n")
    (stage.root / "bin" / "hostname").chmod(0o755)
    status, output = stage.finish(slurm_job(stage, "network.address=ip"))
    assert (status, stage.outcome()) == (1, "exit_status=1\n")
    assert "hostname -i knows no address of this node: '127.0.1.1'" in output
    assert not (stage.root / "record" / "argv").exists()


@pytest.mark.parametrize("code", [0, 1, 2, 137])
def test_exit_status_is_the_trainings(stage: Stage, code: int) -> None:
    status, output = stage.finish(slurm_job(stage), behave=f"exit {code}")
    assert (status, stage.outcome()) == (code, f"exit_status={code}\n")
    assert (f"ended with exit status {code}" in output) == (code != 0)


def test_every_start_is_an_attempt_of_its_own(stage: Stage) -> None:
    stage.finish(slurm_job(stage), behave="exit 3")
    stage.finish(slurm_job(stage))
    assert (stage.outcome(1), stage.outcome(2)) == ("exit_status=3\n", "exit_status=0\n")
    assert stage.env()["NEOX_HPC_ATTEMPT_DIR"] == str(stage.run / "logs" / "2")


def test_earliest_rank_error_is_at_the_end_of_the_log(stage: Stage) -> None:
    behave = """
for rank in 7 3 12; do echo "rank $rank: no memory" >"$NEOX_HPC_ATTEMPT_DIR/rank$rank.error"; done
touch -d '2020-01-01' "$NEOX_HPC_ATTEMPT_DIR/rank3.error"
exit 1
"""
    status, output = stage.finish(slurm_job(stage), behave=behave)
    assert status == 1
    assert output.splitlines()[-3:] == [
        f"neox-hpc: the first error is in {stage.run}/logs/1/rank3.error:",
        "rank 3: no memory",
        "neox-hpc: the training ended with exit status 1",
    ]


def test_a_failed_rank_makes_a_failed_job_though_the_others_died_of_a_signal(stage: Stage) -> None:
    fails = 'echo boom >"$NEOX_HPC_ATTEMPT_DIR/rank2.error"; exit 143'
    assert stage.finish(slurm_job(stage), behave=fails)[0] == 1
    assert stage.outcome() == "exit_status=1\n"
    assert stage.finish(slurm_job(stage), behave="exit 143")[0] == 143


@pytest.mark.parametrize(("sent", "arrives"), [("TERM", "TERM"), ("INT", "TERM"), ("USR2", "TERM"), ("USR1", "USR1")])
def test_a_signal_goes_on_to_the_launcher_and_its_status_comes_back(stage: Stage, sent: str, arrives: str) -> None:
    behave = f"""
trap 'echo got {arrives}; kill $sleeper; exit 42' {arrives}
sleep 20 &
sleeper=$!
touch "$RECORD/ready"
wait
exit 7
"""
    process = stage.start(slurm_job(stage), behave=behave)
    stage.wait_for_ranks()
    process.send_signal(getattr(signal, f"SIG{sent}"))
    output, _ = process.communicate(timeout=10)
    assert f"got {arrives}" in output
    assert (process.returncode, stage.outcome()) == (42, "exit_status=42\n")
    assert output.rstrip().endswith("exit status 42, after a signal to stop") == (arrives == "TERM")


def test_a_job_with_other_nodes_than_planned_does_not_start(stage: Stage) -> None:
    status, output = stage.finish(slurm_job(stage), hosts="n1,n2,n3")
    assert status == 1
    assert "the job has 3 nodes and was planned for 2" in output
    assert stage.outcome() == "exit_status=1\n"
    assert not (stage.root / "record" / "argv").exists()


def test_a_failing_module_ends_the_job_before_the_ranks_start(stage: Stage) -> None:
    init = stage.root / "modules.sh"
    init.write_text('module() { echo "module $*"; [ "$2" != absent ]; }\n')
    job = slurm_job(stage, f"modules.init={init}", 'modules.load=["rocm/7.1", "absent"]')
    status, output = stage.finish(job)
    assert (status, output) == (1, "module load rocm/7.1\nmodule load absent\n")
    assert stage.outcome() == "exit_status=1\n"


def test_an_absent_file_of_modules_ends_the_job_before_the_ranks_start(stage: Stage) -> None:
    status, _ = stage.finish(slurm_job(stage, "modules.init=/nonexistent/modules.sh"))
    assert status != 0
    assert stage.outcome() == "exit_status=1\n"
    assert not (stage.root / "record" / "argv").exists()


def test_secrets_reach_the_ranks_and_stand_in_no_file_of_the_run(stage: Stage) -> None:
    folder = stage.root / "home/.config/neox-hpc"
    folder.mkdir(parents=True)
    (folder / "secrets.env").write_text("WANDB_API_KEY='s3 cret'\n")
    _, output = stage.finish(slurm_job(stage))
    assert stage.env()["WANDB_API_KEY"] == "s3 cret"
    written = [path.read_text() for path in stage.run.rglob("*") if path.is_file()]
    assert not [text for text in [output, *written, *stage.argv()] if "s3 cret" in text]


def test_evil_values_reach_the_ranks_as_they_are(stage: Stage) -> None:
    evil = {"A": 'it\'s $HOME `id` "x"', "B": "a,b(x2)\nsecond line\\", "C": "", "D": " *  ~ "}
    job = slurm_job(stage)
    job = dataclasses.replace(job, env=tuple((name, EnvValue(value=value)) for name, value in evil.items()))
    stage.finish(job)
    assert {name: stage.env()[name] for name in evil} == evil


def test_a_run_directory_with_spaces_and_quotes_works_locally(tmp_path: Path) -> None:
    run = tmp_path / "a b's $HOME"
    (run / "logs").mkdir(parents=True)
    (run / "code").mkdir()
    python = tmp_path / "my python"
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" "$PWD" >{shlex.quote(str(tmp_path / "seen"))}\n')
    python.chmod(0o755)
    job = plan(site("local", f"software.python={python}"), run_dir=str(run))
    (run / "job.sh").write_text(render_script(job))
    subprocess.run(["bash", str(run / "job.sh")], check=True, env={"PATH": os.defpath}, capture_output=True)
    assert (tmp_path / "seen").read_text().splitlines()[-2:] == [str(run / "run.json"), str(run / "code")]
