"""Flux: batch, jobs, cancel, job kill, hostlist, getattr, resource; ``flux run`` is in flux_run.py.

Sources: the tables; src/bindings/python/flux/cli/batch.py and src/cmd/flux-jobs.py of flux-core; RFC 19 for ids;
flux-environment(7).
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.fakes.batch import CANCELLED, ENDED, QUEUED, TIMEOUT, Job, every, find, job_directory, new_number, send, stop, submit
from tests.fakes.directives import of_flux
from tests.fakes.engine import Line, Refused, read_table
from tests.fakes.flux_run import environment, instance_of
from tests.fakes.machine import Machine

DIGITS = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
FIRST = 0x2D3_0000_0000
"""Ids are times and sequence numbers: large, and not one after the other."""
KILL_S = 5.0
"""kill-timeout: from TERM to KILL."""
UNSET = (
    *(
        "FLUX_JOB_ID",
        "FLUX_JOB_SIZE",
        "FLUX_JOB_NNODES",
        "FLUX_JOB_TMPDIR",
        "FLUX_TASK_*",
        "FLUX_KVS_NAMESPACE",
        "FLUX_PROXY_REMOTE",
    ),
    *("FLUX_PMI_LIBRARY_PATH", "I_MPI_PMI_LIBRARY", "PMI_*", "SLURM_*"),
)
"""What an instance takes from the environment of its initial program (flux-broker(1), runat.c)."""


def f58(number: int, environ: Mapping[str, str]) -> str:
    """RFC 19: base 58 behind a letter, which is ASCII where that is asked for or all that the locale has."""
    text, rest = "", FIRST + number * 0x1000001
    while rest:
        rest, digit = divmod(rest, 58)
        text = DIGITS[digit] + text
    locale = environ.get("LC_ALL") or environ.get("LC_CTYPE") or environ.get("LANG", "")
    plain = "FLUX_F58_FORCE_ASCII" in environ or "utf" not in locale.lower()
    return ("f" if plain else "ƒ") + text


def number_of(name: str) -> int:
    """The number of a job in our table.

    Raises:
        Refused: it is no id.
    """
    try:
        value = 0
        for digit in name[1:]:
            value = value * 58 + DIGITS.index(digit)
        if name[:1] not in ("f", "ƒ"):
            value = int(name)
    except ValueError:
        raise Refused(f"flux: ERROR: invalid JobID value '{name}'") from None
    return (value - FIRST) // 0x1000001


def batch(line: Line, machine: Machine, environ: Mapping[str, str]) -> int:
    """Take a script; its id on stdout."""
    name = line.rest[0] if line.rest else "stdin"
    try:
        script = Path(name).read_text() if line.rest else sys.stdin.read()
    except OSError as error:
        raise Refused(f"flux-batch: ERROR: [Errno {error.errno}] {error.strerror}: '{name}'") from None
    asked = line.over(of_flux(script, name, read_table("flux-batch")))
    nodes = asked.number("nodes", 0)
    slots = asked.number("nslots", nodes)
    if not slots:
        raise Refused("flux-batch: ERROR: Number of slots to allocate must be specified")
    cores = slots * asked.number("cores-per-slot", 1)
    count = nodes or -(-cores // len(machine.shape.cores))
    excluded = re.findall(r"-host:([\w,.-]+)", " ".join(asked.all("requires")))
    names = [node.name for node in machine.nodes if node.name not in ",".join(excluded).split(",")]
    number = new_number(machine)
    job_id = f58(number, environ)
    folder = job_directory(machine, number)
    copy = folder / "script"
    copy.write_text(script)
    copy.chmod(0o700)
    hosts = names[:count] if count <= len(names) else []
    (folder / "instance").write_text(json.dumps({"hosts": hosts, "jobid": job_id}))
    cwd = asked.text("cwd") or os.getcwd()
    kept = environment(asked, environ)
    kept = {name: value for name, value in kept.items() if not any(fnmatch.fnmatchcase(name, pattern) for pattern in UNSET)}
    job_name = asked.text("job-name", name)
    output = asked.text("output", "flux-{{id}}.out")
    submit(
        machine,
        Job(
            number=number,
            name=job_name,
            queue=asked.text("queue", "pbatch"),
            account=asked.text("bank"),
            nodes=tuple(hosts),
            argv=(str(copy), *line.rest[1:]),
            host=hosts[0] if hosts else "",
            env={**kept, "FLUX_URI": f"local://{folder / 'instance'}"},
            cwd=cwd,
            output=_mustache(output, cwd, job_id, job_name, number),
            error=_mustache(asked.text("error"), cwd, job_id, job_name, number) if "error" in asked else "",
            limit_s=_duration(asked.text("time-limit", "0")) * machine.policy.get("minute_s", 60.0) / 60,
            at_limit=((0.0, signal.SIGALRM), (KILL_S, signal.SIGKILL)),  # job-exec: a timeout is an alarm first
            after=tuple(number_of(other) for other in re.findall(r"after\w*:(\S+)", " ".join(asked.all("dependency")))),
            facts={"slots": str(slots)},
        ),
    )
    if "quiet" not in asked:
        print(job_id)
    return 0


def jobs(line: Line, machine: Machine, environ: Mapping[str, str]) -> int:
    """What the instance knows of jobs; filters do not count where ids are given."""
    chosen, status = [], 0
    if line.rest:
        if "all" in line or "filter" in line:
            print("WARNING: Filtering options ignored with jobid list", file=sys.stderr)
        for name in line.rest:
            job = find(machine, number_of(name))
            if job is None:
                print(f"JobID {name} unknown", file=sys.stderr)
                status = 1
            else:
                chosen.append(job)
    else:
        chosen = [job for job in reversed(every(machine)) if "all" in line or job.state != ENDED]
    facts = [_facts(job, environ) for job in chosen]
    if "json" in line:
        if len(line.rest) == 1:
            print(json.dumps(facts[0]) if facts else "", end="\n" if facts else "")
        else:
            print(json.dumps({"jobs": facts}))
        return status
    if "no-header" not in line:
        print("       JOBID QUEUE    USER     NAME       ST NTASKS NNODES     TIME INFO")
    short = {"RUN": "R", "CLEANUP": "C", "SCHED": "S", "COMPLETED": "CD", "FAILED": "F", "CANCELED": "CA", "TIMEOUT": "TO"}
    for job, said in zip(chosen, facts, strict=True):
        state = short[str(said.get("result") or said["state"])]
        row = f"{f58(job.number, environ):>12} {job.queue:<8.8} {job.owner:<8.8} {job.name:<10.10} {state:>2} {said['ntasks']:>6}"
        print(f"{row} {len(job.nodes):>6} {said['runtime']:>7.1f}s {','.join(job.nodes)}")
    return status


def cancel(line: Line, machine: Machine, environ: Mapping[str, str]) -> int:
    """End jobs: TERM, and KILL after a while."""
    for name in line.rest:
        job = find(machine, number_of(name))
        if job is None:
            raise Refused(f"flux-cancel: {name}: No such file or directory")
        if job.state == ENDED:
            raise Refused(f"flux-cancel: {name}: job is inactive")
        stop(machine, job.number, CANCELLED, ((0.0, signal.SIGTERM), (KILL_S, signal.SIGKILL)))
    return 0


def kill(line: Line, machine: Machine, environ: Mapping[str, str]) -> int:
    """A signal to the script of jobs that run."""
    for name in line.rest:
        job = find(machine, number_of(name))
        if job is None or job.state != "running":
            raise Refused(f"flux-job: kill {name}: " + ("unknown job" if job is None else "job is not running"))
        wanted = line.text("signal", "SIGTERM")
        send(job, int(wanted) if wanted.isdecimal() else signal.Signals[f"SIG{wanted.removeprefix('SIG')}"])
    return 0


def hostlist(line: Line, machine: Machine, environ: Mapping[str, str]) -> int:
    """The hosts of the job that this is, of another one, or of a list."""
    names: list[str] = []
    for source in line.rest or ("local",):
        if source in ("local", "instance", "avail", "available"):
            names += map(str, instance_of(environ)["hosts"])  # type: ignore[call-overload]
        elif (job := find(machine, number_of(source))) is not None:
            names += job.nodes
        else:
            raise Refused(f"flux-hostlist: ERROR: job {source} not found")
    names = sorted(set(names)) if "union" in line else sorted(names) if "sort" in line else names
    names = [name for name in names if name not in line.text("exclude").split(",")]
    if "count" in line:
        print(len(names))
    elif "expand" in line:
        print(line.text("delimiter", " ").encode().decode("unicode_escape").join(names))
    else:
        print(_ranges(names))
    return 0 if names else 1


def getattr_(line: Line, machine: Machine, environ: Mapping[str, str]) -> int:
    """An attribute of the broker: jobid, size, hostlist."""
    instance = instance_of(environ)
    hosts = list(map(str, instance["hosts"]))  # type: ignore[call-overload]
    values = {
        "jobid": instance["jobid"],
        "size": len(hosts),
        "hostlist": _ranges(hosts),
        "rank": 0,
        "local-uri": environ["FLUX_URI"],
    }
    if line.rest[:1] == () or line.rest[0] not in values:
        raise Refused(f"flux-getattr: {' '.join(line.rest)}: No such file or directory")
    print(values[line.rest[0]])
    return 0


def resource_list(line: Line, machine: Machine, environ: Mapping[str, str]) -> int:
    """What there is: all of it free."""
    nodes = [node.name for node in machine.nodes]
    row = f"{len(nodes):>6} {len(nodes) * len(machine.shape.cores):>6} {len(nodes) * machine.shape.gpus:>5} {_ranges(nodes)}"
    print("     STATE NNODES NCORES NGPUS NODELIST" if "no-header" not in line else "", end="\n" if "no-header" not in line else "")
    print(f"      free {row}\n allocated      0      0     0 \n      down      0      0     0 ")
    return 0


def _duration(text: str) -> float:
    """RFC 23: a number with its unit; without one it is minutes."""
    number = text.rstrip("mshd")
    return float(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "": 60}[text[len(number) :]]


def _ranges(names: list[str]) -> str:
    """RFC 29: node[1-2]."""
    parts = [re.fullmatch(r"(.*?)(\d+)", name) for name in names]
    numbers = [int(part[2]) for part in parts if part]
    same = len({part and part[1] for part in parts}) == 1 and len(numbers) == len(names) > 1
    if not same or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        return ",".join(names)
    return f"{parts[0] and parts[0][1]}[{numbers[0]}-{numbers[-1]}]"


def _mustache(text: str, cwd: str, job_id: str, name: str, number: int) -> str:
    for key, value in (
        ("id", job_id),
        ("jobid", job_id),
        ("id.f58", job_id),
        ("id.dec", FIRST + number * 0x1000001),
        ("name", name),
    ):
        text = text.replace(f"{{{{{key}}}}}", str(value))
    return str(Path(cwd) / text)


def _facts(job: Job, environ: Mapping[str, str]) -> dict[str, object]:
    """As ``flux jobs --json`` writes them: what a job does not have yet is not there."""
    facts: dict[str, object] = {
        "id": FIRST + job.number * 0x1000001,
        "userid": os.getuid(),
        "username": job.owner,
        "urgency": 16,
        "priority": 16,
        "t_submit": job.submitted,
        "t_depend": job.submitted,
        "state": {QUEUED: "SCHED", "running": "RUN", ENDED: "INACTIVE"}[job.state],
        "name": job.name,
        "cwd": job.cwd,
        "queue": job.queue,
        "ntasks": int(job.facts["slots"]),
        "runtime": (job.ended or job.started) - job.started if job.started else 0.0,
    }
    if job.state == QUEUED:
        facts["annotations"] = {"sched": {"reason_pending": "insufficient resources" if job.nodes else "unsatisfiable request"}}
    if job.started:
        facts |= {"t_run": job.started, "nnodes": len(job.nodes), "ranks": "0", "nodelist": _ranges(list(job.nodes))}
    if job.state == ENDED:
        code = job.returncode
        words = {CANCELLED: "CANCELED", TIMEOUT: "TIMEOUT"}
        facts["result"] = words.get(job.why) or ("COMPLETED" if code == 0 else "FAILED")
        facts["success"] = facts["result"] == "COMPLETED"
        facts["returncode"] = -128 if code is None else code
        facts["t_inactive"] = job.ended
    return facts
