"""What is known about one machine: frozen types.  Changes when another fact about a machine matters.

A fact that is not known is null, never guessed; the plan names the ones it misses.  No scheduler, launcher or container asks for
a site's name: a new machine is one file, which site_files.py reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from neox_hpc.containers import CONTAINERS, is_fetched
from neox_hpc.launchers import LAUNCHERS, cores_of, split_args
from neox_hpc.schedulers import SCHEDULERS

Accelerator = Literal["cpu", "cuda", "rocm", "xpu"]
"""What torch calls the devices; ROCm's GPUs answer to torch.cuda too."""
Arch = Literal["x86_64", "aarch64", "ppc64le"]
Dtype = Literal["fp32", "fp16", "bf16"]
Status = Literal["run for real", "from documentation", "community"]
"""How a profile came to be: jobs of it ran; written from the site's own pages; written from users' scripts."""

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


Walltime = Annotated[
    int,
    BeforeValidator(lambda value: read_walltime(value if isinstance(value, str) else str(value)), json_schema_input_type=str),
]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


def _is_regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression ({error}): write one of Python's") from None
    return text


Regex = Annotated[
    str, BeforeValidator(lambda value: _is_regex(value) if isinstance(value, str) else value, json_schema_input_type=str)
]


def _arguments(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        if not text.startswith("-") or re.search(r"[\n\r]", text):
            raise ValueError(f"{text!r} is no argument: write e.g. '-C nvme' or '--network=disable_rdzv_get'")
    return texts


Directives = Annotated[tuple[str, ...], Field(strict=False), AfterValidator(_arguments)]
"""Arguments of the scheduler, one a line of the script."""


class Node(_Facts):
    """The shape of one node, as a job sees it."""

    gpus: int | None = Field(default=None, ge=0, description="Devices that torch sees (GCDs on MI250X); 0: none.")
    accelerator: Accelerator | None = Field(default=None, description="What the devices are; cpu goes with gpus: 0.")
    gpu_name: str | None = None
    gpu_arch: str | None = Field(default=None, description="What kernels are compiled for: sm_80, gfx90a, pvc.")
    gpu_memory_gib: float | None = Field(default=None, gt=0)
    dtypes: tuple[Dtype, ...] | None = Field(
        default=None, strict=False, description="Types whose matrix products the devices compute in hardware; null: not checked."
    )
    arch: Arch | None = Field(default=None, description="Of the CPUs: an image must be built for it.")
    cores: int | None = Field(default=None, ge=1, description="Cores that a job may use (after reserved ones).")
    reserved_cores: str | None = Field(default=None, description="Cores kept for the system, as '0,8,16': no rank is bound to one.")
    threads_per_core: int | None = Field(default=None, ge=1)
    scheduler_cpus: Literal["cores", "threads"] = Field(
        default="cores", description="What Slurm's --cpus-per-task and PBS's ncpus count: cores, or each of their hardware threads."
    )
    memory_gib: float | None = Field(default=None, gt=0)
    cpu_ranks: int = Field(default=1, ge=1, description="Ranks of a node without GPUs.")
    cpu_masks: tuple[str, ...] | None = Field(
        default=None, strict=False, description="Cores of each local rank, in the order of the GPUs: '49-55', '57-63', …"
    )
    nics: tuple[str, ...] | None = Field(
        default=None, strict=False, description="The network card next to each GPU, in the order of the GPUs: mlx5_0, mlx5_0, …"
    )
    local_disk: str | None = Field(
        default=None, description="The job's directory on the node's own disk, ${NAME} expands: kernels are cached there."
    )

    @field_validator("cpu_masks", "reserved_cores")
    @classmethod
    def _cores(cls, masks: tuple[str, ...] | str | None) -> tuple[str, ...] | str | None:
        for mask in (masks,) if isinstance(masks, str) else masks or ():
            if not _CORES.fullmatch(mask):
                raise ValueError(f"{mask!r} is no list of cores: write e.g. '49-55' or '0-3,8-11'")
        return masks

    @model_validator(mode="after")
    def _fits(self) -> Node:
        if self.gpus == 0 and self.accelerator not in (None, "cpu"):
            raise ValueError(f"accelerator {self.accelerator} on a node without GPUs: write accelerator: cpu")
        if self.gpus and self.accelerator == "cpu":
            raise ValueError(f"accelerator cpu on a node with {self.gpus} GPUs: write cuda, rocm or xpu, or gpus: 0")
        if self.cpu_masks is not None and self.gpus is not None and len(self.cpu_masks) != self.ranks:
            raise ValueError(
                f"cpu_masks has {len(self.cpu_masks)} entries for {self.ranks} ranks a node: "
                "name the cores of each rank, in the order of the GPUs"
            )
        if self.scheduler_cpus == "threads" and self.threads_per_core is None:
            raise ValueError("scheduler_cpus counts threads, and how many a core has is not known: write threads_per_core")
        if self.nics is not None and self.gpus is not None and len(self.nics) != self.gpus:
            raise ValueError(f"nics has {len(self.nics)} entries for {self.gpus} GPUs: name the card of each, in their order")
        named = [core for mask in self.cpu_masks or () for core in cores_of(mask)]
        if len(set(named)) != len(named):
            raise ValueError("cpu_masks names a core twice: give every rank cores of its own")
        if self.cores is not None and len(named) > self.cores:
            raise ValueError(f"cpu_masks names {len(named)} cores and a job may use {self.cores}: correct one of them")
        if taken := sorted(set(named) & set(cores_of(self.reserved_cores) if self.reserved_cores else ())):
            raise ValueError(f"cpu_masks names {', '.join(map(str, taken))} of reserved_cores: leave them to the system")
        return self

    @property
    def ranks(self) -> int | None:
        """Ranks of a node: one a GPU, else cpu_ranks; unknown while gpus is."""
        return None if self.gpus is None else self.gpus or self.cpu_ranks

    @property
    def cpus_per_core(self) -> int:
        """What the scheduler is asked for to own one core, and so every thread of it."""
        return self.threads_per_core or 1 if self.scheduler_cpus == "threads" else 1


class Speed(_Facts):
    """The constants of the step-time model: peaks, as published, without sparsity, and what was measured of them."""

    peak_tflops: dict[Dtype, float] | None = Field(default=None, description="Of one device (a GCD, a tile), by type.")
    matmul_tflops: dict[Dtype, float] | None = Field(
        default=None,
        description="The same measured: what large products reach, at a transformer's shapes where that is published, else the "
        "best of a search.",
    )
    memory_gb_s: float | None = Field(default=None, gt=0, description="Of one device's own memory.")
    copy_gb_s: float | None = Field(default=None, gt=0, description="The same measured: a large copy, read and written together.")
    gpu_link_gb_s: float | None = Field(
        default=None, gt=0, description="Between two devices of a node, one direction, the slowest pair."
    )
    gpu_allreduce_gb_s: float | None = Field(
        default=None, gt=0, description="Bus bandwidth of a large all-reduce over the devices of a node, measured."
    )
    node_link_gb_s: float | None = Field(default=None, gt=0, description="Into the network, one direction, all cards of a node.")


class NodeBin(_Facts):
    """A queue's time limit for a range of node counts."""

    min_nodes: int = Field(default=1, ge=1)
    max_nodes: int = Field(ge=1)
    walltime: Walltime | None = Field(default=None, description="Seconds; a file writes 2h or '02:00:00'.")
    min_walltime: Walltime | None = Field(default=None, description="The shortest job that is taken.")
    node_hours: float | None = Field(default=None, gt=0, description="Nodes x hours: the time limit falls as the nodes grow.")

    @model_validator(mode="after")
    def _fits(self) -> NodeBin:
        if self.max_nodes < self.min_nodes:
            raise ValueError(
                f"a bin from {self.min_nodes} to {self.max_nodes} nodes is empty: write max_nodes of at least min_nodes"
            )
        if self.walltime is None and self.node_hours is None:
            raise ValueError("a bin without a limit: write walltime or node_hours")
        if self.min_walltime is not None and self.min_walltime > self.limit_s(self.max_nodes):
            raise ValueError("a bin whose min_walltime is beyond its limit: correct one of them")
        return self

    def limit_s(self, nodes: int) -> int:
        """The longest job of that many nodes, in seconds."""
        limits = [self.walltime, None if self.node_hours is None else int(self.node_hours * 3600 / nodes)]
        return min(limit for limit in limits if limit is not None)

    def takes(self, nodes: int, walltime_s: int) -> bool:
        """Whether a job of that many nodes may run so long."""
        return (self.min_walltime or 0) <= walltime_s <= self.limit_s(nodes)


class Queue(_Facts):
    """One queue (Slurm: partition) and its limits; no bins: not known."""

    partition: str | None = Field(
        default=None,
        description="What the scheduler calls it, where that differs: a quality of service of another queue; '': it is not named.",
    )
    counts: Literal["nodes", "gpus"] = Field(default="nodes", description="What a chunk of PBS's select is in this queue.")
    bins: tuple[NodeBin, ...] = Field(default=(), strict=False, description="In the order of their node counts.")
    directives: Directives = Field(default=(), description="Arguments that only this queue needs, e.g. '--qos=debug'.")

    @field_validator("bins")
    @classmethod
    def _apart(cls, bins: tuple[NodeBin, ...]) -> tuple[NodeBin, ...]:
        for lower, upper in pairwise(bins):
            if upper.min_nodes <= lower.max_nodes:
                raise ValueError(f"the bins meet at {upper.min_nodes} nodes: write them in order, each beginning after the last")
        return bins

    def bin_of(self, nodes: int) -> NodeBin | None:
        """The bin that takes that many nodes."""
        return next((node_bin for node_bin in self.bins if node_bin.min_nodes <= nodes <= node_bin.max_nodes), None)


class EnvValue(_Facts):
    """A value of an environment variable, perhaps for some node counts only."""

    value: str
    min_nodes: int = Field(default=1, ge=1)
    max_nodes: int | None = Field(default=None, ge=1)
    expand: bool = Field(default=False, description="${NAME} stands for the job's own variable; everything else stays literal.")

    def applies(self, nodes: int) -> bool:
        """Whether a job of this many nodes gets the value."""
        return self.min_nodes <= nodes and (self.max_nodes is None or nodes <= self.max_nodes)


def in_quotes(written: bool | int | float) -> str:
    """What to write where YAML made something else of a text; what true and false were is not known any more (yes, on)."""
    return "write it in quotes" if isinstance(written, bool) else f'write "{written}" in quotes'


def _env_values(written: Any) -> Any:
    """``NAME: text`` is short for ``NAME: [{value: text}]``."""
    if isinstance(written, str):
        return [{"value": written}]
    if isinstance(written, (bool, int, float)):
        raise ValueError(f"expected text, got {written!r}: {in_quotes(written)}")
    return [written] if isinstance(written, Mapping) else written


EnvValues = Annotated[
    tuple[EnvValue, ...],
    Field(strict=False),
    BeforeValidator(_env_values, json_schema_input_type=str | EnvValue | tuple[EnvValue, ...]),
]

Names = Annotated[
    tuple[str, ...],
    Field(strict=False),
    BeforeValidator(
        lambda written: (written,) if isinstance(written, str) else () if written is None else written,
        json_schema_input_type=str | tuple[str, ...] | None,
    ),
]
"""One name, or several in the order in which they are tried."""


def _check_names(env: Iterable[str]) -> None:
    for name in env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name!r} is no name of an environment variable: write letters, digits and _, no digit first")


class Modules(_Facts):
    """Environment modules; outside a login shell ``module`` comes from ``init``."""

    init: str | None = Field(default=None, description="File to source first, e.g. /etc/profile.d/modules.sh.")
    use: tuple[str, ...] = Field(default=(), strict=False, description="Directories for `module use`, before load.")
    load: tuple[str, ...] = Field(default=(), strict=False)


class Network(_Facts):
    """How ranks reach each other, and the world."""

    interface: str | None = Field(default=None, description="Interface of the fast network, for NCCL and gloo (hsn0,hsn1; ib0).")
    host_suffix: str = Field(default="", pattern=r"^[A-Za-z0-9.-]*$", description="Appended to host names to reach that network.")
    address: Literal["name", "ip"] = Field(
        default="name",
        description="What the ranks call the first node: its name in the hostfile, or the `hostname -i` of that node.",
    )
    internet: Literal["none", "proxy", "direct"] | None = Field(
        default=None, description="How compute nodes reach the internet (W&B, downloads)."
    )
    fabric: str | None = Field(default=None, description="The network, and the plug-in by which NCCL or RCCL uses it; in words.")
    allreduce_gb_s: float | None = Field(
        default=None, gt=0, description="Bus bandwidth of a large all-reduce between nodes that the site has measured."
    )


_PACKAGES: Any = Field(
    default=None,
    strict=False,
    description="Optional packages that are in it, as pip calls them (flash-attn, bitsandbytes); null: not known.",
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
        default=None, description="Package index with torch built for this machine's GPUs, for `env create`; null: pip's own."
    )
    constraints: str | None = Field(
        default=None, description="File of pinned versions for `env create`; null: neox-hpc's own constraints.txt."
    )
    packages: tuple[str, ...] | None = _PACKAGES

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
    arch: Arch | None = Field(default=None, description="What the image is built for; null: read from its file, if it is a SIF.")
    python: str = Field(default="python3", description="Python inside the image.")
    packages: tuple[str, ...] | None = _PACKAGES
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
    directives: Directives = Field(
        default=(), description="Arguments that only a job in a container needs, e.g. '-l singularity_fakeroot=true'."
    )

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

    @field_validator("env")
    @classmethod
    def _names(cls, env: dict[str, str]) -> dict[str, str]:
        _check_names(env)
        return env

    @field_validator("gpu")
    @classmethod
    def _words(cls, text: str | None) -> str | None:
        split_args([text] if text else [])
        return text

    @field_validator("args")
    @classmethod
    def _not_ours(cls, args: tuple[str, ...]) -> tuple[str, ...]:
        for text in split_args(args):
            name = text.partition("=")[0]
            if name in _CLEANING:
                raise ValueError(f"{name} drops the variables that tell a rank its place: remove it")
            if name in _OURS:
                raise ValueError(f"{name} is set by the plan: remove it")
        return args


class Stage(_Facts):
    """What every node copies to its own disk before the ranks start, where the machine's documentation advises it."""

    image: Literal["node_local"] | None = Field(default=None, description="The image, where it is a file.")
    code: Literal["node_local"] | None = Field(default=None, description="The run's code/.")
    env: Literal["node_local"] | None = Field(
        default=None, description="The virtual environment, from the archive VENV.tar, which `env create` makes then."
    )


_CLEANING = ("-e", "--cleanenv", "-C", "--containall")
_OURS = ("--pwd", "--cwd", "--workdir", "--entrypoint", "--user", "--env-file")

ARCHIVE = ".tar"
"""What `env create` appends to an environment's name for the archive of it."""
UNFINISHED = "neox-hpc.unfinished"
"""A file in a virtual environment that `env create` has begun and not ended."""
WAYS = (("software", "python"), ("software", "venv"), ("software", "conda"), ("software", "module"), ("container", "image"))
"""The ways to say what the ranks run in.  A site has one of them: an upper layer's takes the place of a lower one's."""


class AccountForm(_Facts):
    """What the accounts of a site look like."""

    regex: Regex = Field(description="The whole name matches it.")
    words: str = Field(description="The same for a reader: 'a name that ends in _g'.")


class Detect(_Facts):
    """One sign that this is the machine: a variable, a file, or the name of the host."""

    env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="A variable that the site sets.")
    file: str | None = Field(default=None, pattern=r"^/", description="A file that is only there.")
    host: Regex | None = Field(default=None, description="The whole host name matches it.")
    matches: Regex | None = Field(default=None, description="Somewhere in the variable's or the file's text; null: that it exists.")

    @model_validator(mode="after")
    def _one(self) -> Detect:
        given = [name for name in ("env", "file", "host") if getattr(self, name) is not None]
        if len(given) != 1 or (given == ["host"] and self.matches is not None):
            raise ValueError("a sign is one of env, file (each with or without matches) and host: write one of them")
        return self


class Site(_Facts):
    """One machine."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="The file's name; set by the loader.")
    file: str = Field(default="", description="Where it was read; set by the loader.")
    given: str = Field(default="", description="How --site named it: a name, or a file's path; set by the loader.")
    title: str = ""
    url: str = ""
    status: Status | None = Field(default=None, description="How the profile came to be.")
    here: bool = Field(
        default=False, description="The machine that runs neox-hpc: null facts of node and software are read from it."
    )
    login_hosts: tuple[str, ...] = Field(default=(), strict=False, description="Where one logs in.")
    login: str | None = Field(
        default=None,
        description="USER@HOST[:FOLDER] to submit at by ssh from a machine that has not the site's scheduler, as --host says it.",
    )
    detect: tuple[Detect, ...] = Field(
        default=(), strict=False, description="How the machine is told from others, best sign first."
    )
    scheduler: str
    launcher: str
    container: ContainerRuntime = ContainerRuntime()
    node: Node = Node()
    speed: Speed = Speed()
    max_nodes: int | None = Field(default=None, ge=1)
    queues: dict[str, Queue] | None = Field(default=None, description="Null: not known, any name is passed on.")
    default_queue: Names = Field(
        default=(), description="Taken where no queue is asked for; of several the first that takes the job."
    )
    needs_account: bool = False
    account_form: AccountForm | None = None
    gpu_directive: str | None = Field(
        default=None, description="How GPUs are asked for, with {gpus}; null: the scheduler's usual way; '': not."
    )
    directives: Directives = Field(default=(), description="Further arguments for every job, e.g. '-C nvme'.")
    hostfile: str | None = Field(
        default=None,
        description="Where hosts stand (NAME slots=N) that no scheduler gives; the key hostfile and DLTS_HOSTFILE go before.",
    )
    poll_s: float | None = Field(
        default=None, gt=0, description="Fewest seconds between two questions to the scheduler, where the site's rules say so."
    )
    skip_directives: Directives = Field(
        default=(),
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
    scratch: str | None = Field(
        default=None, description="The file system for runs and data, with [project] and [user] to fill in."
    )
    software: Software = Software()
    stage: Stage = Stage()
    find: dict[str, str] = Field(
        default_factory=dict, description="Fact that is not known -> the command that tells it; a remark comes after `  # `."
    )
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
        _check_names(env)
        return env

    @field_validator("launcher_args")
    @classmethod
    def _words(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        split_args(texts)
        return texts

    @model_validator(mode="after")
    def _fits(self) -> Site:
        for name in self.default_queue:
            if self.queues is not None and name not in self.queues:
                raise ValueError(f"default_queue {name!r} is not among queues: write one of {', '.join(self.queues)}")
        if self.hostfile is not None and SCHEDULERS[self.scheduler].starts_job:
            raise ValueError(f"hostfile beside a scheduler, and {self.scheduler} gives a job its nodes: remove it")
        if self.node.local_disk is None and any(self.stage.model_dump().values()):
            raise ValueError("stage copies to the node's own disk, which is not known: write node.local_disk")
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
