"""What ``neox-hpc launch`` is told, decided: the flags of deepy.py and of DeepSpeed's runner, GPT-NeoX's keys, the hosts at hand.

Reads nothing.  Changes when a flag or a key of theirs means something else here.

Sources: gpt-neox ea7aefd, megatron/neox_arguments/arguments.py (deepy.py's arguments, and what it hands to the runner);
deepspeed/launcher/runner.py, 0.19.8.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from neox_hpc.errors import Problem, UserError
from neox_hpc.hostfile import Hostfile
from neox_hpc.settings import Loaded
from neox_hpc.site import Modules, Site

PROGRAMS = {"train": "", "eval": "evaluation", "generate": "generation on several ranks"}
"""What deepy.py starts, and what of it is not built yet."""
LAUNCHERS_OF_DEEPSPEED = {"slurm": "srun"}
"""DeepSpeed's name -> ours, where they differ."""
DEFAULT_HOSTFILE = "/job/hostfile"
DEFAULT_LAUNCHER = "pdsh"
THIS_HOST = "localhost"
LOOPBACK = "lo"
BY_SSH = frozenset({"pdsh", "openmpi", "mpich", "impi", "mvapich"})
"""They enter hosts by ssh where no scheduler does it for them."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag of deepy.py, of DeepSpeed's runner or of ours."""

    names: tuple[str, ...]
    of: str
    effect: str
    key: str = ""
    """The key of the configuration that it sets."""
    refused: str = ""
    """Why it is not taken, and what to write instead."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """As argparse takes them."""

    @property
    def dest(self) -> str:
        return self.names[-1].lstrip("-").replace("-", "_")


_DEEPY, _RUNNER, _BOTH, _OURS = "deepy.py", "DeepSpeed", "both", "neox-hpc"
_NUMBER: dict[str, Any] = {"type": int}
_SWITCH: dict[str, Any] = {"action": "store_true"}

FLAGS = (
    Flag(names=("-d", "--conf_dir"), of=_DEEPY, effect="directory that configuration files count from; `.yml` may be left out"),
    Flag(names=("--wandb_group",), of=_DEEPY, key="wandb_group", effect="sets the key"),
    Flag(names=("--wandb_run_name",), of=_DEEPY, key="wandb_run_name", effect="sets the key"),
    Flag(names=("--wandb_team",), of=_DEEPY, key="wandb_team", effect="sets the key"),
    Flag(names=("--eval_tasks",), of=_DEEPY, key="eval_tasks", effect="sets the key", options={"nargs": "+"}),
    Flag(names=("--iteration",), of=_DEEPY, key="iteration", effect="sets the key", options=_NUMBER),
    Flag(names=("--eval_results_prefix",), of=_DEEPY, key="eval_results_prefix", effect="sets the key"),
    Flag(names=("-i", "--sample_input_file"), of=_DEEPY, key="sample_input_file", effect="sets the key (-i is deepy.py's here)"),
    Flag(names=("-o", "--sample_output_file"), of=_DEEPY, key="sample_output_file", effect="sets the key"),
    Flag(
        names=("--autotuning",),
        of=_BOTH,
        key="autotuning_run",
        effect="sets the key, which is refused: there is no autotuning",
        options={"choices": ("tune", "run")},
    ),
    Flag(
        names=("-H", "--hostfile"),
        of=_BOTH,
        key="hostfile",
        effect="hosts, `NAME slots=N` a line; in an allocation it may only leave nodes out",
    ),
    Flag(names=("--include",), of=_RUNNER, key="include", effect="hosts (and slots) to use: `NAME[:SLOT,SLOT][@NAME…]`"),
    Flag(names=("-e", "--exclude"), of=_RUNNER, key="exclude", effect="hosts (and slots) to leave out"),
    Flag(
        names=("--num_nodes",),
        of=_RUNNER,
        key="num_nodes",
        effect="the first N hosts; more than there are is an error",
        options=_NUMBER,
    ),
    Flag(
        names=("--num_accelerators", "--num_gpus"),
        of=_RUNNER,
        key="num_gpus",
        effect="the first N devices of each host; more than its slots is an error",
        options=_NUMBER,
    ),
    Flag(
        names=("--master_addr",),
        of=_RUNNER,
        key="master_addr",
        effect="where ranks meet; else the first host's name (with the site's suffix)",
    ),
    Flag(
        names=("--master_port",),
        of=_RUNNER,
        key="master_port",
        effect="its port; else one of this launch's own, so that two launches do not meet",
        options=_NUMBER,
    ),
    Flag(
        names=("--launcher",),
        of=_RUNNER,
        key="launcher",
        effect="one of DeepSpeed's names or ours; in an allocation the site's takes its place",
    ),
    Flag(
        names=("--launcher-args", "--launcher_args"),
        of=_RUNNER,
        effect="further arguments of the launcher, checked for those that the plan decides",
    ),
    Flag(
        names=("--no_ssh_check",),
        of=_RUNNER,
        key="no_ssh_check",
        effect="do not try to reach the first host by ssh before",
        options=_SWITCH,
    ),
    Flag(
        names=("--force_multi",),
        of=_RUNNER,
        key="force_multi",
        effect="use the launcher on this machine alone too",
        options=_SWITCH,
    ),
    Flag(names=("--ssh_port",), of=_RUNNER, effect="port of sshd, for pdsh; an error with another launcher", options=_NUMBER),
    Flag(names=("-q", "--quiet"), of=_RUNNER, effect="no notes", options=_SWITCH),
    Flag(
        names=("--no_ssh",),
        of=_RUNNER,
        effect="start the ranks of this node alone: the same command runs on each, with its --node_rank",
        options=_SWITCH,
    ),
    Flag(
        names=("--node_rank",),
        of=_RUNNER,
        effect="with --no_ssh: which host of the hostfile this node is, from 0; they join the run directory of node 0",
        options=_NUMBER,
    ),
    Flag(
        names=("--log_level",),
        of=_RUNNER,
        effect="",
        refused="the runner's own log is not used: --quiet leaves out the notes",
    ),
    Flag(
        names=("--module",),
        of=_RUNNER,
        effect="",
        refused="remove it: the training is started as a module anyway",
        options=_SWITCH,
    ),
    Flag(
        names=("--no_python",),
        of=_RUNNER,
        effect="",
        refused="--site-set software.python=PATH names what is started",
        options=_SWITCH,
    ),
    Flag(names=("--no_local_rank",), of=_RUNNER, effect="", refused="remove it: ranks read LOCAL_RANK anyway", options=_SWITCH),
    Flag(
        names=("--save_pid",),
        of=_RUNNER,
        effect="",
        refused="remove it: the run's receipt.json holds the process, and `neox-hpc cancel` ends it",
        options=_SWITCH,
    ),
    Flag(
        names=("--enable_each_rank_log",),
        of=_RUNNER,
        effect="",
        refused="remove it: lines carry their rank; or hand the launcher's own option on with --launcher_args",
    ),
    Flag(
        names=("--bind_cores_to_rank",),
        of=_RUNNER,
        effect="",
        refused="--site-set node.cores=N, or node.cpu_masks=[...], binds ranks",
        options=_SWITCH,
    ),
    Flag(names=("--bind_core_list",), of=_RUNNER, effect="", refused="--site-set node.cpu_masks=[...] binds ranks"),
    Flag(names=("--venv_script",), of=_RUNNER, effect="", refused="--site-set software.venv=DIRECTORY uses an environment"),
    Flag(names=("-s", "--site"), of=_OURS, effect="the machine; else told by its signs, or by the scheduler of the allocation"),
    Flag(
        names=("--site-set",),
        of=_OURS,
        effect="override a fact of the site: --site-set node.gpus=4",
        options={"action": "append", "default": [], "metavar": "FACT=VALUE"},
    ),
    Flag(
        names=("--set",),
        of=_OURS,
        effect="override a key: --set train_iters=100",
        options={"action": "append", "default": [], "metavar": "KEY=VALUE"},
    ),
    Flag(names=("-c", "--container"), of=_OURS, effect="run in this image; `none`: in no image", options={"metavar": "IMAGE"}),
    Flag(names=("--name",), of=_OURS, effect="name of the run; default: the first configuration file's"),
    Flag(names=("--output-dir",), of=_OURS, effect="where run directories are made", options={"default": "runs"}),
    Flag(names=("--run-id",), of=_OURS, effect="name of the run directory"),
    Flag(names=("--dry-run",), of=_OURS, effect="print the script that would run; write and start nothing", options=_SWITCH),
)

_TO_RUNNER = ("launcher_args", "ssh_port", "no_ssh", "node_rank")
"""Flags of DeepSpeed's runner that are no keys."""
_KEYS_TO_RUNNER = (
    *("hostfile", "include", "exclude", "num_nodes", "num_gpus", "master_port", "master_addr", "launcher"),
    *("force_multi", "no_ssh_check"),
)
"""GPT-NeoX's keys that deepy.py hands to the runner."""


KEYS_OF_HOSTS = ("include", "exclude", "num_gpus", "master_addr", "master_port", "launcher")
"""What a configuration says of hosts that no scheduler gives."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command line of ``neox-hpc launch``."""

    program: str
    configs: tuple[str, ...]
    given: Mapping[str, Any]
    """Flag -> its value, of those that were given."""

    @property
    def node_rank(self) -> int | None:
        """With --no_ssh: which of the hosts this one is."""
        return self.given["node_rank"] if "no_ssh" in self.given else None

    @property
    def sets(self) -> tuple[str, ...]:
        """The keys that flags set, and those of --set, as texts of ``--set``."""
        keys = ((flag.key, self.given[flag.dest]) for flag in FLAGS if flag.key and flag.dest in self.given)
        return (*(f"{key}={_as_yaml(value)}" for key, value in keys), *self.given.get("set", ()))


EXAMPLES = (
    "neox-hpc launch train -d configs 125M.yml local_setup.yml",
    "neox-hpc launch train -H hosts --launcher openmpi my.yml",
    "neox-hpc launch train --include node1@node2 --dry-run my.yml",
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(Problem("neox-hpc launch", message, "`neox-hpc launch --help` shows the flags"))


def parser() -> argparse.ArgumentParser:
    """The command line of deepy.py, with DeepSpeed's flags and ours."""
    made = _Parser(
        prog="neox-hpc launch",
        usage="neox-hpc launch train [FLAGS] CONFIG.yml...",
        allow_abbrev=False,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train here and now, inside an allocation or on the hosts of a hostfile: deepy.py's command line.",
        epilog="\n".join(("examples:", *(f"  {line}" for line in EXAMPLES))),
    )
    made.add_argument("program", metavar="train|eval|generate")
    made.add_argument("configs", nargs="+", metavar="CONFIG.yml")
    made.add_argument("-h", "--help", action="store_true", help="show this")
    for flag in FLAGS:
        shown = argparse.SUPPRESS if flag.refused else flag.effect.replace("%", "%%")
        options = {"default": None, "dest": flag.dest, "help": shown, **flag.options}
        if options.get("action") != "store_true":
            options.setdefault("metavar", "VALUE" if "choices" not in options else None)
        made.add_argument(*flag.names, **options)
    return made


def read_command(argv: Sequence[str]) -> Command:
    """The command line, read.

    Raises:
        UserError: a flag or a value is wrong, or no such thing can be launched.
    """
    values = vars(parser().parse_args(list(argv)))
    given = {name: value for name, value in values.items() if value is not None and value is not False}
    if "launcher" in given:
        given["launcher"] = given["launcher"].lower()
    refused = [Problem(flag.names[-1], "is not taken here", flag.refused) for flag in FLAGS if flag.refused and flag.dest in given]
    program = re.sub(r"^(\./)?(\w+)(\.py)?$", r"\2", given.pop("program"))
    if program not in PROGRAMS:
        refused.append(Problem(program, "cannot be launched", f"write one of {', '.join(PROGRAMS)}"))
    if ("no_ssh" in given) != ("node_rank" in given):
        fix = "write both, e.g. --no_ssh --node_rank 0 on the first host of the hostfile"
        refused.append(Problem("--no_ssh, --node_rank", "one is without the other", fix))
    if refused:
        raise UserError(refused)
    return Command(program=program, configs=tuple(given.pop("configs")), given=given)


def runner_words(command: Command, loaded: Loaded, environ: Mapping[str, str]) -> list[str]:
    """The words for DeepSpeed's runner: GPT-NeoX's keys; DLTS_HOSTFILE and MASTER_ADDR go before a file's; flags before both.

    As deepy.py does: a key counts where it is not at its default, deepspeed_mpi and deepspeed_slurm force the launcher on one node,
    and num_gpus gives way to a choice of hosts.
    """
    launch = loaded.config.launch
    keys = {key: getattr(launch, key) for key in _KEYS_TO_RUNNER}
    found = {key: value for key, value in keys.items() if value != type(launch).model_fields[key].default}
    if launch.deepspeed_mpi or launch.deepspeed_slurm:
        found["force_multi"] = True
    for variable, name in (("DLTS_HOSTFILE", "hostfile"), ("MASTER_ADDR", "master_addr")):
        if environ.get(variable) and name not in command.given:
            found[name] = environ[variable]
    if {"include", "exclude"} & found.keys() and "num_gpus" not in command.given:
        found.pop("num_gpus", None)
    found |= {name: command.given[name] for name in _TO_RUNNER if name in command.given}
    return [_word(name, value) for name, value in found.items()]


def _word(name: str, value: Any) -> str:
    return f"--{name}" if value is True else f"--{name}={value}"  # one word: launcher_args begins with a dash


def _as_yaml(value: Any) -> str:
    return json.dumps(value)


# Hosts -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Around:
    """What there is to launch on."""

    allocation: tuple[str, ...] | None = None
    """The nodes of the scheduler's job that this runs in."""
    hostfile: Hostfile | None = None
    """The file that is there."""
    devices: int = 0
    """Of this machine."""


def pool_of(site: Site, around: Around) -> dict[str, int]:
    """Host -> slots.  Inside an allocation the scheduler's nodes, or those of them that a hostfile names; else the hostfile's; else
    this machine.

    Raises:
        UserError: the hostfile is wrong, or names what is not of the job.
    """
    file = around.hostfile
    if file is not None and file.problems:
        raise UserError(file.problems)
    if around.allocation is None:
        if file is not None:
            return {host.name: host.slots for host in file.hosts}
        return {THIS_HOST: site.node.ranks or around.devices or site.node.cpu_ranks}
    slots = site.node.ranks or around.devices or site.node.cpu_ranks
    if file is None:
        return dict.fromkeys(around.allocation, slots)
    strange = [host for host in file.hosts if host.name not in around.allocation]
    if strange:
        nodes = ", ".join(around.allocation)
        raise UserError(
            Problem(f"{file.path}:{host.line}", f"{host.name} is no node of this job", f"its nodes are {nodes}") for host in strange
        )
    named = {host.name: host.slots for host in file.hosts}
    return {name: named[name] for name in around.allocation if name in named}


def launch_notes(loaded: Loaded, site: Site, around: Around, hostfile: str) -> list[str]:
    """A hostfile that was passed over; what the allocation's site decides in the place of keys."""
    notes = []
    if "hostfile" in loaded.places and hostfile == loaded.config.launch.hostfile and around.hostfile is None:
        instead = "the nodes of this job" if around.allocation is not None else "this machine alone"
        notes.append(f"hosts: {instead}; there is no {hostfile} ({loaded.where('hostfile').replace('  ', ' ')})")
    named = loaded.config.launch.launcher
    ours = LAUNCHERS_OF_DEEPSPEED.get(named, named)
    if around.allocation is not None and "launcher" in loaded.places and ours != site.launcher:
        where = loaded.where("launcher").replace("  ", " ")
        notes.append(
            f"launcher: {site.launcher} of {site.name} takes the place of {named} ({where}); --site-set launcher={ours} changes it"
        )
    return notes


def check_choice(pool: Mapping[str, int], num_nodes: int, num_gpus: int, filtered: bool) -> Iterator[Problem]:
    """What DeepSpeed would refuse, or take for less than it says."""
    if filtered and (num_nodes >= 0 or num_gpus >= 0):
        yield Problem("--num_nodes, --num_gpus", "cannot stand beside --include or --exclude", "remove one of them")
    if num_nodes > len(pool):
        yield Problem("--num_nodes", f"{num_nodes} hosts, and there are {len(pool)}: {', '.join(pool)}", "ask for fewer")
    if num_nodes == 0 or num_gpus == 0:
        yield Problem("--num_nodes" if num_nodes == 0 else "--num_gpus", "0 is none", "ask for at least 1")
    for host, slots in pool.items():
        if num_gpus > slots:
            yield Problem("--num_gpus", f"{num_gpus}, and {host} has {slots} slots", f"ask for at most {min(pool.values())}")
            return


def check_hosts(active: Mapping[str, Sequence[int]], launcher: str, ssh_port: int | None = None) -> Iterator[Problem]:
    """Ranks are laid out over nodes that are equal; most launchers cannot be told devices by their numbers, nor a port of sshd."""
    if ssh_port is not None and launcher != "pdsh":
        yield Problem("--ssh_port", f"{launcher} cannot be told it", "write Port for these hosts in ~/.ssh/config")
    counts = {host: len(slots) for host, slots in active.items()}
    if not counts:
        yield Problem("--include, --exclude", "leave no host", "name at least one to use")
    elif len(set(counts.values())) > 1:
        shown = ", ".join(f"{host} {number}" for host, number in counts.items())
        yield Problem("slots", f"differ between hosts ({shown})", f"--num_gpus {min(counts.values())} uses as many of each")
    numbered = [host for host, slots in active.items() if list(slots) != list(range(len(slots)))]
    if numbered and launcher not in ("pdsh", "local"):
        wrong = f"{launcher} cannot be told which devices of {numbered[0]} to use ({', '.join(map(str, active[numbered[0]]))})"
        yield Problem("--include, --exclude", wrong, "choose whole hosts, or --num_gpus N for the first ones")


def check_node(active: Mapping[str, Sequence[int]], node_rank: int, around: Around) -> Iterator[Problem]:
    """A node that is started by itself is one of the hosts."""
    if around.allocation is not None:
        wrong = "this is a scheduler's job, whose launcher enters its nodes without ssh"
        yield Problem("--no_ssh", wrong, "remove --no_ssh and --node_rank")
    if not 0 <= node_rank < len(active):
        yield Problem("--node_rank", f"{node_rank}, and there are {len(active)} hosts: {', '.join(active)}", "count from 0")


def choose_launcher(site: Site, named: str | None, around: Around, *, force: bool) -> str:
    """Inside an allocation the site's; with a hostfile, or where it is forced, the one that is named, else pdsh; alone
    DeepSpeed's of one node."""
    if around.allocation is not None:
        return site.launcher
    if named is None and site.launcher != "local":
        return site.launcher
    if around.hostfile is None and not force:
        return "local"
    return LAUNCHERS_OF_DEEPSPEED.get(named or DEFAULT_LAUNCHER, named or DEFAULT_LAUNCHER)


def launched_site(
    site: Site, launcher: str, active: Mapping[str, Sequence[int]], around: Around, environ: Mapping[str, str]
) -> Site:
    """The site as a launch sees it: hosts are there, no job is asked for; the shell's own environment counts.

    Ranks of a host are its slots: fewer than the site's GPUs leave the others idle.
    """
    slots = len(next(iter(active.values())))
    node = site.node
    if node.gpus == 0 or (node.gpus is None and not around.devices):
        shape: dict[str, Any] = {"gpus": 0, "cpu_ranks": slots}
    else:
        shape = {"gpus": slots}
    if node.cpu_masks is not None and len(node.cpu_masks) != slots:
        shape["cpu_masks"] = node.cpu_masks[:slots] if len(node.cpu_masks) > slots else None
    loopback = launcher != "local" and site.network.interface == LOOPBACK  # of a site that is one machine
    interface = None if loopback else site.network.interface
    network = site.network.model_copy(update={"interface": interface, "address": "name"})  # an address is known beforehand
    own_software = site.way is not None or site.container.image is not None
    return site.model_copy(
        update={
            "scheduler": "local",
            "launcher": launcher,
            "here": True,
            "max_nodes": None,
            "queues": None,
            "default_queue": (),
            "needs_account": False,
            "directives": (),
            "skip_directives": (),
            "stage": type(site.stage)(),
            "node": node.model_copy(update=shape),
            "network": network,
            "modules": site.modules if own_software else Modules(),
            "env": {name: values for name, values in site.env.items() if name not in environ},
        }
    )


def hosts_text(active: Mapping[str, Sequence[int]]) -> str:
    """A hostfile of the hosts that are used."""
    return "".join(f"{host} slots={len(slots)}\n" for host, slots in active.items())


def read_environment_file(text: str, path: str) -> dict[str, str]:
    """``.deepspeed_env``: ``NAME=VALUE`` a line, the value as it stands; blank lines and comments are passed over.

    Raises:
        UserError: a line is something else.
    """
    found: dict[str, str] = {}
    problems: list[Problem] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if equals and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name.strip()):
            found[name.strip()] = value.strip()
        else:
            problems.append(Problem(f"{path}:{number}", f"{line.strip()!r} sets no variable", "write NAME=VALUE"))
    if problems:
        raise UserError(problems)
    return found
