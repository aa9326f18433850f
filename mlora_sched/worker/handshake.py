"""How a worker's program begins: it waits for `Init`. Light, since the preparer loads no engine."""

from __future__ import annotations

from mlora_sched.spec.wire import Command, Init, Report
from mlora_sched.worker.protocol import Channel

IDLE_SECONDS = 1.0
"""How long a worker waits for a command at a time when it has nothing to do."""


def first_command(channel: Channel[Command, Report]) -> Init | None:
    """The `Init` that every worker is told first; None when the daemon went away before."""
    while not channel.closed:
        command = channel.read_one(IDLE_SECONDS)  # what follows is for the worker itself
        if command is not None:
            assert isinstance(command, Init), f"a worker is told to start first, not {command.kind}"
            return command
    return None
