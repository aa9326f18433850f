"""Unix groups by name: whose members may connect, and whose members are administrators. No caller is made here."""

from __future__ import annotations

import grp
import os
import pwd
import time
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool

from mlora_sched.errors import UserError

KEPT_SECONDS = 30.0
"""How long an answer of the user database holds: who leaves the group is no administrator after so long."""
_MOST_KEPT = 1024


def gid_of(option: str, name: str) -> int:
    """The id of the group that an option names.

    Raises:
        UserError: there is no such group.
    """
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise UserError(
            f"{option} {name}: there is no such group on this machine; make it (`groupadd {name}`) or name another"
        ) from None


class AdminGroup:
    """The group whose members are administrators beside root and the daemon's user.

    The user database may be a server elsewhere, so it is asked on a thread, and its answers are kept for a while.

    Args:
        gid: the group; None for no such group.
        clock: seconds, monotonic.
    """

    def __init__(self, gid: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._gid = gid
        self._clock = clock
        self._known: dict[str, tuple[float, bool]] = {}

    async def has(self, user: str) -> bool:
        """Whether the group is this user's primary one or one of the others."""
        if self._gid is None:
            return False
        until, found = self._known.get(user, (0.0, False))
        if until <= self._clock():
            if len(self._known) >= _MOST_KEPT:
                self._known.clear()
            found = await run_in_threadpool(is_member, user, self._gid)
            self._known[user] = (self._clock() + KEPT_SECONDS, found)
        return found


def is_member(user: str, gid: int) -> bool:
    """Whether a user, by login name, belongs to a group; one whom the machine does not know belongs to none."""
    try:
        primary = pwd.getpwnam(user).pw_gid
    except KeyError:
        return False
    return gid in os.getgrouplist(user, primary)
