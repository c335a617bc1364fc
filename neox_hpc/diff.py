"""Two jobs compared, as someone would tell it: what is the same, what is not, and where each difference is written.

Changes when another thing about a job is worth telling.  Reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from neox_hpc.decisions import count
from neox_hpc.explain import leaves, shown
from neox_hpc.inputs import Inputs
from neox_hpc.marked_yaml import place_of
from neox_hpc.memory import fullest, in_gib
from neox_hpc.outline import Outline, show_number, show_seconds
from neox_hpc.placement import exported
from neox_hpc.plan import Plan, Planned
from neox_hpc.render import render_script
from neox_hpc.site import Site, show_walltime
from neox_hpc.site_facts import ABOUT_PROFILES


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of two jobs."""

    name: str
    inputs: Inputs
    planned: Planned
    script: str | None
    """Absent where there is no plan."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """A value and where it is written; empty: nowhere, it is the default."""

    text: str
    place: str = ""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Something that one job has and the other has not, or has otherwise."""

    what: str
    left: Value | None
    right: Value | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two jobs."""

    left: Side
    right: Side
    sentences: tuple[str, ...]
    """What matters most, in words."""
    same: tuple[str, ...]
    """Of the sizes, what is alike."""
    sizes: tuple[Difference, ...]
    keys: tuple[Difference, ...]
    """Of the configuration."""
    facts: tuple[Difference, ...]
    """Of the site, where both name the same one: two versions of its profile."""
    modules: tuple[Difference, ...] = ()
    variables: tuple[Difference, ...] = ()
    directives: tuple[Difference, ...] = ()
    """Arguments of the scheduler, where it is the same one."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        return not (self.sizes or self.keys or self.facts or self.modules or self.variables or self.directives)


def make_side(name: str, inputs: Inputs) -> Side:
    """A job, planned from what it is made from."""
    planned = inputs.planned()
    script = None if planned.plan is None else render_script(planned.plan, inputs.launch)
    return Side(name=name, inputs=inputs, planned=planned, script=script)


def compare(left: Side, right: Side) -> Comparison:
    """What differs between two jobs."""
    ours, theirs = dict(_sizes(left)), dict(_sizes(right))
    return Comparison(
        left=left,
        right=right,
        sentences=tuple(_sentences(left, right)),
        same=tuple(what for what, text in ours.items() if theirs.get(what) == text),
        sizes=_differences(_valued(ours), _valued(theirs)),
        keys=_differences(_keys(left), _keys(right)),
        facts=_differences(_facts(left), _facts(right)) if _called(left) == _called(right) else (),
        modules=_differences(_modules(left), _modules(right)),
        variables=_differences(_variables(left), _variables(right)),
        directives=_differences(_directives(left), _directives(right)) if _scheduler(left) == _scheduler(right) else (),
    )


def _differences(left: Mapping[str, Value], right: Mapping[str, Value]) -> tuple[Difference, ...]:
    whats = dict.fromkeys((*left, *right))
    found = (Difference(what=what, left=left.get(what), right=right.get(what)) for what in whats)
    return tuple(each for each in found if _text(each.left) != _text(each.right))


def _text(value: Value | None) -> str | None:
    return None if value is None else value.text


def _valued(texts: Mapping[str, str]) -> dict[str, Value]:
    return {what: Value(text=text) for what, text in texts.items() if text}


# Sizes --------------------------------------------------------------------------------------------------------------------------


def _sizes(side: Side) -> Iterator[tuple[str, str]]:
    outline, plan, site = side.planned.outline, side.planned.plan, side.inputs.site
    if outline is not None:
        yield from _of_outline(outline, site)
    if plan is not None:
        yield from _of_plan(plan)


def _of_outline(outline: Outline, site: Site) -> Iterator[tuple[str, str]]:
    layout, batch = outline.layout, outline.batch
    yield "nodes", f"{outline.nodes} x {outline.ranks_per_node} {_device(site)}"
    yield "layout", f"tensor {layout.tensor} x pipe {layout.pipe} x data {layout.data} = {layout.world_size} ranks"
    yield "parameters", f"{outline.parameters:,}"
    yield "batch", f"{batch.train:,} sequences = micro {batch.micro} x accumulation {batch.accumulation} x data {batch.data}"
    yield "tokens", f"{outline.tokens_a_step:,} a step" + (f", {outline.tokens:,} in all" if outline.tokens is not None else "")
    yield "memory", _memory(outline)
    if outline.step is not None:
        yield "step", f"about {show_seconds(outline.step.seconds)} at best, {outline.step.tflops_per_rank:.0f} TFLOP/s a GPU"
    if outline.training_s is not None:
        yield "to the end", f"about {show_seconds(outline.training_s)} at best, {_node_hours(outline)}"
    yield "queue", outline.queue or ""
    yield "walltime", show_walltime(outline.walltime_s) if outline.walltime_s else ""
    yield "one job", f"{show_number(outline.node_hours)} node-hours at most" if outline.node_hours is not None else ""


def _of_plan(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "account", plan.account or ""
    yield "scheduler", plan.site.scheduler
    yield "launcher", plan.site.launcher
    masks, cores = plan.step.cpu_masks, plan.cores_per_rank
    yield "cores", f"{cores or 'unknown'} a rank" + (", by a map" if masks else "")
    yield "GPUs", f"a rank sees {plan.step.gpus_visible}" if plan.gpus_per_node else ""
    yield "network", plan.site.network.interface or ""
    yield "ranks meet at", "the first node's address" if plan.site.network.address == "ip" else "the first node's name"
    yield "software", plan.software.told


def _device(site: Site) -> str:
    return site.node.gpu_name or ("GPUs" if site.node.gpus else "CPU ranks" if site.node.gpus == 0 else "ranks")


def _memory(outline: Outline) -> str:
    if outline.memory is None:
        return ""
    needed = in_gib(fullest(outline.memory).peak)
    return f"about {needed} GiB a rank" if outline.room is None else f"about {needed} of {in_gib(int(outline.room))} GiB a rank"


# Sentences ----------------------------------------------------------------------------------------------------------------------


def _sentences(left: Side, right: Side) -> Iterator[str]:
    ours, theirs = left.planned.outline, right.planned.outline
    for side in (left, right):
        wrong = [problem for problem in side.planned.problems if problem.kind == "anywhere"]
        if wrong:
            yield f"{side.name} cannot run it: {wrong[0].wrong}" + (f", and {len(wrong) - 1} more." if len(wrong) > 1 else ".")
    if ours is None or theirs is None:
        return
    yield _cut(ours, theirs, left.name, right.name)
    yield _batch(ours, theirs, left.name, right.name)
    if ours.training_s is not None and theirs.training_s is not None:
        yield _training(ours, theirs, left.name, right.name)
    if (fuller := _fuller(left, right)) is not None:
        yield fuller


def _cut(ours: Outline, theirs: Outline, left: str, right: str) -> str:
    a, b = ours.layout, theirs.layout
    model = (
        "The same model" if ours.parameters == theirs.parameters else f"{ours.parameters:,} and {theirs.parameters:,} parameters"
    )
    alike = (a.tensor, a.pipe) == (b.tensor, b.pipe)
    cut = f"cut alike (tensor {a.tensor} x pipe {a.pipe})" if alike else "cut in two ways"
    if (a.world_size, ours.nodes) == (b.world_size, theirs.nodes):
        return f"{model}, {cut}, on {count(a.world_size, 'rank')} of {count(ours.nodes, 'node')} both times."
    first = f"{count(a.world_size, 'rank')} on {count(ours.nodes, 'node')} of {left}"
    return f"{model}, {cut}: {first}, {b.world_size} on {theirs.nodes} of {right}."


def _batch(ours: Outline, theirs: Outline, left: str, right: str) -> str:
    a, b = ours.batch, theirs.batch
    if a.train == b.train:
        return f"A step sees {a.train:,} sequences both times."
    why = ", because the number of data-parallel ranks differs" if (a.micro, a.accumulation) == (b.micro, b.accumulation) else ""
    return (
        f"A step sees {a.train:,} sequences on {left} and {b.train:,} on {right}{why}: learning rate and steps may need a change."
    )


def _training(ours: Outline, theirs: Outline, left: str, right: str) -> str:
    assert ours.training_s is not None and theirs.training_s is not None
    a, b = show_seconds(ours.training_s), show_seconds(theirs.training_s)
    if ours.training_node_hours == theirs.training_node_hours:
        return f"By estimate all steps take {a} at best both times, {_node_hours(ours)}."
    took = f"{a} at best both times" if a == b else f"at best {a} on {left} and {b} on {right}"
    return f"By estimate all steps take {took}: {_node_hours(ours)} and {_node_hours(theirs)}."


def _node_hours(outline: Outline) -> str:
    return f"{show_number(outline.training_node_hours or 0)} node-hours"


def _fuller(left: Side, right: Side) -> str | None:
    """The side that has little memory to spare, if one has."""
    filled = {}
    for side in (left, right):
        outline = side.planned.outline
        if outline is None or outline.memory is None or outline.room is None:
            return None
        filled[side.name] = fullest(outline.memory).peak / outline.room
    fuller, other = sorted(filled, key=lambda name: -filled[name])[:2] if len(filled) == 2 else ("", "")
    if not fuller or filled[fuller] < 0.8 or filled[fuller] - filled[other] < 0.05:
        return None
    return f"{fuller} fills {filled[fuller]:.0%} of a GPU's memory, {other} {filled[other]:.0%}."


# What is written ------------------------------------------------------------------------------------------------------------------


def _keys(side: Side) -> dict[str, Value]:
    """Every key; paths in the run directory alike for both."""
    plan, loaded = side.planned.plan, side.inputs.loaded
    config = loaded.config if plan is None else plan.run.config
    own = side.inputs.request.run_dir
    flat = _flat(config.keys())
    return {key: Value(text=str(value).replace(own, "RUN"), place=place_of(loaded.places, key)) for key, value in flat.items()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = value.model_dump() if isinstance(value, BaseModel) else value
        flat |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, Mapping) and inner else {f"{prefix}{key}": inner}
    return flat


def _facts(side: Side) -> dict[str, Value]:
    """Every single value of the site's profile."""
    site, places = side.inputs.site, side.inputs.places
    found = ((path, value) for path, value in leaves(site) if path[0] not in ABOUT_PROFILES)
    named = ((".".join(map(str, path)), shown(path, value)) for path, value in found)
    return {fact: Value(text=text, place=place_of(places, fact)) for fact, text in named}


def _modules(side: Side) -> dict[str, Value]:
    """By the name before the version."""
    plan = side.planned.plan
    return {} if plan is None else {name.partition("/")[0]: Value(text=name) for name in plan.software.modules}


def _variables(side: Side) -> dict[str, Value]:
    found = exported(side.script or "")
    return {name: Value(text=value.replace(side.inputs.request.run_dir, "RUN")) for name, value in found.items()}


def _directives(side: Side) -> dict[str, Value]:
    from neox_hpc.schedulers import SCHEDULERS, asked

    plan, own = side.planned.plan, side.inputs.request.run_dir
    if plan is None:
        return {}
    texts = (text.replace(own, "RUN") for text in asked(SCHEDULERS[plan.site.scheduler], plan))
    return {text.replace("=", " ").partition(" ")[0] if text.startswith("--") else text: Value(text=text) for text in texts}


def _called(side: Side) -> str:
    return side.inputs.site.name


def _scheduler(side: Side) -> str:
    return side.inputs.site.scheduler
