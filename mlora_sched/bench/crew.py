"""Fresh processes at the other ends of pipes, started together and ended together."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from mlora_sched.errors import MloraError

_GRACE_S = 20.0


class Crew:
    """One process a task, each running `serve(pipe, task)`, which returns when its pipe is closed.

    Spawned, not forked: forked ones would share pages with this process and with each other.
    """

    def __init__(self, serve: Callable[[Connection, Any], None], tasks: Sequence[Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._workers = []
        for task in tasks:
            here, there = context.Pipe()
            worker = context.Process(target=serve, args=(there, task), daemon=True)
            worker.start()
            there.close()
            self._pipes.append(here)
            self._workers.append(worker)

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for worker in self._workers:
            worker.join(timeout=_GRACE_S)
            if worker.is_alive():
                worker.kill()
                worker.join()

    @property
    def pids(self) -> list[int]:
        """Of the processes, in the tasks' order."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    @property
    def all_answered(self) -> bool:
        """Every process has something to hear, or is gone."""
        return all(pipe.poll() for pipe in self._pipes)

    def say(self, word: object) -> None:
        """Send to every process."""
        for pipe in self._pipes:
            pipe.send(word)

    def hear(self) -> list[int]:
        """One number from every process, in the tasks' order.

        Raises:
            MloraError: a process died.
        """
        try:
            return [int(pipe.recv()) for pipe in self._pipes]
        except EOFError:
            raise MloraError(
                f"bench: one of {len(self._pipes)} processes died; is there memory for all of them?"
            ) from None


def heard(pipe: Connection) -> Any | None:
    """In a process: the next word, None when the pipe is closed."""
    try:
        return pipe.recv()
    except EOFError:
        return None
