"""What goes over the wire when a job is submitted, and what may still be said of it then: its priority."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mlora_sched.spec.api import JobView
from mlora_sched.spec.common import Frozen
from mlora_sched.spec.data import MAX_TRAIN_FILES
from mlora_sched.spec.job import ADAPTER_FILES, JobSpec, Priority

MAX_RETRIES = 10
MAX_AFTER = 100
MAX_FILE_NAME = 1024
MAX_FILES = MAX_TRAIN_FILES + 2 + len(ADAPTER_FILES)  # beside those trained on: validation, template, init_from
KEY_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$"

Reference = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]
FileName = Annotated[str, Field(max_length=MAX_FILE_NAME)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Submission(Frozen):
    """A spec and the spool keys (sha256, hex) of the files it names; the files are uploaded first.

    Attributes:
        key: names this submission among all of its owner: what comes again under the same key is the same job.
        after: jobs of the same owner, by id, shortened id or name; the job starts when all of them have succeeded.
        retries: how often it is tried again after a failure that may be of its surroundings.
    """

    spec: JobSpec
    files: dict[FileName, Sha256] = Field(max_length=MAX_FILES)
    key: str | None = Field(default=None, pattern=KEY_PATTERN)
    after: tuple[Reference, ...] = Field(default=(), max_length=MAX_AFTER)
    retries: int = Field(default=0, ge=0, le=MAX_RETRIES)


class Submitted(Frozen):
    """The answer to a submission.

    Attributes:
        job: as it stands now.
        repeated: it was submitted before, under the same key; nothing has changed.
        first: its owner has no other job here.
        position, queue: its place among the jobs that wait to be attached, and how many those are; None when it does
            not wait, or waits for others first. A new job is the last until the daemon has looked at it.
        waits_for: the jobs, by full id, that must succeed before it has a place in the queue.
        estimated_bytes: what it needs of the device while it trains; None before the daemon knows the base's shape.
        estimated_seconds: about how long the device would work on it alone; None before the daemon knows its own pace,
            and where the data do not tell how long a step of `max_steps` is.
        ends_in: in how many seconds it has ended, at least and at most, if nothing else is submitted: with the device
            for itself, and after all that is ahead of it; None while either is not known.
        not_kept: entries of its metadata that look like secrets, such as `metadata.hub.token`.
    """

    job: JobView
    repeated: bool
    first: bool
    position: int | None
    queue: int
    estimated_bytes: int | None
    estimated_seconds: float | None
    ends_in: tuple[float, float] | None = None
    waits_for: tuple[str, ...] = ()
    not_kept: tuple[str, ...] = ()


class PriorityRequest(Frozen):
    """Order a job otherwise among its owner's."""

    priority: Priority
