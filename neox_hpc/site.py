"""What is known about one machine: frozen types, and the loader of ``sites/NAME.yml``.

A fact that is not known is null, never guessed; the plan names the ones it misses.  No scheduler, launcher or container asks for
a site's name: a new machine is one file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from neox_hpc.containers import CONTAINERS, is_fetched
from neox_hpc.errors import Problem, UserError
from neox_hpc.launchers import LAUNCHERS, cores_of, split_args
from neox_hpc.marked_yaml import NOTHING, Marked, assign, located, merged, read_marked
from neox_hpc.schedulers import SCHEDULERS
from neox_hpc.share import share

Accelerator = Literal["cpu", "cuda", "rocm"]
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_CORES = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


def read_walltime(text: str) -> int:
    """Seconds of ``90m``, ``2h``, ``1d12h``, ``HH:MM:SS`` or ``D-HH:MM:SS``.

    ``30`` and ``30:00`` are refused: they mean minutes to one scheduler, seconds or hours to another.

    Raises:
        ValueError: not a duration, or not longer than 0.
    """
    seconds = 0
    if re.fullmatch(r"(\d+[dhms])+", text):
        seconds = sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([dhms])", text))
    elif clock := re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", text):
        days, hours, minutes, rest = (int(part or 0) for part in clock.groups())
        seconds = days * 86400 + hours * 3600 + minutes * 60 + rest
    else:
        raise ValueError(f"{text!r} is no duration: write 90m, 2h, 1d12h or HH:MM:SS")
    if seconds == 0:
        raise ValueError("a duration of 0: write e.g. 30m")
    return seconds


def show_walltime(seconds: int) -> str:
    """``HH:MM:SS``; hours may exceed 24."""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


Walltime = Annotated[int, BeforeValidator(lambda value: read_walltime(value if isinstance(value, str) else str(value)))]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Node(_Facts):
    """The shape of one node, as a job sees it."""

    gpus: int | None = Field(default=None, ge=0, description="Devices that torch sees (GCDs on MI250X); 0: none.")
    accelerator: Accelerator | None = Field(default=None, description="What the devices are; cpu goes with gpus: 0.")
    gpu_name: str | None = None
    gpu_memory_gib: float | None = Field(default=None, gt=0)
    cores: int | None = Field(default=None, ge=1, description="Cores that a job may use (after reserved ones).")
    memory_gib: float | None = Field(default=None, gt=0)
    cpu_ranks: int = Field(default=1, ge=1, description="Ranks of a node without GPUs.")
    cpu_masks: tuple[str, ...] | None = Field(
        default=None, strict=False, description="Cores of each local rank, in the order of the GPUs: '49-55', '57-63', …"
    )
    local_disk: str | None = Field(
        default=None, description="The job's directory on the node's own disk, ${NAME} expands: kernels are cached there."
    )

    @field_validator("cpu_masks")
    @classmethod
    def _cores(cls, masks: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for mask in masks or ():
            if not _CORES.fullmatch(mask):
                raise ValueError(f"{mask!r} is no list of cores: write e.g. '49-55' or '0-3,8-11'")
        return masks

    @model_validator(mode="after")
    def _fits(self) -> Node:
        if self.gpus == 0 and self.accelerator in ("cuda", "rocm"):
            raise ValueError(f"accelerator {self.accelerator} on a node without GPUs: write accelerator: cpu")
        if self.gpus and self.accelerator == "cpu":
            raise ValueError(f"accelerator cpu on a node with {self.gpus} GPUs: write cuda or rocm, or gpus: 0")
        if self.cpu_masks is not None and self.gpus is not None and len(self.cpu_masks) != self.ranks:
            raise ValueError(f"cpu_masks has {len(self.cpu_masks)} entries for {self.ranks} ranks a node")
        named = [core for mask in self.cpu_masks or () for core in cores_of(mask)]
        if len(set(named)) != len(named):
            raise ValueError("cpu_masks names a core twice: give every rank cores of its own")
        if self.cores is not None and len(named) > self.cores:
            raise ValueError(f"cpu_masks names {len(named)} cores and a job may use {self.cores}: correct one of them")
        return self

    @property
    def ranks(self) -> int | None:
        """Ranks of a node: one a GPU, else cpu_ranks; unknown while gpus is."""
        return None if self.gpus is None else self.gpus or self.cpu_ranks


class NodeBin(_Facts):
    """A queue's time limit for a range of node counts."""

    min_nodes: int = Field(default=1, ge=1)
    max_nodes: int = Field(ge=1)
    walltime: Walltime = Field(description="Seconds; a file writes 2h or '02:00:00'.")

    @model_validator(mode="after")
    def _fits(self) -> NodeBin:
        if self.max_nodes < self.min_nodes:
            raise ValueError(
                f"a bin from {self.min_nodes} to {self.max_nodes} nodes is empty: write max_nodes of at least min_nodes"
            )
        return self


class Queue(_Facts):
    """One queue (Slurm: partition) and its limits; no bins: not known."""

    partition: str | None = Field(
        default=None, description="What the scheduler calls it, where that differs: a quality of service of another queue."
    )
    bins: tuple[NodeBin, ...] = Field(default=(), strict=False, description="In the order of their node counts.")
    directives: tuple[str, ...] = Field(
        default=(), strict=False, description="Arguments that only this queue needs, e.g. '--qos=debug'."
    )

    @field_validator("bins")
    @classmethod
    def _apart(cls, bins: tuple[NodeBin, ...]) -> tuple[NodeBin, ...]:
        for lower, upper in pairwise(bins):
            if upper.min_nodes <= lower.max_nodes:
                raise ValueError(f"the bins meet at {upper.min_nodes} nodes: write them in order, each beginning after the last")
        return bins


class EnvValue(_Facts):
    """A value of an environment variable, perhaps for some node counts only."""

    value: str
    min_nodes: int = Field(default=1, ge=1)
    max_nodes: int | None = Field(default=None, ge=1)
    expand: bool = Field(default=False, description="${NAME} stands for the job's own variable; everything else stays literal.")

    def applies(self, nodes: int) -> bool:
        """Whether a job of this many nodes gets the value."""
        return self.min_nodes <= nodes and (self.max_nodes is None or nodes <= self.max_nodes)


def _env_values(written: Any) -> Any:
    """``NAME: text`` is short for ``NAME: [{value: text}]``."""
    if isinstance(written, str):
        return [{"value": written}]
    return [written] if isinstance(written, Mapping) else written


EnvValues = Annotated[tuple[EnvValue, ...], Field(strict=False), BeforeValidator(_env_values)]


class Modules(_Facts):
    """Environment modules; outside a login shell ``module`` comes from ``init``."""

    init: str | None = Field(default=None, description="File to source first, e.g. /etc/profile.d/modules.sh.")
    use: tuple[str, ...] = Field(default=(), strict=False, description="Directories for `module use`, before load.")
    load: tuple[str, ...] = Field(default=(), strict=False)


class Network(_Facts):
    """How ranks reach each other."""

    interface: str | None = Field(default=None, description="Interface of the fast network, for NCCL and gloo (hsn0,hsn1; ib0).")
    host_suffix: str = Field(default="", pattern=r"^[A-Za-z0-9.-]*$", description="Appended to host names to reach that network.")
    address: Literal["name", "ip"] = Field(
        default="name",
        description="What the ranks call the first node: its name in the hostfile, or the `hostname -i` of that node.",
    )


class Software(_Facts):
    """What the ranks run in outside of a container: one of the first four."""

    python: str | None = Field(default=None, description="Python of the environment that holds torch and DeepSpeed; absolute.")
    venv: str | None = Field(default=None, description="A virtual environment's directory: its bin comes first on PATH.")
    conda: str | None = Field(
        default=None,
        description="A conda environment's directory: its bin comes first on PATH, its activation scripts are sourced.",
    )
    module: str | None = Field(default=None, description="A module that brings python3 with torch and DeepSpeed.")
    index_url: str | None = Field(
        default=None, description="Package index with this machine's builds of torch, for `env create`; null: pip's own."
    )
    constraints: str | None = Field(
        default=None, description="File of pinned versions for `env create`; null: neox-hpc's own constraints.txt."
    )

    @field_validator("python", "venv", "conda", "constraints")
    @classmethod
    def _absolute(cls, path: str | None, info: Any) -> str | None:
        if path is not None and not path.startswith("/"):
            tells = "the result of `command -v python3` there" if info.field_name == "python" else "the whole path"
            raise ValueError(f"{path!r} is not an absolute path: write {tells}")
        return path

    @property
    def interpreter(self) -> str | None:
        """The Python of an environment; a module's is found on PATH when it is loaded."""
        folder = self.venv or self.conda
        return self.python or (f"{folder}/bin/python" if folder else None)


class ContainerRuntime(_Facts):
    """The container runtime of a machine, and how an image is run by it."""

    runtime: str | None = Field(default=None, description="apptainer, singularity or docker; null: none that is known.")
    image: str | None = Field(default=None, description="The image that jobs run in; absolute (Docker: its name).")
    python: str = Field(default="python3", description="Python inside the image.")
    gpu: str | None = Field(default=None, description="Options that bring the GPUs in; null: the runtime's usual; '': none.")
    binds: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="Paths of the node that the container sees: SRC, SRC:DEST or SRC:DEST:ro; ${NAME} expands.",
    )
    env: dict[str, str] = Field(default_factory=dict, description="Variables set inside only; ${NAME} stands for the job's own.")
    args: tuple[str, ...] = Field(default=(), strict=False, description="Further options of the runtime's exec or run.")
    use: tuple[str, ...] = Field(default=(), strict=False, description="Directories for `module use`, before container.modules.")
    modules: tuple[str, ...] = Field(default=(), strict=False, description="Loaded in place of modules.load when a container runs.")
    init: str | None = Field(default=None, description="File that is sourced inside, before Python.")

    @field_validator("runtime")
    @classmethod
    def _registered(cls, name: str | None) -> str | None:
        if name is not None and name not in CONTAINERS:
            raise ValueError(f"unknown container runtime {name!r}: write one of {', '.join(CONTAINERS)}")
        return name

    @field_validator("binds")
    @classmethod
    def _paths(cls, binds: tuple[str, ...]) -> tuple[str, ...]:
        for text in binds:
            source, _, rest = text.partition(":")
            target, _, mode = rest.partition(":")
            if not source.startswith(("/", "${")) or (target and not target.startswith("/")) or mode not in ("", "ro", "rw"):
                raise ValueError(f"{text!r} is no bind: write /path, /path:/inside or /path:/inside:ro")
        return binds

    @field_validator("args")
    @classmethod
    def _not_ours(cls, args: tuple[str, ...]) -> tuple[str, ...]:
        for text in args:
            name = text.partition("=")[0]
            if name in _CLEANING:
                raise ValueError(f"{name} drops the variables that tell a rank its place: remove it")
            if name in _OURS:
                raise ValueError(f"{name} is set by the plan: remove it")
        return args


_CLEANING = ("-e", "--cleanenv", "-C", "--containall")
_OURS = ("--pwd", "--cwd", "--workdir", "--entrypoint", "--user", "--env-file")

UNFINISHED = "neox-hpc.unfinished"
"""A file in a virtual environment that `env create` has begun and not ended."""
WAYS = (("software", "python"), ("software", "venv"), ("software", "conda"), ("software", "module"), ("container", "image"))
"""The ways to say what the ranks run in.  A site has one of them: an upper layer's takes the place of a lower one's."""


class Site(_Facts):
    """One machine."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="The file's name; set by the loader.")
    file: str = Field(default="", description="Where it was read; set by the loader.")
    title: str = ""
    url: str = ""
    here: bool = Field(
        default=False, description="The machine that runs neox-hpc: null facts of node and software are read from it."
    )
    scheduler: str
    launcher: str
    container: ContainerRuntime = ContainerRuntime()
    node: Node = Node()
    max_nodes: int | None = Field(default=None, ge=1)
    queues: dict[str, Queue] | None = Field(default=None, description="Null: not known, any name is passed on.")
    default_queue: str | None = None
    needs_account: bool = False
    gpu_directive: str | None = Field(
        default=None, description="How GPUs are asked for, with {gpus}; null: the scheduler's usual way; '': not."
    )
    directives: tuple[str, ...] = Field(default=(), strict=False, description="Further arguments for every job, e.g. '-C nvme'.")
    skip_directives: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="Options that the site's filter refuses, so that they are not written: '--export', '-k'.",
    )
    launcher_args: tuple[str, ...] = Field(
        default=(), strict=False, description="Further arguments of the launcher, e.g. '--mpi=none'."
    )
    gpus_visible: Literal["all", "one"] = Field(
        default="all", description="Whether a rank sees all GPUs of its node, or one that the launcher gives it."
    )
    modules: Modules = Modules()
    env: dict[str, EnvValues] = Field(default_factory=dict)
    network: Network = Network()
    software: Software = Software()
    find: dict[str, str] = Field(default_factory=dict, description="Fact that is not known -> the command that tells it.")
    sources: dict[str, str] = Field(
        default_factory=dict, description="Fact (dotted, or the section it stands in) -> source and date."
    )

    @field_validator("scheduler", "launcher")
    @classmethod
    def _registered(cls, name: str, info: Any) -> str:
        registries: dict[str, Mapping[str, Any]] = {"scheduler": SCHEDULERS, "launcher": LAUNCHERS}
        known = registries[info.field_name]
        if name not in known:
            raise ValueError(f"unknown {info.field_name} {name!r}: write one of {', '.join(known)}")
        return name

    @field_validator("env")
    @classmethod
    def _names(cls, env: dict[str, EnvValues]) -> dict[str, EnvValues]:
        for name in env:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{name!r} is no name of an environment variable")
        return env

    @field_validator("directives", "skip_directives")
    @classmethod
    def _one_line(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            if not text.startswith("-") or re.search(r"[\n\r]", text):
                raise ValueError(f"{text!r} is no argument: write e.g. '-C nvme' or '--network=disable_rdzv_get'")
        return texts

    @field_validator("launcher_args")
    @classmethod
    def _words(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        split_args(texts)
        return texts

    @model_validator(mode="after")
    def _fits(self) -> Site:
        if self.default_queue is not None and self.queues is not None and self.default_queue not in self.queues:
            raise ValueError(f"default_queue {self.default_queue!r} is not among queues: write one of {', '.join(self.queues)}")
        ways = [(section, key) for section, key in WAYS if getattr(getattr(self, section), key) is not None]
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(map('.'.join, ways))} both say what the ranks run in: write one of them")
        image = self.container.image
        if image is not None and self.container.runtime != "docker" and not (image.startswith("/") or is_fetched(image)):
            raise ValueError(f"container.image {image!r} is not an absolute path: write the whole path")
        return self

    @property
    def way(self) -> tuple[str, str] | None:
        """Which one of WAYS is given."""
        return next((way for way in WAYS if getattr(getattr(self, way[0]), way[1]) is not None), None)


def site_folders(home: Path | None = None) -> tuple[Path, ...]:
    """Where names are looked up, first one first: the user's own, then the shipped ones."""
    return ((home or Path.home()) / ".config" / "neox-hpc" / "sites", share("sites"))


def list_sites(home: Path | None = None) -> dict[str, Path]:
    """Name -> file of every site that can be named."""
    found: dict[str, Path] = {}
    for folder in site_folders(home):
        for path in sorted(folder.glob("*.yml")) if folder.is_dir() else ():
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def load_site(
    name_or_path: str | Path,
    sets: Sequence[str] = (),
    *,
    cwd: Path | None = None,
    home: Path | None = None,
    own: Marked = NOTHING,
) -> Site:
    """Read a site by name or path, with its ``extends:``, what its user says of it (``own``), and ``--site-set`` texts.

    Raises:
        UserError: holding every problem found.
    """
    path = _find(str(name_or_path), cwd or Path.cwd(), home)
    base = _read(path, home, ())
    changes = assign(sets, "--site-set")
    problems = [*base.problems, *own.problems, *changes.problems]
    if problems:
        raise UserError(problems)
    places = {**base.places, **own.places, **changes.places}
    values = _over(_over(base.values, own.values), changes.values) | {"name": path.stem, "file": str(path)}
    try:
        return Site.model_validate(values)
    except ValidationError as error:
        raise UserError(_problem(details, places, str(path)) for details in error.errors()) from None


def site_name(name_or_path: str) -> str:
    """The name of the site that a text names or leads to."""
    return Path(name_or_path).stem if _is_path(name_or_path) else name_or_path


def _find(text: str, cwd: Path, home: Path | None) -> Path:
    if _is_path(text):
        path = cwd / Path(text).expanduser()
        if path.is_file():
            return path
        raise UserError(Problem(f"--site {text}", f"no such file: {path}", "check the path; `neox-hpc sites list` shows the names"))
    known = list_sites(home)
    if text in known:
        return known[text]
    near = difflib.get_close_matches(text, known, n=1)
    fix = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}; or give the path of a site file"
    raise UserError(Problem(f"--site {text}", "no such site", fix))


def _is_path(text: str) -> bool:
    return "/" in text or text.endswith((".yml", ".yaml"))


def _read(path: Path, home: Path | None, seen: tuple[Path, ...]) -> Marked:
    own = read_marked(path, str(path))
    if named := [key for key in ("name", "file") if key in own.values]:
        return Marked(problems=(Problem(located(own.places, named[0]), "is taken from the file's own name", "remove it"),))
    parent = own.values.get("extends")
    if parent is None or own.problems:
        return own
    where = located(own.places, "extends")
    if path in seen:
        return Marked(problems=(Problem(where, "extends itself, by way of others", "break the circle"),))
    try:
        found = share("sites") / path.name if parent == path.stem else _find(str(parent), path.parent, home)
        lower = _read(found, home, (*seen, path))
    except UserError as error:
        return Marked(problems=tuple(Problem(where, p.wrong, p.fix) for p in error.problems))
    values = {key: value for key, value in own.values.items() if key != "extends"}
    return Marked(_over(lower.values, values), {**lower.places, **own.places}, lower.problems)


def _over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """One layer over another; the upper one's way to software takes the place of the lower one's."""
    if any(_section(upper, section).get(key) is not None for section, key in WAYS):
        unsaid = {section: {k: v for k, v in _section(lower, section).items() if (section, k) not in WAYS} for section, _ in WAYS}
        lower = {**lower, **{section: facts for section, facts in unsaid.items() if isinstance(lower.get(section), Mapping)}}
    return merged(lower, upper)


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = values.get(name)
    return section if isinstance(section, Mapping) else {}


def check_site(site: Site) -> Iterator[Problem]:
    """What a profile that loads still lacks: a source for every fact, a way to find every open one."""
    for fact, value in iter_facts(site):
        if value is None and fact in _NEEDED and not site.here and fact not in site.find:
            fix = f"add under find: `{fact}: the command that tells it`"
            yield Problem(f"{site.file}  {fact}", "is not known, and nothing says how to find it", fix)
        if value is not None and not source_of(site, fact):
            yield Problem(f"{site.file}  {fact}", "has no source", f"add under sources: `{fact}: where it stands, and the date`")
    known = {fact for fact, value in iter_facts(site) if value is not None}
    for fact in site.find:
        if fact in known:
            yield Problem(f"{site.file}  find.{fact}", f"{fact} is known", "remove the line")


def iter_facts(site: Site) -> Iterator[tuple[str, Any]]:
    """Every fact that is given, or null where it is needed, by its dotted name."""
    given = _flat(site.model_dump(exclude=_WORDS, exclude_defaults=True))
    yield from given.items()
    chosen = {"software.python"} if site.way is not None else set()
    yield from ((fact, None) for fact in _NEEDED if fact not in given and fact not in chosen)


def source_of(site: Site, fact: str) -> str:
    """The source of a fact, or of the section it stands in."""
    parts = fact.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((site.sources[name] for name in names if name in site.sources), "")


_WORDS = {"name", "file", "title", "url", "here", "sources", "find"}
"""What is said about a profile and not about its machine."""
_NEEDED = ("node.gpus", "node.cores", "software.python")
"""Facts without which a job is not whole."""


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "key: value",
    "model_type": "key: value",
    "tuple_type": "a list",
}


def _problem(details: Any, places: Mapping[str, str], file: str) -> Problem:
    location = [str(part) for part in details["loc"]]
    where = located(places, ".".join(location), file) if location else file
    if details["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _known_keys(location[:-1]), n=1)
        return Problem(
            where, "unknown key", f"did you mean {near[0]}?" if near else "remove it; `neox-hpc sites show slurm` has all keys"
        )
    if details["type"] == "missing":
        return Problem(where, "is required and absent", f"add {location[-1]}: …")
    if details["type"] == "value_error":
        wrong, _, fix = str(details["ctx"]["error"]).partition(": ")
        return Problem(where, wrong, fix)
    if details["type"] in _EXPECTED:
        return Problem(where, f"expected {_EXPECTED[details['type']]}, got {details['input']!r}")
    return Problem(where, f"{details['msg'][0].lower()}{details['msg'][1:]}, got {details['input']!r}")


def _known_keys(location: Sequence[str]) -> list[str]:
    """The keys of the section at a location; lists and tables of sections are passed through."""
    sections: dict[str, type[BaseModel]] = {"queues": Queue, "bins": NodeBin, "env": EnvValue}
    model: type[BaseModel] = Site
    for part in location:
        field = model.model_fields.get(part)
        if part in sections:
            model = sections[part]
        elif field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
    return list(model.model_fields)
