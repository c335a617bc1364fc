"""Steps 1 to 5 of a submit: from the command line to rendered files.  Nothing here can reach a scheduler; with ``--host`` the files
of that machine are looked at, by ssh.

Changes when what the command line asks for does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from neox_hpc import __version__
from neox_hpc.cli.surroundings import git_commit, user_name
from neox_hpc.decisions import hostfile_paths
from neox_hpc.errors import Problem, UserError
from neox_hpc.extras import extras_of
from neox_hpc.inputs import FILE, Inputs, write_inputs
from neox_hpc.marked_yaml import NOTHING
from neox_hpc.plan import Plan, Planned, make_plan, with_machine, with_slots
from neox_hpc.probe import Facts, probe
from neox_hpc.render import JobFiles, Launch, render
from neox_hpc.request import Request, read_after, read_array, read_early_signal, run_name
from neox_hpc.rundir import choose_path
from neox_hpc.schedulers import SCHEDULERS, After, Chain, EarlySignal
from neox_hpc.settings import Loaded, load_config
from neox_hpc.site import WAYS, Site, read_walltime
from neox_hpc.site_files import list_sites, load_placed_site, site_name
from neox_hpc.software import bound_paths, image_of
from neox_hpc.user_config import UserSite, read_user_site

if TYPE_CHECKING:
    from neox_hpc.auto import Proposals

if TYPE_CHECKING:
    from neox_hpc.cli.far import FarDesk

Command = TypeVar("Command", bound=Callable[..., Any])
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The command line; a default where nothing is said."""

    configs: tuple[str, ...]
    site: str | None
    conf_dir: str | None = None
    sets: tuple[str, ...] = ()
    site_sets: tuple[str, ...] = ()
    nodes: int | None = None
    walltime: str | None = None
    account: str | None = None
    queue: str | None = None
    directives: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    array: str | None = None
    exclude: str | None = None
    early_signal: str | None = None
    requeue: bool = False
    launcher_args: tuple[str, ...] = ()
    name: str | None = None
    output_dir: str = "runs"
    run_id: str | None = None
    container: str | None = None
    auto: bool = False
    node_rank: int | None = None
    """Nodes that are started one by one have a run directory each."""
    host: str | None = None
    ssh: str = "paramiko"


@dataclass(frozen=True, kw_only=True)
class Times:
    """What the command line says of when, read from its texts."""

    walltime_s: int | None
    after: tuple[After, ...]
    array: Chain | None
    early_signal: EarlySignal | None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A job up to its rendered files."""

    path: Path
    """The run directory; it does not exist yet."""
    request: Request
    inputs: Inputs
    planned: Planned
    files: JobFiles | None
    """Absent when no plan can be made."""
    proposals: Proposals | None = None
    """With --auto; the plan is that of the first."""
    far: FarDesk | None = None
    """The machine that it will be submitted at, where that is another one."""

    @property
    def run_files(self) -> JobFiles:
        """What a run directory gets: the files, and what they were made from."""
        assert self.files is not None
        return {**self.files, FILE: write_inputs(self.inputs)}

    @property
    def plan(self) -> Plan:
        """The plan, once :meth:`refuse` has let it pass."""
        assert self.planned.plan is not None
        return self.planned.plan


def job_options(command: Command) -> Command:
    """The arguments and options that ``submit`` and ``render`` share."""
    return _ARGUMENT(_SITE(other_options(command)))


def other_options(command: Command) -> Command:
    """Those options but for the site: of verbs with other arguments."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def asked_of(options: dict[str, Any]) -> Asked:
    """The options of :func:`job_options` as one value."""
    return Asked(**options)


@dataclass(frozen=True, kw_only=True)
class Here:
    """A start in this shell, on hosts that are known: what it changes of a submit."""

    site: Site
    request: Request
    facts: Callable[[Facts], Facts]
    files: JobFiles
    """Beside those of every job."""
    launch: Callable[[Plan], Launch]


AsLaunched = Callable[[Loaded, Site, Request], Here]
Given = tuple[Loaded, tuple[Site, Mapping[str, str]], UserSite, Times]
"""The configuration, the site with the places of its facts, what the user says of it, and the texts of the command line."""


def prepare(asked: Asked, *, cwd: Path, as_launched: AsLaunched | None = None) -> Prepared:
    """Read, plan, render.

    Raises:
        UserError: the files or the site cannot be read; problems of the plan are in the result.
    """
    given = _load(asked, cwd)
    loaded, (site, _), user, _ = given
    name = _as_directory(run_name(asked.name, loaded.files))
    far = _far(asked, site, user) if as_launched is None else None
    if far is not None:
        return far.choose(name, lambda run_dir: _prepare_at(run_dir, None, far.folder, given, asked, cwd, None, far))
    path, joins = _paths(cwd / Path(asked.output_dir).expanduser(), name, asked)
    return _prepare_at(str(path), None if joins is None else str(joins), str(cwd), given, asked, cwd, as_launched, None)


def _far(asked: Asked, site: Site, user: UserSite) -> FarDesk | None:
    """The machine to submit at: of ``--host``; else of the user's file or the site's, where its scheduler is not on this one."""
    text = asked.host if asked.host is not None else user.login or site.login
    if text is None or text == THIS_MACHINE or (asked.host is None and _has_program(site)):
        return None
    from neox_hpc.cli.far import desk_at

    return desk_at(text, asked, site)


def _has_program(site: Site) -> bool:
    import shutil

    return shutil.which(SCHEDULERS[site.scheduler].submit_argv(Path("job.sh"))[0]) is not None


def _prepare_at(
    run_dir: str,
    joins: str | None,
    folder: str,
    given: Given,
    asked: Asked,
    cwd: Path,
    as_launched: AsLaunched | None,
    far: FarDesk | None,
) -> Prepared:
    """The job in a run directory.

    Args:
        folder: what relative paths of inputs count from, on the machine that submits.
    """
    loaded, (site, places), user, times = given
    name = run_name(asked.name, loaded.files)
    request = Request(
        name=name,
        name_is_given=bool(asked.name),
        run_dir=run_dir,
        cwd=folder,
        user=user_name(),
        git_commit=git_commit(cwd),
        neox_hpc=__version__,
        nodes=asked.nodes,
        walltime_s=times.walltime_s,
        account=asked.account,
        user_account=(user.place, user.account) if user.account else None,
        environment_account=_environment_account(site) if far is None else None,
        environment_hostfile=os.environ.get("DLTS_HOSTFILE") if far is None else None,
        queue=asked.queue,
        container=asked.container,
        software_place=user.software_place if asked.container is None and not _names_software(asked) else None,
        directives=asked.directives,
        after=times.after,
        array=times.array,
        exclude=asked.exclude,
        early_signal=times.early_signal,
        requeue=asked.requeue,
        node_rank=asked.node_rank,
        joins=joins,
        launcher_args=asked.launcher_args,
    )
    here = as_launched(loaded, site, request) if as_launched is not None else _on_hosts(loaded, site, request)
    if here is not None:
        site, request = here.site, here.request
    image = image_of(site, request)
    file = image if image is not None and image.startswith("/") else None
    bound = bound_paths(loaded.config, request) if image is not None else ()
    hosts = hostfile_paths(loaded, site, request)
    if far is None:
        extras = [extra.package for extra in extras_of(loaded.config)] if image is None else []
        facts = probe(loaded.config, site, cwd=cwd, environ=os.environ, image=file, bound=bound, hostfiles=hosts, packages=extras)
    else:
        facts = far.probe(loaded.config, site, image=file, bound=bound, hostfiles=hosts)
    facts = here.facts(facts) if here is not None else facts
    proposals = _propose(loaded, site, request, facts) if asked.auto else None
    if proposals is not None:
        from neox_hpc.auto import with_proposal

        loaded = with_proposal(loaded, proposals.best[0])
    planned = make_plan(loaded, site, request, facts)
    files: JobFiles | None = None
    launch: Launch | None = None
    if planned.plan is not None:
        launch = here.launch(planned.plan) if here is not None else None
        files = {**render(planned.plan, launch), **(here.files if here is not None else {})}
    inputs = Inputs(loaded=loaded, site=site, places=places, request=request, facts=facts, launch=launch)
    return Prepared(
        path=Path(request.run_dir),
        request=request,
        inputs=inputs,
        planned=planned,
        files=files,
        proposals=proposals,
        far=far,
    )


def _propose(loaded: Loaded, site: Site, request: Request, facts: Facts) -> Proposals:
    """The cuts that --auto finds for the nodes that are asked for."""
    from neox_hpc.auto import choose_cuts

    return choose_cuts(loaded, with_machine(with_slots(site, facts), facts)[0], request, facts)


def _on_hosts(loaded: Loaded, site: Site, request: Request) -> Here | None:
    """Hosts that no scheduler gives, as the configuration chooses among them."""
    if site.hostfile is None or SCHEDULERS[site.scheduler].starts_job:
        return None
    from neox_hpc.cli.launch import submitted

    return submitted(loaded, site, request)


def print_notes(notes: Iterable[str]) -> None:
    """What was decided without being asked."""
    for note in notes:
        click.echo(f"note: {note}", err=True)


def print_problems(problems: Iterable[Problem]) -> None:
    """Every problem on stderr; keys that do not train yet in one block."""
    problems = tuple(problems)
    for problem in problems:
        if problem.kind != "untrained":
            click.echo(str(problem), err=True)
    untrained = [problem for problem in problems if problem.kind == "untrained"]
    if untrained:
        which, them = ("1 key renders", "it") if len(untrained) == 1 else (f"{len(untrained)} keys render", "them")
        click.echo(f"{which}, but this version does not train {them} yet:", err=True)
        for problem in untrained:
            click.echo(f"  {problem.where}: {problem.wrong}" + (f" ({problem.fix})" if problem.fix else ""), err=True)


def _load(asked: Asked, cwd: Path) -> Given:
    """The configuration, the site, what the user says of it, and the texts of the command line; the problems of all at once."""
    problems: list[Problem] = []
    loaded = _collect(problems, lambda: load_config(asked.configs, conf_dir=asked.conf_dir, sets=asked.sets, cwd=cwd))
    user = _collect(problems, lambda: read_user_site(site_name(asked.site or ""), Path.home()))
    own = user.facts if user is not None else NOTHING
    site = _collect(problems, lambda: load_placed_site(_site_of(asked), asked.site_sets, cwd=cwd, own=own))
    times = _read_times(asked, problems)
    if problems or loaded is None or site is None or user is None:
        raise UserError(problems)
    return loaded, site, user, times


def _names_software(asked: Asked) -> bool:
    """Whether a --site-set says what the ranks run in."""
    return any(text.startswith(f"{section}.{key}=") for text in asked.site_sets for section, key in WAYS)


def _environment_account(site: Site) -> tuple[str, str] | None:
    """The variable from which the scheduler's own commands would take an account, and the account."""
    given = ((name, os.environ.get(name, "")) for name in SCHEDULERS[site.scheduler].account_variables)
    return next(((f"${name}", account) for name, account in given if account), None)


def _collect(problems: list[Problem], load: Callable[[], Value]) -> Value | None:
    try:
        return load()
    except UserError as error:
        problems += error.problems
        return None


def _site_of(asked: Asked) -> str:
    if asked.site is None:
        from neox_hpc.cli.sites import detect_here

        found = detect_here()
        named = f"{found.sign}, so this looks like {found.site}: write --site {found.site}" if found else _named_sites()
        raise UserError(Problem("--site", "no machine is named", named))
    return asked.site


def _named_sites() -> str:
    return f"write --site NAME: one of {', '.join(list_sites())}, or a file's path"


def _paths(base: Path, name: str, asked: Asked) -> tuple[Path, Path | None]:
    """The run directory, and that of node 0 which this node joins: nodes that are started one by one must know its name."""
    if asked.node_rank is None:
        return choose_path(base, name, asked.run_id), None
    first = asked.run_id or name
    if asked.node_rank == 0:
        return choose_path(base, name, first), None
    return choose_path(base, f"{first}-node{asked.node_rank}", None), base / first


def _as_directory(name: str) -> str:
    """A name that is no plain file name is refused by the plan, with everything else; until then it must not lead elsewhere."""
    return name.replace("/", "_").replace("\0", "_").lstrip(".") or "run"


def _read_times(asked: Asked, problems: list[Problem]) -> Times:
    """What the command line says in small languages of its own."""
    after = (_collect(problems, partial(_read, "--after", text, read_after)) for text in asked.after)
    return Times(
        walltime_s=_collect(problems, lambda: _read("--time", asked.walltime, read_walltime)),
        after=tuple(found for found in after if found is not None),
        array=_collect(problems, lambda: _read("--array", asked.array, read_array)),
        early_signal=_collect(problems, lambda: _read("--signal", asked.early_signal, read_early_signal)),
    )


def _read(option: str, text: str | None, read: Callable[[str], Value]) -> Value | None:
    try:
        return None if text is None else read(text)
    except ValueError as error:
        wrong, _, fix = str(error).partition(": ")
        raise UserError(Problem(option, wrong, fix)) from None


_ARGUMENT = click.argument("configs", nargs=-1, required=True, metavar="CONFIG.yml...")
_SITE = click.option("-s", "--site", help="The machine: a name (neox-hpc sites list) or a site file.")
THIS_MACHINE = "none"
"""``--host none``: not the machine that the user's file or the site's names."""
_OPTIONS = (
    click.option("-d", "--conf-dir", help="Directory that relative CONFIG paths count from."),
    click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key: --set train_iters=100 --set optimizer.params.lr=0.001",
    ),
    click.option(
        "--site-set", "site_sets", multiple=True, metavar="FACT=VALUE", help="Override a fact of the site: --site-set node.gpus=4"
    ),
    click.option(
        "-N",
        "--nodes",
        type=int,
        help="Nodes; default: from the configuration, else the fewest that hold the model.",
    ),
    click.option(
        "--auto",
        is_flag=True,
        help="Look for the cut with the shortest step: tensor, pipe, ZeRO's stage, micro-batch, recomputation.",
    ),
    click.option("-t", "--time", "walltime", metavar="TIME", help="Walltime: 90m, 2h, 1d12h or HH:MM:SS."),
    click.option("-A", "--account", help="Account that pays; default: of ~/.config/neox-hpc/config.yml."),
    click.option("-q", "--queue", help="Queue (Slurm: partition)."),
    click.option(
        "-c", "--container", metavar="IMAGE", help="Run in this image: a .sif file (Docker: a name); `none`: in no image."
    ),
    click.option("--after", multiple=True, metavar="JOB[:any|:notok]", help="Start once this job of the scheduler has ended well."),
    click.option(
        "--array", metavar="FIRST-LAST%1", help="A chain of jobs, one at a time, each from the newest checkpoint: --array 1-5%1"
    ),
    click.option("--exclude", metavar="NODES", help="Nodes to leave out, with commas between them."),
    click.option(
        "--signal", "early_signal", metavar="SIG@TIME", help="A signal so long before the walltime ends: USR1@300 (seconds)."
    ),
    click.option("--requeue", is_flag=True, help="Start the script again after a node failure."),
    click.option(
        "--directive", "directives", multiple=True, metavar="TEXT", help="A further argument of the scheduler: --directive=--mem=0"
    ),
    click.option(
        "--launcher-args",
        multiple=True,
        metavar="TEXT",
        help="Further arguments of the site's launcher: --launcher-args '--mpi=none'",
    ),
    click.option("--name", help="Name of the job; default: the first configuration file's."),
    click.option("-o", "--output-dir", default="runs", show_default=True, help="Where run directories are made."),
    click.option(
        "--host",
        metavar="USER@LOGIN[:FOLDER]",
        help="Submit there by ssh; paths count from FOLDER, or the home there. Default: `login` of the site; `none`: here.",
    ),
    click.option(
        "--ssh",
        type=click.Choice(["paramiko", "openssh"]),
        default="paramiko",
        show_default=True,
        help="How --host is reached: openssh keeps a connection open, so that a code is asked for once a day.",
    ),
    click.option("--run-id", help="Name of the run directory; default: the job's name, with .2, .3 … when it is taken."),
)
