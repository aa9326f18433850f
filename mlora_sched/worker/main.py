"""The training worker's program: one base, one trainer, commands from the daemon, reports to it.

Started by `mlora_sched.worker.local` with the pipe's file descriptor. Between two packs it looks at its mailbox, so
that a join, a pause or a cancel waits for one pack at most. Before a job's code runs it says whose, so that a death is
not blamed on others. When it is told to stop it saves the jobs that are parked; when the daemon's end closes, it exits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import assert_never

from mlora_sched.engine.loop import Trainer
from mlora_sched.engine.saver import Saving
from mlora_sched.engine.start import start_trainer
from mlora_sched.errors import DeviceFault, MloraError
from mlora_sched.model.device import is_device_fault
from mlora_sched.spec.wire import Attach, AtWork, Command, Detach, Fatal, Init, Prepare, Ready, Report, Shutdown, Slice
from mlora_sched.worker import handshake
from mlora_sched.worker.handshake import IDLE_SECONDS, first_command, run_program
from mlora_sched.worker.protocol import Channel


class TrainingWorker:
    """Carries out commands until told to stop or left alone."""

    def __init__(self, channel: Channel[Command, Report], trainer: Trainer) -> None:
        self._channel, self._trainer = channel, trainer
        self._slices: deque[Slice] = deque()
        self._at_work: tuple[str, ...] = ()
        self._stopped = False

    def run(self) -> None:
        """Serve until `Shutdown`, or until the daemon is gone."""
        while not self._stopped and not self._channel.closed:
            if not self._slices:
                self._begin(())
            self._look(0.0 if self._slices else IDLE_SECONDS)
            if self._slices and not self._stopped:
                self._run_slice(self._slices.popleft())
            self._write(self._trainer.news())
        if not self._channel.closed:
            self._write(self._trainer.close())

    def _run_slice(self, wanted: Slice) -> None:
        for reports in self._trainer.slice(wanted, self._begin):
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
                    self._begin([start.job_id])
                    self._write(self._trainer.attach(start))
                case Detach(job_id=job_id, save=keep, park=park):
                    self._begin([job_id])
                    self._write(self._trainer.detach(job_id, keep=keep, park=park))
                case Shutdown():
                    self._stopped = True
                case Init() | Prepare():
                    self._write([Fatal(error="ProtocolError", message=f"unexpected {command.kind} to a trainer")])
                    self._stopped = True
                case _:
                    assert_never(command)

    def _begin(self, job_ids: Iterable[str]) -> None:
        """Say whose code runs from now on, where that is news; what is written on a thread runs beside it."""
        at_work = tuple(sorted({*job_ids, *self._trainer.saver.writing}))
        if at_work != self._at_work:
            self._at_work = at_work
            self._channel.write(AtWork(job_ids=at_work))

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
        channel.write(handshake.last_words(error))
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


def main(channel: Channel[Command, Report]) -> int:
    """`serve`, and tell what it dies of: a bug of ours, or a fault of the device. The traceback is left in the log."""
    try:
        return serve(channel)
    except Exception as error:
        channel.write(last_words(error))
        raise


def last_words(error: Exception) -> Fatal:
    """What is said of an error that ends the worker; after one of the device nothing on it can be trusted."""
    if is_device_fault(error):
        return Fatal(error=DeviceFault.__name__, message=str(error).partition("\n")[0])
    return handshake.last_words(error)


if __name__ == "__main__":
    run_program(main)
