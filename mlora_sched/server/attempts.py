"""How often somebody unknown has asked from an address. A bounded memory: nobody can make it grow."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

MOST_FAILURES = 10
WINDOW_SECONDS = 60.0
MOST_ADDRESSES = 1024


class Attempts:
    """Counts failures of each address within a window that begins with the first.

    It never locks a good token out: many users may share an address (a proxy, a gateway), and a secret of 256 bits is
    not to be guessed. What it bounds is the work and the records that wrong tokens cause.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._failures)

    def failed(self, address: str) -> float:
        """Note a failure; returns for how many seconds further ones are too many, 0 while they are not."""
        key, now = network_of(address), self._clock()
        until, count = self._failures.pop(key, (0.0, 0))
        if until <= now:
            until, count = now + WINDOW_SECONDS, 0
        self._failures[key] = (until, min(count + 1, MOST_FAILURES + 1))
        if len(self._failures) > MOST_ADDRESSES:
            self._failures.popitem(last=False)  # the one that has been silent for longest
        return until - now if count >= MOST_FAILURES else 0.0


def network_of(address: str) -> str:
    """An IPv4 address, or the /64 of an IPv6 one, all of which one machine may have."""
    with suppress(ValueError):
        parsed = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(parsed, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((parsed, 64), strict=False))
    return address
