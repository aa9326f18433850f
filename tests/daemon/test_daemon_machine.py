"""Random lives of a daemon: whatever people and crashes do, every job ends as its owner wanted, with the same losses.

The model is small: what was asked of each job. The oracle for states is the drawing of transitions, replayed over
the events; the oracle for results is what the fake reports when nothing disturbs it.
"""

import shutil
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mlora_sched.errors import Refused
from mlora_sched.spec.state import TRANSITIONS, ErrorCode, JobState, Request
from mlora_sched.store.records import Release
from mlora_sched.worker.fake import fake_loss

from .rig import RecordingWorker, Rig
from .stand_in import MIB, SHAPE, report

MAX_CRASHES = 4


class DaemonLife(RuleBasedStateMachine):
    """One state directory, several owners, several daemons one after another."""

    jobs = Bundle("jobs")

    @initialize(places=st.integers(1, 4), room=st.none() | st.integers(150, 200), host=st.sampled_from([0, 1, 10]))
    def begin(self, places: int, room: int | None, host: int) -> None:
        """Every job fits alone: it takes at most 128 + 20 MiB. `host` jobs can be parked."""
        self.memory = None if room is None else report(room, host_limit=1000 * host)
        self.ranks: dict[str, int] = {}
        self.rig = Rig(
            Path(tempfile.mkdtemp()),
            max_resident=places,
            make_worker=lambda: RecordingWorker(memory=self.memory, shape=SHAPE),
        )
        self.steps: dict[str, int] = {}
        self.tokens: dict[str, int] = {}
        self.dooms: dict[str, int] = {}
        self.cancelled: set[str] = set()
        self.crashes = 0

    @rule(
        target=jobs,
        owner=st.sampled_from(["ann", "bob"]),
        steps=st.integers(1, 12),
        save=st.integers(1, 5),
        r=st.integers(1, 20),
        tokens=st.sampled_from([100, 100_000]),
    )
    def submit(self, owner: str, steps: int, save: int, r: int, tokens: int) -> str:
        name = f"job{len(self.steps)}"
        job = self.rig.submit(name, owner, r=r, steps=steps, save_every=save, step_tokens=tokens)
        self.steps[job], self.ranks[job], self.tokens[job] = steps, r, tokens
        return job

    @rule(steps=st.integers(2, 8), data=st.data())
    def submit_doomed(self, steps: int, data: st.DataObject) -> None:
        fail_at = data.draw(st.integers(0, steps))
        job = self.rig.submit(f"job{len(self.steps)}", r=1, steps=steps, fail_at=fail_at)
        self.steps[job], self.ranks[job], self.tokens[job] = steps, 1, 100
        self.dooms[job] = fail_at

    @rule(count=st.integers(1, 12))
    def time_passes(self, count: int) -> None:
        self.rig.tick(count)

    @rule(job=jobs, asked=st.sampled_from([Request.PAUSE, Request.RESUME]))
    def ask(self, job: str, asked: Request) -> None:
        before = self.rig.store.get(job)
        try:
            after = self.rig.request(job, asked)
        except Refused:
            after = before
        assert after.state is before.state, "the API writes no state"

    @rule(job=consumes(jobs))
    def cancel(self, job: str) -> None:
        if self.rig.state(job).is_final:
            return
        self.rig.request(job, Request.CANCEL)
        self.cancelled.add(job)

    @precondition(lambda self: self.crashes < MAX_CRASHES and self.rig.workers)
    @rule(preparer=st.booleans())
    def crash(self, preparer: bool) -> None:
        self.crashes += 1
        (self.rig.preparers if preparer else self.rig.workers)[-1].crash()

    @precondition(lambda self: self.memory is not None and self.rig.workers)
    @rule(room=st.integers(-10, 200))
    def others_take_or_give_memory(self, room: int) -> None:
        assert self.memory is not None
        self.rig.workers[-1].memory = self.memory.model_copy(update={"budget": room * MIB})

    @rule(wanted=st.booleans())
    def release_or_reclaim(self, wanted: bool) -> None:
        self.rig.store.set_release(Release(wanted, None, "root", self.rig.clock()))

    @rule()
    def reboot(self) -> None:
        self.rig.boot()

    @invariant()
    def places_are_kept(self) -> None:
        if self.steps:
            assert all(len(worker.residents) <= self.rig.max_resident for worker in self.rig.workers)

    @invariant()
    def memory_is_kept(self) -> None:
        """Jobs that are attached anew fit beside those that are there, with a chunk; see `stand_in`."""
        if self.steps and self.memory is not None:
            held = sum(self.ranks[job] for job in self.rig.loop._hands.attached)
            assert held + 128 <= self.memory.budget // MIB or not held

    @invariant()
    def no_request_outlives_its_job(self) -> None:
        if self.steps:
            assert all(job.request is Request.NONE for job in self.rig.store.list() if job.state.is_final)

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        self._everybody_goes_on()
        for job in self.steps:
            self._check_end(job)
            self._check_history(job)
        self.rig.engine.dispose()
        shutil.rmtree(self.rig.state_dir)

    def _everybody_goes_on(self) -> None:
        self.rig.store.set_release(Release(False, None, "root", self.rig.clock()))
        for worker in self.rig.workers:
            worker.memory = self.memory
        self.rig.until(lambda: all(job.request is Request.NONE for job in self.rig.store.live()))
        for job in self.rig.store.live():
            if job.state is JobState.PAUSED:
                self.rig.request(job.id, Request.RESUME)
        self.rig.finish(2000)
        self.rig.until(lambda: not self.rig.loop._hands.all)
        assert not any(worker.parked for worker in self.rig.workers[-1:]), "nothing is left in the host's memory"

    def _check_end(self, job: str) -> None:
        view = self.rig.store.get(job)
        losses = self.rig.losses(job)
        assert losses == [(step, fake_loss(step)) for step in range(1, len(losses) + 1)]
        assert view.tokens == self.tokens[job] * len(losses)
        if view.error_code is ErrorCode.WORKER_CRASH:
            assert self.crashes >= 2
        elif view.error_code is ErrorCode.BAD_DATA and self.dooms.get(job) != 0:
            assert self.crashes >= 2
            assert "preparer" in (view.error or "")
        elif view.state is JobState.CANCELLED:
            assert job in self.cancelled
        elif job in self.dooms:
            assert view.state is JobState.FAILED
            assert len(losses) == max(0, self.dooms[job] - 1)
        else:
            assert (view.state, len(losses), view.step) == (JobState.SUCCEEDED, self.steps[job], self.steps[job])

    def _check_history(self, job: str) -> None:
        moves = [message.split(": ")[0].split(" → ") for message in self.rig.happened(job) if " → " in message]
        states = [(JobState(source), JobState(target)) for source, target in moves]
        assert states[0][0] is JobState.PREPARING
        assert all(target in TRANSITIONS[source] for source, target in states)
        assert all(before[1] is after[0] for before, after in pairwise(states))


def test_random_lives() -> None:
    run_state_machine_as_test(DaemonLife, settings=settings(max_examples=12, stateful_step_count=25, deadline=None))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_random_lives() -> None:
    run_state_machine_as_test(DaemonLife, settings=settings(max_examples=400, stateful_step_count=40, deadline=None))
