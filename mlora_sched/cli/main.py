"""The command `mlora-sched`: which verbs there are, and the one place where errors become exit codes.

Each verb lives in a module of its own that is imported only when the verb is called, so that help, mistakes in the
command line and remote verbs never pay for torch.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn, TextIO, cast

import click

from mlora_sched.cli.stdout import Stdout
from mlora_sched.errors import EXIT_INTERRUPTED, MloraError
from mlora_sched.version import __version__

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


@dataclass(frozen=True)
class Verb:
    """A verb of the command line: `module` holds a click command named as the verb."""

    name: str
    module: str
    summary: str


def _remote(name: str, summary: str) -> Verb:
    return Verb(name, f"mlora_sched.cli.remote.{name}", summary)


def _local(name: str, summary: str) -> Verb:
    return Verb(name, f"mlora_sched.cli.local.{name}", summary)


SECTIONS: dict[str, tuple[Verb, ...]] = {
    "Jobs (need a running daemon)": (
        _remote("submit", "Submit jobs from spec files."),
        _remote("ls", "List your jobs."),
        _remote("show", "Show one job: state, spec, checkpoints, events."),
        _remote("logs", "Print a job's events and metrics."),
        _remote("wait", "Wait until jobs have ended."),
        _remote("cancel", "Cancel a job."),
        _remote("pause", "Pause a job; it keeps its progress."),
        _remote("resume", "Let a paused job go on."),
        _remote("priority", "Let a job come before or after your others."),
        _remote("pull", "Fetch a job's adapter."),
        _remote("rm", "Remove jobs that have ended."),
        _remote("sweep", "Look at sweeps: their trials, and which is best."),
    ),
    "Look": (
        _remote("watch", "Watch jobs, queue and memory on a live screen."),
        _remote("doctor", "Check machine, socket and daemon, and say what to do."),
        _remote("track", "Carry a job's metrics to an experiment tracker."),
        _local("completion", "Teach bash, zsh or fish to complete this command."),
    ),
    "Specs and data": (
        _local("validate", "Check job specs and their files."),
        _local("dataset", "Show what the model will see of a data file."),
        _local("convert", "Turn an Axolotl or LLaMA-Factory config into a job spec."),
        _local("estimate", "Tell how much memory jobs will take, without a daemon or weights."),
    ),
    "Server": (
        _local("serve", "Start the training daemon."),
        _local("run", "Train jobs together without a daemon."),
        _local("base", "Make a small base model to try things on."),
        _remote("admin", "Steer the daemon: its device, its queue, its disk."),
        _local("simulate", "Compare scheduling policies on recorded or synthetic jobs."),
        _local("bench", "Measure training together beside PEFT and the frozen base."),
        _local("demo", "See the whole system at work."),
    ),
}
"""Every verb, in the order in which help shows it."""


def _module(name: str) -> ModuleType:
    """A verb's module. What it brings along stays, so that no collection need look at it, nor the one at exit.

    That is a tenth of the time of a command that asks a daemon one question.
    """
    if name in sys.modules:
        return sys.modules[name]
    gc.disable()
    try:
        module = importlib.import_module(name)
        gc.freeze()
    finally:
        gc.enable()
    return module


class LazyGroup(click.Group):
    """A group that knows its verbs by name and imports one only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names in the order of `SECTIONS`."""
        return [verb.name for verbs in SECTIONS.values() for verb in verbs]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the verb's module and take the command out of it; None for an unknown name."""
        for verb in (verb for verbs in SECTIONS.values() for verb in verbs):
            if verb.name == cmd_name:
                command = getattr(_module(verb.module), verb.name)
                assert isinstance(command, click.Command), verb
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Like click's, but an unknown verb is answered with the nearest one."""
        name = args[0]
        if not name.startswith("-") and name not in self.list_commands(ctx):
            import difflib

            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            remedy = f"did you mean {near[0]}?" if near else f"try `{ctx.command_path} --help`"
            raise click.UsageError(f"{name}: no such verb; {remedy}", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Verbs that begin so, from `SECTIONS` alone; options as click finds them."""
        from click.shell_completion import CompletionItem

        verbs = [verb for verbs in SECTIONS.values() for verb in verbs if verb.name.startswith(incomplete)]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [*(CompletionItem(verb.name, help=verb.summary) for verb in verbs), *options]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the sections from `SECTIONS` alone, importing no verb."""
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(verb.name, verb.summary) for verb in verbs])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mlora-sched")
def cli() -> None:
    """Train many LoRA and mixture-of-LoRA jobs at once on one shared frozen base model."""


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code. Answers go to stdout, messages to stderr."""
    as_json = "--json" in args
    try:
        result = cli.main(args=list(args), prog_name="mlora-sched", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except MloraError as error:
        _complain(type(error).__name__, error.message, as_json)
        return error.exit_code
    except click.ClickException as error:
        _complain_usage(error, as_json)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _complain("Interrupted", "interrupted", as_json)
        return EXIT_INTERRUPTED
    return result if isinstance(result, int) else 0


def _complain(kind: str, message: str, as_json: bool) -> None:
    from mlora_sched.cli.style import say

    say(json.dumps({"error": kind, "message": message}) if as_json else f"error: {message}", err=True)


def _complain_usage(error: click.ClickException, as_json: bool) -> None:
    if as_json:
        _complain("UserError", error.format_message(), as_json)
    else:
        from mlora_sched.cli.style import say

        shown = io.StringIO()
        error.show(shown)
        say(shown.getvalue().removesuffix("\n"), err=True)


def main() -> NoReturn:
    """Entry point of the console script."""
    # nobody's plugins are wanted, and looking for them reads the metadata of every package that is installed
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    if sys.stdout is not None:  # it is where somebody has closed it
        sys.stdout = cast("TextIO", Stdout(sys.stdout))
    sys.exit(run(sys.argv[1:]))
