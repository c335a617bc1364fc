"""IBM's LSF: bsub, bjobs, bkill, bqueues; stock, and in the easy mode of CSM as the Summit user guide shows it.

Sources: the tables; the variables from "Environment variables set for job execution" of LSF 10.1; the words of easy mode from the
Summit user guide.  Output is written while the job runs (LSB_STDOUT_DIRECT), without LSF's own account of the job at the end.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.fakes.batch import CANCELLED, ENDED, QUEUED, TIMEOUT, Job, every, find, job_directory, new_number, send, stop, submit
from tests.fakes.directives import of_lsf
from tests.fakes.engine import Line, Refused, read_table
from tests.fakes.machine import Machine

TERMINATE_S = 10.0
"""JOB_TERMINATE_INTERVAL: from INT to TERM to KILL."""
BANNER = "#" * 60 + "\n###{:^54}###\n" + "#" * 60
EASY = {
    # what easy mode does not take, and its words for that, as the guide prints them for -n
    "slots": "The '-n <slots>' flag is no longer supported.  Please use '-nnodes <node_count>' to request nodes.",
    "resources": "The '-R' flag is not supported in easy mode.",
    "gpu": "The '-gpu' flag is not supported in easy mode.",
    "hosts": "The '-m' flag is not supported in easy mode.",
}
NO_SUBMIT = "Job not submitted."


def bsub(line: Line, machine: Machine, environ: Mapping[str, str]) -> int:
    """Take a job; a sentence with its number on stdout."""
    easy = bool(machine.policy.get("easy_mode"))
    script, name = _script(line, easy)
    reads = easy or not line.rest
    asked = line.over(of_lsf(script, read_table("bsub"))) if reads else line
    (_check_easy if easy else _check_stock)(asked, machine)
    number = new_number(machine)
    hosts, slots = _hosts(asked, machine, easy)
    folder = job_directory(machine, number)
    copy = folder / f"{number}.shell"
    copy.write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}")
    copy.chmod(0o700)
    launch = [machine.launch_node.name] if easy and machine.launch_node else []
    hostfile = folder / "hostfile"
    hostfile.write_text("".join(f"{host}\n" for host in launch) + "".join(f"{host}\n" * slots for host in hosts))
    queue = asked.text("queue", "batch" if easy else "normal")
    job_name = asked.text("name", name)
    cwd = asked.text("cwd") or os.getcwd()
    output = _path(asked.text("output-new") or asked.text("output") or f"{environ['HOME']}/mail.{number}", cwd, number)
    error = asked.text("error-new") or asked.text("error")
    variables = {
        **_propagated(asked, environ),
        "HOME": environ["HOME"],
        "USER": environ.get("USER", "user"),
        "SHELL": environ.get("SHELL", "/bin/sh"),
        "LSB_JOBID": str(number),
        "LSB_BATCH_JID": str(number),
        "LSB_JOBINDEX": "0",
        "LSB_JOBNAME": job_name,
        "LSB_QUEUE": queue,
        "LSB_HOSTS": " ".join([*launch, *(host for host in hosts for _ in range(slots))]),
        "LSB_MCPU_HOSTS": " ".join([*(f"{host} 1" for host in launch), *(f"{host} {slots}" for host in hosts)]),
        "LSB_DJOB_HOSTFILE": str(hostfile),
        "LSB_DJOB_NUMPROC": str(len(launch) + slots * len(hosts)),
        "LSB_SUB_HOST": "login1",
        "LSB_JOBRES_PID": "1",
        "LS_SUBCWD": os.getcwd(),
        "LSFUSER": environ.get("USER", "user"),
    }
    submit(
        machine,
        Job(
            number=number,
            name=job_name,
            queue=queue,
            account=asked.text("project"),
            nodes=tuple(hosts),
            argv=(str(copy),),
            host=(launch or hosts or [""])[0],
            env=variables,
            cwd=cwd,
            output=output,
            error=_path(error, cwd, number) if error else "",
            append="output-new" not in asked,
            limit_s=_minutes(asked.text("runtime", "0")) * machine.policy.get("minute_s", 60.0),
            at_limit=((0.0, signal.SIGUSR2), (600.0, signal.SIGKILL)),  # bsub -W
            after=tuple(map(int, re.findall(r"\((\d+)", asked.text("after")))),
            facts={"alloc_flags": asked.text("alloc_flags")},
        ),
    )
    kind = "queue" if "queue" in asked else "default queue"
    print(f"Job <{number}> is submitted to {kind} <{queue}>.")
    return 0


def bjobs(line: Line, machine: Machine, environ: Mapping[str, str]) -> int:
    """What LSF knows of jobs."""
    jobs, missing = _chosen(line, machine)
    records = [_fields(job) for job in jobs]
    if "json" in line:
        names = [re.split(r"[: ]", word)[0].upper() for word in line.text("format").split()]
        shown: list[dict[str, str]] = [{name: record[name] for name in names} for record in records if _names(names, record)]
        shown += [{"JOBID": number, "ERROR": f"Job <{number}> is not found"} for number in missing]
        print(json.dumps({"COMMAND": "bjobs", "JOBS": len(shown), "RECORDS": shown}, indent=2))
        return 0
    for number in missing:
        print(f"Job <{number}> is not found", file=sys.stderr)
    if not records and not missing:
        print("No unfinished job found", file=sys.stderr)
    names = line.text("format").upper().split() or ["JOBID", "USER", "STAT", "QUEUE", "FROM_HOST", "EXEC_HOST", "JOB_NAME"]
    if records and "noheader" not in line:
        print(" ".join(names))
    for record in records:
        print(" ".join(record[name] or "-" for name in names if _names(names, record)))
    return 255 if missing else 0


def bkill(line: Line, machine: Machine, environ: Mapping[str, str]) -> int:
    """End jobs, or send them a signal."""
    status = 0
    for name in line.rest:
        job = find(machine, int(name)) if name.isdecimal() else None
        if job is None:
            print(f"Job <{name}>: No matching job found", file=sys.stderr)
            status = 255
        elif job.state == ENDED:
            print(f"Job <{name}>: Job has already finished", file=sys.stderr)
            status = 255
        elif "signal" in line:
            wanted = line.text("signal")
            send(job, int(wanted) if wanted.isdecimal() else signal.Signals[f"SIG{wanted.removeprefix('SIG')}"])
            print(f"Job <{name}> is being signaled")
        else:
            signals = ((0.0, signal.SIGINT), (TERMINATE_S, signal.SIGTERM), (2 * TERMINATE_S, signal.SIGKILL))
            stop(machine, job.number, CANCELLED, signals)
            print(f"Job <{name}> is being terminated")
    return status


def bqueues(line: Line, machine: Machine, environ: Mapping[str, str]) -> int:
    """The one queue."""
    name = "batch" if machine.policy.get("easy_mode") else "normal"
    jobs = [job for job in every(machine) if job.state != ENDED]
    waiting = sum(1 for job in jobs if job.state == QUEUED)
    print("QUEUE_NAME      PRIO STATUS          MAX JL/U JL/P JL/H NJOBS  PEND   RUN  SUSP")
    limits = " ".join(["   -"] * 4)
    print(f"{name:<15} {30:>4} {'Open:Active':<14} {limits} {len(jobs):>5} {waiting:>5} {len(jobs) - waiting:>5} {0:>5}")
    return 0


def _script(line: Line, easy: bool) -> tuple[str, str]:
    """The script and its name: stock LSF reads directives on standard input only, easy mode in a file only."""
    if easy and not line.rest:
        raise Refused("Redirecting a script to bsub is not supported: bsub SCRIPT\n" + NO_SUBMIT, 255)
    if not line.rest:
        return sys.stdin.read(), "job"
    if easy:
        try:
            return Path(line.rest[0]).read_text(), line.rest[0]
        except OSError as error:
            raise Refused(f"{line.rest[0]}: {error.strerror}\n{NO_SUBMIT}", 255) from None
    return " ".join(line.rest), " ".join(line.rest)


def _check_easy(asked: Line, machine: Machine) -> None:
    problems = [message for key, message in EASY.items() if key in asked]
    problems += [] if "nnodes" in asked else ["Please use '-nnodes <node_count>' to request nodes."]
    problems += [] if "runtime" in asked else ["Please use '-W <walltime>' to request a walltime."]
    problems += [] if "project" in asked or not machine.policy.get("account") else ["Please use '-P <project>' to name a project."]
    if problems:
        banner = BANNER.format(f"{len(problems)} ERROR(S) FOUND.  JOB NOT SUBMITTED.")
        raise Refused("\n".join([banner, *(f"30: {message}" for message in problems)]), 255)


def _check_stock(asked: Line, machine: Machine) -> None:
    for key, name in (("nnodes", "-nnodes"), ("alloc_flags", "-alloc_flags"), ("ln_slots", "-ln_slots"), ("cn_cu", "-cn_cu")):
        if key in asked:  # they belong to -csm and easy mode
            raise Refused(f"{name}: Illegal option. {NO_SUBMIT}", 255)
    if machine.policy.get("account") and "project" not in asked:
        raise Refused(f"Please name a project by -P. {NO_SUBMIT}", 255)


def _hosts(asked: Line, machine: Machine, easy: bool) -> tuple[list[str], int]:
    """The job's hosts, and its slots on each: none where they do not fit."""
    cores = len(machine.shape.cores)
    if easy:
        count, slots = asked.number("nnodes", 1), cores
    else:
        total = int(asked.text("slots", "1").partition(",")[0])
        tile = re.search(r"span\[ptile=(\d+)\]", " ".join(asked.all("resources")))
        slots = int(tile[1]) if tile else min(total, cores)
        count = -(-total // slots)
        gpus = re.search(r"num=(\d+)", asked.text("gpu"))
        if slots > cores or (gpus and int(gpus[1]) > machine.shape.gpus):
            return [], slots
    excluded = re.findall(r"hname!=([\w.-]+)", " ".join(asked.all("resources")))
    names = [node.name for node in machine.nodes if node.name not in excluded]
    return (names[:count] if count <= len(names) else []), slots


def _propagated(asked: Line, environ: Mapping[str, str]) -> dict[str, str]:
    """-env: all variables if it is not given, none, or the named ones with values of their own."""
    words = [word.strip() for word in asked.text("env", "all").split(",")]
    kept = dict(environ) if "all" in words else {}
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("~"):
            kept.pop(word[1:], None)
        elif word not in ("all", "none") and (equals or name in environ):
            kept[name] = value if equals else environ[name]
    return kept


def _minutes(text: str) -> float:
    """``[hours:]minutes[/host]``."""
    hours, _, minutes = text.partition("/")[0].rpartition(":")
    return int(hours or 0) * 60.0 + int(minutes)


def _path(text: str, cwd: str, number: int) -> str:
    path = Path(cwd) / text.replace("%J", str(number)).replace("%I", "0")
    return str(path / f"{number}.out" if path.is_dir() else path)


def _chosen(line: Line, machine: Machine) -> tuple[list[Job], list[str]]:
    found = {name: find(machine, int(name)) if name.isdecimal() else None for name in line.rest}
    if not found:
        return [job for job in every(machine) if "all" in line or job.state != ENDED], []
    return [job for job in found.values() if job], [name for name, job in found.items() if job is None]


def _names(names: list[str], record: Mapping[str, str]) -> bool:
    if strange := [name for name in names if name not in record]:
        raise Refused(f"bjobs: {strange[0].lower()}: unknown field name", 255)
    return True


REASONS = {CANCELLED: "TERM_OWNER: job killed by owner", TIMEOUT: "TERM_RUNLIMIT: job killed after reaching LSF run time limit"}


def _fields(job: Job) -> dict[str, str]:
    """A record of ``bjobs -o``: empty where there is nothing to tell."""
    waits = "New job is waiting for scheduling" if job.nodes else "Not enough hosts to meet the job's spanning requirement"
    code = job.returncode if job.returncode is None or job.returncode >= 0 else 128 - job.returncode
    if job.state == ENDED and code is None:
        code = 130  # killed while it waited
    state = {QUEUED: "PEND", "running": "RUN"}.get(job.state) or ("EXIT" if code or job.why else "DONE")
    return {
        "JOBID": str(job.number),
        "STAT": state,
        "USER": job.owner,
        "QUEUE": job.queue,
        "JOB_NAME": job.name,
        "PROJ_NAME": job.account,
        "FROM_HOST": "login1",
        "EXEC_HOST": ":".join(job.nodes) if job.started else "",
        "EXIT_CODE": str(code) if state == "EXIT" and code else "",
        "EXIT_REASON": REASONS.get(job.why, "") if state == "EXIT" else "",
        "PEND_REASON": waits if state == "PEND" else "",
    }
