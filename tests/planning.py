"""Plans for tests: a small configuration on a site, with nothing read from this machine but the site's file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neox_hpc.plan import Plan, Planned, make_plan
from neox_hpc.probe import Facts, Machine
from neox_hpc.request import Request
from neox_hpc.settings import Loaded, load_config
from neox_hpc.share import share
from neox_hpc.site import Site
from neox_hpc.site_files import load_site
from neox_hpc.vocabulary import RunConfig

GOLDEN = Path(__file__).parent / "golden"
SLURM_FACTS = ("node.gpus=4", "node.accelerator=cuda", "node.cores=64", "software.python=/opt/env/bin/python")
TWO_CORES = Facts(machine=Machine(cores=2, memory_gib=8.0, python="/usr/bin/python3"))
"""A machine without GPUs."""

SMALL: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "seq_length": 64,
    "max_position_embeddings": 64,
    "pos_emb": "rotary",
    "train_micro_batch_size_per_gpu": 4,
    "train_iters": 20,
    "data_path": "data/text",
    "vocab_file": "data/tokenizer.json",
    "tokenizer_type": "HFTokenizer",
    "save": "checkpoints",
    "checkpoint_factor": 10,
}


def loaded(**keys: Any) -> Loaded:
    """The small configuration with some keys changed; a key set to None is left out.  Key number n stands in line n."""
    values = {key: value for key, value in (SMALL | keys).items() if value is not None}
    places = {key: f"small.yml:{line}" for line, key in enumerate(values, start=1)}
    return Loaded(config=RunConfig.from_keys(values), places=places, files=("small.yml",))


def shipped(name: str) -> Loaded:
    """A shipped configuration: ``20B``, ``pythia/160M``."""
    return load_config([f"{name}.yml"], cwd=share("configs"))


def request(**asked: Any) -> Request:
    """A request as from the command line."""
    return Request(**({"name": "small", "run_dir": "/scratch/runs/small", "cwd": "/home/user", "user": "ada"} | asked))


def site(name: str | Path, *sets: str) -> Site:
    """A shipped site, or the one of a file."""
    return load_site(name, sets, home=GOLDEN / "nobody")


def planned_shipped(where: Site, name: str, **asked: Any) -> Planned:
    """What planning finds of a shipped configuration."""
    return make_plan(shipped(name), where, request(**({"name": name.replace("/", "-")} | asked)), Facts())


def plan_shipped(where: Site, name: str, **asked: Any) -> Plan:
    """The plan of a shipped configuration; there must be one."""
    found = planned_shipped(where, name, **asked)
    assert found.plan is not None, "\n".join(map(str, found.problems))
    return found.plan


def planned(
    where: Site, *, keys: dict[str, Any] | None = None, facts: Facts = TWO_CORES, asked: dict[str, Any] | None = None
) -> Planned:
    """Everything that planning finds."""
    return make_plan(loaded(**(keys or {})), where, request(**(asked or {})), facts)


def plan(where: Site, *, keys: dict[str, Any] | None = None, facts: Facts = TWO_CORES, **asked: Any) -> Plan:
    """The plan; there must be one."""
    found = planned(where, keys=keys, facts=facts, asked=asked)
    assert found.plan is not None, "\n".join(map(str, found.problems))
    return found.plan


def slurm(*sets: str) -> Site:
    """The generic Slurm with its open facts given."""
    return site("slurm", *SLURM_FACTS, *sets)


def scheduled(name: str, *sets: str) -> Site:
    """The generic Slurm's nodes under another scheduler, with a launcher that starts ranks in a job of any."""
    return slurm(f"scheduler={name}", "launcher=mpich", *sets)


def wrongs(found: Planned, kind: str = "anywhere") -> Sequence[str]:
    """The problems of a kind as ``where: wrong / fix``."""
    return [f"{p.where}: {p.wrong} / {p.fix}" for p in found.problems if p.kind == kind]
