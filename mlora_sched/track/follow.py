"""Read a job's metrics from the first to the last and hand them to a sink. Knows no tracker."""

from __future__ import annotations

import time

from mlora_sched.client import Client
from mlora_sched.spec.common import Frozen
from mlora_sched.spec.state import JobState
from mlora_sched.track.sink import Sink


class Tracked(Frozen):
    """What was carried over.

    Attributes:
        job: the job's id. state: as it was last seen.
        place: where the run is to be looked at.
        written: lines that were added; skipped: those that the run had.
    """

    job: str
    state: JobState
    place: str
    written: int
    skipped: int


def carry(client: Client, job: str, sink: Sink, *, follow: bool, poll: float = 2.0) -> Tracked:
    """Replay a job's metrics into `sink`, with `follow` until the job has ended, and close it whatever happens.

    Args:
        job: its id. poll: seconds between two looks when there is nothing new.
    """
    seen = written = skipped = 0
    state = client.get(job).state
    try:
        while True:
            page = client.metrics(job, seen)
            for line in page.lines:
                if sink.has(line):
                    skipped += 1
                else:
                    sink.write(line)
                    written += 1
            if page.cursor > seen:
                seen = page.cursor
            elif state.is_final or not follow:
                break
            else:
                time.sleep(poll)
            state = client.get(job).state  # asked before the metrics: of a job that has ended they are then complete
    finally:
        sink.close(state)
    return Tracked(job=job, state=state, place=sink.place, written=written, skipped=skipped)
