"""Every Slurm profile against a real Slurm of its shape: what the plan allows is accepted, a GPU or a node more is refused.

slurmctld alone, with partitions and nodes from the site file; `sbatch --test-only` needs nobody on the nodes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from neox_hpc.render import render_script
from neox_hpc.site import Queue, Site, show_walltime
from neox_hpc.site_files import list_sites, load_site
from tests.cluster.slurm import REQUIRED, Slurm, obstacle, running_slurm
from tests.planning import plan_shipped

pytestmark = pytest.mark.cluster


def queues_of(site: Site) -> dict[str, Queue]:
    """Queue by queue, where limits are known, without the qualities of service: those need an accounting database."""
    return {name: queue for name, queue in (site.queues or {}).items() if queue.partition is None and queue.bins}


SITES = [name for name in list_sites(Path("/nonexistent")) if (at := load_site(name)).scheduler == "slurm" and queues_of(at)]
IN_EVERY_RUN = {"frontier"}
"""The others take a Slurm each, half a minute together."""


def longest_s(queue: Queue) -> int:
    return max(node_bin.limit_s(node_bin.min_nodes) for node_bin in queue.bins)


def shape_of(site: Site) -> str:
    """Lines of slurm.conf that pretend a site.  A node of State=CLOUD counts as one that could be switched on."""
    features = [word.partition(" ")[2] for word in site.directives if word.startswith("-C ")]
    node = site.node
    has = [f"CPUs={node.cores}", f"Gres=gpu:{node.gpus}", *([f"Feature={','.join(features)}"] if features else [])]
    has += [f"RealMemory={int(node.memory_gib * 1024)}"] if node.memory_gib else []
    lines = [
        *("GresTypes=gpu", "ResumeProgram=/bin/true", "SuspendProgram=/bin/true", "SuspendTime=60"),
        f"NodeName=node[1-{site.max_nodes}] {' '.join(has)} State=CLOUD",
    ]
    for name, queue in queues_of(site).items():
        most = max(bin.max_nodes for bin in queue.bins)
        lines.append(f"PartitionName={name} Nodes=ALL MaxNodes={most} MaxTime={show_walltime(longest_s(queue))}")
    return "\n".join(lines) + "\n"


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[] if name in IN_EVERY_RUN else pytest.mark.full) for name in SITES]
)
def pretended(request: pytest.FixtureRequest) -> Iterator[tuple[Site, Slurm]]:
    if reason := obstacle():
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{REQUIRED}=1, and {reason}")
        pytest.skip(reason)
    site = load_site(request.param, ("software.python=/sw/env/bin/python",))
    with running_slurm(nodes=0, shape=shape_of(site)) as cluster:
        yield site, cluster


def judge(cluster: Slurm, folder: Path, script: str) -> tuple[int, str]:
    """Exit status of ``sbatch --test-only`` and what it says."""
    (folder / "job.sh").write_text(script)
    said = cluster.on_login_node(["sbatch", "--test-only", str(folder / "job.sh")], timeout_s=30)
    return said.returncode, said.stderr


def script_of(site: Site, queue: str, nodes: int | None) -> str:
    """20B on the nodes that are chosen for it; on given ones, which may be few, a small network."""
    return render_script(plan_shipped(site, "20B" if nodes is None else "125M", account="lab42", queue=queue, nodes=nodes))


def test_a_job_is_accepted_in_every_queue_at_the_edges_of_every_bin(pretended: tuple[Site, Slurm], tmp_path: Path) -> None:
    site, cluster = pretended
    for name, queue in queues_of(site).items():
        for nodes in (None, *(edge for node_bin in queue.bins for edge in (node_bin.min_nodes, node_bin.max_nodes))):
            status, said = judge(cluster, tmp_path, script_of(site, name, nodes))
            assert (status, f"in partition {name}" in said) == (0, True), said
            assert nodes is None or f"using {nodes * (site.node.cores or 0)} processors" in said, said


def test_a_gpu_a_core_a_node_or_a_minute_too_many_is_refused(pretended: tuple[Site, Slurm], tmp_path: Path) -> None:
    site, cluster = pretended
    for name, queue in queues_of(site).items():
        last = queue.bins[-1]
        script = script_of(site, name, last.max_nodes)
        more = {
            "(gpus-per-node=|gres=gpu:)": str((site.node.gpus or 0) + 1),
            "(cpus-per-task=)": str((site.node.cores or 0) // (site.node.ranks or 1) + 1),
            "(nodes=)": str(last.max_nodes + 1),
            "(time=)": show_walltime(longest_s(queue) + 60),
        }
        for option, value in more.items():
            changed, times = re.subn(rf"(?m)^#SBATCH --{option}.*", rf"#SBATCH --\g<1>{value}", script)
            assert times == 1
            status, said = judge(cluster, tmp_path, changed)
            assert status != 0 and "allocation failure" in said, f"{option}{value}: {said}"


@pytest.mark.full
def test_ranks_own_every_thread_of_nodes_whose_threads_slurm_counts(tmp_path: Path) -> None:
    """The masks of their cores need that: srun(1) has mask_cpu for jobs with the entire node only."""
    if reason := obstacle():
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{REQUIRED}=1, and {reason}")
        pytest.skip(reason)
    site = load_site("perlmutter", ("software.python=/sw/env/bin/python",))
    threads = "CPUs=128 Sockets=1 CoresPerSocket=64 ThreadsPerCore=2 Gres=gpu:4 Feature=gpu RealMemory=262144"
    lines = [
        *("GresTypes=gpu", "ResumeProgram=/bin/true", "SuspendProgram=/bin/true", "SuspendTime=60"),
        f"NodeName=node[1-2] {threads} State=CLOUD",
        "PartitionName=gpu Nodes=ALL Default=YES MaxTime=1:00:00",
    ]
    script = render_script(plan_shipped(site, "125M", account="lab_g", nodes=2, walltime_s=600))
    with running_slurm(nodes=0, shape="\n".join(lines) + "\n") as cluster:
        status, said = judge(cluster, tmp_path, script)
        assert (status, "using 256 processors" in said) == (0, True), said
