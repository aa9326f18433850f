"""The training worker's program: one base, one trainer, commands from the daemon, reports to it.

Started by `mlora_sched.worker.local` with the pipe's file descriptor. Between two packs it looks at its mailbox, so
that a join, a pause or a cancel waits for one pack at most. When it is told to stop it saves the jobs that are
parked; when the daemon's end closes, it exits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import assert_never

from mlora_sched.engine.loop import Trainer
from mlora_sched.engine.saver import Saving
from mlora_sched.engine.start import start_trainer
from mlora_sched.errors import MloraError
from mlora_sched.spec.wire import Attach, Command, Detach, Fatal, Init, Prepare, Ready, Report, Shutdown, Slice
from mlora_sched.worker.handshake import IDLE_SECONDS, first_command, run_program
from mlora_sched.worker.protocol import Channel


class TrainingWorker:
    """Carries out commands until told to stop or left alone."""

    def __init__(self, channel: Channel[Command, Report], trainer: Trainer) -> None:
        self._channel, self._trainer = channel, trainer
        self._slices: deque[Slice] = deque()
        self._stopped = False

    def run(self) -> None:
        """Serve until `Shutdown`, or until the daemon is gone."""
        while not self._stopped and not self._channel.closed:
            self._look(0.0 if self._slices else IDLE_SECONDS)
            if self._slices and not self._stopped:
                self._run_slice(self._slices.popleft())
            self._write(self._trainer.news())
        if not self._channel.closed:
            self._write(self._trainer.close())

    def _run_slice(self, wanted: Slice) -> None:
        for reports in self._trainer.slice(wanted):
            self._write(reports)
            self._look(0.0)
            if self._stopped or self._channel.closed:
                return

    def _look(self, timeout: float) -> None:
        """Take what is in the mailbox; slices wait their turn, all else is done at once."""
        for command in self._channel.read(timeout):
            match command:
                case Slice():
                    self._slices.append(command)
                case Attach(start=start):
                    self._write(self._trainer.attach(start))
                case Detach(job_id=job_id, save=keep, park=park):
                    self._write(self._trainer.detach(job_id, keep=keep, park=park))
                case Shutdown():
                    self._stopped = True
                case Init() | Prepare():
                    self._write([Fatal(error="ProtocolError", message=f"unexpected {command.kind} to a trainer")])
                    self._stopped = True
                case _:
                    assert_never(command)

    def _write(self, reports: Sequence[Report]) -> None:
        for report in reports:
            self._channel.write(report)


def serve(channel: Channel[Command, Report]) -> int:
    """Start, report `Ready` or `Fatal`, train. Returns the process's exit code."""
    init = first_command(channel)
    if init is None:
        return 0
    try:
        config = init.config
        trainer = start_trainer(config, Saving(config.checkpoint_seconds, config.checkpoint_steps, beside=True))
    except MloraError as error:
        channel.write(Fatal(error=type(error).__name__, message=error.message))
        return error.exit_code
    origin, memory = trainer.origin, trainer.memory
    channel.write(
        Ready(
            verdict=origin.verdict,
            numerics=origin.numerics,
            parameters=trainer.base.parameters,
            base_hash=origin.base_hash,
            shape=None if memory is None else memory.shape,
            memory=None if memory is None else memory.report(),
        )
    )
    TrainingWorker(channel, trainer).run()
    return 0


if __name__ == "__main__":
    run_program(serve)
