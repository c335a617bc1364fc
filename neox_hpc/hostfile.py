"""The hostfile of DeepSpeed and GPT-NeoX: a line ``NAME slots=N`` a host.  Text in, hosts out.

Changes when the form of a hostfile does.  Source: deepspeed/launcher/runner.py, 0.19.8 (``#`` begins a comment, a host stands
once).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from neox_hpc.errors import Problem

_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s+slots=([1-9]\d*)")


@dataclass(frozen=True, kw_only=True)
class Host:
    """A host, the ranks that it takes, and its line."""

    name: str
    slots: int
    line: int


@dataclass(frozen=True, kw_only=True)
class Hostfile:
    """Hosts, and what is wrong with the file that lists them."""

    path: str
    hosts: tuple[Host, ...] = ()
    problems: tuple[Problem, ...] = ()


def parse_hostfile(text: str, path: str) -> Hostfile:
    """The hosts of a file, in its order."""
    hosts: dict[str, Host] = {}
    problems: list[Problem] = []
    for number, written in enumerate(text.splitlines(), start=1):
        line, where = written.partition("#")[0].strip(), f"{path}:{number}"
        found = _LINE.fullmatch(line)
        if line and found is None:
            problems.append(Problem(where, f"{line!r} is no host with its slots", "write NAME slots=N"))
        elif found is not None and found[1] in hosts:
            first = hosts[found[1]].line
            problems.append(Problem(where, f"{found[1]} stands in line {first} already", "write it once, with all its slots"))
        elif found is not None:
            hosts[found[1]] = Host(name=found[1], slots=int(found[2]), line=number)
    if not hosts and not problems:
        problems.append(Problem(path, "names no host", "write a line NAME slots=N for each"))
    return Hostfile(path=path, hosts=tuple(hosts.values()), problems=tuple(problems))
