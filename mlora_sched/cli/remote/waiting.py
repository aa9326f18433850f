"""What Ctrl-C says while a verb waits for jobs. It waits for nothing itself. No verb lives here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from mlora_sched.errors import Interrupted

_MOST_NAMED = 5


@contextlib.contextmanager
def waiting_for(refs: Sequence[str]) -> Iterator[None]:
    """Whoever waits for jobs may go away; the jobs do not.

    Raises:
        Interrupted: Ctrl-C was pressed.
    """
    try:
        yield
    except KeyboardInterrupt:
        again = " ".join(refs) if len(refs) <= _MOST_NAMED else "ID..."
        going = "the job goes on" if len(refs) == 1 else "the jobs go on"
        raise Interrupted(f"interrupted; {going} (`mlora-sched wait {again}`)") from None
