"""docs/models.md: every shipped configuration, its parameters beside the published figure, and its source.  Pure.

Changes when the page does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from neox_hpc.activations import COUNTED_KINDS
from neox_hpc.decisions import published_vocabulary
from neox_hpc.memory import count_parameters
from neox_hpc.shipped import Header
from neox_hpc.vocabulary import Layout, RunConfig, layer_parameters

PAGE_COMMAND = "neox-hpc config list --markdown > docs/models.md"


@dataclass(frozen=True, kw_only=True)
class Published:
    """What others say of a model's parameters."""

    figure: str
    """``6,738,415,616`` or ``1.3B``."""
    without_embeddings: bool
    counted_with: tuple[tuple[str, Any], ...]
    """Keys and values of the network that they count, where ours is another one."""
    source: str

    def is_met_by(self, parameters: int) -> bool:
        """Equal, or rounded to as many digits."""
        number, unit = re.fullmatch(r"([\d,.]+)([MB]?)", self.figure).groups()  # type: ignore[union-attr]
        decimals = len(number.partition(".")[2])
        return f"{parameters / {'': 1, 'M': 1e6, 'B': 1e9}[unit]:.{decimals}f}" == number.replace(",", "")


def read_published(text: str) -> Published | None:
    """``FIGURE [without embeddings][, counted with KEY: VALUE, …] (SOURCE)``.

    Raises:
        ValueError: it is written otherwise.
    """
    if not text:
        return None
    found = re.fullmatch(r"([\d,.]+[MB]?)( without embeddings)?(?:, counted with (.*?))? \((.*)\)", text)
    if found is None:
        raise ValueError(f"{text!r}: write FIGURE [without embeddings][, counted with KEY: VALUE, …] (SOURCE)")
    pairs = [pair.partition(": ") for pair in (found[3] or "").split(", ") if pair]
    counted = tuple((key, {"true": True, "false": False}.get(value, value)) for key, _, value in pairs)
    return Published(figure=found[1], without_embeddings=bool(found[2]), counted_with=counted, source=found[4])


@dataclass(frozen=True, kw_only=True)
class Model:
    """A shipped configuration that is whole."""

    name: str
    header: Header
    config: RunConfig

    @property
    def vocabulary(self) -> int:
        """Tokens of its tokenizer."""
        return self.header.vocabulary or published_vocabulary(self.config)

    @property
    def published(self) -> Published | None:
        """What others say of its parameters."""
        return read_published(self.header.published)

    def parameters(self, *, without_embeddings: bool = False, **keys: Any) -> int | None:
        """Of the whole network; ``None`` where it has blocks that are not counted yet.

        Args:
            without_embeddings: neither the matrix of the embedding nor that of the head, as Pythia's authors count.
            keys: changed before.
        """
        config = self.config.with_keys(**keys) if keys else self.config
        if set(config.architecture.attention_kinds) - COUNTED_KINDS or config.experts.moe_num_experts > 1:
            return None
        whole = count_parameters(config, Layout(world_size=1), self.vocabulary)
        if not without_embeddings:
            return whole
        head = layer_parameters(config, config.padded_vocab_size(self.vocabulary))[-1]
        return whole - head * (2 if config.architecture.no_weight_tying else 1)

    def parameters_as_published(self) -> int | None:
        """The count that the published figure is to be compared with."""
        said = self.published
        return None if said is None else self.parameters(without_embeddings=said.without_embeddings, **dict(said.counted_with))


_HEAD = f"""\
# The configurations

Written by `{PAGE_COMMAND}` from `configs/`; a test keeps it true. Each works by its name from
any directory, with or without `configs/` before it: `neox-hpc plan --site local 125M.yml local_setup.yml`. A file of the same name
in the current directory goes before. They have the names and the values of GPT-NeoX's files at ea7aefd (2026-05-20), without what
is a default; where a value is another one, the file and the end of this page say why. What a file is to be given with stands in it.

*Parameters* are counted with the padded vocabulary. *Published* is what the authors say, with our count of the same where they
count another head or other positions than the file has.
"""


def page(models: Sequence[Model], parts: Sequence[tuple[str, Header]]) -> str:
    """The whole page; models and parts (files that need a model beside them) in the order given."""
    families = dict.fromkeys(model.name.rpartition("/")[0] for model in models)
    tables = "\n".join(_family(name, [model for model in models if model.name.rpartition("/")[0] == name]) for name in families)
    rest = _table(("configuration", "what it is"), [(f"`{name}`", header.title) for name, header in parts])
    return f"{_HEAD}\n{tables}\n## Parts\n\nFiles that are given beside a model's.\n\n{rest}\n\n{_mended(models)}"


_COLUMNS = ("configuration", "what it is", "parameters", "without embeddings", "published", "source")


def _family(folder: str, models: Iterable[Model]) -> str:
    return f"## {folder + '/' if folder else 'Without a folder'}\n\n{_table(_COLUMNS, map(_row, models))}\n"


def _row(model: Model) -> tuple[str, ...]:
    missing = f" *Not built yet: {model.header.not_built}.*" if model.header.not_built else ""
    return (
        f"`{model.name}`",
        f"{model.header.title}{missing}",
        _number(model.parameters()),
        _number(model.parameters(without_embeddings=True)),
        _compared(model),
        _source(model.header),
    )


def _compared(model: Model) -> str:
    said, count = model.published, model.parameters_as_published()
    if said is None:
        return ""
    kind = " without embeddings" if said.without_embeddings else ""
    found = f"{said.figure}{kind}"
    if said.counted_with:
        keys = ", ".join(f"`{key}: {str(value).lower()}`" for key, value in said.counted_with)
        found += f"; ours with {keys}: {_number(count)}"
    return f"{found} ({said.source})" + (f". Differs: {model.header.differs}" if model.header.differs else "")


def _source(header: Header) -> str:
    """Without GPT-NeoX's file, which the head of the page names for all; where there is nothing else, the file."""
    return re.split("(?:^|; )values as in GPT-NeoX ", header.source)[0] or header.source.removeprefix("values as in ")


def _number(count: int | None) -> str:
    return "not counted yet" if count is None else f"{count:,}"


def _mended(models: Iterable[Model]) -> str:
    lines = [f"- `{model.name}`: {reason}" for model in models for reason in model.header.mended]
    return "\n".join(["## Other values than GPT-NeoX's", "", *lines, ""])


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ("---",) * len(columns), *rows))
