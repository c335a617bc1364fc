"""A first site file of a real Slurm: what sinfo tells is what its configuration says."""

from __future__ import annotations

from pathlib import Path

import pytest

from neox_hpc.site_draft import SOURCES, DraftQueue, NodeKind, write_draft
from neox_hpc.site_facts import check_site
from neox_hpc.site_files import load_site
from tests.cluster.slurm import Slurm

pytestmark = pytest.mark.cluster


def test_a_real_slurm_tells_its_nodes_and_partitions(slurm: Slurm, tmp_path: Path) -> None:
    source = SOURCES["slurm"]
    told = source.parse({name: slurm.ask(*command) for name, command in source.commands.items()})
    assert told.kinds == (NodeKind(count=2, gpus=0, cpus=4, threads_per_core=1, memory_gib=3),)  # RealMemory=4000
    assert told.queues == {"batch": DraftQueue(max_nodes=2, walltime_s=3600, default=True)}
    (tmp_path / "lab.yml").write_text(write_draft("lab", "slurm", told, "2026-11-21"))
    site = load_site("lab.yml", cwd=tmp_path)
    assert [str(problem) for problem in check_site(site)] == []
    assert (site.node.cores, site.max_nodes, site.default_queue) == (4, 2, ("batch",))
