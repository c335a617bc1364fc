"""The cluster of the session, and its user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.cluster.hosts import Hosts, running_hosts
from tests.cluster.hosts import obstacle as hosts_obstacle
from tests.cluster.slurm import REQUIRED, Slurm, obstacle, running_slurm
from tests.cluster.user import User


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A real Slurm of two nodes, ended with the session."""
    if reason := obstacle() or _missing_extra():
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{REQUIRED}=1, and {reason}")
        pytest.skip(reason)
    with running_slurm(nodes=2) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def user(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> User:
    """A user of the cluster with ``tiny.yml`` and its data in the working directory."""
    from tests.model.tiny import KEYS, write_tokens  # needs the extra that slurm has found

    cwd = tmp_path_factory.mktemp("work")
    write_tokens(cwd)
    # ZeRO-1: every rank holds a part of the optimizer, and writes it
    keys = KEYS | {"data_path": "text", "split": "9,1,0", "checkpoint_factor": 10, "zero_optimization": {"stage": 1}}
    (cwd / "tiny.yml").write_text(yaml.safe_dump(keys))
    return User(slurm=slurm, cwd=cwd, checkout=Path(__file__).parents[2])


def _missing_extra() -> str:
    return "" if find_spec("deepspeed") else "training needs torch and DeepSpeed: pip install -e '.[train]'"


@pytest.fixture(scope="session")
def hosts() -> Iterator[Hosts]:
    """Two hosts of their own, ended with the session."""
    if reason := hosts_obstacle():
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{REQUIRED}=1, and {reason}")
        pytest.skip(reason)
    with running_hosts(2) as running:
        yield running
