"""``neox-hpc launch``: train here and now, on the nodes of this allocation or on the hosts of a hostfile.

Changes when the steps of a launch do; what its flags and keys mean is in ``neox_hpc/launch.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neox_hpc import launch as decide
from neox_hpc import proc
from neox_hpc.cli.prepare import Asked, Here, Prepared, prepare, print_notes, print_problems
from neox_hpc.cli.surroundings import host_name
from neox_hpc.errors import Problem, UserError
from neox_hpc.hostfile import Host, Hostfile
from neox_hpc.jobs import read_hosts
from neox_hpc.launch import Around, Command
from neox_hpc.plan import Plan
from neox_hpc.probe import Facts, read_hostfile, read_machine
from neox_hpc.render import Launch
from neox_hpc.request import Request
from neox_hpc.schedulers import SCHEDULERS
from neox_hpc.settings import Loaded
from neox_hpc.site import Site

if TYPE_CHECKING:
    from neox_hpc.rundir import RunDir

GRACE_S = 60.0
"""From a signal to stop to the end of what ignores it: twice the 30 s that DeepSpeed's launcher of one node and Slurm give."""
SSH_TIMEOUT_S = 20.0


@click.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def launch(words: tuple[str, ...]) -> int:
    """Train here and now, in an allocation or on the hosts of a hostfile: deepy.py's command line.

    \b
    Examples:
      neox-hpc launch train -d configs 125M.yml local_setup.yml
      neox-hpc launch train -H hosts --launcher openmpi my.yml
    """
    if not words or {"-h", "--help"} & set(words):
        click.echo(decide.parser().format_help().replace("usage:", "Usage:", 1), nl=False)  # the flags are in launch.py
        return 0
    if words == ("--markdown",):
        from neox_hpc.launch_page import page

        click.echo(page(), nl=False)
        return 0
    command = decide.read_command(words)
    started = Start(command=command, environ=dict(os.environ))
    prepared = prepare(started.asked, cwd=Path.cwd(), as_launched=started.as_launched)
    notes = (*started.notes, *prepared.planned.notes)
    problems = [*prepared.planned.problems, *_unbuilt(command)]
    if prepared.files is None or problems:
        print_notes(notes)
        print_problems(problems)
        if prepared.files is None or not command.given.get("dry_run"):
            return 2
    elif not command.given.get("quiet"):
        print_notes(notes)
    if command.given.get("dry_run"):
        click.echo(prepared.files["job.sh"], nl=False)
        return 2 if any(problem.kind == "anywhere" for problem in problems) else 0
    return started.run(prepared)


def _unbuilt(command: Command) -> Sequence[Problem]:
    what = decide.PROGRAMS[command.program]
    return [Problem(command.program, f"{what} is planned and not built yet", "launch train")] if what else []


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """Hosts and launcher, decided."""

    args: Namespace
    """DeepSpeed's."""
    around: Around
    pool: Mapping[str, int]
    active: Mapping[str, Sequence[int]]
    launcher: str
    master_port: int | None
    node_rank: int | None

    @property
    def first(self) -> str:
        return next(iter(self.active))

    @property
    def alone(self) -> bool:
        return self.launcher == "local" and self.node_rank is None

    def on(self, site: Site, request: Request) -> Here:
        """The site and the request with these hosts, which stand in a file of the run."""
        path = f"{request.run_dir}/hosts"
        asked = dataclasses.replace(
            request,
            nodes=len(self.active),
            master_addr=self.args.master_addr or None,
            master_port=self.master_port,
            launcher_args=(*request.launcher_args, *([self.args.launcher_args] if self.args.launcher_args else [])),
        )
        return Here(
            site=site if self.alone else site.model_copy(update={"hostfile": path}),
            request=asked,
            facts=lambda seen: self._facts(seen, path),
            files={} if self.alone else {"hosts": decide.hosts_text(self.active)},
            launch=lambda plan: self.argv(_runners(), self.runner(_runners(), plan), {}),
        )

    def _facts(self, seen: Facts, path: str) -> Facts:
        slots = enumerate(self.active.items(), start=1)
        hosts = tuple(Host(name=name, slots=len(slots), line=line) for line, (name, slots) in slots)
        machine = seen.machine
        if self.args.include or self.args.exclude:
            machine = dataclasses.replace(machine, gpu_ids=tuple(map(str, self.active[self.first])))
        return dataclasses.replace(seen, hostfile=None if self.alone else Hostfile(path=path, hosts=hosts), machine=machine)

    def runner(self, runners: Any, plan: Plan) -> Any:
        """DeepSpeed's runner for a plan."""
        self.args.launcher_args = shlex.join(plan.step.launcher_args)  # the site's and the configuration's, too
        self.args.master_addr = ""  # the script has it
        self.args.user_args = list(plan.step.module_args)
        step = dataclasses.replace(plan.step, launcher_args=())
        return runners.make_runner(
            self.launcher, step, self.args, self.active, dict.fromkeys(self.around.allocation or self.pool, 0)
        )

    def argv(self, runners: Any, runner: Any, environ: dict[str, str]) -> Launch:
        """What is started, and what it changes of the environment."""
        try:
            return Launch(argv=runner.get_cmd(environ, self.active), world_info=runners.world_info(self.active))
        except ValueError as error:
            raise UserError(Problem(f"launcher {self.launcher}", str(error), "use all nodes of the job")) from None


@dataclass(kw_only=True)
class Start:
    """A launch, from its command line to its end."""

    command: Command
    environ: dict[str, str]
    """Of the ranks: this shell's, and what .deepspeed_env and the launcher add."""

    @property
    def asked(self) -> Asked:
        given = self.command.given
        return Asked(
            configs=self.command.configs,
            site=given.get("site") or _site_here(),
            conf_dir=given.get("conf_dir"),
            sets=self.command.sets,
            site_sets=tuple(given.get("site_set", ())),
            name=given.get("name"),
            output_dir=given["output_dir"],
            run_id=given.get("run_id"),
            container=given.get("container"),
            node_rank=self.command.node_rank,
        )

    def as_launched(self, loaded: Loaded, site: Site, request: Request) -> Here:
        """The site and the request on the hosts at hand."""
        runners = _runners()
        chosen = _choose(runners, self.command, loaded, site, request.cwd)
        self.notes += decide.launch_notes(loaded, site, chosen.around, chosen.args.hostfile)
        if not chosen.args.no_ssh_check and chosen.launcher in decide.BY_SSH and chosen.around.allocation is None:
            _try_ssh(chosen.first, chosen.args.ssh_port, self.environ)
        self._read_environment_files(runners.environment_files())
        exports = tuple(dict.fromkeys((*runners.exported_names(os.environ), *self._from_files)))
        here = chosen.on(decide.launched_site(site, chosen.launcher, chosen.active, chosen.around, self.environ), request)
        address = None if chosen.alone else _own_address(site, chosen.first)
        asked = dataclasses.replace(here.request, exports=exports, master_addr=here.request.master_addr or address, launched=True)
        return dataclasses.replace(here, request=asked, launch=lambda plan: self._launch(runners, chosen, plan))

    def _launch(self, runners: Any, chosen: _Chosen, plan: Plan) -> Launch:
        """The argv, and what it needs in the environment."""
        runner = chosen.runner(runners, plan)
        if not runner.backend_exists():
            program = runners.PROGRAMS[chosen.launcher]
            fix = "load its module, install it, or name another --launcher"
            raise UserError(Problem(f"launcher {chosen.launcher}", f"there is no {program} on PATH", fix))
        for name in plan.step.env:
            if name in self.environ:
                runner.add_export(name, self.environ[name])
        return chosen.argv(runners, runner, self.environ)

    notes: list[str] = dataclasses.field(default_factory=list)
    _from_files: dict[str, str] = dataclasses.field(default_factory=dict)

    def _read_environment_files(self, paths: Sequence[str]) -> None:
        for path in paths:
            if os.path.isfile(path):
                self._from_files |= decide.read_environment_file(Path(path).read_text(encoding="utf-8"), path)
        self.environ |= self._from_files

    def run(self, prepared: Prepared) -> int:
        """Write the run, start it, and end as it does."""
        from neox_hpc.cli.submit import _write

        run = _write(prepared)
        argv = ["bash", str(run.script)]
        return proc.supervise(
            argv,
            environ=self.environ,
            cwd=run.path,
            log=run.log,
            started=lambda process: _keep_receipt(prepared, run, argv, process),
            grace_s=GRACE_S,
        )


def _keep_receipt(prepared: Prepared, run: RunDir, argv: Sequence[str], process: proc.ProcessId) -> None:
    """So that status, logs and cancel know the run."""
    from neox_hpc.cli.submit import _receipt
    from neox_hpc.rundir import write_receipt

    write_receipt(run, _receipt(prepared, run, str(process.pid), tuple(argv), process.started))


def _choose(runners: Any, command: Command, loaded: Loaded, site: Site, cwd: str) -> _Chosen:
    """Hosts and launcher, by DeepSpeed's own functions.

    Raises:
        UserError: what is named is not there.
    """
    args = runners.read_args(decide.runner_words(command, loaded, os.environ), "model.train", [])
    asked = "--hostfile" if "hostfile" in command.given else "DLTS_HOSTFILE" if os.environ.get("DLTS_HOSTFILE") else None
    if args.hostfile == decide.DEFAULT_HOSTFILE and site.hostfile is not None:
        args.hostfile = site.hostfile
    around = _look_around(site, cwd, args.hostfile, asked)
    pool = decide.pool_of(site, around)
    _raise(decide.check_choice(pool, args.num_nodes, args.num_gpus, bool(args.include or args.exclude)))
    try:
        active = runners.choose_hosts(pool, args)
    except ValueError as error:
        known = f"write hosts of {', '.join(pool)}, with slots below {max(pool.values())}"
        raise UserError(Problem("--include, --exclude", str(error).rstrip("."), known)) from None
    named = loaded.config.launch.launcher if "launcher" in loaded.places else None
    port = loaded.config.launch.master_port if "master_port" in loaded.places else None
    launcher = decide.choose_launcher(site, named, around, force=args.force_multi)
    if command.node_rank is not None:
        _raise(decide.check_node(active, command.node_rank, around))
        launcher, port = "local", args.master_port  # the same on every node: DeepSpeed's, if none is given
    _raise(decide.check_hosts(active, launcher, args.ssh_port))
    return _Chosen(
        args=args, around=around, pool=pool, active=active, launcher=launcher, master_port=port, node_rank=command.node_rank
    )


def submitted(loaded: Loaded, site: Site, request: Request) -> Here | None:
    """A submit to hosts that no scheduler gives, where the configuration chooses among them or their launcher; else nothing."""
    chooses = any(key in loaded.places for key in decide.KEYS_OF_HOSTS)
    if SCHEDULERS[site.scheduler].starts_job or site.hostfile is None or not chooses:
        return None
    command = Command(program="train", configs=(), given={})
    chosen = _choose(_runners(), command, loaded, site, request.cwd)
    if chosen.around.hostfile is None:  # elsewhere: they are read when the job starts
        return None
    here = chosen.on(site.model_copy(update={"launcher": chosen.launcher}), request)
    return dataclasses.replace(here, request=dataclasses.replace(here.request, launched=True))


def _runners() -> Any:
    """DeepSpeed's launcher, which takes two seconds and needs torch; what it logs goes to stderr."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            from neox_hpc.launchers import deepspeed
    except ImportError as error:
        wrong = f"launch stands on DeepSpeed's launcher, which cannot be imported here: {error}"
        raise UserError(Problem("deepspeed", wrong, "pip install 'neox-hpc[train]', or use `neox-hpc submit`")) from None
    return deepspeed


def _raise(problems: Iterable[Problem]) -> None:
    if found := tuple(problems):
        raise UserError(found)


def _site_here() -> str:
    """The machine that this seems to be; else the generic site of the scheduler whose job this is; else this machine."""
    from neox_hpc.cli.sites import detect_here
    from neox_hpc.site_files import list_sites

    found = detect_here()
    if found is not None:
        return found.site
    known = list_sites()
    inside = (name for name, scheduler in SCHEDULERS.items() if name in known and scheduler.hosts_source(os.environ) is not None)
    return next(inside, "local")


def _look_around(site: Site, cwd: str, hostfile: str, asked: str | None) -> Around:
    """The nodes of the allocation, the hostfile, this machine's devices.

    A file that a configuration names and that is not there is passed over: GPT-NeoX's own name ``/mock_path``.

    Args:
        asked: how the file was named for this launch; ``None``: by the configuration, or not at all.
    """
    nodes = read_hosts(SCHEDULERS[site.scheduler], os.environ)
    file = None
    if nodes is None or hostfile != decide.DEFAULT_HOSTFILE:
        file = read_hostfile(os.path.join(cwd, hostfile)) or (read_hostfile(decide.DEFAULT_HOSTFILE) if nodes is None else None)
    if asked is not None and (file is None or file.path != os.path.join(cwd, hostfile)):
        raise UserError(Problem(asked, f"{hostfile} cannot be read", "write the file, or leave it out to use this machine alone"))
    devices = len(read_machine(os.environ).gpu_ids)
    return Around(allocation=None if nodes is None else tuple(nodes), hostfile=file, devices=devices)


def _own_address(site: Site, first: str) -> str | None:
    """This host's address, where the site wants one and ranks meet here; else they meet at the first host's name."""
    if site.network.address != "ip" or host_name().partition(".")[0] != first.partition(".")[0]:
        return None
    said = proc.ask(["hostname", "-i"], timeout_s=SSH_TIMEOUT_S)
    found = [word for word in said.stdout.split() if not word.startswith("127.") and word != "::1"]
    return found[0] if found else None


def _try_ssh(host: str, port: int | None, environ: Mapping[str, str]) -> None:
    argv = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", *(["-p", str(port)] if port else []), host, "true"]
    said = proc.ask(argv, timeout_s=SSH_TIMEOUT_S, environ=environ)
    if said.status != 0:
        words = (said.stderr.strip().splitlines() or [f"exit status {said.status}"])[-1]
        fix = "let ssh in without a password, or write --no_ssh_check where the launcher needs none"
        raise UserError(Problem(host, f"cannot be reached by ssh: {words}", fix))
