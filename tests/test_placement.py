"""Where ranks run: every class of ranks against the ranks one by one, and what a dry run shows of them."""

from __future__ import annotations

from itertools import product

import pytest

from model.config import Layout
from neox_hpc.launchers import LAUNCHERS
from neox_hpc.placement import exported, host_lines, meeting_lines, places
from neox_hpc.render import render_script
from tests.desk import Desk, desk
from tests.planning import plan, site, slurm
from tests.test_every_site import JOBS

__all__ = ["desk"]
SHAPES = [
    (tensor, pipe, nodes)
    for tensor, pipe, nodes in product((1, 2, 4, 8), (1, 2, 4), (1, 2, 3, 6))
    if nodes * 4 % (tensor * pipe) == 0
]


def cell(layout: Layout, tensor: int, data: int, pipe: int) -> int:
    """Megatron-LM's order: tensor fastest, pipe slowest."""
    return tensor + layout.tensor * (data + layout.data * pipe)


@pytest.mark.parametrize(("tensor", "pipe", "nodes"), SHAPES)
def test_every_rank_is_in_the_class_of_its_coordinates(tensor: int, pipe: int, nodes: int) -> None:
    keys = {"model_parallel_size": tensor, "pipe_parallel_size": pipe, "num_attention_heads": 8}
    job = plan(slurm(), keys=keys, nodes=nodes)
    layout, found = job.layout, {rank: place for place in places(job) for rank in place.ranks}
    assert sorted(found) == list(range(layout.world_size)) == sorted(rank for place in places(job) for rank in place.ranks)
    for t, d, p in product(range(layout.tensor), range(layout.data), range(layout.pipe)):
        rank = cell(layout, t, d, p)
        place = found[rank]
        assert (place.stage, place.local_rank, place.gpu) == (p, rank % 4, str(rank % 4))
        assert rank // 4 in place.nodes and t in place.tensor and d in place.data
    for place in places(job):
        own = [
            (t, d)
            for t, d, p in product(range(layout.tensor), range(layout.data), range(layout.pipe))
            if cell(layout, t, d, p) in place.ranks
        ]
        assert (set(place.tensor), set(place.data)) == ({t for t, _ in own}, {d for _, d in own})


def test_a_map_of_cores_is_told_where_the_launcher_follows_it() -> None:
    masks = 'node.cpu_masks=["3","2","1","0"]'
    bound = {
        name: places(plan(slurm(masks, f"launcher={name}")))[1].cores
        for name in LAUNCHERS
        if name not in ("jsrun", "flux", "local")
    }
    assert bound.pop("pdsh") == "" and set(bound.values()) == {"2"}
    assert places(plan(slurm()))[0].cores == "any 16"


@pytest.mark.parametrize("name", [name for name in JOBS if name.endswith("none-few")])
def test_hosts_meeting_place_and_variables_are_lines_of_the_script(name: str) -> None:
    script = render_script(JOBS[name])
    lines = script.splitlines()
    hosts, meeting, variables = host_lines(script), meeting_lines(script), exported(script)
    assert all(line in lines for line in (*hosts, *meeting))
    assert any("unique" in line for line in hosts) and "slots=" in hosts[-1]
    assert any("MASTER_ADDR" in line for line in meeting) and any(line.startswith("MASTER_PORT=") for line in meeting)
    assert {"MASTER_ADDR", "MASTER_PORT", *(variable for variable, _ in JOBS[name].env)} <= variables.keys()


SLURM = ("-s", "slurm", "--site-set", "node.gpus=4", "--site-set", "node.cores=64", "--site-set", "software.python=/env/bin/python")
CUT = ("--set", "model_parallel_size=2", "--set", "pipe_parallel_size=2", "-N", "4", "my.yml")


def test_a_dry_run_shows_the_command_and_the_classes_of_ranks_beside_the_script(desk: Desk) -> None:
    said = desk("submit", *SLURM, *CUT, "--dry-run")
    rows = [" ".join(line.split()) for line in said.err.partition("\n\n")[0].splitlines()]
    assert rows[0] == "my on slurm: 4 x 4 ranks"
    assert 'every rank /env/bin/python -u -m model.train "$run/run.json"' in rows
    assert "started by srun, once a rank" in rows
    assert rows[rows.index("LOCAL RANK CORES GPU TENSOR DATA, on the first node") + 3] == "2 any 16 2 0 1, then 2 more on each"
    assert rows[-2:] == ["0 0-7 0-1 0-3 embedding, block 0", "1 8-15 2-3 0-3 block 1, final norm, head"]
    assert said.out.startswith("#!/bin/bash")


def test_json_of_a_dry_run_has_every_class(desk: Desk) -> None:
    shown = desk("submit", *SLURM, *CUT, "--dry-run", "--json").facts["placement"]
    assert shown["command"][-1] == '"$run/run.json"' and shown["environment"]["OMP_NUM_THREADS"] == "16"
    assert [(each["stage"], each["local_rank"], each["nodes"]) for each in shown["ranks"]][3:5] == [(0, 3, [0, 1]), (1, 0, [2, 3])]
    assert shown["ranks"][4] == {
        "local_rank": 0,
        "stage": 1,
        "ranks": [8, 12],
        "nodes": [2, 3],
        "cores": "any 16",
        "gpu": "0",
        "tensor": [0],
        "data": [0, 2],
    }


def test_ranks_of_this_machine_are_started_by_deepspeed_and_bound_to_nothing(desk: Desk) -> None:
    job = plan(site("local"))
    assert [(place.cores, place.gpu) for place in places(job)] == [("", "")] * job.ranks_per_node
    assert "DeepSpeed's launcher of one node" in desk("submit", "-s", "local", "--dry-run", "my.yml").err
