"""The loop and its preparer: data that ends it, data that never ends, requests meanwhile."""

from __future__ import annotations

import threading

import pytest

from mlora_sched.daemon import supervisor
from mlora_sched.daemon.preparing import PREPARE_SECONDS
from mlora_sched.spec.state import ErrorCode, JobState, Request
from mlora_sched.spec.wire import Prepare

from .rig import Rig


def test_data_that_ends_the_preparer_fails_its_job_only(rig: Rig) -> None:
    bomb = rig.submit("bomb", crash_at=0)
    good = rig.submit("good", steps=3)
    rig.finish()
    view = rig.store.get(bomb)
    assert (view.state, view.error_code) == (JobState.FAILED, ErrorCode.BAD_DATA)
    assert "ended the preparer process 2 times" in (view.error or "")
    assert rig.state(good) is JobState.SUCCEEDED
    assert len(rig.preparers) == 3


def test_data_that_ends_the_preparer_once_is_tried_again(rig: Rig) -> None:
    job = rig.submit("job", steps=3, crash_at=0, crash_times=1)
    rig.finish()
    assert rig.state(job) is JobState.SUCCEEDED


def hanging(rig: Rig) -> tuple[str, str]:
    """A job whose preparation never ends, in the preparer's hands, and the next one."""
    jobs = rig.submit("hang", prepare_hangs=True), rig.submit("good", "bob", steps=3)
    rig.until(lambda: any(isinstance(command, Prepare) for process in rig.preparers for command in process.told))
    return jobs


@pytest.mark.parametrize("request_", [Request.PAUSE, Request.CANCEL])
def test_a_preparer_that_never_answers_is_ended_with_its_job(rig: Rig, request_: Request) -> None:
    hang, good = hanging(rig)
    rig.tick(5)
    assert rig.state(good) is JobState.PREPARING
    rig.request(hang, request_)
    rig.tick()
    assert not rig.preparers[0].alive
    rig.until_state(good, JobState.SUCCEEDED)
    assert rig.state(hang) is (JobState.PAUSED if request_ is Request.PAUSE else JobState.CANCELLED)
    assert len(rig.preparers) == 2


def test_data_that_takes_for_ever_fails_its_job(rig: Rig) -> None:
    hang, good = hanging(rig)
    began = rig.clock.now
    rig.until_state(hang, JobState.FAILED)
    assert rig.clock.now - began >= PREPARE_SECONDS
    view = rig.store.get(hang)
    assert view.error_code is ErrorCode.BAD_DATA
    assert "longer than 600 s; look for a template that never ends" in (view.error or "")
    rig.until_state(good, JobState.SUCCEEDED)
    assert len(rig.preparers) == 2


def test_owners_take_turns(rig: Rig) -> None:
    """Whoever submits many jobs that hang holds up everybody else by one of them at a time."""
    hanging_jobs = [rig.submit(f"hang{number}", "ann", prepare_hangs=True) for number in range(4)]
    good = [rig.submit(f"good{number}", "bob", steps=2) for number in range(2)]
    rig.until_state(good[0], JobState.SUCCEEDED)
    assert [rig.state(job) for job in hanging_jobs] == [JobState.FAILED, *[JobState.PREPARING] * 3]
    rig.until_state(good[1], JobState.SUCCEEDED)
    assert [rig.state(job) for job in hanging_jobs] == [*[JobState.FAILED] * 2, *[JobState.PREPARING] * 2]


def test_ending_a_preparer_is_no_death_of_it(rig: Rig) -> None:
    """However many jobs are cancelled while they are prepared, the preparer is not given up."""
    for number in range(supervisor.MAX_DEATHS + 1):
        job = rig.submit(f"hang{number}", prepare_hangs=True)
        rig.until(lambda: rig.loop._preparing._task is not None)
        rig.request(job, Request.CANCEL)
        rig.until_state(job, JobState.CANCELLED)
    good = rig.submit("good", steps=2)
    rig.until_state(good, JobState.SUCCEEDED)


def test_a_daemon_that_stops_does_not_wait_for_a_busy_preparer(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging(rig)
    monkeypatch.setattr(rig.preparers[0], "close", lambda: pytest.fail("it would be waited for"))
    stop = threading.Event()
    stop.set()
    rig.loop.run(stop)
    assert not rig.preparers[0].alive
