"""`completion`: the script that teaches a shell to complete this command. click makes it."""

from __future__ import annotations

import click

_VARIABLE = "_MLORA_SCHED_COMPLETE"
"""click's own name for it, made of the program's: a shell sets it when it wants completions."""


@click.command()
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL (bash, zsh or fish) complete verbs, options and jobs.

    Such as: eval "$(mlora-sched completion bash)"
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, shell
    root = context.find_root()
    click.echo(kind(root.command, {}, root.info_name or "mlora-sched", _VARIABLE).source())
