"""Standard output that may fail: a full disk behind it is told like any other trouble. Nothing is formatted here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, TextIO

from mlora_sched.errors import MloraError


class Stdout:
    """A stream in the place of `sys.stdout`; where it takes nothing, what is left for it is given up.

    A reader that has gone, as behind `| head`, is click's to handle.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write as the stream does.

        Raises:
            MloraError: it cannot be written.
        """
        if text == "":  # by which click finds out what kind of stream it is, forgetting what is raised
            return 0
        with self._told():
            return self._stream.write(text)

    def flush(self) -> None:
        """Write what waits to be written; raises as `write` does."""
        with self._told():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # else Python tries again at its end, and complains in its own way
            os.close(nowhere)
            raise MloraError(f"standard output: {error.strerror}") from None
