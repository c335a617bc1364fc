"""``neox-hpc plan``: the sizes of a run before anything is written.

Changes when what is shown of a plan does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neox_hpc.cli.prepare import Prepared, asked_of, job_options, prepare, print_notes, print_problems
from neox_hpc.cli.show import print_facts, print_json, print_table
from neox_hpc.outline import name_layers, show_number, show_seconds

if TYPE_CHECKING:
    from neox_hpc.auto import Proposal, Proposals
    from neox_hpc.decisions import Offer
    from neox_hpc.memory import Memory, Moment
    from neox_hpc.outline import Outline
    from neox_hpc.step_time import StepTime

EXPLAINED = ("nodes", "queue", "walltime", "account", "batch", "pipeline", "memory")
"""Notes that stand in the table, beside what they explain."""


@click.command()
@job_options
@click.option("--start", "ask_start", is_flag=True, help="Ask the scheduler when the job would start (sbatch --test-only).")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
def plan(ask_start: bool, as_json: bool, **options: Any) -> int:
    """Show how a run would lie on a machine: layout, memory per GPU by part, tokens, node-hours.  Writes and submits nothing.

    Memory is estimated from the layout, ZeRO's stage, precision and recomputation; the allocator, libraries and communicators need
    some more.  Node-hours are nodes x walltime, the most that the job can use.  A step's time is an estimate from speeds in the
    site's file; docs/step-time.md has it beside published trainings.  --auto looks for the cut with the shortest step.  Nobody is
    asked, but with --start the scheduler.

    \b
    Examples:
      neox-hpc plan --site ./mysite.yml configs/20B.yml
      neox-hpc plan --site ./mysite.yml configs/20B.yml --nodes 12 --set zero_optimization.stage=1
      neox-hpc plan --site slurm --site-set node.gpus=4 --site-set node.gpu_memory_gib=80 -d configs 125M local_setup
      neox-hpc plan --site ./mysite.yml configs/20B.yml --nodes 16 --auto
      neox-hpc plan --site local configs/quickstart.yml --json
    """
    prepared = prepare(asked_of(options), cwd=Path.cwd())
    planned = prepared.planned
    start = _start(prepared) if ask_start and planned.plan is not None else None
    if as_json:
        problems = [{"where": p.where, "wrong": p.wrong, "fix": p.fix, "kind": p.kind} for p in planned.problems]
        sizes = planned.outline and _document(planned.outline)
        found: dict[str, Any] = {"name": prepared.request.name, "sizes": sizes, "notes": list(planned.notes), "problems": problems}
        found |= {"queues": [asdict(offer) for offer in _offers(prepared)]}
        found |= {"start": start and asdict(start)} if ask_start else {}
        print_json(found | ({"proposals": _proposed(prepared.proposals)} if prepared.proposals is not None else {}))
        return 0 if planned.plan is not None else 2
    if prepared.proposals is not None:
        _print_proposals(prepared.proposals)
    if planned.outline is not None:
        _print_sizes(prepared, planned.outline, start)
    explained = (*(EXPLAINED if planned.outline is not None else ()), "auto")
    print_notes(note for note in planned.notes if note.partition(": ")[0] not in explained)
    print_problems(planned.problems)
    return 0 if planned.plan is not None else 2


def _print_proposals(proposals: Proposals) -> None:
    """The best cuts, why the first is the first, and what to write for it."""
    import yaml

    from neox_hpc.auto import TIE

    click.echo(
        f"The best of {proposals.tried:,} cuts, one for each tensor and pipe; "
        f"the first is the emptiest of those within {TIE:.0%} of the fastest.\n"
        "Times are the best that may be; GiB and TFLOP/s are of one GPU:"
    )
    print_table(CUT_HEADERS, [_cut_row(number, proposal, proposals.room) for number, proposal in enumerate(proposals.best, 1)])
    click.echo("\nwhy the first")
    print_facts(proposals.reasons)
    click.echo("\nto write, in place of these keys:\n")
    click.echo(yaml.safe_dump(proposals.best[0].keys, sort_keys=False, default_flow_style=None, width=100))


CUT_HEADERS = (
    *("", "TENSOR", "PIPE", "DATA", "ZERO", "MICRO", "ACCUM.", "RECOMPUTE"),
    *("STEP", "TOKENS/S", "TFLOP/S", "GIB", "FILLED", "WHERE THE TIME GOES"),
)


def _cut_row(number: int, proposal: Proposal, room: float) -> tuple[str, ...]:
    timed, cut = proposal.timed, proposal.cut
    counts = (number, cut.tensor, cut.pipe, timed.made.layout.data, cut.zero, cut.micro, timed.made.batch.accumulation)
    speed = (show_seconds(timed.seconds), f"{timed.step.tokens_per_s:,.0f}", f"{timed.step.tflops_per_rank:.0f}")
    memory = (f"{proposal.peak / 2**30:.1f}", f"{proposal.peak / room:.0%}")
    return (*map(str, counts), cut.recompute, *speed, *memory, name_parts(timed.step))


def _proposed(proposals: Proposals) -> list[dict[str, Any]]:
    return [
        {"keys": found.keys, "seconds": found.timed.seconds, "tflops_per_rank": found.timed.step.tflops_per_rank}
        | {"peak": found.peak, "parts": found.timed.step.parts}
        for found in proposals.best
    ]


def _print_sizes(prepared: Prepared, outline: Outline, start: Start | None) -> None:
    reasons = {what: why for what, _, why in (note.partition(": ") for note in prepared.planned.notes)}
    click.echo(click.style(prepared.request.name, bold=True))
    facts = _facts(outline, reasons, prepared.inputs.site.name)
    after = [label for label, _ in facts].index("queue") + 1
    queues = [("queues", "\n".join(_queue_lines(_offers(prepared), outline.queue)))]
    print_facts([*facts[:after], *queues, ("start", start.told if start is not None else ""), *facts[after:]])
    if outline.memory is not None:
        _print_memory(outline, outline.memory)


def _offers(prepared: Prepared) -> tuple[Offer, ...]:
    """What the site's queues say to the job."""
    from neox_hpc.decisions import queue_offers

    outline = prepared.planned.outline
    return () if outline is None else queue_offers(prepared.inputs.site, outline.nodes, prepared.request.walltime_s)


def _queue_lines(offers: Sequence[Offer], chosen: str | None) -> Iterator[str]:
    """The others too, where there are some: which would take the job, and why not."""
    width = max((len(offer.queue) for offer in offers), default=0)
    for offer in offers if len(offers) > 1 else ():
        said = f"takes it, {offer.why}" if offer.takes else f"does not take it: {offer.why}"
        yield f"{'>' if offer.queue == chosen else ' '} {offer.queue:{width}}  {said}"


@dataclass(frozen=True, kw_only=True)
class Start:
    """When a job would start."""

    at: str
    """The server's time; empty: it is not told."""
    told: str


def _start(prepared: Prepared) -> Start:
    """The scheduler's estimate, as its queue is now."""
    import os
    import shlex

    from neox_hpc.errors import NeoxHpcError
    from neox_hpc.jobs import Here, try_script
    from neox_hpc.schedulers import SCHEDULERS

    scheduler = SCHEDULERS[prepared.plan.site.scheduler]
    if not scheduler.test_argv():
        return Start(at="", told=f"{prepared.plan.site.scheduler} has no command that estimates it for a job that is not queued")
    assert prepared.files is not None
    host = prepared.far.machine if prepared.far is not None else Here(os.environ)
    try:
        verdict = try_script(scheduler, prepared.files["job.sh"], host)
    except NeoxHpcError as error:
        return Start(at="", told=f"not told: {str(error).splitlines()[0]}")
    at, by = scheduler.parse_start(verdict), shlex.join(scheduler.test_argv())
    return Start(at=at, told=f"about {at.replace('T', ' ')}, as the queue is now ({by})" if at else f"not told by {by}: {verdict}")


def _facts(outline: Outline, reasons: dict[str, str], site: str) -> list[tuple[str, str]]:
    from neox_hpc.outline import bubble_share
    from neox_hpc.site import show_walltime

    layout, batch = outline.layout, outline.batch
    return [
        ("nodes", reasons.get("nodes") or f"{outline.nodes}"),
        ("layout", f"tensor {layout.tensor} x pipe {layout.pipe} x data {layout.data} = {layout.world_size} ranks"),
        ("stages", "\n".join(f"{n}: {name_layers(stage, outline)}" for n, stage in enumerate(outline.stages) if layout.pipe > 1)),
        ("parameters", f"{outline.parameters:,}"),
        (
            "batch",
            f"{batch.train:,} sequences a step = micro {batch.micro} x accumulation {batch.accumulation} x data {batch.data}",
        ),
        ("tokens", _tokens(outline)),
        ("pipeline", _bubble(bubble_share(layout, batch)) if layout.pipe > 1 else ""),
        ("account", reasons.get("account", "")),
        ("queue", reasons.get("queue") or outline.queue or ""),
        ("walltime", reasons.get("walltime") or (show_walltime(outline.walltime_s) if outline.walltime_s else "")),
        ("node-hours", "" if outline.node_hours is None else f"{show_number(outline.node_hours)} at most"),
        ("step", _step(outline, site)),
        ("to the end", _training(outline)),
        ("memory", reasons.get("memory", "")),
    ]


def _tokens(outline: Outline) -> str:
    a_step = f"{outline.tokens_a_step:,} a step"
    return a_step if outline.tokens is None else f"{a_step} x {outline.steps:,} steps = {outline.tokens:,}"


def _step(outline: Outline, site: str) -> str:
    """The estimate, and where it goes; or what is lacking for one."""
    step = outline.step
    if step is None:
        return f"not estimated: {', '.join(outline.lacking)} of {site} not known" if outline.lacking else ""
    speed = f"{step.tokens_per_s:,.0f} tokens/s, {step.tflops_per_rank:.0f} TFLOP/s a GPU ({step.share_of_peak:.0%} of its peak)"
    return f"about {show_seconds(step.seconds)} at best: {speed}\n{name_parts(step)}"


def _training(outline: Outline) -> str:
    if outline.training_s is None:
        return ""
    took, hours = show_seconds(outline.training_s), outline.training_node_hours
    told = f"{outline.steps:,} steps take about {took} at best, {show_number(hours or 0)} node-hours"
    jobs = math.ceil(outline.training_s / outline.walltime_s) if outline.walltime_s else 1
    return f"{told}: {jobs} jobs of this walltime" if jobs > 1 else told


def name_parts(step: StepTime) -> str:
    """``products 71 %, tensor 12 %``: what takes a hundredth of a step or more, most first."""
    shares = sorted(((seconds / step.seconds, name) for name, seconds in step.parts.items()), reverse=True)
    return ", ".join(f"{name} {share:.0%}" for share, name in shares if share >= 0.01)


def _bubble(share: float) -> str:
    return f"stages wait {share:.1%} of a step"


def _print_memory(outline: Outline, memories: tuple[Memory, ...]) -> None:
    """Every stage at its fullest, and the fullest stage through a step."""
    from neox_hpc.memory import PARTS, fullest

    most = fullest(memories)
    unit, size = ("GiB", 2**30) if most.peak >= 2**30 else ("MiB", 2**20)

    def row(*first: str, moment: Moment) -> tuple[str, ...]:
        held = [f"{value / size:.1f}" for value in (*(getattr(moment, part) for part in PARTS), moment.total)]
        return (*first, *held, "" if outline.room is None else f"{moment.total / outline.room:.0%}")

    headers = (*(part.upper() for part in PARTS), "ALL", "FILLED")
    click.echo(f"\n{unit} a rank, when most is held:")
    rows = [row(str(n), name_layers(m.layers, outline), m.fullest.when, moment=m.fullest) for n, m in enumerate(memories)]
    print_table(("STAGE", "LAYERS", "WHEN", *headers), rows)
    click.echo(f"\n{unit} a rank of stage {memories.index(most)}, through a step:")
    print_table(("WHEN", *headers), [row(moment.when, moment=moment) for moment in most.moments])
    if most.host:
        click.echo(f"\nand {most.host / size:.1f} {unit} a rank in the node's own memory (offload)")


def _document(outline: Outline) -> dict[str, Any]:
    from neox_hpc.outline import bubble_share

    layout, step = outline.layout, outline.step
    return {
        "nodes": outline.nodes,
        "ranks_per_node": outline.ranks_per_node,
        "layout": {"tensor": layout.tensor, "pipe": layout.pipe, "data": layout.data, "world_size": layout.world_size},
        "stages": [
            {"first": stage.start, "last": stage.stop - 1, "holds": name_layers(stage, outline)} for stage in outline.stages
        ],
        "parameters": outline.parameters,
        "batch": asdict(outline.batch),
        "tokens_a_step": outline.tokens_a_step,
        "steps": outline.steps,
        "tokens": outline.tokens,
        "bubble_share": bubble_share(layout, outline.batch),
        "queue": outline.queue,
        "walltime_s": outline.walltime_s,
        "step": step
        and {"seconds": step.seconds, "tokens_per_s": step.tokens_per_s, "tflops_per_rank": step.tflops_per_rank}
        | {"share_of_peak": step.share_of_peak, "parts": step.parts},
        "training_s": outline.training_s,
        "training_node_hours": outline.training_node_hours,
        "node_hours": outline.node_hours,
        "bytes_a_rank": outline.room,
        "memory": outline.memory
        and [
            {
                "peak": m.peak,
                "host": m.host,
                "moments": {moment.when: asdict(moment) | {"all": moment.total} for moment in m.moments},
            }
            for m in outline.memory
        ],
    }
