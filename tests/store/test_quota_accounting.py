"""What counts against quotas: whatever people upload, submit, train, end and remove, it is what a plain model counts.

What goes beyond a limit is refused and changes nothing; what another user does makes no difference.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import event

from mlora_sched.errors import Refused
from mlora_sched.spec.job import parse_job
from mlora_sched.spec.quota import Quota, QuotaChange, QuotaKind
from mlora_sched.spec.state import JobState, Request
from mlora_sched.spec.wire import Attached, Prepared, StepDone
from mlora_sched.store.db import open_database
from mlora_sched.store.jobs import JobStore

OWNERS = st.sampled_from(["ann", "bob"])
CONTENTS = {letter * 64: size for letter, size in zip("abcde", (1, 2, 4, 8, 16), strict=True)}
MOST = {QuotaKind.LIVE_JOBS: 4, QuotaKind.QUEUED_JOBS: 3, QuotaKind.SPOOL: 30, QuotaKind.DATA: 20}
"""Limits that are reached soon."""
LIMITS = st.sampled_from(sorted(MOST)).flatmap(
    lambda kind: st.fixed_dictionaries({kind: st.integers(1, MOST[kind]) | st.none()})
)
DAY = 86_400.0


@dataclass
class Job:
    """What the model knows of a job; `state` is one of its own words."""

    owner: str
    files: frozenset[str]
    state: JobState = JobState.PREPARING


class Accounting(RuleBasedStateMachine):
    """A store beside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.engine = open_database(Path(self.folder.name) / "mlora.sqlite")
        self.engine.dispose()
        event.listen(self.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
        self.store = JobStore(self.engine)
        self.now = 10 * DAY
        self.count = 0
        self.jobs: dict[str, Job] = {}
        self.uploads: dict[str, set[str]] = {"ann": set(), "bob": set()}
        self.tokens: dict[tuple[str, int], int] = {}
        self.default: dict[QuotaKind, int | None] = {}
        self.own: dict[str, dict[QuotaKind, int | None]] = {"ann": {}, "bob": {}}

    def teardown(self) -> None:
        self.engine.dispose()
        self.folder.cleanup()

    @initialize(limits=st.fixed_dictionaries({kind: st.integers(1, most) for kind, most in MOST.items()}))
    def begin(self, limits: dict[QuotaKind, int | None]) -> None:
        self.set_quota(None, limits, set())

    # ------------------------------------------------------------ the model

    def limit(self, owner: str, kind: QuotaKind) -> float:
        limit = self.own[owner].get(kind, self.default.get(kind))
        return float("inf") if limit is None else limit

    def used(self, owner: str) -> dict[QuotaKind, int]:
        states = [job.state for job in self.jobs.values() if job.owner == owner]
        return {
            QuotaKind.LIVE_JOBS: sum(not state.is_final for state in states),
            QuotaKind.QUEUED_JOBS: sum(state in (JobState.PREPARING, JobState.QUEUED) for state in states),
            QuotaKind.SPOOL: sum(CONTENTS[sha256] for sha256 in self.uploads[owner]),
            QuotaKind.TOKENS_PER_DAY: self.tokens.get((owner, int(self.now // DAY)), 0),
        }

    def may(self, owner: str, kind: QuotaKind, more: int) -> bool:
        return self.used(owner)[kind] + more <= self.limit(owner, kind)

    # ------------------------------------------------------------ what people do

    @rule(owner=OWNERS, sha256=st.sampled_from(sorted(CONTENTS)))
    def upload(self, owner: str, sha256: str) -> None:
        size = CONTENTS[sha256]
        others = sum(CONTENTS[one] for one in self.uploads[owner] - {sha256})
        fits = others + size <= self.limit(owner, QuotaKind.SPOOL)
        placed: list[str] = []
        assert self.store.upload_room(owner, sha256).fits(size) == fits
        try:
            self.store.add_file(sha256, size, owner, self.now, lambda: placed.append(sha256))
        except Refused:
            assert not fits
        assert bool(placed) == fits
        if fits:
            self.uploads[owner].add(sha256)

    @rule(owner=OWNERS, data=st.data())
    def submit(self, owner: str, data: st.DataObject) -> None:
        files = data.draw(st.frozensets(st.sampled_from(sorted(self.uploads[owner]) or ["z" * 64]), max_size=3))
        files &= self.uploads[owner]
        self.count += 1
        job_id = f"j-{self.count}"
        spec = parse_job({"name": "job", "data": {"train": "a.jsonl"}})
        size = sum(CONTENTS[sha256] for sha256 in files)
        fits = (
            self.may(owner, QuotaKind.LIVE_JOBS, 1)
            and self.may(owner, QuotaKind.QUEUED_JOBS, 1)
            and self.may(owner, QuotaKind.SPOOL, 0)
            and size <= self.limit(owner, QuotaKind.DATA)
        )
        # one content under several names counts once
        named = {f"{name}-{sha256}": sha256 for sha256 in files for name in "xy"}
        try:
            self.store.insert(job_id, spec, named, owner, "demo", self.now)
        except Refused:
            assert not fits
        else:
            assert fits
            self.jobs[job_id] = Job(owner, files)

    @precondition(lambda self: self.live())
    @rule(data=st.data(), tokens=st.integers(1, 50))
    def train(self, data: st.DataObject, tokens: int) -> None:
        job_id = data.draw(st.sampled_from(self.live()))
        job, epoch = self.jobs[job_id], self.store.begin_epoch(job_id)
        told = {"job_id": job_id, "epoch": epoch}
        prepared = Prepared(rows=1, validation_rows=0, tokens=9, truncated=0, total_steps=9, **told)
        attached = Attached(step=0, total_steps=9, trainable_parameters=1, **told)
        figures = {"loss": 1.0, "lr": 0.1, "grad_norm": 1.0, "target_tokens": 1}
        step = StepDone(step=1, tokens=tokens, extra={}, **figures, **told)
        self.store.record([prepared, attached, step], self.now)
        job.state = JobState.RUNNING
        key = (job.owner, int(self.now // DAY))
        self.tokens[key] = self.tokens.get(key, 0) + tokens

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(self.live()))
        job = self.jobs[job_id]
        assert self.store.transition(job_id, job.state, JobState.CANCELLED, self.now, done=Request.CANCEL)
        job.state = JobState.CANCELLED

    @precondition(lambda self: len(self.live()) < len(self.jobs))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs.keys() - set(self.live()))))
        self.store.remove_job(job_id, "root", self.now)
        job = self.jobs.pop(job_id)
        needed = {sha256 for other in self.jobs.values() if other.owner == job.owner for sha256 in other.files}
        self.uploads[job.owner] -= job.files - needed

    @rule(owner=st.none() | OWNERS, limits=LIMITS, inherit=st.sets(st.sampled_from(sorted(MOST)), max_size=1))
    def change(self, owner: str | None, limits: dict[QuotaKind, int | None], inherit: set[QuotaKind]) -> None:
        self.set_quota(owner, limits, inherit)

    def set_quota(self, owner: str | None, limits: dict[QuotaKind, int | None], inherit: set[QuotaKind]) -> None:
        inherit = set() if owner is None else inherit - limits.keys()
        self.store.set_quota(QuotaChange(user=owner, limits=limits, inherit=tuple(inherit)), "root", self.now)
        table = self.default if owner is None else self.own[owner]
        table.update(limits)
        for kind in inherit:
            table.pop(kind, None)

    @rule()
    def night(self) -> None:
        self.now += DAY
        self.store.forget_usage(self.now)

    def live(self) -> list[str]:
        return sorted(job_id for job_id, job in self.jobs.items() if not job.state.is_final)

    # ------------------------------------------------------------ what must hold

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        together = self.store.used(self.now)
        for owner in ("ann", "bob"):
            assert self.store.used(self.now, owner) == {owner: self.used(owner)}
            assert together.get(owner, dict.fromkeys(self.used(owner), 0)) == self.used(owner)

    @invariant()
    def limits_are_those_that_were_set(self) -> None:
        quotas = self.store.quotas()
        assert quotas.default == Quota(limits=self.default)
        for owner, own in self.own.items():
            assert quotas.of(owner).limits == {**self.default, **own}


def test_accounting() -> None:
    phases = (Phase.reuse, Phase.generate)  # smaller examples would be looked for all too long
    settings = hypothesis_settings(max_examples=8, stateful_step_count=40, deadline=None, phases=phases)
    run_state_machine_as_test(Accounting, settings=settings)
