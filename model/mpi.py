"""Ranks as MPI knows them, where a launcher sets no variable that is known: ``deepspeed_mpi: true`` asks for it."""

from __future__ import annotations

import socket
from collections.abc import MutableMapping
from typing import Any

from model.ranks import Ranks, find_ranks, read_ranks

PORT = 29500
"""DeepSpeed's, where the job chose none."""


def find_place(environ: MutableMapping[str, str], *, mpi: bool) -> Ranks:
    """This process's place: as its launcher tells it, else as MPI does where it is to be asked, else alone."""
    if not mpi:
        return read_ranks(environ)
    try:
        return find_ranks(environ) or ask_mpi(environ)
    except ValueError:  # PMIx tells a rank its number and nothing more
        ranks = ask_mpi(environ)
        if ranks.world_size == 1:  # the MPI of another launcher, which knows nothing of this one
            raise
        return ranks


def ask_mpi(environ: MutableMapping[str, str]) -> Ranks:
    """This process's place in MPI's world; all of its processes call it.

    MASTER_ADDR and MASTER_PORT stay as the job chose them; without one, the ranks meet at rank 0's host name.

    Raises:
        ValueError: mpi4py is not installed, or its MPI cannot be loaded.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"deepspeed_mpi asks MPI for the ranks, and mpi4py cannot: {error}: pip install mpi4py") from None
    return _place(environ, MPI.COMM_WORLD, MPI.COMM_TYPE_SHARED)


def _place(environ: MutableMapping[str, str], world: Any, shared: Any) -> Ranks:
    node = world.Split_type(shared)
    address = world.bcast(socket.gethostname(), root=0)
    environ.setdefault("MASTER_ADDR", address)
    environ.setdefault("MASTER_PORT", str(PORT))
    return Ranks(rank=world.Get_rank(), world_size=world.Get_size(), local_rank=node.Get_rank(), local_world_size=node.Get_size())
