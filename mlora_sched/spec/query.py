"""Which jobs a list shows, and in which order: shared by client, server and store."""

from __future__ import annotations

import re
from enum import StrEnum

from pydantic import Field

from mlora_sched.errors import UserError
from mlora_sched.spec.common import Frozen
from mlora_sched.spec.state import JobState

MAX_LIMIT = 2**31 - 1
NAME_PATTERN = r"^([A-Za-z0-9._*?-]|\[!?[A-Za-z0-9._]+(-[A-Za-z0-9._]+)*\])+$"
"""What a pattern of names is made of; no name holds anything that would have to be escaped."""


class JobSort(StrEnum):
    """By what jobs are ordered: newest first, names from a to z, running before waiting before ended, lowest loss,
    most tokens, soonest arrival. A job without such a figure comes last."""

    CREATED = "created"
    NAME = "name"
    STATE = "state"
    LOSS = "loss"
    TOKENS = "tokens"
    ETA = "eta"


STATE_ORDER = (
    JobState.RUNNING,
    JobState.QUEUED,
    JobState.PREPARING,
    JobState.PAUSED,
    JobState.SUCCEEDED,
    JobState.FAILED,
    JobState.CANCELLED,
)
"""In which order states are listed: what trains, what will, what has ended."""


class JobQuery(Frozen):
    """What a list of jobs is to show.

    Attributes:
        states: only jobs in one of these; None for all.
        user: only this user's jobs.
        name: only jobs whose name fits this shell pattern (`*`, `?`, `[abc]`, `[!a-c]`).
        since: only jobs submitted at this time or later, in seconds since the Unix epoch.
        sort, reverse: the order; equals newest first. Reversed, what has no figure stays last.
        limit: no more than so many; None for all.
        sweep: only trials of this sweep, by id or name. trials: whether trials are listed at all.
    """

    states: tuple[JobState, ...] | None = None
    user: str | None = None
    name: str | None = Field(default=None, pattern=NAME_PATTERN)
    since: float | None = None
    sort: JobSort = JobSort.CREATED
    reverse: bool = False
    limit: int | None = Field(default=None, ge=1, le=MAX_LIMIT)
    sweep: str | None = None
    trials: bool = True


def check_name_pattern(text: str) -> str:
    """The pattern itself.

    Raises:
        UserError: no job's name could be meant by it.
    """
    if not re.fullmatch(NAME_PATTERN, text):
        raise UserError(
            f"{text!r} is no pattern of job names: they are letters, digits and . _ -; "
            "* stands for any of them, ? for one, [a-c] for one of these, [!a-c] for any other"
        )
    return text
