"""What is written of jobs that wait: their reasons and places follow the plan, whatever holds them back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlora_sched.spec.api import JobView
from mlora_sched.spec.state import JobState, Request
from mlora_sched.store.records import Drain

from .rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path, max_resident=1)
    yield rig
    rig.engine.dispose()


def places(rig: Rig) -> dict[str, int | None]:
    return {job.name: job.position for job in rig.store.list()}


def tick(rig: Rig, until: JobState, name: str) -> JobView:
    for _ in range(50):
        rig.loop.tick()
        if rig.state(f"j-{name}") is until:
            return rig.store.get(f"j-{name}")
    raise AssertionError(f"{name} never came to be {until}")


def test_places_follow_the_policy_and_go_with_the_wait(rig: Rig) -> None:
    for name, owner, steps in (("a1", "ann", 40), ("a2", "ann", 50), ("a3", "ann", 60), ("b1", "bob", 90)):
        rig.submit(name, owner, steps=steps)
    assert places(rig) == dict.fromkeys(("a1", "a2", "a3", "b1")), "none before its data is prepared"
    tick(rig, JobState.QUEUED, "a3")
    rig.loop.tick()
    assert places(rig) == {"a1": None, "b1": 1, "a2": 2, "a3": 3}
    rig.request("j-b1", Request.PAUSE)
    rig.loop.tick()
    rig.loop.tick()
    assert places(rig) == {"a1": None, "b1": None, "a2": 1, "a3": 2}
    tick(rig, JobState.SUCCEEDED, "a1")
    assert tick(rig, JobState.RUNNING, "a2").position is None
    rig.loop.tick()
    assert places(rig) == {"a1": None, "b1": None, "a2": None, "a3": 1}


def test_who_waits_for_a_worker_or_behind_the_gate_has_a_place(rig: Rig) -> None:
    rig.store.set_drain(Drain(True, "root", 0.0))
    for name, steps in (("long", 9), ("short", 2)):
        rig.submit(name, steps=steps)
    tick(rig, JobState.QUEUED, "short")
    rig.loop.tick()
    assert places(rig) == {"short": 1, "long": 2}
    assert "draining" in rig.store.get("j-short").reason
    rig.store.set_drain(Drain(False, "root", 0.0))
    tick(rig, JobState.RUNNING, "short")
    assert places(rig) == {"short": None, "long": 1}


def test_what_is_known_is_not_written_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "three"):
        rig.submit(name, steps=30)
    tick(rig, JobState.RUNNING, "one")
    rig.loop.tick()
    monkeypatch.setattr(rig.store, "set_waits", lambda waits: pytest.fail(f"written again: {waits}"))
    for _ in range(3):
        rig.loop.tick()
    assert places(rig) == {"one": None, "two": 1, "three": 2}
