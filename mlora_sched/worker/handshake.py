"""How a worker's program begins: it takes the pipe, gives signs of life, and waits for `Init`.

Light, since the preparer loads no engine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from mlora_sched.errors import MloraError
from mlora_sched.spec.wire import Command, Fatal, Init, Report
from mlora_sched.worker.protocol import Channel, worker_end
from mlora_sched.worker.pulse import Pulse

IDLE_SECONDS = 1.0
"""How long a worker waits for a command at a time when it has nothing to do."""


def last_words(error: Exception) -> Fatal:
    """What is said of an error that ends the process."""
    message = error.message if isinstance(error, MloraError) else f"{type(error).__name__}: {error}"
    return Fatal(error=type(error).__name__, message=message)


def run_program(serve: Callable[[Channel[Command, Report]], int]) -> NoReturn:
    """Serve the daemon whose pipe the command line names (`--fd N`), and exit with what `serve` returns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True, help="File descriptor of the pipe to the daemon.")
    channel = worker_end(parser.parse_args().fd)
    with Pulse(channel):
        code = serve(channel)
    sys.exit(code)


def first_command(channel: Channel[Command, Report]) -> Init | None:
    """The `Init` that every worker is told first; None when the daemon went away before."""
    while not channel.closed:
        command = channel.read_one(IDLE_SECONDS)  # what follows is for the worker itself
        if command is not None:
            assert isinstance(command, Init), f"a worker is told to start first, not {command.kind}"
            return command
    return None
