"""``neox-hpc completion``: the script that teaches a shell our verbs, options and runs.

Changes when a shell is added.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell's completion script.

    \b
    Examples:
      neox-hpc completion bash >> ~/.bashrc
      neox-hpc completion zsh >> ~/.zshrc
      neox-hpc completion fish > ~/.config/fish/completions/neox-hpc.fish
    """
    from neox_hpc.cli import cli

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "neox-hpc", "_NEOX_HPC_COMPLETE").source())
