"""OpenPBS: qsub, qstat, qdel, qsig, pbsnodes, with the checks of a site's hooks.

Sources: the tables; the variables from qsub(1B), "Environment variables"; a job's life from pbs_mom(8B) and PBS' user guide:
a login shell reads the path of a copy of the script on its standard input, at home, without the variables of the submitter.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.fakes.batch import (
    CANCELLED,
    ENDED,
    QUEUED,
    TIMEOUT,
    Job,
    clock,
    every,
    find,
    job_directory,
    new_number,
    send,
    stop,
    submit,
)
from tests.fakes.directives import of_pbs
from tests.fakes.engine import Line, Refused, read_table
from tests.fakes.machine import Machine

RESOURCES = {
    *(
        "select",
        "place",
        "walltime",
        "filesystems",
        "ncpus",
        "nodes",
        "mem",
        "vmem",
        "pmem",
        "pvmem",
        "cput",
        "pcput",
        "arch",
        "host",
    ),
    *("software", "nice", "min_walltime", "max_walltime", "mpiprocs", "ompthreads", "ngpus", "naccelerators"),
}
IN_CHUNKS = {"ncpus", "ngpus", "naccelerators", "mpiprocs", "ompthreads", "mem", "vmem", "arch", "host", "vnode", "system", "model"}
TERMINATION = ((0.0, signal.SIGTERM), (10.0, signal.SIGKILL))
"""qdel(1B), and the end of the walltime: kill_delay of a queue is 10 s."""
HEAD = {"timestamp": 1, "pbs_version": "23.06.06", "pbs_server": "pbs"}
FIELD = {"running": "R", ENDED: "F", QUEUED: "Q"}


def qsub(line: Line, machine: Machine, environ: Mapping[str, str]) -> int:
    """Take a job; its id on stdout."""
    file = line.rest[0] if line.rest and line.rest[0] != "-" else ""
    try:
        script = Path(file).read_text() if file else sys.stdin.read()
    except OSError:
        raise Refused(f"qsub: script file:: {os.strerror(2)}") from None
    prefix = line.text("prefix") or environ.get("PBS_DPREFIX", "#PBS")
    directives = of_pbs(script, prefix, read_table("qsub"))
    asked = line.over(directives)
    resources = {**_listed(directives.all("resources")), **_listed(line.all("resources"))}
    attributes = {**_listed(directives.all("attributes")), **_listed(line.all("attributes"))}
    name = asked.text("name") or (Path(file).name if file else "STDIN")
    _check(asked, resources, name, machine.policy)
    number = new_number(machine)
    chunks = chunks_of(resources, machine)
    home = environ["HOME"]
    cwd = environ.get("PWD") or os.getcwd()
    folder = job_directory(machine, number)
    copy = folder / f"{number}.SC"
    copy.write_text(script)
    copy.chmod(0o700)
    domain = machine.policy.get("domain", "")
    hosts = list(dict.fromkeys(host for host, _ in chunks))
    nodefile = folder / "nodes"
    nodefile.write_text("".join(f"{host}{domain}\n" * int(chunk.get("mpiprocs", 1)) for host, chunk in chunks))
    job_id = f"{number}.pbs{domain}"
    output = _path(asked.text("output"), cwd, f"{name}.o{number}")
    error = "" if asked.text("join") == "oe" else _path(asked.text("error"), cwd, f"{name}.e{number}")
    shell = asked.text("shell") or "/bin/sh"
    own = {f"PBS_O_{key}": environ[key] for key in ("HOME", "LANG", "LOGNAME", "MAIL", "PATH", "SHELL", "TZ") if key in environ}
    tmp = folder / "tmp"
    tmp.mkdir()
    threads = str(chunks[0][1].get("ompthreads") or chunks[0][1].get("ncpus", 1)) if chunks else "1"
    queue = asked.text("queue", "workq")
    variables = {
        **_chosen(asked, environ),
        "HOME": home,
        "LOGNAME": environ.get("LOGNAME", "user"),
        "USER": environ.get("LOGNAME", "user"),
        "SHELL": shell,
        "PATH": "/bin:/usr/bin",
        **own,
        "PBS_O_HOST": "login",
        "PBS_O_QUEUE": queue,
        "PBS_O_SYSTEM": "Linux",
        "PBS_O_WORKDIR": cwd,
        "PBS_ENVIRONMENT": "PBS_BATCH",
        "PBS_JOBCOOKIE": "0" * 32,
        "PBS_JOBDIR": home,
        "PBS_JOBID": job_id,
        "PBS_JOBNAME": name,
        "PBS_MOMPORT": "15003",
        "PBS_NODEFILE": str(nodefile),
        "PBS_NODENUM": "0",
        "PBS_QUEUE": queue,
        "PBS_TASKNUM": "1",
        "TMPDIR": str(tmp),
        "NCPUS": str(chunks[0][1].get("ncpus", 1)) if chunks else "1",
        "OMP_NUM_THREADS": threads,
    }
    facts = {
        "id": job_id,
        "resources": json.dumps(resources),
        "attributes": json.dumps(attributes),
        "rerun": "False" if asked.text("rerun") == "n" else "True",
        "keep": asked.text("keep", "n"),
        "join": asked.text("join", "n"),
        "reason": "" if chunks else "Can Never Run: Insufficient amount of resource: vnode",
    }
    submit(
        machine,
        Job(
            number=number,
            name=name,
            queue=queue,
            account=asked.text("account"),
            nodes=tuple(hosts),
            argv=("bash", "-c", 'exec -a "-${0##*/}" "$0"', shell),
            text=f"{copy}\n",
            host=hosts[0] if hosts else "",
            env=variables,
            cwd=home,
            output=output,
            error=error,
            limit_s=_seconds(resources.get("walltime", "0")),
            at_limit=TERMINATION,
            after=tuple(int(number) for number in re.findall(r":(\d+)", attributes.get("depend", ""))),
            at_the_end=not {"d", "o"} <= set(asked.text("keep", "n")),
            facts=facts,
        ),
    )
    if "quiet" not in asked:
        print(job_id)
    return 0


def chunks_of(resources: Mapping[str, str], machine: Machine) -> list[tuple[str, dict[str, str]]]:
    """The host of each chunk of a selection, and what it holds; none where they do not fit.

    Chunks are put on hosts by ``place``: scatter is one host each, pack is one host for all, free is where there is room.
    """
    chunks = []
    for text in resources.get("select", "1").split("+"):
        count, *parts = text.split(":")
        number = int(count) if count.isdecimal() else 1
        facts = dict(part.partition("=")[::2] for part in ([] if count.isdecimal() else [count]) + parts)
        if strange := set(facts) - IN_CHUNKS:
            raise Refused(f"qsub: Unknown resource: {sorted(strange)[0]}")
        chunks += [facts] * number
    arrangement = re.split(r"[:=]", resources.get("place", "free"))[0]
    room = [machine.shape.threads_per_core * len(machine.shape.cores)] * len(machine.nodes)
    placed = []
    for index, chunk in enumerate(chunks):
        cores = int(chunk.get("ncpus", 1))
        if int(chunk.get("ngpus", 0)) > machine.shape.gpus:
            return []
        where = [index] if "scatter" in arrangement else [0] if arrangement == "pack" else list(range(len(room)))
        host = next((host for host in where if host < len(room) and room[host] >= cores), None)
        if host is None:
            return []
        room[host] -= cores
        placed.append((machine.nodes[host].name, chunk))
    return placed


def qstat(line: Line, machine: Machine, environ: Mapping[str, str]) -> int:
    """What the server knows of jobs: those that have ended only with -x."""
    known, status = [], 0
    for name in line.rest or [job.facts["id"] for job in every(machine) if "finished" in line or job.state != ENDED]:
        job = _known(name, machine)
        if job is None:
            print(f"qstat: Unknown Job Id {name}", file=sys.stderr)
            status = 153
        elif job.state == ENDED and "finished" not in line:
            message = f"qstat: {job.facts['id']} Job has finished, use -x or -H to obtain historical job information"
            print(message, file=sys.stderr)
            status = 35
        else:
            known.append(job)
    if line.text("format") == "json":
        jobs = {"Jobs": {job.facts["id"]: _facts(job, machine) for job in known}} if known else {}
        print(json.dumps({**HEAD, "timestamp": int(time.time()), **jobs}, indent=4))
    elif "full" in line:
        for job in known:
            print(f"Job Id: {job.facts['id']}")
            print("".join(f"    {key} = {value}\n" for key, value in _facts(job, machine).items()))
    elif known:
        print(
            "Job id            Name             User              Time Use S Queue\n"
            + " ".join("-" * n for n in (16, 16, 16, 8, 1, 5))
        )
        for job in known:
            used = clock(_runtime(job))
            print(f"{job.facts['id'][:17]:<17} {job.name[:16]:<16} {job.owner:<16} {used:>8} {FIELD[job.state]} {job.queue}")
    return status


def qdel(line: Line, machine: Machine, environ: Mapping[str, str]) -> int:
    """End jobs: TERM, and KILL after a while."""
    status = 0
    for name in line.rest:
        job = _known(name, machine)
        if job is None or job.state == ENDED:
            what = f"Unknown Job Id {name}" if job is None else f"Job has finished {job.facts['id']}"
            print(f"qdel: {what}", file=sys.stderr)
            status = 1
        else:
            stop(machine, job.number, CANCELLED, TERMINATION)
    return status


def qsig(line: Line, machine: Machine, environ: Mapping[str, str]) -> int:
    """A signal to all processes of jobs that run."""
    for name in line.rest:
        job = _known(name, machine)
        if job is None:
            raise Refused(f"qsig: Unknown Job Id {name}")
        if job.state != "running":
            raise Refused(f"qsig: Request invalid for state of job {job.facts['id']}")
        wanted = line.text("signal", "SIGTERM")
        if not hasattr(signal, f"SIG{wanted.removeprefix('SIG')}"):
            raise Refused(f"qsig: Unknown/illegal signal name {job.facts['id']}")
        send(job, signal.Signals[f"SIG{wanted.removeprefix('SIG')}"])
    return 0


def pbsnodes(line: Line, machine: Machine, environ: Mapping[str, str]) -> int:
    """The nodes, as JSON or as lines."""
    nodes = {
        node.name: {
            "Mom": f"{node.name}{machine.policy.get('domain', '')}",
            "ntype": "PBS",
            "state": "free",
            "pcpus": len(machine.shape.cores) * machine.shape.threads_per_core,
            "resources_available": {"host": node.name, "ncpus": len(machine.shape.cores) * machine.shape.threads_per_core},
        }
        for node in machine.nodes
    }
    if line.text("format") == "json":
        print(json.dumps({**HEAD, "timestamp": int(time.time()), "nodes": nodes}, indent=4))
    else:
        for name, facts in nodes.items():
            print(name + "".join(f"\n     {key} = {value}" for key, value in facts.items()) + "\n")
    return 0


def _check(asked: Line, resources: Mapping[str, str], name: str, policy: Mapping[str, object]) -> None:
    """What qsub, the server and the site's hooks look at; the hooks' words from ALCF's user guide."""
    if len(name) > int(str(policy.get("name_length", 230))):
        raise Refused("qsub: illegal -N value\nusage: qsub [-a date_time] [-A account_string] [-c interval] …", 2)
    for resource in resources:
        if resource not in RESOURCES:
            raise Refused(f"qsub: Unknown resource: {resource}")
    if "select" in resources and {"nodes", "ncpus", "mem"} & set(resources):
        raise Refused('qsub: "-lresource=" cannot be used with "select" or "place", resource is: nodes')
    if "walltime" in resources and not re.fullmatch(r"\d+(:\d{1,2}){0,2}(\.\d+)?", resources["walltime"]):
        raise Refused("qsub: Illegal attribute or resource value for  Resource_List.walltime")
    if policy.get("account") and "account" not in asked:
        raise Refused("qsub: Account_Name is required to be set.")
    wanted = policy.get("filesystems")
    if wanted and "filesystems" not in resources:
        raise Refused("qsub: Resource: filesystems is required to be set.")
    if wanted and (strange := set(resources["filesystems"].split(":")) - set(wanted)):  # type: ignore[call-overload]
        raise Refused(f"qsub: Filesystem {sorted(strange)[0]} is not available")


def _listed(texts: tuple[str, ...]) -> dict[str, str]:
    """``select=1:a=b,walltime=1:00``; a comma that no name follows belongs to the value."""
    parts = [part for text in texts for part in re.split(r",(?=\w+=)", text)]
    return dict(part.partition("=")[::2] for part in parts)


def _seconds(walltime: str) -> float:
    """``[[HH:]MM:]SS``."""
    return float(sum(float(part) * 60**place for place, part in enumerate(reversed(walltime.split(":")))))


def _chosen(asked: Line, environ: Mapping[str, str]) -> dict[str, str]:
    if "all-variables" in asked:
        return dict(environ)
    named = [part.partition("=") for part in asked.text("variables").split(",") if part]
    return {name: value if equals else environ.get(name, "") for name, equals, value in named}


def _path(text: str, cwd: str, plain: str) -> str:
    path = Path(cwd) / text.rpartition(":")[2]
    return str(path / plain if path.is_dir() else path)


def _known(name: str, machine: Machine) -> Job | None:
    number = name.partition(".")[0]
    return find(machine, int(number)) if number.isdecimal() else None


def _runtime(job: Job) -> float:
    return (job.ended or time.time()) - job.started if job.started else 0.0


def _facts(job: Job, machine: Machine) -> dict[str, object]:
    """As ``qstat -f -F json`` writes them."""
    when = lambda seconds: time.strftime("%a %b %d %H:%M:%S %Y", time.localtime(seconds))  # noqa: E731
    facts: dict[str, object] = {
        "Job_Name": job.name,
        "Job_Owner": f"{job.owner}@login",
        "job_state": FIELD[job.state],
        "queue": job.queue,
        "server": "pbs",
        "Account_Name": job.account,
        "ctime": when(job.submitted),
        "Error_Path": f"login:{job.error or job.output}",
        "Output_Path": f"login:{job.output}",
        "Join_Path": job.facts["join"],
        "Keep_Files": job.facts["keep"],
        "mtime": when(job.ended or job.started or job.submitted),
        "qtime": when(job.submitted),
        "Rerunable": job.facts["rerun"],
        "Resource_List": json.loads(job.facts["resources"]),
        **json.loads(job.facts["attributes"]),
        "Variable_List": {name: value for name, value in job.env.items() if name.startswith("PBS_O_")},
    }
    if job.state == QUEUED:
        return facts | ({"comment": job.facts["reason"]} if job.facts["reason"] else {})
    if job.started:
        facts["exec_host"] = "+".join(f"{node}/0" for node in job.nodes)
        facts["stime"] = when(job.started)
        facts["session_id"] = job.session
        facts["resources_used"] = {"walltime": clock(_runtime(job))}
    if job.state == ENDED:
        facts["substate"] = 91 if job.why == CANCELLED else 93 if job.returncode else 92
        if job.returncode is not None:
            code = -29 if job.why == TIMEOUT else job.returncode if job.returncode >= 0 else 256 - job.returncode
            facts["Exit_status"] = code
    return facts
