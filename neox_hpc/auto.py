"""Layouts proposed for a network over some nodes of a machine: every cut is timed, the fastest that fits is kept.  Reads nothing.

Changes when something else is proposed, or chosen another way.  Proposed are tensor parallelism (inside a node), pipeline stages,
ZeRO's stage, micro-batch and recomputation; the sequences of a step stay what they were, so that the training does.  Times come
from step_time.py, bytes from memory.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, NamedTuple, get_args

from neox_hpc.checks import check_model, missing
from neox_hpc.decisions import published_vocabulary
from neox_hpc.errors import Problem, UserError
from neox_hpc.memory import HEADROOM, estimate_first_stage, estimate_memory, fullest, in_gib, stages
from neox_hpc.outline import device_of, memory_of_rank, show_seconds
from neox_hpc.probe import Facts
from neox_hpc.request import Request
from neox_hpc.settings import Loaded
from neox_hpc.site import Site
from neox_hpc.site_facts import way_to_find
from neox_hpc.step_time import Speeds, StepTime, estimate_step, missing_speeds, speeds_of
from neox_hpc.vocabulary import BatchSizes, ConfigError, Layout, RunConfig

Recompute = Literal["nothing", "selective", "full"]
MICROS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)
"""Sequences of a micro-batch that are tried."""
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
class Made:
    """A cut, multiplied out."""

    cut: Cut
    config: RunConfig
    layout: Layout
    batch: BatchSizes


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A cut, and what it takes."""

    made: Made
    step: StepTime

    @property
    def cut(self) -> Cut:
        """What is proposed."""
        return self.made.cut

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
    made = search.all_made()
    best = search.fitting(search.timed(made))
    if not best:
        raise UserError(search.nothing_fits(made))
    return Proposals(best=tuple(best), tried=len(made), room=search.room, reasons=tuple(search.reasons(best[0].timed)))


def with_proposal(loaded: Loaded, proposal: Proposal) -> Loaded:
    """The configuration as it is proposed."""
    places = {key: place for key, place in loaded.places.items() if key.partition(".")[0] not in proposal.keys}
    places |= dict.fromkeys(proposal.keys, "--auto")
    notes = (*loaded.notes, f"auto: {describe(proposal)}")
    return Loaded(config=loaded.config.with_keys(**proposal.keys), places=places, files=loaded.files, notes=notes)


def describe(proposal: Proposal) -> str:
    """The cut in a line."""
    cut, timed = proposal.cut, proposal.timed
    sizes = f"tensor {cut.tensor} x pipe {cut.pipe} x data {timed.made.layout.data}, ZeRO {cut.zero}, micro-batch {cut.micro}"
    step = f"about {show_seconds(timed.seconds)} a step at best"
    return f"{sizes} x accumulation {timed.made.batch.accumulation}, recompute {cut.recompute}; {step}"


def choose_cuts(loaded: Loaded, site: Site, request: Request, facts: Facts) -> Proposals:
    """The best cuts over the nodes that are asked for: --nodes, num_nodes, all hosts of a hostfile, or the one there is.

    Raises:
        UserError: the nodes are not told, or as :func:`propose`.
    """
    if request.nodes is not None and request.nodes < 1:
        raise UserError(Problem("--nodes", f"{request.nodes} nodes", "ask for at least 1"))
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
        written = config.deepspeed.zero_optimization.model_dump(exclude_unset=True)
        self.zeros = [stage for stage in self._zero_stages() if self._is_valid(zero_optimization=written | {"stage": stage})]
        self.recomputes = [kind for kind in get_args(Recompute) if self._is_valid(**self._recompute_keys(kind))]
        self._accepted: dict[tuple[int, int, int, Recompute], bool] = {}

    def all_made(self) -> list[Made]:
        """Every cut that multiplies out and whose layers can be dealt to its stages."""
        pairs = ((tensor, pipe) for tensor in self.tensors for pipe in self._pipes(tensor))
        return [made for pair in pairs if self._can_be_dealt(*pair) for made in self._made_of(*pair)]

    def timed(self, made: Iterable[Made]) -> list[Timed]:
        """The cuts that may fit, fastest first; ZeRO 3 comes last, whose published trainings are far slower than the estimate."""
        timed = (self.time(one) for one in made if self._first_stage(one) <= self.room * HEADROOM)
        return sorted(timed, key=lambda found: (found.cut.zero == 3, found.seconds))

    def make(self, cut: Cut, variant: RunConfig | None = None) -> Made | None:
        """A cut of the ranks and the sequences; ``None`` where it does not multiply out."""
        if self.world % (cut.tensor * cut.pipe):
            return None
        layout = Layout(world_size=self.world, tensor=cut.tensor, pipe=cut.pipe)
        if self.train % (cut.micro * layout.data):
            return None
        batch = BatchSizes(train=self.train, micro=cut.micro, accumulation=self.train // cut.micro // layout.data, data=layout.data)
        return Made(cut=cut, config=variant or self._variant(cut), layout=layout, batch=batch)

    def time(self, made: Made) -> Timed:
        """A cut's time."""
        return Timed(made=made, step=estimate_step(made.config, made.layout, made.batch, self.vocab, self.speeds))

    def fitting(self, timed: Iterable[Timed]) -> list[Proposal]:
        """The cuts to show, of those that a plan takes: of the fastest ones, which the estimate cannot tell apart, the emptiest;
        then the fastest of other pairs of tensor and pipe."""
        kept: list[Proposal] = []
        for one in timed:
            ties = not kept or _ties(one, kept[0].timed)
            pairs = {proposal.cut[:2] for proposal in kept}
            if not ties and len(pairs) == KEPT:
                break
            if (ties or one.cut[:2] not in pairs) and (peak := self.peak(one.made)) <= self.room * HEADROOM and self._accepts(one):
                kept.append(Proposal(timed=one, peak=peak, keys=self._keys(one.made)))
        if not kept:
            return []
        first = min((proposal for proposal in kept if _ties(proposal.timed, kept[0].timed)), key=lambda proposal: proposal.peak)
        best = {first.cut[:2]: first}
        for proposal in kept:
            best.setdefault(proposal.cut[:2], proposal)
        return list(best.values())[:KEPT]

    def peak(self, made: Made) -> int:
        """Bytes of the fullest rank."""
        memory = estimate_memory(made.config, made.layout, made.batch, self.vocab, device_of(self.site))
        assert memory is not None, "told before: the network has blocks without a formula"
        return fullest(memory).peak

    def nothing_fits(self, made: list[Made]) -> Problem:
        """Why there is no proposal."""
        if not made:
            wrong = f"no cut of {self.world} ranks multiplies out with {self.train} sequences a step"
            return Problem("--auto", wrong, f"make train_batch_size a multiple of {self.ranks}, or take other --nodes")
        least = min(map(self._first_stage, made))
        wrong = f"of {len(made)} cuts none fits: the least is {in_gib(least)} GiB a rank"
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
        made = self.make(cut) if self._can_be_dealt(cut.tensor, cut.pipe) and cut.recompute in self.recomputes else None
        if made is None:
            return ""
        what = f"{_NAMES[field]} {getattr(cut, field)}"
        if cut.zero != best.cut.zero and field != "zero":
            what += f" (with ZeRO {cut.zero})"
        peak = self.peak(made)
        if peak > self.room * HEADROOM:
            return f"{what} needs {in_gib(peak)} of {in_gib(int(self.room))} GiB"
        slower = self.time(made).seconds / best.seconds - 1
        filled = f" and fills {peak / self.room:.0%}" if slower < TIE else ""
        return f"{what} is {abs(slower):.1%} {'slower' if slower >= 0 else 'faster'}{filled}"

    def _neighbours(self, cut: Cut, field: str) -> list[Any]:
        if field == "recompute":
            return list(self.recomputes)
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

    def _can_be_dealt(self, tensor: int, pipe: int) -> bool:
        """The layers, to so many stages."""
        try:
            stages(self._variant(Cut(tensor, pipe, 1, "nothing", 1)), Layout(world_size=pipe, pipe=pipe), self.vocab)
        except ValueError:
            return False
        return True

    def _made_of(self, tensor: int, pipe: int) -> Iterator[Made]:
        for zero, recompute in product(self._stages_for(pipe), self.recomputes):
            variant = self._variant(Cut(tensor, pipe, zero, recompute, 1))
            for micro in self._micros(self.train // (self.world // tensor // pipe)):
                made = self.make(Cut(tensor, pipe, zero, recompute, micro), variant)
                assert made is not None, "its pipe and micro-batch are divisors"
                yield made

    def _micros(self, sequences: int) -> list[int]:
        return [micro for micro in MICROS if sequences % micro == 0]

    def _first_stage(self, made: Made) -> int:
        """Bytes that the cut needs at least."""
        return estimate_first_stage(made.config, made.layout, made.batch, self.vocab, device_of(self.site)).peak

    def _stages_for(self, pipe: int) -> list[int]:
        """ZeRO 2 and 3 free gradients that stages add up (check_model says so to who writes them)."""
        return [stage for stage in self.zeros if pipe == 1 or stage < 2]

    def _zero_stages(self) -> list[int]:
        zero = self.config.deepspeed.zero_optimization
        if zero.offloads_optimizer or zero.offloads_parameters:
            return [zero.stage]
        return [0, 1, 2, 3] if self.config.precision == "fp32" else [1, 2, 3]  # 0 runs as 1 in 16 bits

    def _is_valid(self, **keys: Any) -> bool:
        """Offload and some optimizers do not go with every stage, partitioned activations not with every recomputation."""
        try:
            self.config.with_keys(**keys)
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

    def _keys(self, made: Made) -> dict[str, Any]:
        """What to write for a cut."""
        cut = made.cut
        return {
            "model_parallel_size": cut.tensor,
            "pipe_parallel_size": cut.pipe,
            "train_micro_batch_size_per_gpu": cut.micro,
            "gradient_accumulation_steps": made.batch.accumulation,
            "zero_optimization": self.config.deepspeed.zero_optimization.model_dump(exclude_unset=True) | {"stage": cut.zero},
            **self._recompute_keys(cut.recompute),
        }

    def _recompute_keys(self, recompute: Recompute) -> dict[str, Any]:
        own, keys = self.config.own.neox_hpc, {"checkpoint_activations": recompute != "nothing"}
        if recompute in ("nothing", own.recompute_granularity):
            return keys
        return keys | {"neox_hpc": own.model_dump(exclude_unset=True) | {"recompute_granularity": recompute}}

    def _accepts(self, timed: Timed) -> bool:
        """Whether a plan takes a cut; its micro-batch changes nothing of that."""
        cut = timed.cut[:4]
        if cut not in self._accepted:
            try:
                self._accepted[cut] = self._allowed(self.config.with_keys(**self._keys(timed.made)))
            except ConfigError:
                self._accepted[cut] = False
        return self._accepted[cut]

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
