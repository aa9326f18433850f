"""A terminal taken over: alternate screen, keys as they are typed, signals as events; given back on every way out.

It knows nothing of what is drawn.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import termios
import tty
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

from rich.console import Console, ConsoleDimensions, RenderableType
from rich.screen import Screen

ESCAPE = "escape"
HANGUP = "hangup"
"""What `Happened.keys` holds for the Escape key, and when nobody is at the terminal any more."""

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NOTED = (*_ENDING, signal.SIGWINCH, signal.SIGTSTP)
_USUAL = ConsoleDimensions(80, 24)


@dataclass(frozen=True, slots=True)
class Happened:
    """What came while one waited: keys in order, and the signal that asks this process to end."""

    keys: tuple[str, ...] = ()
    ending: signal.Signals | None = None


class Terminal:
    """Standard output, and standard input where it is a terminal too. Only for the main thread, once at a time.

    Ctrl-Z gives the terminal back, stops the process, and takes the terminal again when it goes on.
    """

    def __init__(self) -> None:
        self._console = Console()
        self._input = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._modes: list[Any] | None = None
        self._caught: list[signal.Signals] = []
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._ear, self._mouth = socket.socketpair()
            for end in (self._ear, self._mouth):
                stack.callback(end.close)
                end.setblocking(False)
            for number in _NOTED:
                stack.callback(signal.signal, number, signal.signal(number, self._catch))
            stack.callback(self._give_back)
            self._take()
            self._restore = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore.close()

    def draw(self, screen: Callable[[int, int], RenderableType]) -> None:
        """Draw what `screen` makes of the terminal's present width and height."""
        self._console.size = self._size()
        self._console.update_screen(Screen(screen(*self._console.size)))

    def wake(self) -> None:
        """End a `wait`; for other threads. Nothing happens when the terminal has been given back."""
        with contextlib.suppress(OSError):  # closed; or full of such calls, and then it will wake
            self._mouth.send(b"w")

    def wait(self, seconds: float) -> Happened:
        """Return when something has happened (a key, a signal, a new size, `wake`), or after so many seconds."""
        sources = [self._ear.fileno(), *([] if self._input is None else [self._input])]
        ready, _, _ = select.select(sources, [], [], seconds)
        if self._ear.fileno() in ready:
            self._ear.recv(4096)
        keys = self._keys() if self._input in ready else ()
        caught, self._caught = self._caught, []
        if signal.SIGTSTP in caught:
            self._stop()
        return Happened(keys, next((number for number in caught if number in _ENDING), None))

    def _keys(self) -> tuple[str, ...]:
        assert self._input is not None
        try:
            typed = os.read(self._input, 256)
        except OSError:  # the terminal is gone
            typed = b""
        if not typed:
            return (HANGUP,)
        if typed == b"\x1b":
            return (ESCAPE,)
        return () if typed.startswith(b"\x1b") else tuple(typed.decode("utf-8", "replace"))

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        self._caught.append(signal.Signals(number))
        self.wake()

    def _size(self) -> ConsoleDimensions:
        """Of the terminal now: COLUMNS and LINES in the environment, which rich would heed, do not follow it."""
        columns, lines = os.get_terminal_size(sys.stdout.fileno())
        return ConsoleDimensions(columns or _USUAL.width, lines or _USUAL.height)

    def _take(self) -> None:
        if self._input is not None:
            self._modes = termios.tcgetattr(self._input)
            tty.setcbreak(self._input, termios.TCSADRAIN)
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)

    def _give_back(self) -> None:
        with contextlib.suppress(OSError, termios.error):  # a terminal that is gone needs nothing back
            self._console.show_cursor(True)
            self._console.set_alt_screen(False)
        with contextlib.suppress(OSError, termios.error):
            if self._input is not None and self._modes is not None:
                termios.tcsetattr(self._input, termios.TCSADRAIN, self._modes)

    def _stop(self) -> None:
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()
