"""Job states, the transitions between them, and the reasons a job can end with.

A *request* (pause, cancel, resume) is not a state: the API writes `Request`, only the daemon writes `JobState`.
"""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is. Stored and shown by its value."""

    PREPARING = "PREPARING"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """True when nothing more will happen to the job."""
        return not TRANSITIONS[self]


TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.PREPARING: frozenset({JobState.QUEUED, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED}),
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset(
        {JobState.QUEUED, JobState.PAUSED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
    ),
    # to PREPARING when it was paused before its data was ready
    JobState.PAUSED: frozenset({JobState.PREPARING, JobState.QUEUED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}
"""Every allowed change of state; anything else is a bug and is refused by the store's compare-and-set."""


class Request(StrEnum):
    """What a user asked of a live job and the daemon has not done yet; shown as e.g. `RUNNING (cancelling)`."""

    NONE = "none"
    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"

    @property
    def doing(self) -> str:
        """The participle shown beside the state, empty when nothing is pending."""
        return {"none": "", "pause": "pausing", "resume": "resuming", "cancel": "cancelling"}[self.value]


class ErrorCode(StrEnum):
    """Why a job FAILED."""

    BAD_DATA = "bad_data"
    BAD_SPEC = "bad_spec"
    NON_FINITE_LOSS = "non_finite_loss"
    OUT_OF_MEMORY = "out_of_memory"
    ADAPTER_ERROR = "adapter_error"
    WORKER_CRASH = "worker_crash"
    STORAGE = "storage"
    DIVERGED = "diverged"
    DEPENDENCY = "dependency"

    @property
    def may_pass(self) -> bool:
        """It may be of the job's surroundings, so that another try can go better; others come again bit by bit."""
        return self in (ErrorCode.OUT_OF_MEMORY, ErrorCode.WORKER_CRASH, ErrorCode.STORAGE)


class StoppedBy(StrEnum):
    """Why a job SUCCEEDED before its last planned step; the limits are named as in the spec's `limits`.

    A trial that is PRUNED was no longer among the best of its sweep.
    """

    MAX_TOKENS = "max_tokens"
    MAX_TIME = "max_time"
    EARLY_STOPPING = "early_stopping"
    PRUNED = "pruned"


class WorkerPhase(StrEnum):
    """Where the daemon's worker is: loading the base (again), serving, unable to, or ended on purpose.

    RELEASED is an administrator's wish, UNLOADED is for want of jobs; in both the device is free.
    """

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    RELEASED = "released"
    UNLOADED = "unloaded"


class WaitReason(StrEnum):
    """Why a live job does not train right now."""

    NONE = ""
    PREPARING = "preparing: reading and tokenising its data"
    PAUSED = "paused by its owner"
    SLOTS = "slots: as many jobs are resident as the daemon allows"
    MEMORY = "memory"
    BASE = "base"
    WORKER = "worker"
    DRAINING = "draining"
    AFTER = "after"
    RETRY = "retry"
    QUOTA = "quota"
    SWEEP = "sweep"
