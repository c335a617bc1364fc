"""The machine that the fakes pretend to be: the shape of its nodes, and the hosts of this one that stand for them.

Changes when a fact about a pretended machine does, or what a fake needs to know of where it runs.  Shapes are in ``machines.yml``,
written from the sites' own pages and not from our site files: a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One node."""

    sockets: tuple[tuple[int, ...], ...]
    """The cores that a job may use, by socket (or NUMA domain, where the launcher counts in those)."""
    threads_per_core: int = 1
    gpus: int = 0
    gpu_variable: str = "CUDA_VISIBLE_DEVICES"
    """The variable by which a launcher hides devices."""

    @property
    def cores(self) -> tuple[int, ...]:
        """All usable cores."""
        return tuple(core for socket in self.sockets for core in socket)

    def socket_of_gpu(self, gpu: int) -> tuple[int, ...]:
        """The cores beside a GPU, where GPUs are shared out evenly over the sockets in order."""
        return self.sockets[gpu * len(self.sockets) // self.gpus]


@dataclass(frozen=True, kw_only=True)
class Host:
    """A pretended host."""

    name: str
    enter: tuple[str, ...] = ()
    """The argv to put before a program so that it runs there (a network and host name of its own); empty: here."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a fake finds beside itself."""

    home: Path
    """A directory for the fakes' own files: jobs, and what was launched."""
    shape: Shape
    nodes: tuple[Host, ...]
    launch_node: Host | None = None
    """Where batch scripts run, on machines that have such a host; else they run on the job's first node."""
    policy: dict[str, Any]
    """What the queue asks of a job: ``machines.yml``."""

    def host(self, name: str) -> Host:
        """The node of a name, without its domain.

        Raises:
            KeyError: there is none.
        """
        return {node.name: node for node in self.nodes}[name.partition(".")[0]]


def shapes() -> dict[str, Shape]:
    """The pretended machines by name."""
    return {name: _shape(facts) for name, facts in _file().items()}


def policy_of(name: str) -> dict[str, Any]:
    """What the queue of a pretended machine asks for."""
    return dict(_file()[name].get("policy", {}))


def write_machine(machine: Machine) -> None:
    """Put a machine where its fakes find it."""
    host = lambda node: {"name": node.name, "enter": list(node.enter)}  # noqa: E731
    facts = {
        "shape": {**vars(machine.shape)},
        "nodes": [host(node) for node in machine.nodes],
        "launch_node": machine.launch_node and host(machine.launch_node),
        "policy": machine.policy,
    }
    (machine.home / "machine.json").write_text(json.dumps(facts))


def read_machine(home: Path) -> Machine:
    """The machine of a fake's directory."""
    facts = json.loads((home / "machine.json").read_text())
    host = lambda node: Host(name=node["name"], enter=tuple(node["enter"]))  # noqa: E731
    shape = facts["shape"] | {"sockets": tuple(map(tuple, facts["shape"]["sockets"]))}
    return Machine(
        home=home,
        shape=Shape(**shape),
        nodes=tuple(map(host, facts["nodes"])),
        launch_node=host(facts["launch_node"]) if facts["launch_node"] else None,
        policy=facts["policy"],
    )


def cores_in(text: str) -> tuple[int, ...]:
    """``0-3,8`` -> 0, 1, 2, 3, 8."""
    return tuple(_cores(text))


def _cores(text: str) -> Iterator[int]:
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _shape(facts: dict[str, Any]) -> Shape:
    return Shape(
        sockets=tuple(cores_in(text) for text in facts["sockets"]),
        threads_per_core=facts.get("threads_per_core", 1),
        gpus=facts.get("gpus", 0),
        gpu_variable=facts.get("gpu_variable", "CUDA_VISIBLE_DEVICES"),
    )


def _file() -> dict[str, Any]:
    return dict(yaml.safe_load(Path(__file__).with_name("machines.yml").read_text(encoding="utf-8")))
