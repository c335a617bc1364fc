"""What a dry run shows beside the script: hosts, environment, and the command, cores, GPU and coordinates of each class of ranks.

Changes when what is shown of where ranks run does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import click

from neox_hpc.cli.prepare import Prepared
from neox_hpc.launchers import PER_NODE
from neox_hpc.outline import name_layers
from neox_hpc.placement import Place, exported, host_lines, meeting_lines, places, stage_ranks
from neox_hpc.plan import Plan
from neox_hpc.render import quote, wrap


def print_placement(prepared: Prepared) -> None:
    """On stderr: stdout is the script's."""
    assert prepared.files is not None
    plan, script = prepared.plan, prepared.files["job.sh"]
    variables = exported(script)
    facts = [
        ("hosts", "\n".join(host_lines(script))),
        ("rendezvous", "\n".join(line.partition(" #")[0] for line in meeting_lines(script))),
        ("environment", f"{len(variables)} variables: {_some(tuple(variables))}"),
        ("started by", _starter(plan)),
        ("every rank", wrap(plan.step.command, indent=0)),
    ]
    click.echo(f"{plan.name} on {plan.site.name}: {plan.nodes} x {plan.ranks_per_node} ranks", err=True)
    width = max(len(label) for label, _ in facts)
    for label, value in facts:
        first, *rest = value.splitlines() or [""]
        click.echo(f"  {label:{width}}  {first}", err=True)
        for line in rest:
            click.echo(f"  {'':{width}}  {line}", err=True)
    _print_columns(_local_rows(plan, places(plan)))
    if plan.layout.pipe > 1:
        _print_columns(_stage_rows(prepared))
    click.echo("", err=True)


def placement_document(prepared: Prepared) -> dict[str, Any]:
    """The same for programs; every class of ranks by itself."""
    assert prepared.files is not None
    script = prepared.files["job.sh"]
    return {
        "hosts": list(host_lines(script)),
        "rendezvous": list(meeting_lines(script)),
        "environment": dict(exported(script)),
        "started_by": _starter(prepared.plan),
        "command": [quote(word) for word in prepared.plan.step.command],
        "ranks": [
            asdict(place)
            | {"ranks": list(place.ranks), "nodes": [place.nodes.start, place.nodes.stop - 1], "data": list(place.data)}
            for place in places(prepared.plan)
        ],
    }


def _starter(plan: Plan) -> str:
    """What starts the ranks."""
    if plan.site.launcher not in PER_NODE:
        return f"{plan.site.launcher}, once a rank"
    return f"DeepSpeed's launcher of one node{'' if plan.nodes == 1 else f', which {plan.site.launcher} starts once a node'}"


def _some(names: Sequence[str]) -> str:
    """As many names as a line holds."""
    shown = ""
    for number, name in enumerate(names):
        if len(shown) + len(name) > 90:
            return f"{shown} and {len(names) - number} more"
        shown += f"{', ' if shown else ''}{name}"
    return shown


def _local_rows(plan: Plan, found: Sequence[Place]) -> Iterator[tuple[str, ...]]:
    """A row for each place on a node: alike in all stages, but for the axes that cross nodes."""
    yield "LOCAL RANK", "CORES", "GPU", "TENSOR", "DATA, on the first node"
    for place in found[: plan.ranks_per_node]:
        tensor = ", ".join(map(str, place.tensor[:4])) + (", …" if len(place.tensor) > 4 else "")
        more = f", then {place.data.step} more on each" if isinstance(place.data, range) and len(place.data) > 1 else ""
        yield str(place.local_rank), place.cores or "not bound", place.gpu or "none", tensor, f"{place.data[0]}{more}"


def _stage_rows(prepared: Prepared) -> Iterator[tuple[str, ...]]:
    yield "STAGE", "RANKS", "NODES", "DATA", "HOLDS"
    outline, layout = prepared.planned.outline, prepared.plan.layout
    for stage in range(layout.pipe):
        ranks = stage_ranks(layout, stage)
        size = prepared.plan.ranks_per_node
        nodes = _range(range(ranks.start // size, (ranks.stop - 1) // size + 1))
        holds = name_layers(outline.stages[stage], outline) if outline is not None else ""
        yield str(stage), _range(ranks), nodes, _range(range(layout.data)), holds


def _range(numbers: range) -> str:
    return f"{numbers.start}-{numbers.stop - 1}" if len(numbers) > 1 else f"{numbers.start}"


def _print_columns(rows: Iterator[tuple[str, ...]]) -> None:
    listed = list(rows)
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    for row in listed:
        click.echo("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), err=True)
