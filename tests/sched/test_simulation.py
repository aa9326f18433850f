"""Traces in virtual time: against closed forms, against sums of what was put in, and as the real scheduler would."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlora_sched.errors import UserError
from mlora_sched.sched.gaps import Gaps
from mlora_sched.sched.outcome import jain, outcome, percentile, summarise, turnaround
from mlora_sched.sched.policies import find_policy, policy_names
from mlora_sched.sched.simulate import simulate
from mlora_sched.sched.traces import KINDS, seconds_packed, synthetic_trace
from mlora_sched.spec.trace import ChunkLoad, Machine, Trace, TraceJob, trace_of
from mlora_sched.spec.wire import StepTime

FAIR, FIFO, SEQUENTIAL = (find_policy(name) for name in ("fair", "fifo", "sequential"))
MACHINE = Machine(step_time=StepTime(pack=0.1, work=0.001, job=0.01), buckets=(128, 256, 512, 1024), pack_tokens=512)


def job(name: str, owner: str = "ann", arrival: float = 0.0, steps: int = 10, tokens: int = 128, **more) -> TraceJob:
    chunk = ChunkLoad(tokens, float(tokens))
    return TraceJob(**{"id": name, "owner": owner, "arrival": arrival, "steps": steps, "batches": ((chunk,),), **more})


def run(jobs: list[TraceJob], policy=FAIR, **machine) -> dict:
    return {
        course.id: course for course in simulate(trace_of(MACHINE.model_copy(update=machine), jobs), policy).courses
    }


@pytest.mark.parametrize("policy", policy_names())
def test_a_job_alone_takes_its_packs_and_what_is_around_them(policy: str) -> None:
    chunks = (ChunkLoad(500, 500.0), ChunkLoad(300, 300.0))
    alone = job("a", steps=7, batches=(chunks,), evaluation=(ChunkLoad(100, 40.0),), eval_steps=3)
    course = run([alone], find_policy(policy), prepare=1.0, attach=0.5, finish=0.25)["a"]
    training = 7 * (2 * (0.1 + 0.01) + 0.8)
    evaluations = 4 * (0.1 + 0.01 + 0.04)  # before the first step, after 3 and 6, and at the end
    assert turnaround(course) == pytest.approx(1.0 + 0.5 + training + evaluations + 0.25, abs=3 * MACHINE.tick)


def test_who_shares_packs_shares_what_they_cost() -> None:
    """Four small jobs fill each pack together: not four times as long as one, but as long as such packs take."""
    courses = run([job(name, owner=name) for name in "abcd"])
    for course in courses.values():
        assert turnaround(course) == pytest.approx(10 * (0.1 + 0.512 + 4 * 0.01), rel=0.1)


def test_sequential_runs_one_after_another() -> None:
    courses = list(run([job(name, owner=name) for name in "abc"], SEQUENTIAL).values())
    for before, after in pairwise(courses):
        assert after.started >= before.ended - MACHINE.tick


def test_weights_divide_the_work() -> None:
    """Both could fill every pack; ann's weight is three times bob's, so bob has a third done by her end."""
    jobs = [job(f"{owner}{n}", owner, steps=60, tokens=256) for owner in ("ann", "bob") for n in range(4)]
    record = simulate(trace_of(MACHINE.model_copy(update={"weights": {"ann": 3.0}}), jobs), FAIR)
    assert record.gap <= 512 + 256  # a pack and a chunk, by weight
    ann, bob = (max(course.ended for course in record.courses if course.owner == owner) for owner in ("ann", "bob"))
    assert ann < 0.75 * bob  # of 320 chunks hers and a third of his; but for her last job, which has one a pack


def test_an_early_end_and_a_cancelled_job_are_no_news_to_the_policy_beforehand() -> None:
    jobs = [job("a", steps=1000, stop=5), job("b", steps=1000, cancelled=3.0), job("c", steps=20)]
    courses = run(jobs)
    assert courses["b"].ended == pytest.approx(3.0)
    assert not courses["b"].completed
    assert courses["a"].ended < courses["c"].ended < 20


def test_no_place_no_memory() -> None:
    """A job that never fits is refused, and not waited for."""
    with pytest.raises(UserError, match=r"'b'.*1200 bytes.*1000"):
        run([job("a"), job("b", resident=1000, chunk=200)], memory=1000)


def test_a_place_changes_hands() -> None:
    """With one place the owner who came later does not wait for the end of a long job, and it goes on afterwards."""
    trace = trace_of(
        MACHINE.model_copy(update={"places": 1, "min_slice": 1.0, "slack": 512.0}),
        [job("long", steps=300), job("short", "bob", arrival=5.0, steps=10)],
    )
    record = simulate(trace, FAIR)
    long, short = record.courses
    assert record.preemptions > 0
    assert short.ended < 5 + 30 < long.ended
    assert simulate(trace, FIFO).preemptions == 0


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    def batch() -> tuple[ChunkLoad, ...]:
        sizes = draw(st.lists(st.integers(1, 700), min_size=1, max_size=3))
        return tuple(ChunkLoad(size, float(size)) for size in sizes)

    jobs = [
        TraceJob(
            id=f"j{number}",
            owner=draw(st.sampled_from("abc")),
            arrival=draw(st.floats(0, 20)),
            steps=draw(st.integers(1, 12)),
            batches=tuple(batch() for _ in range(draw(st.integers(1, 2)))),
            evaluation=batch(),
            eval_steps=draw(st.none() | st.integers(1, 5)),
            resident=draw(st.integers(0, 400)),
            chunk=100,
        )
        for number in range(draw(st.integers(1, 8)))
    ]
    machine = MACHINE.model_copy(
        update={
            "places": draw(st.integers(1, 4)),
            "memory": draw(st.none() | st.integers(500, 1200)),
            "min_slice": draw(st.sampled_from([0.0, 2.0])),
            "slack": draw(st.sampled_from([0.0, 512.0])),
            "prepare": draw(st.sampled_from([0.0, 0.3])),
            "attach": draw(st.sampled_from([0.0, 0.1])),
        }
    )
    return trace_of(machine, jobs)


def tokens_of(one: TraceJob) -> int:
    trained = sum(c.tokens for step in range(one.last) for c in one.batches[step % len(one.batches)])
    if one.eval_steps is None:
        return trained
    times = 1 + one.last // one.eval_steps + (one.last % one.eval_steps > 0)
    return trained + times * sum(c.tokens for c in one.evaluation)


@settings(max_examples=60, deadline=None)
@given(traces(), st.sampled_from(policy_names()))
def test_everything_is_computed_and_every_job_ends(trace: Trace, policy: str) -> None:
    record = simulate(trace, find_policy(policy))
    assert record == simulate(trace, find_policy(policy))
    assert [course.id for course in record.courses] == [one.id for one in trace.jobs]
    assert all(course.completed and course.arrival <= course.started <= course.ended for course in record.courses)
    lost = record.preemptions * max(sum(c.tokens for c in one.chunks) for one in trace.jobs)  # steps begun anew
    wanted = sum(tokens_of(one) for one in trace.jobs)
    assert wanted <= record.tokens <= wanted + lost
    assert record.busy <= max(course.ended for course in record.courses) + 1e-6


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)), st.sets(st.sampled_from("abc"))),
        max_size=12,
    )
)
def test_the_largest_gap_is_that_of_the_worst_interval(packs: list[tuple[dict[str, int], set[str]]]) -> None:
    weights = {"b": 2.0}
    gaps, worst = Gaps(weights), 0.0
    for work, backlogged in packs:
        gaps.note(work, backlogged)
    for begin, end in combinations(range(len(packs) + 1), 2):
        there = set.intersection(*(backlogged for _, backlogged in packs[begin:end]))
        for one, other in combinations(sorted(there), 2):
            of = [
                sum(work.get(user, 0) for work, _ in packs[begin:end]) / weights.get(user, 1.0) for user in (one, other)
            ]
            worst = max(worst, abs(of[0] - of[1]))
    assert gaps.largest == pytest.approx(worst)


def test_figures_by_hand() -> None:
    trace = trace_of(MACHINE, [job("a"), job("b", "bob", arrival=10.0), job("c", arrival=30.0)])
    record = simulate(trace, FAIR)
    ends = {"a": 20.0, "b": 40.0, "c": 50.0}
    courses = tuple(
        type(one)(one.id, one.owner, one.arrival, one.arrival + 1, ends[one.id], completed=True)
        for one in record.courses
    )
    made = type(record)(courses, packs=3, tokens=90, rows=100, busy=25.0, preemptions=2, gap=256.0)
    found = summarise(trace, "fair", made, alone={"a": 10.0, "b": 30.0, "c": 10.0})
    assert (found.mean_turnaround, found.p95_turnaround, found.makespan) == (pytest.approx(70 / 3), 30.0, 50.0)
    assert (found.fill, found.busy, found.largest_gap, found.longest_wait) == (0.9, 0.5, 0.5, 1.0)
    ann, bob = found.users
    assert (ann.slowdown, bob.slowdown) == (2.0, 1.0)
    assert ann.active == pytest.approx((10 + 2 * 10 + 2 * 10) / 40 + 10 / 40 - 10 / 40 + 10 / 40)
    assert bob.active == pytest.approx((2 * 10 + 10 + 2 * 10) / 30)
    assert found.jain == pytest.approx(9 / 10)
    assert found.worst == max(found.users, key=lambda user: user.slowdown / user.active)


def test_jain_and_percentile() -> None:
    assert jain([3.0, 3.0]) == 1
    assert jain([1.0, 0.0]) == 0.5
    assert percentile(list(range(1, 101)), 0.95) == 95
    assert percentile([7.0], 0.95) == 7


@pytest.mark.parametrize("name", KINDS)
def test_a_synthetic_trace_has_the_load_that_was_asked_for(name: str) -> None:
    trace = synthetic_trace(f"{name}:load=0.5,jobs=60,seed=3")
    assert trace == synthetic_trace(f"{name}:load=0.5,jobs=60,seed=3")
    assert trace != synthetic_trace(f"{name}:load=0.5,jobs=60,seed=4")
    assert trace.jobs[-1].arrival <= sum(map(seconds_packed, trace.jobs)) / 0.5 + 1e-3
    assert len(trace.jobs) >= 60


def test_what_is_no_trace_is_named() -> None:
    for text, said in {
        "poisson:load=-1": "load: .*, not '-1'",
        "burst:sizes=huge": "sizes: .*'huge'",
        "greedy:loda=1": "'loda=1' is none of users, jobs, load",
        "heavy": "'heavy' is not known; choose one of poisson, burst",
    }.items():
        with pytest.raises(UserError, match=said):
            synthetic_trace(text)


def test_fair_beats_arrival_order_where_sizes_vary_and_slows_nobody_beyond_their_part() -> None:
    trace = synthetic_trace("poisson:jobs=80,steps=60,seed=3")
    fair, fifo, sequential = (outcome(trace, policy) for policy in (FAIR, FIFO, SEQUENTIAL))
    assert fair.mean_turnaround < 0.76 * fifo.mean_turnaround
    assert fair.mean_turnaround < 0.65 * sequential.mean_turnaround
    assert fair.worst.slowdown <= 1.1 * fair.worst.active
