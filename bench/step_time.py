"""docs/step-time.md: the estimate of a step beside trainings whose speed is published, misses shown.

    python -m bench.step_time > docs/step-time.md

Changes when the page does; the trainings stand in bench/published.yml.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from neox_hpc.memory import HEADROOM, estimate_memory, fullest
from neox_hpc.site import Site
from neox_hpc.site_facts import source_of
from neox_hpc.site_files import load_site
from neox_hpc.step_time import (
    COPY_SHARE,
    DTYPES,
    LINK_SHARE,
    MATMUL_SHARE,
    NETWORK_SHARE,
    Speeds,
    StepTime,
    estimate_step,
    speeds_of,
)
from neox_hpc.vocabulary import BatchSizes, Layout, RunConfig

PUBLISHED = Path(__file__).with_name("published.yml")
COMMAND = "python -m bench.step_time > docs/step-time.md"
VOCABULARY = 51200
"""Of every table, padded (arXiv:2104.04473, section 5.1); it is nowhere a hundredth of a step."""
MICROS = (1, 2, 4, 8)
OWN = ("num_layers", "hidden_size", "num_attention_heads")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A published training and its estimate."""

    name: str
    layout: Layout
    batch: BatchSizes
    chosen: bool
    """The micro-batch is ours."""
    step: StepTime
    published: float
    """TFLOP/s of a device."""

    @property
    def miss(self) -> float:
        """How much too fast the estimate is, of what is published."""
        return self.step.tflops_per_rank / self.published - 1


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of one source."""

    told: Mapping[str, Any]
    site: Site
    speeds: Speeds
    rows: tuple[Compared, ...]


@cache
def tables(which: str) -> tuple[Table, ...]:
    """``tables``: those of the median; ``beside``: further ones."""
    return tuple(map(_table, yaml.safe_load(PUBLISHED.read_text())[which]))


def median_miss(rows: Iterable[Compared]) -> float:
    """Half of the rows are missed by less."""
    return median(abs(row.miss) for row in rows)


def paper_miss(table: Table) -> str:
    """``25% over ORNL on Frontier (3 rows)``"""
    count = len(table.rows)
    return f"{median_miss(table.rows):.0%} over {table.told['name']} ({count} row{'s' if count > 1 else ''})"


def _table(told: Mapping[str, Any]) -> Table:
    site = load_site(told["site"], told["set"], home=PUBLISHED.parent / "nobody")
    configs = [_config(told, row) for row in told["rows"]]
    speeds = speeds_of(site, configs[0], max(row["ranks"] for row in told["rows"]))
    assert speeds is not None, f"{site.name} lacks a speed"
    rows = tuple(_compare(row, config, site, speeds) for row, config in zip(told["rows"], configs, strict=True))
    return Table(told=told, site=site, speeds=speeds, rows=rows)


def _config(told: Mapping[str, Any], row: Mapping[str, Any]) -> RunConfig:
    cut = {"model_parallel_size": row["tensor"], "pipe_parallel_size": row["pipe"], "make_vocab_size_divisible_by": 1}
    fixed = {"train_micro_batch_size_per_gpu": 1, "train_iters": 1, "tokenizer_type": "GPT2BPETokenizer"}
    return RunConfig.from_keys({**told["keys"], **{key: row[key] for key in OWN}, **cut, **fixed})


def _compare(row: Mapping[str, Any], config: RunConfig, site: Site, speeds: Speeds) -> Compared:
    layout = config.layout(row["ranks"])
    micros = (row["micro"],) if "micro" in row else MICROS
    batches = [_batch(row["train"], micro, layout.data) for micro in micros if row["train"] % (micro * layout.data) == 0]
    fit = [batch for batch in batches if len(batches) == 1 or _fits(config, layout, batch, site)]
    timed = [(estimate_step(config, layout, batch, VOCABULARY, speeds), batch) for batch in fit]
    step, batch = min(timed, key=lambda found: found[0].seconds)
    chosen = "micro" not in row
    return Compared(name=row["name"], layout=layout, batch=batch, chosen=chosen, step=step, published=row["published"])


def _batch(train: int, micro: int, data: int) -> BatchSizes:
    return BatchSizes(train=train, micro=micro, accumulation=train // micro // data, data=data)


def _fits(config: RunConfig, layout: Layout, batch: BatchSizes, site: Site) -> bool:
    memory = estimate_memory(config, layout, batch, VOCABULARY)
    assert memory is not None and site.node.gpu_memory_gib is not None
    return fullest(memory).peak <= site.node.gpu_memory_gib * 2**30 * HEADROOM


def page() -> str:
    """The whole page."""
    compared, beside = tables("tables"), tables("beside")
    rows = [row for table in compared for row in table.rows]
    fast = sum(row.miss > 0 for row in rows)
    return "\n".join(
        [
            _HEAD.format(
                command=COMMAND,
                median=f"{median_miss(rows):.0%}",
                count=len(rows),
                worst=f"{max(abs(row.miss) for row in rows):.0%}",
                papers="; ".join(map(paper_miss, compared)),
                fast=f"all {fast}" if fast == len(rows) else f"{fast}",
            ),
            *map(_section, compared),
            _BESIDE,
            *map(_section, beside),
            _constants(compared),
        ]
    )


_HEAD = """\
# How long a step takes: the estimate beside published trainings

Written by `{command}` from `bench/published.yml` and the site files; a test keeps it true.

`neox-hpc plan` estimates the time of a step, and `--auto` compares cuts by it. The estimate counts operations and bytes, and
divides them by speeds that stand in the site's file, each with its source: data sheets and published measurements of matrix
products, copies and sums over devices. None is fitted to a training, so to none of the rows below.

**Median error: {median} over {count} rows, the largest {worst}.** The estimate is too fast in {fast} of them: what it does not
count (starting kernels, products of odd sizes, slow nodes, reading data) is always lost. TFLOP/s are of one device (a GCD of an
MI250X), with recomputation counted, as the sources count them.

Rows are not spread evenly over the papers, so the median of each says more:
{papers}.

What follows from that: compare cuts by it, and take a tenth to a third off a promise.
"""

_BESIDE = """\
# Beside the median

Rows of a further table, not asked of the estimate. Under ZeRO-3 it is far too fast, so `--auto` proposes ZeRO-3 only where nothing
else fits.
"""

_COLUMNS = (
    *("network", "devices", "tensor x pipe x data", "micro", "published", "of peak", "estimate", "error"),
    "where the time goes",
)


def _section(table: Table) -> str:
    told = table.told
    peak = table.speeds.peak / 1e12
    lines = [f"## {told['name']}", "", f"{told['source']} on {told['machine']}. {told['assumed'].strip()}", ""]
    lines += _markdown(_COLUMNS, ([*_cut(row), *_speed(row, peak)] for row in table.rows))
    return "\n".join([*lines, "", f"Median error: {median_miss(table.rows):.0%}.{_instead(told)}", ""])


def _instead(told: Mapping[str, Any]) -> str:
    """What another source of a speed would change."""
    if "instead" not in told:
        return ""
    other = _table({**told, "set": [*told["set"], *told["instead"]["set"]]})
    return f" With {told['instead']['words']}, the errors would be {', '.join(f'{row.miss:+.0%}' for row in other.rows)}."


def _cut(row: Compared) -> list[str]:
    layout = row.layout
    micro = f"{row.batch.micro}{' (ours)' if row.chosen else ''}"
    return [row.name, f"{layout.world_size:,}", f"{layout.tensor} x {layout.pipe} x {layout.data}", micro]


def _speed(row: Compared, peak: float) -> list[str]:
    shares = sorted(((seconds / row.step.seconds, name) for name, seconds in row.step.parts.items()), reverse=True)
    parts = ", ".join(f"{name} {share:.0%}" for share, name in shares if share >= 0.01)
    numbers = [f"{row.published:g}", f"{row.published / peak:.0%}", f"{row.step.tflops_per_rank:.0f}", f"{row.miss:+.0%}"]
    return [*numbers, parts]


def _constants(compared: Sequence[Table]) -> str:
    """Every speed that the rows above rest on."""
    lines = ["# The speeds", "", "Of a device or a node, as the estimate takes them: measured, else a share of the data sheet."]
    lines += [f"The shares: {MATMUL_SHARE:g} of the peak, {COPY_SHARE:g} of the memory, {LINK_SHARE:g} of links in a node,"]
    lines += [f"{NETWORK_SHARE:g} of the network; their sources stand in `neox_hpc/step_time.py`.", ""]
    rows = [[table.told["name"], *row] for table in compared for row in _speeds(table)]
    return "\n".join([*lines, *_markdown(("table", "speed", "value", "from", "source"), rows), ""])


def _speeds(table: Table) -> list[list[str]]:
    site, dtype = table.site, DTYPES["fp16"]
    choices = {
        "products, TFLOP/s": (table.speeds.products / 1e12, f"speed.matmul_tflops.{dtype}", f"speed.peak_tflops.{dtype}"),
        "memory, GB/s": (table.speeds.memory / 1e9, "speed.copy_gb_s", "speed.memory_gb_s"),
        "sums in a node, GB/s": (table.speeds.in_node / 1e9, "speed.gpu_allreduce_gb_s", "speed.gpu_link_gb_s"),
        "sums between nodes, GB/s": (table.speeds.between / 1e9, "network.allreduce_gb_s", "speed.node_link_gb_s"),
    }
    return [_speed_row(site, table.told["set"], what, *choice) for what, choice in choices.items()]


def _speed_row(site: Site, sets: Sequence[str], what: str, value: float, measured: str, listed: str) -> list[str]:
    fact = measured if _known(site, measured) else listed
    given = [text for text in sets if text.partition("=")[0] == fact]
    source = f"the table's machine: `{given[0]}`" if given else source_of(site, fact)
    return [what, f"{value:,.4g}", f"`{fact}` of `{site.name}`", " ".join(source.split())]


def _known(site: Site, fact: str) -> bool:
    value: Any = site.model_dump()
    for name in fact.split("."):
        value = (value or {}).get(name)
    return value is not None


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns, ("---",) * len(columns), *rows)]


if __name__ == "__main__":
    print(page(), end="")
