"""The roster in memory against what the store says, whatever is done to jobs in between."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import event

from mlora_sched.daemon.roster import Roster, by_submission
from mlora_sched.errors import NotFound, Refused
from mlora_sched.spec.job import Priority, parse_job
from mlora_sched.spec.state import TRANSITIONS, ErrorCode, JobState, Request
from mlora_sched.spec.wire import StepDone
from mlora_sched.store.db import open_database
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import LiveJob, Wait
from mlora_sched.store.rows import failed

from .rig import Rig

IDS = st.integers(0, 5).map(lambda number: f"j-{number}")


def without_words(job: LiveJob) -> LiveJob:
    return replace(job, reason="", position=None, expected=None)


class Changes(RuleBasedStateMachine):
    """Anybody may change anything between two looks; jobs come again under the ids of those that were removed."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="roster-")
        database = Path(self.folder.name) / "mlora.sqlite"
        database.write_bytes(_empty())
        self.engine = open_database(database)
        self.engine.dispose()
        event.listen(self.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
        self.store = JobStore(self.engine)
        self.roster = Roster(self.store)
        self.followed = self.roster.follow()
        self.copy: dict[str, LiveJob] = {}
        self.count = 0

    def teardown(self) -> None:
        self.engine.dispose()
        self.folder.cleanup()

    @rule(owner=st.sampled_from("ab"), base=st.sampled_from(["demo", "other"]))
    def submit(self, owner: str, base: str) -> None:
        spec = parse_job({"name": "job", "data": {"train": "a.jsonl"}})
        self.store.insert(f"j-{self.count}", spec, {"a.jsonl": "1" * 64}, owner, base, 1.0)
        self.count += 1

    @rule(job_id=IDS, data=st.data())
    def move(self, job_id: str, data: st.DataObject) -> None:
        job = next((job for job in self.store.live() if job.id == job_id), None)
        if job is not None:
            target = data.draw(st.sampled_from(sorted(TRANSITIONS[job.state])))
            columns = failed(ErrorCode.STORAGE, "why") if target is JobState.FAILED else {}
            self.store.transition(job_id, job.state, target, 2.0, **columns)

    @rule(job_id=IDS, step=st.integers(1, 9))
    def step(self, job_id: str, step: int) -> None:
        done = StepDone(
            job_id=job_id, epoch=0, step=step, loss=1.0, lr=0.1, grad_norm=1.0, tokens=5, target_tokens=5, extra={}
        )
        self.store.record([done], 3.0)

    @rule(job_id=IDS, request=st.sampled_from([Request.PAUSE, Request.RESUME, Request.CANCEL]))
    def ask(self, job_id: str, request: Request) -> None:
        _may_be_refused(lambda: self.store.request(job_id, request, 4.0))

    @rule(job_id=IDS, priority=st.sampled_from(Priority))
    def order(self, job_id: str, priority: Priority) -> None:
        _may_be_refused(lambda: self.store.set_priority(job_id, priority, "root", 5.0))

    @rule(job_id=IDS)
    def explain(self, job_id: str) -> None:
        self.store.set_waits({job_id: Wait("so", 3)})

    @rule(job_id=IDS, cancel=st.booleans())
    def remove(self, job_id: str, cancel: bool) -> None:
        job = next((job for job in self.store.live() if job.id == job_id), None)
        if cancel and job is not None:
            self.store.transition(job_id, job.state, JobState.CANCELLED, 6.0)
        _may_be_refused(lambda: self.store.remove_job(job_id, "root", 6.0))

    @rule()
    def look(self) -> None:
        self.roster.refresh()
        assert {job_id: without_words(job) for job_id, job in self.roster.items()} == {
            job.id: without_words(job) for job in self.store.live()
        }
        for job_id in self.followed:
            self.copy.pop(job_id, None)
            if job_id in self.roster:
                self.copy[job_id] = self.roster[job_id]
        self.followed.clear()

    @invariant()
    def who_follows_misses_nothing(self) -> None:
        assert self.copy == {job_id: job for job_id, job in self.roster.items() if job_id not in self.followed}

    @invariant()
    def every_job_is_found_where_it_belongs(self) -> None:
        jobs = list(self.roster.values())
        for base in ("demo", "other"):
            for state in JobState:
                wanted = {job.id: job for job in jobs if (job.base, job.state) == (base, state)}
                assert dict(self.roster.in_state(state, base)) == wanted
        assert self.roster.bases() == {job.base for job in jobs}
        assert set(self.roster.owners()) == {job.owner for job in jobs}
        for owner in "ab":
            assert dict(self.roster.of_owner(owner)) == {job.id: job for job in jobs if job.owner == owner}
        wanted_of = sorted((job for job in jobs if job.request is not Request.NONE), key=by_submission)
        assert self.roster.asked() == wanted_of


@cache
def _empty() -> bytes:
    """A database with nothing in it, whose migrations need not be run again."""
    with tempfile.TemporaryDirectory(prefix="roster-") as folder:
        open_database(Path(folder) / "mlora.sqlite").dispose()
        return (Path(folder) / "mlora.sqlite").read_bytes()


def _may_be_refused(change: Callable[[], object]) -> None:
    try:
        change()
    except (NotFound, Refused):
        return


TestRoster = Changes.TestCase
TestRoster.settings = settings(
    max_examples=20, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_a_number_that_is_given_again_hides_no_change(rig: Rig) -> None:
    kept, gone = rig.submit("kept"), rig.submit("gone")
    roster = Roster(rig.store)
    rig.store.transition(gone, JobState.PREPARING, JobState.CANCELLED, 2.0)
    roster.refresh()
    rig.store.remove_job(gone, "root", 3.0)
    rig.store.set_priority(kept, Priority.HIGH, "ann", 4.0)
    roster.refresh()
    assert roster[kept].priority is Priority.HIGH
