"""The command ``neox-hpc``: one file per group of verbs, imported only when its verb is called.

Changes when a verb is added or renamed, or when an error becomes an exit code in another way.
Exit codes: 0 done, 1 failed, 2 the user's mistake (130: interrupted, as shells expect).
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import NamedTuple

import click

from neox_hpc.errors import NeoxHpcError

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # finding pydantic's plugins reads every installed package: 0.05 s


class Verb(NamedTuple):
    """Where a verb's command lies, and its line in ``neox-hpc --help``."""

    command: str
    short_help: str


VERBS: dict[str, Verb] = {
    "submit": Verb("submit:submit", "Plan, render, write and submit a training run (--dry-run only shows it)."),
    "launch": Verb("launch:launch", "Train here and now, inside an allocation or on a hostfile's hosts: deepy.py's command line."),
    "plan": Verb("plan:plan", "The sizes of a run: layout, memory per GPU by part, tokens, node-hours; what is wrong."),
    "explain": Verb("explain:explain", "Which file and key made each line of a run's script, or of one that is not written yet."),
    "diff": Verb("diff:diff", "What differs between two runs, two machines for one configuration, two versions of a profile."),
    "render": Verb("submit:render", "Write a run's files into a directory, without submitting it."),
    "status": Verb("status:status", "How a run stands: state, step, loss, first error, where its log lies."),
    "logs": Verb("logs:logs", "Print a run's output (-f follows it until the job ends)."),
    "cancel": Verb("cancel:cancel", "Stop a run's job."),
    "hostfile": Verb("hostfile:hostfile", "Inside a job: its hosts and their slots, as DeepSpeed and GPT-NeoX read them."),
    "list": Verb("list:list_runs", "The runs of this user, newest first."),
    "plot": Verb("plot:plot", "Draw the loss curve of one or more runs as a PNG."),
    "sites": Verb("sites:sites", "The known machines, and the facts of one."),
    "env": Verb("env:env", "Build the Python environment that jobs of a machine run in."),
    "config": Verb("config:config", "The whole configuration that YAML files amount to."),
    "quickstart": Verb("quickstart:quickstart", "Prepare data, train a small real model here, sample from it, check it."),
    "completion": Verb("completion:completion", "The shell's completion script (bash, zsh, fish)."),
}


class LazyGroup(click.Group):
    """A group that knows its verbs' names and one-line helps, and imports a verb only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, name = VERBS[cmd_name].command.split(":")
        command = getattr(importlib.import_module(f"neox_hpc.cli.{module}"), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.short_help) for name, verb in VERBS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in VERBS and not args[0].startswith("-"):
            ctx.fail(_no_such_verb(args[0]))
        return super().resolve_command(ctx, args)


def _no_such_verb(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, VERBS, n=1)
    return f"no command {name!r}: " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(VERBS)}")


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from neox_hpc import __version__

        click.echo(f"neox-hpc {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, callback=_print_version, expose_value=False, is_eager=True, help="Print the version.")
def cli() -> None:
    """Turns a GPT-NeoX YAML file into a training job on any GPU machine.

    \b
    Examples:
      neox-hpc quickstart                                        a real small model, trained here, in minutes
      neox-hpc submit --site local --watch configs/quickstart.yml
      neox-hpc submit --site ./mysite.yml --dry-run my.yml       the exact script, without a scheduler
      neox-hpc status                                            how the newest run stands
      neox-hpc logs -f quickstart
    """


def main(argv: list[str] | None = None) -> None:
    """The entry point: runs a command line and leaves the process with its exit code."""
    sys.exit(run_command_line(sys.argv[1:] if argv is None else argv))


def run_command_line(argv: list[str]) -> int:
    """Run one command line; errors are printed here, and nowhere else, without a traceback."""
    try:
        outcome = cli.main(args=argv, prog_name="neox-hpc", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except NeoxHpcError as error:
        click.echo(str(error), err=True)
        return error.exit_code
    except OSError as error:  # standard output on a full disk; files of ours are seen to where they are written
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        click.echo(f"output: {error.strerror}", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left of it would fail once more when Python ends, with status 120
        return 1
    return outcome if isinstance(outcome, int) else 0
