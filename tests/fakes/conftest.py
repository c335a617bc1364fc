"""The hosts on which pretended machines run whole jobs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.cluster.hosts import Hosts, obstacle, running_hosts
from tests.cluster.slurm import REQUIRED


@pytest.fixture(scope="session")
def three_hosts() -> Iterator[Hosts]:
    """Two nodes, and a third host where users log in and launch nodes' scripts run; ended with the session."""
    if reason := obstacle() or _missing_extra():
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{REQUIRED}=1, and {reason}")
        pytest.skip(reason)
    with running_hosts(3) as running:
        yield running


def _missing_extra() -> str:
    return "" if find_spec("deepspeed") else "training needs torch and DeepSpeed: pip install -e '.[train]'"
