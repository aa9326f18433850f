"""`JobStore`: what is put in comes out, ids are resolved, requests are refused where they make no sense."""

import itertools

import pytest
from sqlalchemy.exc import IntegrityError

from mlora_sched.errors import Ambiguous, NotFound, Refused
from mlora_sched.spec.api import JobView
from mlora_sched.spec.job import JobSpec, parse_job
from mlora_sched.spec.query import JobQuery
from mlora_sched.spec.state import TRANSITIONS, ErrorCode, JobState, Request, StoppedBy
from mlora_sched.spec.wire import (
    Attached,
    CheckpointSaved,
    Detached,
    EvalDone,
    JobFailed,
    JobFinished,
    JobReport,
    Prepared,
    Recorded,
    StepDone,
)
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import Fairness, WorkerStatus

ID = "j-abcdef"
FILES = {"a.jsonl": "1" * 64}


def a_spec(name: str = "job", **more: object) -> JobSpec:
    return parse_job({"name": name, "data": {"train": "a.jsonl"}, **more})


def add(store: JobStore, job_id: str = ID, name: str = "job", owner: str = "ann", **more: object) -> JobView:
    return store.insert(job_id, a_spec(name, **more), FILES, owner, "demo", 10.0)


def prepared(epoch: int = 0, steps: int = 4) -> Prepared:
    return Prepared(job_id=ID, epoch=epoch, rows=9, validation_rows=1, tokens=900, truncated=2, total_steps=steps)


def attached(epoch: int = 0, step: int = 0) -> Attached:
    return Attached(job_id=ID, epoch=epoch, step=step, total_steps=4, trainable_parameters=7)


def stepped(step: int, epoch: int = 0, loss: float = 1.5, tokens: int = 100) -> StepDone:
    return StepDone(
        job_id=ID,
        epoch=epoch,
        step=step,
        loss=loss,
        lr=0.1,
        grad_norm=2.0,
        tokens=tokens,
        target_tokens=50,
        extra={"aux_loss": 0.5},
        work=tokens / 10,
    )


def evaluated(step: int, loss: float = 2.0) -> EvalDone:
    return EvalDone(job_id=ID, epoch=0, step=step, loss=loss, accuracy=0.25, tokens=30, work=2.5)


def bring_to(store: JobStore, state: JobState) -> None:
    """A new job in `state`, by reports where they lead there."""
    add(store)
    path: dict[JobState, list[JobReport]] = {
        JobState.PREPARING: [],
        JobState.QUEUED: [prepared()],
        JobState.RUNNING: [prepared(), attached()],
        JobState.SUCCEEDED: [prepared(), attached(), JobFinished(job_id=ID, epoch=0, step=4)],
        JobState.FAILED: [JobFailed(job_id=ID, epoch=0, code=ErrorCode.BAD_DATA, message="row 3")],
        JobState.PAUSED: [],
        JobState.CANCELLED: [],
    }
    store.record(path[state], 11.0)
    if state in (JobState.PAUSED, JobState.CANCELLED):
        assert store.transition(ID, JobState.PREPARING, state, 11.0)
    assert store.get(ID).state is state


def test_a_new_job_comes_out_as_it_was_put_in(store: JobStore) -> None:
    spec = a_spec(adapter={"method": "mixlora", "num_experts": 4}, priority="high", metadata={"a": [1, None]})
    view = store.insert(ID, spec, FILES, "ann", "demo", 10.0)
    assert view == store.get(ID)
    assert (view.owner, view.base, view.method, view.priority) == ("ann", "demo", "mixlora", "high")
    assert (view.state, view.request, view.created, view.started, view.ended) == (
        JobState.PREPARING,
        Request.NONE,
        10.0,
        None,
        None,
    )
    assert store.spec(ID) == spec
    assert store.files(ID) == FILES
    assert [job.spec for job in store.live()] == [spec]
    assert store.detail(ID).job == view


def test_an_id_is_used_once(store: JobStore) -> None:
    add(store)
    with pytest.raises(IntegrityError):
        add(store)


def test_unknown_jobs_are_not_found(store: JobStore) -> None:
    for ask in (store.get, store.spec, store.detail):
        with pytest.raises(NotFound, match="no job j-none"):
            ask("j-none")
    with pytest.raises(NotFound):
        store.request("j-none", Request.CANCEL, 1.0)


# ---------------------------------------------------------------- resolve


@pytest.mark.parametrize("text", ["j-aabbcc11", "aabbcc11", "j-aabb", "aabb", "alone"])
def test_ids_prefixes_and_names_are_resolved(store: JobStore, text: str) -> None:
    add(store, "j-aabbcc11", "alone")
    add(store, "j-ffbbcc11", "other")
    assert store.resolve(text, "ann") == "j-aabbcc11"
    assert store.resolve(text, None) == "j-aabbcc11"


@pytest.mark.parametrize("text", ["aab", "j-aab", "j-", "", "bbcc", "alon", "aabb%", "aab_"])
def test_what_is_too_short_or_fits_nothing_is_not_found(store: JobStore, text: str) -> None:
    add(store, "j-aabbcc11", "alone")
    with pytest.raises(NotFound):
        store.resolve(text, "ann")


@pytest.mark.parametrize("text", ["aab", "j-aab", "a", "j-"])
def test_a_beginning_that_is_too_short_is_answered_with_how_long_it_must_be(store: JobStore, text: str) -> None:
    add(store, "j-aabbcc11", "alone")
    with pytest.raises(NotFound, match=f"no job {text}; write at least 4 digits of an id"):
        store.resolve(text, "ann")


@pytest.mark.parametrize("text", ["alo", "j-alo", "bbcc", "j-ffff"])
def test_what_is_no_short_id_is_answered_with_where_ids_are(store: JobStore, text: str) -> None:
    add(store, "j-aabbcc11", "alone")
    with pytest.raises(NotFound, match=f"no job {text}; `ls` lists yours"):
        store.resolve(text, "ann")


def test_a_full_id_wins_and_several_are_listed(store: JobStore) -> None:
    add(store, "j-aabb", "twin")
    add(store, "j-aabbcc", "twin")
    add(store, "j-ccdd", "aabbcc")
    assert store.resolve("j-aabb", "ann") == "j-aabb"
    with pytest.raises(Ambiguous, match=r"twin fits several jobs: j-aabbcc, j-aabb;"):
        store.resolve("twin", "ann")
    assert store.resolve("aabbcc", "ann") == "j-aabbcc", "what begins an id is no name"
    assert store.resolve("aabbcc", None) == "j-aabbcc"


def test_by_name_administrators_mean_their_own_jobs(store: JobStore) -> None:
    add(store, "j-aabb1111", "mine", owner="root")
    add(store, "j-ccdd2222", "mine", owner="mallory")
    add(store, "j-eeff3333", "theirs", owner="mallory")
    assert store.resolve("mine", None, "root") == store.find("mine", None, "root").id == "j-aabb1111"
    assert store.resolve("eeff", None, "root") == "j-eeff3333"
    with pytest.raises(NotFound):
        store.resolve("theirs", None, "root")


def test_other_peoples_jobs_neither_fit_nor_disturb(store: JobStore) -> None:
    add(store, "j-aabb1111", "mine", owner="ann")
    add(store, "j-aabb2222", "mine", owner="bob")
    assert store.resolve("mine", "ann") == "j-aabb1111"
    assert store.resolve("aabb", "bob") == "j-aabb2222"
    with pytest.raises(NotFound):
        store.resolve("j-aabb2222", "ann")
    with pytest.raises(Ambiguous):
        store.resolve("mine", None)


def test_list_is_newest_first_and_filters(store: JobStore) -> None:
    for number, owner in enumerate(["ann", "bob", "ann"]):
        add(store, f"j-{number:06d}", owner=owner)
    store.transition("j-000002", JobState.PREPARING, JobState.CANCELLED, 12.0)
    assert [job.id for job in store.list()] == ["j-000002", "j-000001", "j-000000"]
    assert [job.id for job in store.list(owner="ann")] == ["j-000002", "j-000000"]
    assert [job.id for job in store.list(states=[JobState.CANCELLED])] == ["j-000002"]
    assert store.list(states=[]) == []
    assert [job.id for job in store.live()] == ["j-000000", "j-000001"]
    assert store.counts() == {state.value: 0 for state in JobState} | {"PREPARING": 2, "CANCELLED": 1}


def test_a_page_has_the_newest_and_counts_the_others(store: JobStore) -> None:
    for number in range(6):
        add(store, f"j-{number:06d}", owner="ann" if number % 3 else "bob")
        if number % 2:
            store.transition(f"j-{number:06d}", JobState.PREPARING, JobState.CANCELLED, 12.0)
    for owner, states, limit in itertools.product([None, "ann", "bob"], [None, [JobState.CANCELLED], []], range(1, 8)):
        fitting = store.list(owner, states)
        page = store.page(owner, JobQuery(states=None if states is None else tuple(states), limit=limit))
        assert list(page.jobs) == store.list(owner, states, limit=limit) == fitting[:limit]
        assert page.more == len(fitting) - len(page.jobs)


# ---------------------------------------------------------------- requests


LIVE_AND_RUNNABLE = (JobState.PREPARING, JobState.QUEUED, JobState.RUNNING)
ALLOWED = (
    {(state, Request.NONE, Request.PAUSE) for state in LIVE_AND_RUNNABLE}
    | {(state, Request.RESUME, Request.PAUSE) for state in (*LIVE_AND_RUNNABLE, JobState.PAUSED)}
    | {(JobState.PAUSED, Request.PAUSE, Request.RESUME), (JobState.PAUSED, Request.NONE, Request.RESUME)}
    | {(state, Request.PAUSE, Request.RESUME) for state in LIVE_AND_RUNNABLE}
    | {
        (state, pending, Request.CANCEL)
        for state in (*LIVE_AND_RUNNABLE, JobState.PAUSED)
        for pending in (Request.NONE, Request.PAUSE, Request.RESUME)
    }
)
REACHABLE_PENDING = {
    JobState.PREPARING: (Request.NONE, Request.PAUSE, Request.CANCEL),
    JobState.QUEUED: (Request.NONE, Request.PAUSE, Request.CANCEL),
    JobState.RUNNING: (Request.NONE, Request.PAUSE, Request.CANCEL),
    JobState.PAUSED: (Request.NONE, Request.RESUME, Request.CANCEL),
    JobState.SUCCEEDED: (Request.NONE,),
    JobState.FAILED: (Request.NONE,),
    JobState.CANCELLED: (Request.NONE,),
}


@pytest.mark.parametrize(
    ("state", "pending", "wanted"),
    [
        (state, pending, wanted)
        for state, pendings in REACHABLE_PENDING.items()
        for pending, wanted in itertools.product(pendings, [Request.PAUSE, Request.RESUME, Request.CANCEL])
    ],
)
def test_requests_are_taken_or_refused(store: JobStore, state: JobState, pending: Request, wanted: Request) -> None:
    bring_to(store, state)
    if pending is not Request.NONE:
        store.request(ID, pending, 12.0)
    if pending is wanted:
        assert store.request(ID, wanted, 13.0).request is wanted
    elif (state, pending, wanted) in ALLOWED:
        view = store.request(ID, wanted, 13.0)
        assert (view.request, view.state) == (wanted, state)
        assert view.shown_state == f"{state.value} ({wanted.doing})"
    else:
        before = store.get(ID)
        with pytest.raises(Refused, match=f"job {ID} (is|has)"):
            store.request(ID, wanted, 13.0)
        assert store.get(ID) == before


# ---------------------------------------------------------------- transitions


@pytest.mark.parametrize(("source", "target"), list(itertools.product(JobState, JobState)))
def test_only_the_drawn_transitions_are_possible(store: JobStore, source: JobState, target: JobState) -> None:
    bring_to(store, source)
    columns = {"error_code": "storage", "error": "why"} if target is JobState.FAILED else {}
    if target not in TRANSITIONS[source]:
        with pytest.raises(AssertionError, match="is no transition"):
            store.transition(ID, source, target, 12.0, **columns)
        assert store.get(ID).state is source
        return
    assert store.transition(ID, source, target, 12.0, **columns)
    view = store.get(ID)
    assert view.state is target
    assert view.ended == (12.0 if target.is_final else None)
    assert f"{source.value} → {target.value}" in store.events(ID)[-1][1].message


def test_a_transition_from_a_state_the_job_has_left_changes_nothing(store: JobStore) -> None:
    bring_to(store, JobState.RUNNING)
    before = store.get(ID), store.events(ID)
    assert not store.transition(ID, JobState.QUEUED, JobState.PAUSED, 12.0)
    assert (store.get(ID), store.events(ID)) == before


@pytest.mark.parametrize(
    ("done", "asked_since", "left"),
    [
        (Request.PAUSE, None, Request.NONE),
        (Request.PAUSE, Request.CANCEL, Request.CANCEL),
        (None, None, Request.PAUSE),
    ],
)
def test_a_request_is_reset_only_if_it_still_stands(
    store: JobStore, done: Request | None, asked_since: Request | None, left: Request
) -> None:
    bring_to(store, JobState.QUEUED)
    store.request(ID, Request.PAUSE, 12.0)
    if asked_since is not None:
        store.request(ID, asked_since, 12.5)
    assert store.transition(ID, JobState.QUEUED, JobState.PAUSED, 13.0, done=done)
    assert store.get(ID).request is left


# ---------------------------------------------------------------- reports


def test_reports_of_a_whole_life(store: JobStore) -> None:
    add(store)
    store.record([prepared()], 11.0)
    assert (store.get(ID).state, store.get(ID).total_steps) == (JobState.QUEUED, 4)
    store.record([attached(), stepped(1, loss=1.5), evaluated(1), stepped(2, loss=1.25)], 12.0)
    view = store.get(ID)
    assert (view.state, view.step, view.loss, view.eval_loss, view.tokens, view.started) == (
        JobState.RUNNING,
        2,
        1.25,
        2.0,
        200,
        12.0,
    )
    store.record([stepped(3), stepped(4), JobFinished(job_id=ID, epoch=0, step=4)], 13.0)
    view = store.get(ID)
    assert (view.state, view.step, view.ended, view.reason) == (JobState.SUCCEEDED, 4, 13.0, "")
    assert store.fairness().counters == {"ann": 42.5}, "its steps and its evaluation"


def test_what_an_owner_pays_is_divided_by_their_weight(store: JobStore) -> None:
    bring_to(store, JobState.RUNNING)
    store.record([stepped(1)], 12.0, weights={"ann": 4.0, "bob": 8.0})
    store.record([evaluated(1)], 12.0, weights={"bob": 8.0})
    assert store.fairness().counters == {"ann": 10 / 4 + 2.5}, "1 for who has none"


def test_a_job_that_a_limit_has_stopped_says_so(store: JobStore) -> None:
    bring_to(store, JobState.RUNNING)
    store.record([stepped(1), JobFinished(job_id=ID, epoch=0, step=1, stopped_by=StoppedBy.MAX_TOKENS)], 12.0)
    view = store.get(ID)
    assert (view.state, view.step, view.total_steps) == (JobState.SUCCEEDED, 1, 4)
    assert view.stopped_by is StoppedBy.MAX_TOKENS
    last = store.events(ID)[-1][1].message
    assert last == "RUNNING → SUCCEEDED: stopped by max_tokens after 1 of 4 steps"


def test_a_failure_keeps_its_code_and_text(store: JobStore) -> None:
    bring_to(store, JobState.RUNNING)
    store.record([JobFailed(job_id=ID, epoch=0, code=ErrorCode.NON_FINITE_LOSS, message="loss is nan")], 12.0)
    view = store.get(ID)
    assert (view.state, view.error_code, view.error) == (JobState.FAILED, ErrorCode.NON_FINITE_LOSS, "loss is nan")


def test_stale_reports_and_reports_after_the_end_are_ignored(store: JobStore) -> None:
    bring_to(store, JobState.QUEUED)
    assert store.begin_epoch(ID) == 1
    before = store.get(ID)
    failed = JobFailed(job_id=ID, epoch=0, code=ErrorCode.STORAGE, message="old")
    store.record([attached(0), stepped(1, epoch=0), failed], 12.0)
    assert (store.get(ID), store.metrics(ID), store.fairness().counters) == (before, [], {})
    store.record([attached(1), JobFinished(job_id=ID, epoch=1, step=4)], 13.0)
    ended = store.get(ID)
    late = [attached(1), stepped(5, epoch=1), JobFailed(job_id=ID, epoch=1, code=ErrorCode.STORAGE, message="late")]
    store.record(late, 14.0)
    assert store.get(ID) == ended
    assert store.metrics(ID) == []


def test_reports_of_unknown_jobs_are_ignored(store: JobStore) -> None:
    store.record([attached()], 1.0)
    assert store.list() == []


@pytest.mark.parametrize(
    ("asked", "state"),
    [
        ([], JobState.QUEUED),
        ([Request.PAUSE], JobState.PAUSED),
        ([Request.PAUSE, Request.RESUME], JobState.QUEUED),
        ([Request.PAUSE, Request.CANCEL], JobState.CANCELLED),
        ([Request.CANCEL], JobState.CANCELLED),
    ],
)
def test_a_detached_job_goes_where_its_owner_wants_it(store: JobStore, asked: list[Request], state: JobState) -> None:
    bring_to(store, JobState.RUNNING)
    for request in asked:
        store.request(ID, request, 12.0)
    store.record([Detached(job_id=ID, epoch=0, step=2)], 13.0)
    view = store.get(ID)
    assert (view.state, view.request, view.step) == (state, Request.NONE, 2)


def test_data_prepared_while_paused_stays_prepared(store: JobStore) -> None:
    bring_to(store, JobState.PAUSED)
    store.record([prepared(steps=7)], 12.0)
    assert (store.get(ID).state, store.get(ID).total_steps) == (JobState.PAUSED, 7)


def test_a_step_computed_again_keeps_its_row_and_counts_once(store: JobStore) -> None:
    bring_to(store, JobState.RUNNING)
    store.record([stepped(1), stepped(2)], 12.0)
    rows = [row for row, _ in store.metrics(ID)]
    store.record([stepped(2, loss=9.0, tokens=80)], 13.0)
    lines = store.metrics(ID)
    assert [row for row, _ in lines] == rows
    assert [line.loss for _, line in lines] == [1.5, 9.0]
    assert store.get(ID).tokens == 180
    assert store.fairness().counters == {"ann": 28.0}, "the device has worked for both"


def test_metrics_are_in_canonical_order_and_read_from_a_cursor(store: JobStore) -> None:
    bring_to(store, JobState.RUNNING)
    store.record([stepped(1), evaluated(2), stepped(2), stepped(3)], 12.0)
    lines = store.metrics(ID)
    assert [(line.event, line.step) for _, line in lines] == [("step", 1), ("step", 2), ("eval", 2), ("step", 3)]
    assert lines[0][1].extra == {"aux_loss": 0.5}
    assert (lines[2][1].accuracy, lines[2][1].lr, lines[2][1].tokens) == (0.25, None, 30)
    newest = max(row for row, _ in lines)
    assert store.metrics(ID, after=newest) == []
    store.record([stepped(4)], 13.0)
    assert [line.step for _, line in store.metrics(ID, after=newest)] == [4]


def test_the_store_knows_the_checkpoints_that_the_worker_keeps(store: JobStore) -> None:
    bring_to(store, JobState.RUNNING)
    assert (store.checkpoints(ID), store.best_checkpoint(ID)) == ((), None)
    kept = []
    for best, steps in [(0, (1,)), (1, (1, 2)), (0, (2, 3)), (0, (2, 3, 4)), (1, (4, 5)), (0, (5, 6)), (0, (5, 6, 7))]:
        saved = CheckpointSaved(job_id=ID, epoch=0, step=steps[-1], best=bool(best), asked=steps[-1] < 7, kept=steps)
        store.record([saved], 12.0)
        kept.append((store.checkpoints(ID), store.best_checkpoint(ID)))
    assert kept == [
        ((1,), None),
        ((1, 2), 2),
        ((2, 3), 2),
        ((2, 3, 4), 2),
        ((4, 5), 5),
        ((5, 6), 5),
        ((5, 6, 7), 5),
    ]
    told = [event.message for _, event in store.events(ID) if event.message.startswith("checkpoint")]
    assert told == [f"checkpoint at step {step}{' (best)' if step in (2, 5) else ''}" for step in range(1, 7)]
    store.record([JobFinished(job_id=ID, epoch=0, step=7, kept=(5,))], 13.0)
    assert (store.checkpoints(ID), store.best_checkpoint(ID)) == ((5,), 5)


def test_how_far_figures_are_recorded(store: JobStore) -> None:
    bring_to(store, JobState.RUNNING)
    assert store.recorded(ID) == Recorded(step=0, evaluated=-1)
    store.record([stepped(1), stepped(2)], 12.0)
    assert store.recorded(ID) == Recorded(step=2, evaluated=-1)
    store.record([EvalDone(job_id=ID, epoch=0, step=2, loss=1.0, accuracy=0.5, tokens=9)], 12.0)
    assert store.recorded(ID) == Recorded(step=2, evaluated=2)


# ---------------------------------------------------------------- the rest


def test_requeueing_touches_running_jobs_only(store: JobStore) -> None:
    bring_to(store, JobState.RUNNING)
    add(store, "j-other")
    store.requeue_running(13.0, "the worker died")
    assert {job.id: job.state for job in store.list()} == {ID: JobState.QUEUED, "j-other": JobState.PREPARING}
    assert store.events(ID)[-1][1].message == "RUNNING → QUEUED: the worker died"


def test_events_of_one_job_and_of_all(store: JobStore) -> None:
    add(store)
    add(store, "j-other")
    store.note(None, "hello", 12.0)
    everything = store.events(None)
    assert [(event.job_id, event.message) for _, event in everything] == [
        (ID, "submitted"),
        ("j-other", "submitted"),
        (None, "hello"),
    ]
    assert store.events(None, after=everything[1][0]) == everything[2:]
    assert [event.job_id for _, event in store.events("j-other")] == ["j-other"]


def test_spooled_files_belong_to_who_uploaded_them(store: JobStore) -> None:
    store.add_file("1" * 64, 5, "ann", 1.0)
    store.add_file("1" * 64, 5, "ann", 2.0)
    assert store.has_file("1" * 64, "ann")
    assert not store.has_file("1" * 64, "bob")
    assert not store.has_file("2" * 64, "ann")


def test_worker_status_and_fairness_are_kept(store: JobStore) -> None:
    assert store.worker_status() == WorkerStatus()
    assert store.fairness() == Fairness({}, 0.0)
    for round_ in (1, 2):
        status = WorkerStatus(
            state="ready", exactness="exact", device="cpu", tokens_per_second=100.0 * round_, fill=0.5
        )
        store.set_worker_status(status)
        assert store.worker_status() == status
        store.set_fairness(Fairness({"ann": 7.0 * round_}, 3.0 * round_))
        assert store.fairness() == Fairness({"ann": 7.0 * round_}, 3.0 * round_)
