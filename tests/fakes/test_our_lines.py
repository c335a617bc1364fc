"""What our launchers write is what the pretended ones place: the cores of every rank are computed, not seen.

Arranged over the shipped sites whose nodes ``machines.yml`` describes from the sites' own pages, and over the launchers.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from neox_hpc.launchers import GIVES_ONE_GPU, Shell, Step
from neox_hpc.launchers import LAUNCHERS as OURS
from neox_hpc.launchers.interface import cores_of
from neox_hpc.plan import Plan
from neox_hpc.probe import Facts
from tests.fakes.machine import Host, Machine, shapes
from tests.fakes.program import LAUNCHERS, place
from tests.fakes.ranks import Launch
from tests.fakes.test_launchers import HOSTS, environ_of
from tests.planning import plan, site

SITES = [name for name in shapes() if name != "cluster"]
FACTS = ("software.python=/env/python", "network.interface=eth0")
QUEUES = {"polaris": "debug"}
"""Where two nodes do not fit into the default."""


def planned(name: str) -> Plan:
    """Two whole nodes of a site."""
    found = site(name, *FACTS)
    keys = {"precision": "bfloat16" if "bf16" in (found.node.dtypes or ["bf16"]) else "fp16", "train_micro_batch_size_per_gpu": 1}
    return plan(found, keys=keys, facts=Facts(), nodes=2, account="abc123", walltime_s=1800, queue=QUEUES.get(name))


def placed(launcher: str, step: Step, where: str, folder: Path) -> Launch:
    """What a pretended launcher makes of our line for a step."""
    environ = environ_of(launcher, folder)
    files = {"$nodefile": "hosts", "$hostfile": "slots"}
    words = [str(folder / files[word]) if isinstance(word, Shell) and word in files else word for word in OURS[launcher](step)]
    machine = Machine(
        home=folder,
        shape=shapes()[where],
        nodes=tuple(Host(name=host) for host in HOSTS),
        launch_node=Host(name="batch1") if launcher == "jsrun" else None,
        policy={},
    )
    named = 2 if launcher == "flux" else 1
    assert words[:named] == [*LAUNCHERS[launcher][0].split(), "run"][:named]
    return place(launcher, words[named:], machine, environ)


def devices(found: Launch) -> set[str]:
    """What each rank sees of its node's devices; empty: its launcher hides nothing."""
    names = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
    return {rank.env.get(name, "") for rank in found.ranks for name in names if name in rank.env} or {""}


@pytest.mark.parametrize("name", SITES)
def test_the_pretended_node_is_the_one_of_the_site_file(name: str) -> None:
    """Both are from the site's own pages, each by itself."""
    node, shape = site(name).node, shapes()[name]
    assert (node.gpus, node.cores) == (shape.gpus, len(shape.cores))
    assert {core for mask in node.cpu_masks or () for core in cores_of(mask)} <= set(shape.cores)


@pytest.mark.parametrize("name", SITES)
def test_every_rank_of_a_site_gets_the_cores_of_its_map(name: str, tmp_path: Path) -> None:
    found = planned(name)
    launch = placed(found.site.launcher, found.step, name, tmp_path)
    here = found.ranks_per_node
    assert [(rank.rank, rank.host, rank.local) for rank in launch.ranks] == [
        (number, HOSTS[number // here], number % here) for number in range(2 * here)
    ]
    given = [rank.cores for rank in launch.ranks[:here]]
    if found.site.node.cpu_masks:
        assert given == [tuple(cores_of(mask)) for mask in found.site.node.cpu_masks]
    assert len({core for cores in given for core in cores or ()}) == sum(len(cores or ()) for cores in given)
    assert set(launch.ranks[0].cores or ()) <= set(shapes()[name].cores)
    assert {rank.cores for rank in launch.ranks[here:]} == set(given)


@pytest.mark.parametrize("name", SITES)
def test_ranks_see_all_devices_of_their_node_or_the_one_that_is_asked_for(name: str, tmp_path: Path) -> None:
    found = planned(name)
    seen = devices(placed(found.site.launcher, found.step, name, tmp_path))
    every = ",".join(map(str, range(shapes()[name].gpus)))
    if found.step.gpus_visible == "all":
        assert seen <= {every, ""}
    else:
        assert all(len(text.split(",")) == 1 for text in seen)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_our_lines_are_accepted_in_every_form(launcher: str, tmp_path: Path) -> None:
    """With a map of cores, with a number of them, with neither; with all devices, and with one where the launcher can."""
    where = {"jsrun": "summit", "pals": "polaris", "flux": "tuolumne", "srun": "frontier"}.get(launcher, "cluster")
    shape = shapes()[where]
    part = len(shape.cores) // shape.gpus
    parts = tuple(",".join(map(str, shape.cores[start : start + part])) for start in range(0, part * shape.gpus, part))
    for visible in ("all", "one") if launcher in GIVES_ONE_GPU else ("all",):
        for masks, cores in ((parts[::-1], part), (None, part), (None, None)):
            step = Step(
                nodes=2,
                ranks_per_node=shape.gpus,
                cores_per_rank=cores,
                cpu_masks=masks,
                gpus_per_node=shape.gpus,
                gpus_visible=visible,
                python="/env/python",
                module="model.train",
            )
            launch = placed(launcher, step, where, tmp_path)
            assert [rank.host for rank in launch.ranks] == ["node1"] * shape.gpus + ["node2"] * shape.gpus, step
            assert launch.command[-4:] == ("/env/python", "-u", "-m", "model.train")
            if cores:
                assert {len(rank.cores or ()) for rank in launch.ranks} == {cores}, (step, launch.ranks)
            if visible == "one":
                assert all(len(text.split(",")) == 1 and text for text in devices(launch)), launch.ranks
