"""The fake worker as a process of its own, which can be stopped and killed."""

from __future__ import annotations

from mlora_sched.spec.wire import Command, Report
from mlora_sched.worker.fake import FakeWorker
from mlora_sched.worker.handshake import run_program
from mlora_sched.worker.protocol import Channel


def serve(channel: Channel[Command, Report]) -> int:
    """Hand on what comes and what goes, until the daemon or the fake has ended."""
    fake = FakeWorker()
    while fake.alive and not channel.closed:
        for command in channel.read(0.0):
            fake.send(command)
        for report in fake.poll(0.01):
            channel.write(report)
    return 0


if __name__ == "__main__":
    run_program(serve)
