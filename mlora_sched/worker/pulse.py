"""The signs of life of a worker's process, from a thread of its own, whatever the main thread does.

What silence means is the daemon's to say. This side of the pipe says one thing for itself: a process whose daemon is
gone and whose main thread does not come round to seeing that, ends.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Self

from mlora_sched.spec.wire import Beat, Command, Report
from mlora_sched.worker.protocol import Channel

BEAT_SECONDS = 1.0
"""Between two signs of life."""

ORPHAN_SECONDS = 60.0
"""How long a process may stay whose daemon is gone: enough for the pack or the write that is being done."""

EXIT_ORPHANED = 70


class Pulse:
    """Beats while it is entered.

    Args:
        channel: to the daemon.
        beat_seconds, orphan_seconds: other times, for tests.
    """

    def __init__(
        self,
        channel: Channel[Command, Report],
        beat_seconds: float = BEAT_SECONDS,
        orphan_seconds: float = ORPHAN_SECONDS,
    ) -> None:
        self._channel, self._beat_seconds = channel, beat_seconds
        self._patience = orphan_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        alone = 0.0
        while True:
            if not self._channel.offer(Beat(turns=self._channel.turns)):
                alone += self._beat_seconds
                if alone > self._patience:
                    os._exit(EXIT_ORPHANED)
            if self._stop.wait(self._beat_seconds):
                return
