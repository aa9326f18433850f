"""Many clients that ask a daemon for the same thing again and again, from one process that does nothing else.

Raw HTTP/1.1 on kept connections, so that the load costs little; what it costs is told beside what it found. Run as
`python -m tests.load.pollers`, which imports no more than the standard library.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

TIMEOUT = 30.0
"""Seconds after which an answer counts as an error."""


@dataclass(frozen=True)
class Load:
    """What is asked of which socket: by so many clients, each every `interval` seconds, for `seconds`."""

    socket: str
    path: str
    clients: int
    interval: float
    seconds: float


@dataclass(frozen=True)
class Polled:
    """What came of it. Latencies are seconds, `late` those by which the load generator itself was behind.

    Attributes:
        answers: good ones. errors: everything else, counted by its name.
        median, p99, worst: of the latencies of the good ones.
        cpu: seconds of this process's CPU, start of the interpreter excluded.
    """

    answers: int
    errors: dict[str, int]
    median: float
    p99: float
    worst: float
    late: float
    seconds: float
    cpu: float


@dataclass
class _Tally:
    latencies: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    late: float = 0.0

    def failed(self, name: str) -> None:
        self.errors[name] = self.errors.get(name, 0) + 1


async def poll(load: Load) -> Polled:
    """Ask until the time is over; every client begins at a moment of its own within the first interval."""
    tally = _Tally()
    draw = random.Random(0)
    begun, cpu = time.monotonic(), _cpu()
    clients = (
        _client(load, begun + draw.random() * load.interval, begun + load.seconds, tally) for _ in range(load.clients)
    )
    await asyncio.gather(*clients)
    seconds, latencies = time.monotonic() - begun, sorted(tally.latencies)
    return Polled(
        answers=len(latencies),
        errors=tally.errors,
        median=statistics.median(latencies) if latencies else 0.0,
        p99=latencies[int(0.99 * len(latencies))] if latencies else 0.0,
        worst=latencies[-1] if latencies else 0.0,
        late=tally.late,
        seconds=seconds,
        cpu=_cpu() - cpu,
    )


async def _client(load: Load, at: float, end: float, tally: _Tally) -> None:
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while at < end:
        await asyncio.sleep(at - time.monotonic())
        begun = time.monotonic()
        tally.late = max(tally.late, begun - at)
        try:
            connection = connection or await asyncio.open_unix_connection(load.socket)
            status = await asyncio.wait_for(_ask(load.path, *connection), TIMEOUT)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            tally.failed(type(error).__name__)
            if connection is not None:
                connection[1].close()
            connection = None
        else:
            if status == 200:
                tally.latencies.append(time.monotonic() - begun)
            else:
                tally.failed(str(status))
        at += load.interval
    if connection is not None:
        connection[1].close()


async def _ask(path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    """Send one request and read its answer to the end; returns the status.

    Raises:
        OSError, IncompleteReadError: the connection broke. ValueError: this is no HTTP.
    """
    writer.write(f"GET {path} HTTP/1.1\r\nhost: daemon\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    _, length = head.split("content-length:", 1)
    await reader.readexactly(int(length.split("\r\n", 1)[0]))
    return int(head.split(" ", 2)[1])


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Read a load from the command line, put it on, write what came of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("socket", type=Path)
    parser.add_argument("path")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--interval", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    read = parser.parse_args()
    load = Load(str(read.socket), read.path, read.clients, read.interval, read.seconds)
    json.dump(asdict(asyncio.run(poll(load))), sys.stdout)


if __name__ == "__main__":
    main()
