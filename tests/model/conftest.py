"""Small tensors on a few cores: threads that wait for each other cost more than they bring, most of all beside other ranks."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """torch computes with one thread in the test process."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
