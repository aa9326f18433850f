"""How fast jobs train: the pace of steady and unsteady jobs against what is known of them, and what it is reset by."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.daemon.pace import STRETCH_SECONDS, Paces
from mlora_sched.spec.wire import Attached, Detached, Report, StepDone

from .rig import Rig


def attached(job_id: str = "j-a") -> Attached:
    return Attached(job_id=job_id, epoch=1, step=0, total_steps=100, trainable_parameters=1)


def step(job_id: str = "j-a") -> StepDone:
    return StepDone(job_id=job_id, epoch=1, step=1, loss=1, lr=1, grad_norm=1, tokens=1, target_tokens=1)


@given(st.floats(0.05, 40), st.integers(1, 30), st.floats(0, 1e9))
def test_a_steady_job_has_its_pace_whatever_the_bunches(seconds: float, bunch: int, start: float) -> None:
    """Steps of `seconds` each, told in bunches: the pace is 1 / seconds, and it is not off."""
    paces = Paces()
    paces.hear([attached()], start)
    for told in range(1, 2 + int(4 * STRETCH_SECONDS / seconds / bunch) + 4):
        paces.hear([step()] * bunch, start + told * bunch * seconds)
        if "j-a" in paces.known:
            assert paces.known["j-a"].rate == pytest.approx(1 / seconds, rel=1e-4)
    assert paces.known["j-a"].spread == pytest.approx(0, abs=1e-4)


@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=30))
def test_the_pace_lies_among_those_of_the_stretches(rates: list[float]) -> None:
    paces, now = Paces(), 0.0
    paces.hear([attached()], now)
    for rate in rates:
        now += 100 / rate
        paces.hear([step()] * 100, now)
    known = paces.known["j-a"]
    assert min(rates) * (1 - 1e-9) <= known.rate <= max(rates) * (1 + 1e-9)
    assert known.spread is not None
    assert known.spread <= max(rates) / min(rates) - 1 + 1e-6


def test_jobs_are_measured_each_for_itself_and_anew_when_they_come_back() -> None:
    paces = Paces()
    paces.hear([attached("j-a"), attached("j-b")], 0.0)
    paces.hear([step("j-a"), step("j-a"), step("j-b")], 10.0)
    assert {name: pace.rate for name, pace in paces.known.items()} == {"j-a": 0.2, "j-b": 0.1}
    paces.hear([Detached(job_id="j-a", epoch=1, step=2), attached("j-a")], 500.0)
    assert set(paces.known) == {"j-b"}
    paces.hear([step("j-a")], 502.0)
    assert paces.known["j-a"].rate == 0.5
    paces.forget()
    assert not paces.known


def test_no_pace_from_a_moment() -> None:
    paces = Paces()
    said: list[Report] = [attached(), step(), step()]
    paces.hear(said, 7.0)
    assert not paces.known


def test_pace_and_work_are_written_with_the_steps_and_the_pace_goes_with_the_wait(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_resident=1)
    rig.submit("a", steps=6)
    while rig.store.get("j-a").step < 3:
        rig.loop.tick()
    job = rig.store.get("j-a")
    assert job.pace is not None
    assert 0 < job.pace <= 0.1, "the rig's clock moves on by ten seconds a look"
    assert job.work_seconds == 0.25 * job.step, "as the fake says of each step"
    while rig.store.get("j-a").state.value != "SUCCEEDED":
        rig.loop.tick()
    job = rig.store.get("j-a")
    assert (job.pace, job.pace_spread, job.work_seconds) == (None, None, 1.5)
    rig.engine.dispose()
