"""Cleaning up: whatever is uploaded, submitted, ended, removed and killed, nothing needed goes and nothing else stays.

The model keeps what people did, and works out by sets what is to be there after a sweep; the disk is then compared.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pytest
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

from mlora_sched.daemon.retention import Garbage, Kind, Retention, sweep_drafts
from mlora_sched.errors import Refused
from mlora_sched.settings import BaseRef, DaemonSettings
from mlora_sched.spec.job import parse_job
from mlora_sched.spec.state import JobState
from mlora_sched.spec.wire import Prepared
from mlora_sched.store.db import open_database
from mlora_sched.store.jobs import JobStore

from .rig import Rig, _do_not_wait_for_the_disk

CONTENTS = [letter * 64 for letter in "abcd"]
KEEP = 500.0


@dataclass
class Job:
    """What the model knows of a job."""

    owner: str
    files: frozenset[str]
    entry: str
    ended: float | None = None
    removed: bool = False


@dataclass
class Place:
    """A state directory, and what one does there."""

    folder: Path
    keep_artifacts: float | None = None
    now: float = 10_000.0
    jobs: dict[str, Job] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        self.settings = DaemonSettings(
            state_dir=self.folder,
            bases=(BaseRef(name="demo", location="/base"),),
            keep_artifacts=self.keep_artifacts,
            keep_uploads=KEEP,
        )
        self.engine = open_database(self.settings.database)
        self.engine.dispose()
        event.listen(self.engine, "connect", _do_not_wait_for_the_disk)
        self.store = JobStore(self.engine)
        for name in ("spool", "cache", "jobs"):
            (self.folder / name).mkdir()
        self.retention = Retention(self.store, self.settings)

    def write(self, path: Path) -> None:
        path.write_bytes(b"12345")
        os.utime(path, (self.now, self.now))

    def upload(self, owner: str, sha256: str) -> None:
        self.store.add_file(sha256, 5, owner, self.now, lambda: self.write(self.settings.spool_dir / sha256))

    def use(self, owner: str, sha256: str) -> None:
        """As a client does: ask first, upload what the daemon does not have."""
        if self.store.has_file(sha256, owner, used=self.now):
            assert (self.settings.spool_dir / sha256).exists(), "who asks is not lied to"
        else:
            self.upload(owner, sha256)

    def submit(self, owner: str = "ann", files: frozenset[str] = frozenset(CONTENTS[:1]), prepare: bool = True) -> str:
        self.count += 1
        job_id, entry = f"j-{self.count:04}", f"{'-'.join(sorted(name[0] for name in files))}.safetensors"
        names = {f"{sha256[0]}.jsonl": sha256 for sha256 in files}
        for sha256 in files:
            self.use(owner, sha256)
        spec = parse_job({"name": f"job{self.count}", "data": {"train": sorted(names)}})
        self.store.insert(job_id, spec, names, owner, "demo", self.now)
        self.jobs[job_id] = Job(owner, files, entry if prepare else "")
        for name in ("adapter/weights", "checkpoints/step-000002/weights", "checkpoints/step-000004/weights"):
            path = self.settings.job_dir(job_id) / name
            path.parent.mkdir(parents=True)
            path.write_bytes(b"12345")
        if prepare:
            self.write(self.settings.cache_dir / entry)
            counts = dict.fromkeys(("epoch", "rows", "validation_rows", "tokens", "truncated", "total_steps"), 0)
            self.store.record([Prepared(job_id=job_id, cache_entry=entry, **counts)], self.now)
        return job_id

    def end(self, job_id: str) -> None:
        state = self.store.get(job_id).state
        assert self.store.transition(job_id, state, JobState.CANCELLED, self.now)
        self.jobs[job_id].ended = self.now

    def sweep(self) -> list[Garbage]:
        found = []
        for garbage in self.retention.find(self.now):
            found.append(garbage)
            self.retention.remove(garbage, self.now)
        return found

    def there(self, name: str) -> set[str]:
        return {path.name for path in (self.folder / name).iterdir()}

    def close(self) -> None:
        self.engine.dispose()


def rows_of(place: Place) -> dict[tuple[str, str], float]:
    """Last use of every upload, by owner and content."""
    with place.engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT owner, sha256, coalesce(used, created) FROM spool").all()
    return {(owner, sha256): used for owner, sha256, used in found}


class Keeping(RuleBasedStateMachine):
    """People, sweeps and crashes on one state directory."""

    @initialize(keep=st.sampled_from([None, 200.0, 2000.0]))
    def begin(self, keep: float | None) -> None:
        self.place = Place(Path(tempfile.mkdtemp()), keep)

    @rule(owner=st.sampled_from(["ann", "bob"]), content=st.sampled_from(CONTENTS))
    def upload(self, owner: str, content: str) -> None:
        self.place.use(owner, content)

    @rule(content=st.sampled_from(CONTENTS))
    def upload_and_be_killed(self, content: str) -> None:
        self.place.write(self.place.settings.spool_dir / content)

    @rule(
        owner=st.sampled_from(["ann", "bob"]),
        files=st.frozensets(st.sampled_from(CONTENTS), min_size=1, max_size=2),
        prepare=st.booleans(),
    )
    def submit(self, owner: str, files: frozenset[str], prepare: bool) -> None:
        self.place.submit(owner, files, prepare)

    @precondition(lambda self: self.place.jobs)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        live = [job_id for job_id, job in self.place.jobs.items() if job.ended is None]
        if live:
            self.place.end(data.draw(st.sampled_from(live)))

    @precondition(lambda self: self.place.jobs)
    @rule(data=st.data(), killed=st.booleans())
    def remove(self, data: st.DataObject, killed: bool) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.place.jobs)))
        job = self.place.jobs[job_id]
        if job.ended is None:
            with pytest.raises(Refused, match=f"`mlora-sched cancel {job_id}`"):
                self.place.store.remove_job(job_id, "ann", self.place.now)
            return
        before = rows_of(self.place)
        _, forgotten = self.place.store.remove_job(job_id, "ann", self.place.now)
        del self.place.jobs[job_id]
        others = [other for other in self.place.jobs.values() if other.owner == job.owner and not other.removed]
        free = job.files - {sha256 for other in others for sha256 in other.files}
        assert set(before) - set(rows_of(self.place)) == {(job.owner, sha256) for sha256 in free} & set(before)
        if not killed:
            self.place.retention.remove_files(job_id, forgotten)
            assert not self.place.settings.job_dir(job_id).exists()
            named = {sha256 for _, sha256 in rows_of(self.place)}
            assert not (set(forgotten) - named) & self.place.there("spool")

    @rule(seconds=st.sampled_from([10.0, 150.0, 300.0, 600.0, 2500.0]))
    def time_passes(self, seconds: float) -> None:
        self.place.now += seconds

    @rule(steps=st.integers(0, 6))
    def sweep_and_be_killed(self, steps: int) -> None:
        """What has happened by then is taken for granted; that it was allowed to is what the invariant says."""
        list(islice(self.place.retention._steps(self.place.now), steps))
        for job_id in self.place.jobs:
            self.place.jobs[job_id].removed = self.place.store.get(job_id).artifacts_removed is not None

    @rule()
    def sweep(self) -> None:
        place = self.place
        uploads = rows_of(place)
        files = [*(place.folder / "spool").iterdir(), *(place.folder / "cache").iterdir()]
        on_disk = {path.name: path.stat().st_mtime for path in files}
        dropped = self._drop_artifacts(uploads)
        old = place.now - KEEP
        busy = [job for job in place.jobs.values() if job.ended is None or job.ended >= old]
        used = {(job.owner, sha256) for job in busy for sha256 in job.files}
        expired = {key for key, time in uploads.items() if time < old and key not in used} - dropped
        kept = set(uploads) - dropped - expired
        named = {sha256 for _, sha256 in kept}
        freed = {sha256 for _, sha256 in dropped | expired} - named
        list(place.retention.find(place.now))
        assert rows_of(place) == uploads, "looking removes nothing"
        place.sweep()
        assert set(rows_of(place)) == kept
        young = {name for name, time in on_disk.items() if time >= old}
        wanted = named | (young - freed)
        assert place.there("spool") == {sha256 for sha256 in CONTENTS if sha256 in on_disk and sha256 in wanted}
        entries = {job.entry for job in busy}
        cached = {name for name in on_disk if name.endswith(".safetensors")}
        assert place.there("cache") == {name for name in cached if name in entries or name in young}
        assert place.there("jobs") == {job_id for job_id, job in place.jobs.items() if not job.removed}
        assert list(place.retention.find(place.now)) == []

    def _drop_artifacts(self, uploads: dict[tuple[str, str], float]) -> set[tuple[str, str]]:
        """Mark what `keep_artifacts` makes go; returns the uploads that go with it."""
        place, keep = self.place, self.place.keep_artifacts
        if keep is None:
            return set()
        gone = [job for job in place.jobs.values() if not job.removed and (job.ended or place.now) < place.now - keep]
        for job in gone:
            job.removed = True
        held = {(job.owner, sha256) for job in place.jobs.values() if not job.removed for sha256 in job.files}
        named = {(job.owner, sha256) for job in gone for sha256 in job.files}
        return {key for key in named - held if key in uploads and uploads[key] < place.now - keep}

    @invariant()
    def nothing_needed_is_missing(self) -> None:
        if not hasattr(self, "place"):
            return
        uploads, place = rows_of(self.place), self.place
        for job_id, job in place.jobs.items():
            if job.ended is None:
                assert all((job.owner, sha256) in uploads for sha256 in job.files)
                assert not job.entry or (place.settings.cache_dir / job.entry).exists()
            if not job.removed:
                assert len([path for path in place.settings.job_dir(job_id).rglob("*") if path.is_file()]) == 3
        assert {sha256 for _, sha256 in uploads} <= place.there("spool")

    def teardown(self) -> None:
        if not hasattr(self, "place"):
            return
        for job_id, job in self.place.jobs.items():
            if job.ended is None:
                self.place.end(job_id)
        self.place.now += 10_000
        self.sweep()
        assert self.place.there("spool") == self.place.there("cache") == set()
        if self.place.keep_artifacts is not None:
            assert self.place.there("jobs") == set()
        assert [self.place.store.get(job_id).id for job_id in self.place.jobs] == list(self.place.jobs), "rows stay"
        self.place.close()
        shutil.rmtree(self.place.folder)


def test_random_lives() -> None:
    run = hypothesis_settings(max_examples=25, stateful_step_count=25, deadline=None)
    run_state_machine_as_test(Keeping, settings=run)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_random_lives() -> None:
    run = hypothesis_settings(max_examples=1000, stateful_step_count=50, deadline=None)
    run_state_machine_as_test(Keeping, settings=run)


@pytest.fixture
def place(tmp_path: Path) -> object:
    made = Place(tmp_path, keep_artifacts=200.0)
    yield made
    made.close()


def test_what_would_go_is_told_with_its_size(place: Place) -> None:
    place.upload("bob", CONTENTS[0])
    job = place.submit("ann", frozenset(CONTENTS[:1]))
    lonely = place.submit("ann", frozenset(CONTENTS[1:2]))
    place.end(job)
    place.end(lonely)
    place.now += 550
    found = [(one.kind, one.name, one.owner, one.size, one.why) for one in place.retention.find(place.now)]
    assert found == [
        (Kind.ARTIFACTS, job, "ann", 15, "--keep-artifacts 200s"),
        (Kind.ARTIFACTS, lonely, "ann", 15, "--keep-artifacts 200s"),
        (Kind.UPLOAD, CONTENTS[0], "bob", 0, "--keep-uploads 500s"),  # ann has it, too
        (Kind.UPLOAD, CONTENTS[0], "ann", 5, "--keep-uploads 500s"),
        (Kind.UPLOAD, CONTENTS[1], "ann", 5, "--keep-uploads 500s"),
        (Kind.CACHE, "a.safetensors", "", 5, "--keep-uploads 500s"),
        (Kind.CACHE, "b.safetensors", "", 5, "--keep-uploads 500s"),
    ]
    place.sweep()
    view = place.store.get(job)
    assert (view.state, view.artifacts_removed) == (JobState.CANCELLED, place.now)
    assert place.store.events(job)[-1][1].message == "artifacts removed (--keep-artifacts 200s)"


def test_tokens_stay_while_it_is_not_known_who_needs_them(place: Place) -> None:
    """A live job that an earlier version has prepared."""
    job = place.submit()
    with place.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET cache_entry = NULL")
    place.write(place.settings.cache_dir / "old.safetensors")
    place.now += 10_000
    assert [one.kind for one in place.sweep()] == []
    place.end(job)
    place.now += 10_000
    place.sweep()
    assert place.there("cache") == set()


def test_an_upload_comes_between_the_look_and_the_removal(place: Place) -> None:
    place.upload("ann", CONTENTS[0])
    place.now += 1000
    (garbage,) = place.retention.find(place.now)
    place.submit("ann", frozenset(CONTENTS[:1]))
    place.retention.remove(garbage, place.now)
    assert rows_of(place).keys() == {("ann", CONTENTS[0])}
    assert place.there("spool") == {CONTENTS[0]}


def test_what_cannot_be_removed_is_told_and_the_rest_goes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in CONTENTS[:2]:
        place.upload("ann", content)
    place.now += 1000
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == CONTENTS[0]:
            raise OSError(5, "Input/output error")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    list(place.retention._steps(place.now))
    assert place.there("spool") == {CONTENTS[0]}
    assert "Input/output error" in place.store.events(None)[-1][1].message
    monkeypatch.undo()
    list(place.retention._steps(place.now))
    assert place.there("spool") == set()


def test_a_directory_that_cannot_be_read_ends_the_sweep_and_not_the_daemon(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> object:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "iterdir", refuse)
    place.retention.bite(place.now)
    assert "cleaning up has stopped" in place.store.events(None)[-1][1].message
    monkeypatch.undo()
    place.upload("ann", CONTENTS[0])
    place.now += 1000
    place.retention.bite(place.now)
    assert place.there("spool") == set()


def test_links_are_removed_and_not_followed(place: Place, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    job = place.submit()
    (place.settings.job_dir(job) / "link").symlink_to(outside)
    place.end(job)
    place.store.remove_job(job, "ann", place.now)
    place.sweep()
    assert not place.settings.job_dir(job).exists()
    assert (outside / "precious").exists()


def test_bites_are_short_and_get_everything_done(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlora_sched.daemon.retention.BITE_SECONDS", 0.0)
    jobs = [place.submit() for _ in range(3)]
    for job in jobs:
        place.end(job)
    place.now += 1000
    left = []
    for _ in range(30):
        place.retention.bite(place.now)
        left.append(sum(path.is_file() for path in place.folder.rglob("jobs/**/*")))
    assert all(before - after <= 1 for before, after in zip([9, *left], left, strict=False)), "one file a bite"
    assert left[-1] == 0
    place.now += 10
    late = place.submit()
    place.end(late)
    place.store.remove_job(late, "ann", place.now)
    place.retention.bite(place.now)
    assert place.there("jobs") == {late}, "not looked for all the time"
    place.now += 300
    for _ in range(10):
        place.retention.bite(place.now)
    assert place.there("jobs") == set()


def test_drafts_of_killed_writers_are_swept(place: Place) -> None:
    job = place.submit()
    folder = place.settings.job_dir(job)
    drafts = [folder / ".adapter.tmp-x", folder / "checkpoints" / ".step-000006.tmp-y"]
    drafts.append(place.settings.cache_dir / ".draft-z")
    for draft in drafts:
        draft.mkdir()
        (draft / "half").write_text("x")
    (place.settings.spool_dir / ".draft-q").write_text("x")
    sweep_drafts(place.settings)
    assert not any(path.name.startswith(".") for path in place.folder.rglob("*"))
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 3


def test_the_loop_cleans_up(rig: Rig) -> None:
    job = rig.submit("job", steps=3)
    rig.until_state(job, JobState.SUCCEEDED)
    rig.store.remove_job(job, "ann", rig.clock())
    assert (rig.state_dir / "jobs" / job / "adapter").exists()
    rig.until(lambda: not (rig.state_dir / "jobs" / job).exists())


def test_a_note_about_a_job_that_was_removed_meanwhile_is_dropped(rig: Rig) -> None:
    rig.store.note("j-gone", "too late", 1.0)
    assert rig.happened(None) == []
