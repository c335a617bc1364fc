"""Layouts proposed for a network over some nodes of a machine: every cut is timed, the fastest that fits is kept.  Reads nothing.

Changes when something else is proposed, or chosen another way.  Proposed are tensor parallelism (inside a node), pipeline stages,
ZeRO's stage, micro-batch and recomputation; the sequences of a step stay what they were, so that the training does.  Times come
from step_time.py, bytes from memory.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from neox_hpc.checks import check_model, missing
from neox_hpc.decisions import published_vocabulary
from neox_hpc.errors import Problem, UserError
from neox_hpc.memory import HEADROOM, estimate_memory, fullest, in_gib
from neox_hpc.outline import device_of, memory_of_rank
from neox_hpc.probe import Facts
from neox_hpc.request import Request
from neox_hpc.settings import Loaded
from neox_hpc.site import Site
from neox_hpc.site_facts import way_to_find
from neox_hpc.step_time import Speeds, StepTime, estimate_step, missing_speeds, speeds_of
from neox_hpc.vocabulary import BatchSizes, ConfigError, Layout, RunConfig

Recompute = Literal["nothing", "selective", "full"]
MOST_MICRO = 64
"""Sequences of a micro-batch that are tried at most."""
TIE = 0.02
"""Of a step's time: what two cuts differ less by is no reason, because the estimate misses by more (docs/step-time.md)."""
_NAMES = {"tensor": "tensor", "pipe": "pipe", "zero": "ZeRO", "recompute": "recompute", "micro": "micro-batch"}
_ONE = BatchSizes(train=1, micro=1, accumulation=1, data=1)
KEPT = 5
"""Cuts that are shown."""


class Cut(NamedTuple):
    """What is proposed."""

    tensor: int
    pipe: int
    zero: int
    recompute: Recompute
    micro: int


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A cut, and what it takes."""

    cut: Cut
    config: RunConfig
    layout: Layout
    batch: BatchSizes
    step: StepTime

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.step.seconds


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A cut that fits."""

    timed: Timed
    peak: int
    """Bytes of the fullest rank."""
    keys: dict[str, Any]
    """What to write, whole sections where a section changes."""

    @property
    def cut(self) -> Cut:
        """What is proposed."""
        return self.timed.cut


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """The best cuts, one for each pair of tensor and pipe: first what is proposed, then the fastest others."""

    best: tuple[Proposal, ...]
    tried: int
    room: float
    """Bytes of a rank."""
    reasons: tuple[tuple[str, str], ...]
    """What of the first -> why not more or less of it."""


def propose(loaded: Loaded, site: Site, nodes: int, vocab: int) -> Proposals:
    """The best cuts of a network over ``nodes`` nodes.

    Raises:
        UserError: the site's speeds or memory are not known, the sequences of a step are not told, or nothing fits.
    """
    search = _Search(loaded, site, nodes, vocab)
    timed = search.all_timed()
    best = search.fitting(timed)
    if not best:
        raise UserError(search.nothing_fits(timed))
    return Proposals(best=tuple(best), tried=len(timed), room=search.room, reasons=tuple(search.reasons(best[0].timed)))


def with_proposal(loaded: Loaded, proposal: Proposal) -> Loaded:
    """The configuration as it is proposed."""
    places = {key: place for key, place in loaded.places.items() if key.partition(".")[0] not in proposal.keys}
    places |= dict.fromkeys(proposal.keys, "--auto")
    notes = (*loaded.notes, f"auto: {describe(proposal)}")
    return Loaded(config=loaded.config.with_keys(**proposal.keys), places=places, files=loaded.files, notes=notes)


def describe(proposal: Proposal) -> str:
    """The cut in a line."""
    cut, timed = proposal.cut, proposal.timed
    sizes = f"tensor {cut.tensor} x pipe {cut.pipe} x data {timed.layout.data}, ZeRO {cut.zero}, micro-batch {cut.micro}"
    return f"{sizes} x accumulation {timed.batch.accumulation}, recompute {cut.recompute}; about {timed.seconds:.3g} s a step"


def choose_cuts(loaded: Loaded, site: Site, request: Request, facts: Facts) -> Proposals:
    """The best cuts over the nodes that are asked for: --nodes, num_nodes, all hosts of a hostfile, or the one there is.

    Raises:
        UserError: the nodes are not told, or as :func:`propose`.
    """
    hosts = len(facts.hostfile.hosts) if facts.hostfile is not None else 0
    nodes = request.nodes or max(loaded.config.launch.num_nodes, 0) or hosts or (1 if site.max_nodes == 1 else 0)
    if nodes < 1:
        raise UserError(Problem("--auto", "over how many nodes is not told", "write --nodes N"))
    if site.node.ranks is None:
        raise UserError(missing(site, "node.gpus", "the GPUs of a node", "4"))
    return propose(loaded, site, nodes, facts.vocab_size or published_vocabulary(loaded.config))


class _Search:
    """What all cuts have in common."""

    def __init__(self, loaded: Loaded, site: Site, nodes: int, vocab: int) -> None:
        config, ranks = loaded.config, site.node.ranks
        assert ranks is not None, "told before: the GPUs of a node"
        if not site.node.gpus:
            raise UserError(
                Problem("--auto", f"times are estimated for GPUs, and a node of {site.name} has none", "choose another site")
            )
        if estimate_memory(config, Layout(world_size=1), _ONE, vocab) is None:
            wrong = "the network has blocks whose time and memory are not estimated yet"
            raise UserError(Problem(loaded.where("attention_config"), wrong, "write the cut yourself, without --auto"))
        self.loaded, self.config, self.site, self.vocab, self.ranks = loaded, config, site, vocab, ranks
        self.world = nodes * ranks
        self.speeds, self.room = _speeds(site, config, self.world), _room(site, ranks)
        self.train = _sequences(loaded, self.world)
        self.tensors = [tensor for tensor in _divisors(ranks) if self._allowed(self._variant(Cut(tensor, 1, 1, "nothing", 1)))]
        self.zeros = [stage for stage in self._zero_stages() if self._zero_is_valid(stage)]

    def all_timed(self) -> list[Timed]:
        """Every cut, fastest first; ZeRO 3 comes last, whose published trainings are far slower than the estimate."""
        cuts = (cut for tensor in self.tensors for pipe in self._pipes(tensor) for cut in self._cuts(tensor, pipe))
        return sorted(filter(None, map(self.time, cuts)), key=lambda timed: (timed.cut.zero == 3, timed.seconds))

    def time(self, cut: Cut, config: RunConfig | None = None) -> Timed | None:
        """A cut's time; ``None`` where it does not multiply out."""
        if self.world % (cut.tensor * cut.pipe):
            return None
        layout = Layout(world_size=self.world, tensor=cut.tensor, pipe=cut.pipe)
        if self.train % (cut.micro * layout.data):
            return None
        batch = BatchSizes(train=self.train, micro=cut.micro, accumulation=self.train // cut.micro // layout.data, data=layout.data)
        variant = config or self._variant(cut)
        try:
            step = estimate_step(variant, layout, batch, self.vocab, self.speeds)
        except ValueError:  # the layers cannot be dealt to so many stages
            return None
        return Timed(cut=cut, config=variant, layout=layout, batch=batch, step=step)

    def fitting(self, timed: Iterable[Timed]) -> list[Proposal]:
        """The cuts to show: of the fastest ones, which the estimate cannot tell apart, the emptiest; then the fastest of other
        pairs of tensor and pipe."""
        kept: list[tuple[Timed, int]] = []
        pairs: set[tuple[int, int]] = set()
        for one in timed:
            ties = not kept or _ties(one, kept[0][0])
            if not ties and len(pairs) == KEPT:
                break
            pair = one.cut[:2]
            if (ties or pair not in pairs) and (peak := self.peak(one)) <= self.room * HEADROOM:
                kept.append((one, peak))
                pairs.add(pair)
        ordered = sorted(kept, key=lambda found: (not _ties(found[0], kept[0][0]), found[1]))
        return self._accepted(ordered, kept)

    def _accepted(self, ordered: list[tuple[Timed, int]], by_time: list[tuple[Timed, int]]) -> list[Proposal]:
        """The first that a plan takes, then the fastest of every other pair that it takes."""
        first = next(filter(None, (self._proposal(*found) for found in ordered)), None)
        best = {} if first is None else {first.cut[:2]: first}
        for timed, peak in by_time if first is not None else ():
            if timed.cut[:2] not in best and (proposal := self._proposal(timed, peak)) is not None:
                best[timed.cut[:2]] = proposal
        return list(best.values())[:KEPT]

    def _proposal(self, timed: Timed, peak: int) -> Proposal | None:
        keys = self._keys(timed)
        return Proposal(timed=timed, peak=peak, keys=keys) if self._valid(keys) else None

    def peak(self, timed: Timed) -> int:
        """Bytes of the fullest rank."""
        memory = estimate_memory(timed.config, timed.layout, timed.batch, self.vocab, device_of(self.site))
        assert memory is not None, "told before: the network has blocks without a formula"
        return fullest(memory).peak

    def nothing_fits(self, timed: list[Timed]) -> Problem:
        """Why there is no proposal."""
        if not timed:
            wrong = f"no cut of {self.world} ranks multiplies out with {self.train} sequences a step"
            return Problem("--auto", wrong, f"make train_batch_size a multiple of {self.ranks}, or take other --nodes")
        least = min(map(self.peak, timed))
        wrong = f"of {len(timed)} cuts none fits: the least is {in_gib(least)} GiB a rank"
        wrong += f", and {HEADROOM:.0%} of {in_gib(int(self.room))} GiB may be filled"
        return Problem("--auto", wrong, "take more --nodes, or a site whose GPUs have more memory")

    def reasons(self, best: Timed) -> Iterator[tuple[str, str]]:
        """What the neighbours of a cut would take."""
        for field in Cut._fields:
            values = [value for value in self._neighbours(best.cut, field) if value != getattr(best.cut, field)]
            cuts = [best.cut._replace(**{field: value}) for value in values]
            told = filter(
                None, (self._told(best, field, cut if cut.pipe == 1 else cut._replace(zero=min(cut.zero, 1))) for cut in cuts)
            )
            if reason := ", ".join(told):
                yield f"{_NAMES[field]} {getattr(best.cut, field)}", reason

    def _told(self, best: Timed, field: str, cut: Cut) -> str:
        other = self.time(cut)
        if other is None:
            return ""
        what = f"{_NAMES[field]} {getattr(cut, field)}"
        if cut.zero != best.cut.zero and field != "zero":
            what += f" (with ZeRO {cut.zero})"
        peak = self.peak(other)
        if peak > self.room * HEADROOM:
            return f"{what} needs {in_gib(peak)} of {in_gib(int(self.room))} GiB"
        slower = other.seconds / best.seconds - 1
        filled = f" and fills {peak / self.room:.0%}" if slower < TIE else ""
        return f"{what} is {abs(slower):.1%} {'slower' if slower >= 0 else 'faster'}{filled}"

    def _neighbours(self, cut: Cut, field: str) -> list[Any]:
        if field == "recompute":
            return list(get_args(Recompute))
        if field == "zero":
            return self._stages_for(cut.pipe)
        values = {
            "tensor": self.tensors,
            "pipe": self._pipes(cut.tensor),
            "micro": self._micros(self.train // (self.world // cut.tensor // cut.pipe)),
        }[field]
        place = values.index(getattr(cut, field))
        return values[max(0, place - 1) : place + 2]

    def _pipes(self, tensor: int) -> list[int]:
        """Stages over which every data-parallel rank has the same number of sequences."""
        counts = [pipe for pipe in _divisors(self.world // tensor) if pipe <= self.config.architecture.num_layers]
        return [pipe for pipe in counts if self.train % (self.world // tensor // pipe) == 0]

    def _cuts(self, tensor: int, pipe: int) -> Iterator[Cut]:
        for zero in self._stages_for(pipe):
            for recompute in get_args(Recompute):
                for micro in self._micros(self.train // (self.world // tensor // pipe)):
                    yield Cut(tensor, pipe, zero, recompute, micro)

    def _micros(self, sequences: int) -> list[int]:
        return [micro for micro in _divisors(sequences) if micro <= MOST_MICRO]

    def _stages_for(self, pipe: int) -> list[int]:
        """ZeRO 2 and 3 free gradients that stages add up (check_model says so to who writes them)."""
        return [stage for stage in self.zeros if pipe == 1 or stage < 2]

    def _zero_stages(self) -> list[int]:
        zero = self.config.deepspeed.zero_optimization
        if zero.offloads_optimizer or zero.offloads_parameters:
            return [zero.stage]
        return [0, 1, 2, 3] if self.config.precision == "fp32" else [1, 2, 3]  # 0 runs as 1 in 16 bits

    def _zero_is_valid(self, stage: int) -> bool:
        """Offload and some optimizers do not go with every stage."""
        section = self.config.deepspeed.zero_optimization.model_dump(exclude_unset=True)
        try:
            self.config.with_keys(zero_optimization=section | {"stage": stage})
        except ConfigError:
            return False
        return True

    def _variant(self, cut: Cut) -> RunConfig:
        """The configuration with a cut, unchecked: thousands are made."""
        config, changed = self.config, _changed
        own = {"recompute_granularity": cut.recompute} if cut.recompute != "nothing" else {}
        return changed(
            config,
            parallelism=changed(config.parallelism, model_parallel_size=cut.tensor, pipe_parallel_size=cut.pipe),
            deepspeed=changed(config.deepspeed, zero_optimization=changed(config.deepspeed.zero_optimization, stage=cut.zero)),
            training=changed(config.training, checkpoint_activations=cut.recompute != "nothing"),
            own=changed(config.own, neox_hpc=changed(config.own.neox_hpc, **own)),
        )

    def _keys(self, timed: Timed) -> dict[str, Any]:
        """What to write for a cut."""
        cut, config = timed.cut, self.config
        keys: dict[str, Any] = {
            "model_parallel_size": cut.tensor,
            "pipe_parallel_size": cut.pipe,
            "train_micro_batch_size_per_gpu": cut.micro,
            "gradient_accumulation_steps": timed.batch.accumulation,
            "checkpoint_activations": cut.recompute != "nothing",
            "zero_optimization": config.deepspeed.zero_optimization.model_dump(exclude_unset=True) | {"stage": cut.zero},
        }
        own = config.own.neox_hpc
        if cut.recompute not in ("nothing", own.recompute_granularity):
            keys["neox_hpc"] = own.model_dump(exclude_unset=True) | {"recompute_granularity": cut.recompute}
        return keys

    def _valid(self, keys: dict[str, Any]) -> bool:
        try:
            return self._allowed(self.config.with_keys(**keys))
        except ConfigError:
            return False

    def _allowed(self, config: RunConfig) -> bool:
        """Whether a plan takes the cut of a configuration."""
        loaded = Loaded(config=config, places={}, files=())
        return not any(problem.kind == "anywhere" for problem in check_model(loaded, self.site, self.vocab))


def _ties(one: Timed, fastest: Timed) -> bool:
    """Whether the estimate cannot tell two cuts apart."""
    return one.seconds <= (1 + TIE) * fastest.seconds and (one.cut.zero == 3) == (fastest.cut.zero == 3)


def _changed(section: Any, **values: Any) -> Any:
    return section.model_copy(update=values)


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _speeds(site: Site, config: RunConfig, world: int) -> Speeds:
    speeds = speeds_of(site, config, world)
    if speeds is not None:
        return speeds
    lacking = missing_speeds(site, config, world)
    ways = filter(None, (way_to_find(site, fact) for fact in lacking))
    fix = "; ".join((*ways, f"write {' '.join(f'--site-set {fact}=NUMBER' for fact in lacking)}"))
    raise UserError(Problem(f"{site.file}  speed", f"not known for the site {site.name}: {', '.join(lacking)}", fix))


def _room(site: Site, ranks: int) -> float:
    room = memory_of_rank(site, ranks)
    if room is not None:
        return room
    fact = "node.gpu_memory_gib" if site.node.gpus else "node.memory_gib"
    raise UserError(
        Problem(f"{site.file}  {fact}", f"not known for the site {site.name}: what fits", f"write --site-set {fact}=NUMBER")
    )


def _sequences(loaded: Loaded, world: int) -> int:
    """Of a step: train_batch_size, else what the configuration's own cut makes of the ranks."""
    config = loaded.config
    if config.deepspeed.train_batch_size is not None:
        return config.deepspeed.train_batch_size
    try:
        return config.batch_sizes(config.layout(world)).train
    except ValueError:
        where = loaded.where("train_batch_size")
        wrong = (
            f"how many sequences a step has cannot be told: the configuration's own cut does not multiply out over {world} ranks"
        )
        raise UserError(Problem(where, wrong, "write train_batch_size")) from None
