"""Where a step's time goes, coarsely: forward, backward, optimiser, and what is outside of them.

The engine carries no clocks of its own; they are put around its calls here, for as long as the context lasts. A phase
whose call never happened is an error, so that a change of the engine cannot make this report nothing unnoticed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from unittest import mock

import torch

from mlora_sched.bench.harness import WARM_UP, key_of
from mlora_sched.bench.record import Series
from mlora_sched.engine import step as engine_step
from mlora_sched.model.base import FrozenBase
from mlora_sched.optim.adamw import JobAdamW


class Phase(StrEnum):
    """Part of a step."""

    FORWARD = "forward"
    HEAD = "head"
    BACKWARD = "backward"
    OPTIMISER = "optimiser"


@dataclass
class Phases:
    """Seconds and calls by phase, added up over the context."""

    seconds: dict[Phase, float] = field(default_factory=lambda: dict.fromkeys(Phase, 0.0))
    calls: dict[Phase, int] = field(default_factory=lambda: dict.fromkeys(Phase, 0))

    def wrap(self, phase: Phase, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[phase] += time.perf_counter() - began
                self.calls[phase] += 1

        return timed

    @property
    def inside(self) -> float:
        """Seconds in any phase."""
        return sum(self.seconds.values())


@contextlib.contextmanager
def phases() -> Iterator[Phases]:
    """Time the engine's phases while the context lasts.

    Raises:
        AssertionError: a phase was never entered: the engine's calls have other names now.
    """
    found = Phases()
    places: tuple[tuple[Any, str, Phase], ...] = (
        (FrozenBase, "hidden", Phase.FORWARD),
        (engine_step, "token_losses", Phase.HEAD),
        (torch.Tensor, "backward", Phase.BACKWARD),
        (JobAdamW, "grad_norm", Phase.OPTIMISER),
        (JobAdamW, "step", Phase.OPTIMISER),
    )
    with contextlib.ExitStack() as stack:
        for owner, name, phase in places:
            stack.enter_context(mock.patch.object(owner, name, found.wrap(phase, getattr(owner, name))))
        yield found
    silent = [phase.value for phase, calls in found.calls.items() if not calls]
    assert not silent, f"no call of {', '.join(silent)} was seen"


class Clocked:
    """Work whose time outside of all phases is noted, round by round."""

    def __init__(self, work: Callable[[], int]) -> None:
        self._work = work
        self.outside: list[float] = []
        self.last = Phases()

    def __call__(self, _turn: int) -> int:
        with phases() as found:
            began = time.perf_counter()
            tokens = self._work()
            self.outside.append(time.perf_counter() - began - found.inside)
        self.last = found
        return tokens

    def series(self, at: int | None = None) -> Series:
        """Seconds outside, of the rounds that are kept."""
        return Series(key=key_of("outside", at), system="outside", at=at, samples=tuple(self.outside[WARM_UP:]))
