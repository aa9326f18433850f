"""Random lives of a daemon: whatever people and crashes do, every job ends as its owner wanted, with the same losses.

The store, the API's functions and the loop are the real ones; worker and preparer are fakes. The model is small: what
was asked of each job, and whose it is. The oracle for states is the drawing of transitions, held against every change
that the database itself notes (`trail`); the oracle for results is what the fake reports when nothing disturbs it.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from daemon.rig import RecordingWorker, Rig
from daemon.stand_in import MIB, SHAPE, report
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
from sqlalchemy import event

from mlora_sched.errors import NotFound, Refused
from mlora_sched.settings import BaseRef, DaemonSettings
from mlora_sched.spec.job import parse_job
from mlora_sched.spec.state import ErrorCode, JobState, Request
from mlora_sched.spec.wire import Attach, Command
from mlora_sched.store.records import Release
from mlora_sched.worker.fake import fake_loss

from .in_process import clients
from .trail import Trail
from .watch import check_history

OWNERS = ("ann", "bob")
MAX_CRASHES = 4


class KilledHere(BaseException):
    """The daemon ends between two transactions, as by SIGKILL."""


@dataclass
class Asked:
    """What is known of a job without asking the daemon.

    Attributes:
        doom: the step at which it fails, 0 for its data; None for never. cancelled: somebody asked for it in time.
    """

    owner: str
    steps: int
    r: int = 1
    tokens: int = 100
    doom: int | None = None
    cancelled: bool = False


class Attachments:
    """In which epoch each job was last attached, by whatever worker: none is attached twice in one, nor in an older."""

    def __init__(self) -> None:
        self.epochs: dict[str, int] = {}


class CheckedWorker(RecordingWorker):
    """Refuses what no worker should be told."""

    def __init__(self, attachments: Attachments, **options: Any) -> None:
        super().__init__(**options)
        self._attachments = attachments

    def send(self, command: Command) -> None:
        if isinstance(command, Attach):
            start = command.start
            assert start.epoch > self._attachments.epochs.get(start.job_id, 0), f"{start.job_id} is attached twice"
            self._attachments.epochs[start.job_id] = start.epoch
        super().send(command)


class DaemonLife(RuleBasedStateMachine):
    """One state directory, several owners, several daemons one after another."""

    jobs = Bundle("jobs")

    @initialize(places=st.integers(1, 4), room=st.none() | st.integers(150, 200), host=st.sampled_from([0, 1, 10]))
    def begin(self, places: int, room: int | None, host: int) -> None:
        """Every job fits alone: it takes at most 128 + 20 MiB. `host` jobs can be parked."""
        self.memory = None if room is None else report(room, host_limit=1000 * host)
        attachments = Attachments()
        self.folder = Path(tempfile.mkdtemp())
        self.rig = Rig(
            self.folder,
            max_resident=places,
            make_worker=lambda: CheckedWorker(attachments, memory=self.memory, shape=SHAPE),
        )
        bases = (BaseRef(name="demo", location="/base"),)
        self.people = clients(self.rig.store, DaemonSettings(state_dir=self.folder, bases=bases), *OWNERS)
        self.data = self.folder / "rows.jsonl"
        self.data.write_text('{"text": "a row"}\n')
        self.trail = Trail(self.rig.engine)
        self.asked: dict[str, Asked] = {}
        self.crashes = 0
        self._left: int | None = None
        event.listen(self.rig.engine, "begin", self._count_down)

    # ------------------------------------------------------------ people

    @rule(
        target=jobs,
        owner=st.sampled_from(OWNERS),
        steps=st.integers(1, 12),
        save=st.integers(1, 5),
        r=st.integers(1, 20),
        tokens=st.sampled_from([100, 100_000]),
        priority=st.sampled_from(["low", "normal", "high"]),
    )
    def submit(self, owner: str, steps: int, save: int, r: int, tokens: int, priority: str) -> str:
        wanted = Asked(owner, steps, r, tokens)
        return self._submit(wanted, {"steps": steps, "step_tokens": tokens}, save_every=save, priority=priority)

    @rule(owner=st.sampled_from(OWNERS), steps=st.integers(2, 8), data=st.data())
    def submit_doomed(self, owner: str, steps: int, data: st.DataObject) -> None:
        fail_at = data.draw(st.integers(0, steps))
        self._submit(Asked(owner, steps, doom=fail_at), {"steps": steps, "fail_at": fail_at})

    def _submit(
        self, wanted: Asked, fake: dict[str, object], save_every: int | None = None, priority: str = "normal"
    ) -> str:
        raw = {
            "name": f"job{len(self.asked)}",
            "priority": priority,
            "adapter": {"r": wanted.r},
            "data": {"train": "rows.jsonl", "max_length": 100},
            "training": {"save_every": save_every, "chunk_tokens": 100},
            "metadata": {"fake": fake},
        }
        job = self.people[wanted.owner].submit_spec(parse_job(raw), {"rows.jsonl": self.data}).id
        self.asked[job] = wanted
        self._only_the_loop_moves_jobs()
        return job

    @rule(job=jobs, asked=st.sampled_from([Request.PAUSE, Request.RESUME]))
    def ask(self, job: str, asked: Request) -> None:
        with contextlib.suppress(Refused):
            self.people[self.asked[job].owner].request(job, asked)
        self._only_the_loop_moves_jobs()

    @rule(job=consumes(jobs))
    def cancel(self, job: str) -> None:
        if self.rig.state(job).is_final:
            return
        self.people[self.asked[job].owner].request(job, Request.CANCEL)
        self.asked[job].cancelled = True
        self._only_the_loop_moves_jobs()

    @rule(job=jobs, asked=st.sampled_from([Request.PAUSE, Request.RESUME, Request.CANCEL]))
    def meddle(self, job: str, asked: Request) -> None:
        """Other people's jobs do not exist."""
        (stranger,) = set(OWNERS) - {self.asked[job].owner}
        with pytest.raises(NotFound):
            self.people[stranger].request(job, asked)
        with pytest.raises(NotFound):
            self.people[stranger].get(job)
        assert not self.trail.news()

    @rule(wanted=st.booleans())
    def release_or_reclaim(self, wanted: bool) -> None:
        self.rig.store.set_release(Release(wanted, None, "root", self.rig.clock()))

    # ------------------------------------------------------------ time, and what goes wrong

    @rule(count=st.integers(1, 12))
    def time_passes(self, count: int) -> None:
        self.rig.tick(count)

    @precondition(lambda self: self.crashes < MAX_CRASHES and self.rig.workers)
    @rule(preparer=st.booleans())
    def crash(self, preparer: bool) -> None:
        self.crashes += 1
        (self.rig.preparers if preparer else self.rig.workers)[-1].crash()

    @precondition(lambda self: self.memory is not None and self.rig.workers)
    @rule(room=st.integers(-10, 200))
    def others_take_or_give_memory(self, room: int) -> None:
        """What they give is what they took: `memory_is_kept` goes by what there was at first."""
        assert self.memory is not None
        budget = min(room * MIB, self.memory.budget)
        self.rig.workers[-1].memory = self.memory.model_copy(update={"budget": budget})

    @rule(slices=st.integers(0, 2))
    def reboot(self, slices: int) -> None:
        """The daemon is killed; its worker goes on for some slices, and saves, before it sees that nobody listens."""
        for worker in self.rig.workers[-1:]:
            for _ in range(slices):
                worker.poll(0.0)
        for process in [*self.rig.workers, *self.rig.preparers]:
            process.crash()
        self.rig.boot()

    @rule(transactions=st.integers(0, 25), slices=st.integers(0, 2))
    def reboot_amid_a_tick(self, transactions: int, slices: int) -> None:
        """The daemon is killed between two of its transactions."""
        self._left = transactions
        try:
            self.rig.tick(4)
        except KilledHere:
            self._left = None
            self.reboot(slices)
        self._left = None

    def _count_down(self, _connection: object) -> None:
        if self._left is None:
            return
        if self._left == 0:
            raise KilledHere
        self._left -= 1

    # ------------------------------------------------------------ what holds at any time

    def _only_the_loop_moves_jobs(self) -> None:
        """After an answer of the API: nothing but requests has been written."""
        for change in self.trail.news():
            change.check()
            assert change.states[0] is change.states[1], f"{change}: the API writes no state"
            assert change.epochs[0] == change.epochs[1], f"{change}: the API sends nobody to a worker"
            assert change.requests[1] is not Request.NONE, f"{change}: the API carries nothing out"

    @invariant()
    def changes_are_allowed(self) -> None:
        for change in self.trail.news():
            change.check()
            assert change.by_the_loop, f"{change}: the loop asks for nothing"

    @invariant()
    def everybody_sees_their_own_jobs(self) -> None:
        for owner, client in self.people.items():
            assert {job.id for job in client.jobs()} == {job for job, of in self.asked.items() if of.owner == owner}

    @invariant()
    def places_are_kept(self) -> None:
        assert all(len(worker.residents) <= self.rig.max_resident for worker in self.rig.workers)

    @invariant()
    def one_worker_lives(self) -> None:
        assert sum(worker.alive for worker in self.rig.workers) <= 1
        assert sum(preparer.alive for preparer in self.rig.preparers) <= 1

    @invariant()
    def memory_is_kept(self) -> None:
        """Jobs that are attached anew fit beside those that are there, with a chunk; see `stand_in`."""
        if self.memory is not None:
            held = sum(self.asked[job].r for job in self.rig.loop._hands.attached)
            assert held + 128 <= self.memory.budget // MIB or not held

    # ------------------------------------------------------------ the end

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        self._everybody_goes_on()
        for change in self.trail.news():
            change.check()
        for job in self.asked:
            self._check_end(job)
            check_history([view for _, view in self.rig.store.events(job)])
        for client in self.people.values():
            client.close()
        self.rig.engine.dispose()
        shutil.rmtree(self.folder)

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
        asked, view, losses = self.asked[job], self.rig.store.get(job), self.rig.losses(job)
        assert losses == [(step, fake_loss(step)) for step in range(1, len(losses) + 1)]
        assert view.tokens == asked.tokens * len(losses)
        if view.error_code is ErrorCode.WORKER_CRASH:
            assert self.crashes >= 2
        elif view.error_code is ErrorCode.BAD_DATA and asked.doom != 0:
            assert self.crashes >= 2
            assert "preparer" in (view.error or "")
        elif view.state is JobState.CANCELLED:
            assert asked.cancelled
        elif asked.doom is not None:
            assert view.state is JobState.FAILED
            assert len(losses) == max(0, asked.doom - 1)
        else:
            assert (view.state, len(losses), view.step) == (JobState.SUCCEEDED, asked.steps, asked.steps)


def test_random_lives() -> None:
    run_state_machine_as_test(DaemonLife, settings=settings(max_examples=12, stateful_step_count=25, deadline=None))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_random_lives() -> None:
    run_state_machine_as_test(DaemonLife, settings=settings(max_examples=400, stateful_step_count=40, deadline=None))
