"""What is going on at a daemon, as one caller may see it: everybody's live jobs, of others' only what they use."""

from __future__ import annotations

from mlora_sched.spec.api import JobView
from mlora_sched.spec.common import Frozen
from mlora_sched.spec.daemon import DaemonView
from mlora_sched.spec.memory_view import MemoryView
from mlora_sched.spec.state import JobState


class ActiveJob(Frozen):
    """A live job.

    Attributes:
        owner, state: whose it is and where it stands.
        position: place in the queue, 1 for the next; None when it does not wait to be attached.
        tokens: trained so far. share: its part (0..1) of the device's work of late.
        rate: tokens a second of late, by its pace; 0 while that is not known.
        device, host: bytes that it holds of either memory.
        job: all of it, where the caller may see that; None of others' jobs.
    """

    owner: str
    state: JobState
    position: int | None
    tokens: int
    share: float
    device: int
    host: int
    job: JobView | None
    rate: float = 0.0


class ActivityView(Frozen):
    """The daemon, its memory and every live job: those that train first, then the queue in its order, then others."""

    daemon: DaemonView
    memory: MemoryView
    jobs: tuple[ActiveJob, ...]
