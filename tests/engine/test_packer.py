"""Which chunks go into a pack: the largest pack that fits, or nothing only where not one chunk does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.data.pack import Chunk, bucket_ladder
from mlora_sched.engine.packer import RECOVERY, Choice, Packer, kept_waiting, unfinished
from mlora_sched.engine.resident import Resident
from mlora_sched.memory.formula import PackPlan
from mlora_sched.sched.phases import Phase
from mlora_sched.sched.plan import Account
from mlora_sched.spec.plain import LoraSpec
from mlora_sched.spec.wire import Turn

BUCKETS = bucket_ladder(320)


@dataclass
class Spec:
    adapter: LoraSpec = field(default_factory=lambda: LoraSpec(method="lora"))


@dataclass
class State:
    """A job as the packer sees it: chunks of these sizes wait, a third of each carries loss."""

    job_id: str
    sizes: tuple[int, ...]
    phase: Phase
    spec: Spec = field(default_factory=Spec)

    @property
    def waiting_chunks(self) -> Sequence[Chunk]:
        return [Chunk(self.job_id, at, (at,), size) for at, size in enumerate(self.sizes)]

    unfinished_work: float = 0.0

    def work(self, chunk: Chunk) -> float:
        return float(chunk.tokens)

    def targets(self, chunk: Chunk) -> int:
        return chunk.tokens // 3

    def lengths(self, chunk: Chunk) -> list[int]:
        return [chunk.tokens]


@dataclass
class Job:
    state: State
    turn: Turn
    worked: float = 0.0


def member(
    job_id: str, sizes: tuple[int, ...], phase: Phase = Phase.TRAIN, group: str = "", level: int = 0
) -> Resident:
    return cast(Any, Job(State(job_id, sizes, phase), Turn(job_id=job_id, group=group, level=level)))


def choose(packer: Packer, company: Sequence[Resident], fits: Any = None, **paid: float) -> Choice:
    return packer.choose(company, {group: Account(work) for group, work in paid.items()}, fits)


@st.composite
def companies(draw: st.DrawFn) -> list[Resident]:
    sizes = st.lists(st.integers(2, 320), min_size=1, max_size=5).map(tuple)
    return [
        member(
            f"job-{at}",
            draw(sizes),
            draw(st.sampled_from([Phase.TRAIN, Phase.EVALUATE])),
            draw(st.sampled_from(["ann", "bob"])),
            draw(st.integers(0, 2)),
        )
        for at in range(draw(st.integers(1, 5)))
    ]


def cost(plan: PackPlan) -> int:
    """An estimate with a part for each segment and for attention, half as much without a backward."""
    whole = (
        500 + 100 * plan.rows + 300 * len(plan.segments) + plan.squares // 50 + sum(s.targets for s in plan.segments)
    )
    return whole if plan.training else whole // 2


@given(company=companies(), free=st.integers(0, 60_000), most=st.sampled_from([64, 150, 320]))
def test_what_is_chosen_fits_and_is_nothing_only_where_nobody_fits(
    company: list[Resident], free: int, most: int
) -> None:
    packer = Packer(BUCKETS, most)
    choice = choose(packer, company, lambda plan: cost(plan) <= free)
    alone = [choose(packer, [one]) for one in company]
    first_chunks = [packer.plan(type(one)(one.chunks[:1], one.members, one.phase)) for one in alone]
    if not choice.chunks:
        assert all(cost(plan) > free for plan in first_chunks)
        return
    plan = packer.plan(choice)
    assert cost(plan) <= free
    assert {choice.members[chunk.job_id].state.phase for chunk in choice.chunks} == {choice.phase}
    assert choice.tokens <= plan.rows
    assert choice.tokens <= most or len(choice.chunks) == 1
    for job_id in choice.members:
        taken = [chunk.index for chunk in choice.chunks if chunk.job_id == job_id]
        assert taken == list(range(len(taken))), "chunks of a job come in order"


@given(company=companies(), most=st.sampled_from([64, 150, 320]))
def test_with_plenty_the_choice_is_the_one_without_a_limit(company: list[Resident], most: int) -> None:
    assert choose(Packer(BUCKETS, most), company, lambda _: True) == choose(Packer(BUCKETS, most), company)


def test_a_pack_is_as_large_as_fits() -> None:
    packer = Packer(BUCKETS, 320)
    company = [member(f"job-{at}", (30,) * 10) for at in range(4)]
    for rows in range(32, 321, 32):
        choice = choose(packer, company, lambda plan, rows=rows: plan.rows <= rows)
        assert choice.tokens == rows // 30 * 30


def test_phases_that_are_due_take_turns_unless_nothing_of_one_fits() -> None:
    packer = Packer(BUCKETS, 320)
    company = [member("trains", (40,), group="ann"), member("evaluates", (40,), Phase.EVALUATE, group="bob")]
    assert choose(packer, company, ann=10, bob=15).phase is Phase.TRAIN
    assert choose(packer, company, ann=15, bob=10).phase is Phase.EVALUATE
    assert choose(packer, company, lambda plan: not plan.training, ann=10, bob=15).phase is Phase.EVALUATE
    assert choose(packer, company, lambda _: False).chunks == ()
    assert choose(packer, []).chunks == ()


def test_of_one_group_those_that_evaluate_join_those_that_train_where_there_is_room() -> None:
    few = [member("trains", (40,)), member("evaluates", (40,), Phase.EVALUATE, level=1)]
    many = [member("trains", (40,) * 9), member("evaluates", (40,), Phase.EVALUATE, level=1)]
    for company, phases in ((few, [Phase.TRAIN, Phase.EVALUATE] * 2), (many, [Phase.TRAIN] * 4)):
        packer = Packer(BUCKETS, 320)
        assert [choose(packer, company).phase for _ in range(4)] == phases


def test_the_plan_says_what_the_pack_holds() -> None:
    packer = Packer(BUCKETS, 320)
    plan = packer.plan(choose(packer, [member("a", (40, 30)), member("b", (9,), level=1)]))
    assert plan.rows == 96
    assert [(segment.tokens, segment.targets) for segment in plan.segments] == [(40, 13), (30, 10), (9, 3)]
    assert plan.squares == 40**2 + 30**2 + 9**2
    assert plan.longest == 40
    assert plan.training


@given(packs=st.lists(st.integers(1, 320) | st.none(), max_size=200))
def test_room_halves_with_each_failure_and_comes_back(packs: list[int | None]) -> None:
    """None is a pack that went well, a number the tokens of one that did not."""
    packer = Packer(BUCKETS, 320)
    went = packer.next_alone(member("a", (40,)))
    for tokens in packs:
        before = packer.room
        if tokens is None:
            packer.went_well(went, 0.0)
            assert packer.room in (before, min(320, 2 * before))
        else:
            packer.shrink(tokens)
            assert packer.room == max(1, min(tokens, before) // 2)
    for _ in range(10 * RECOVERY):
        packer.went_well(went, 0.0)
    assert packer.room == 320


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 500)), min_size=1, max_size=8), st.floats(0, 1e3))
def test_a_packs_time_is_divided_by_tokens_and_none_is_lost(rows: list[tuple[str, int]], seconds: float) -> None:
    chunks = tuple(Chunk(name, at, (at,), tokens) for at, (name, tokens) in enumerate(rows))
    members = {name: member(name, (1,)) for name, _ in rows}
    Choice(chunks, members, Phase.TRAIN).charge(seconds)
    tokens = {name: sum(size for owner, size in rows if owner == name) for name in members}
    for name, resident in members.items():
        assert resident.worked == pytest.approx(seconds * tokens[name] / sum(tokens.values()))
    assert sum(resident.worked for resident in members.values()) == pytest.approx(seconds)


def test_who_is_kept_waiting_and_what_is_not_finished() -> None:
    packer = Packer(BUCKETS, 64)
    company = [member("a", (40, 40), group="ann"), member("b", (20,), group="bob"), member("c", (4,), group="cid")]
    choice = choose(packer, company, ann=0, bob=1, cid=2)
    assert {chunk.job_id for chunk in choice.chunks} == {"a", "b", "c"}
    assert kept_waiting(company, choice) == {"ann"}
    cast(Any, company[0]).state.unfinished_work = 5.0
    assert unfinished(company) == {"ann": 5.0, "bob": 0.0, "cid": 0.0}


SIZES = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=6), min_size=1, max_size=6)


@given(sizes=SIZES, tokens_a_second=st.integers(50, 4000), most=st.sampled_from([0.01, 0.05, 0.2]))
def test_packs_keep_their_time_where_it_is_known(sizes: list[list[int]], tokens_a_second: int, most: float) -> None:
    """Here a token is a unit of work. A chunk that takes longer by itself runs alone."""
    packer = Packer(BUCKETS, 320, most)
    jobs = [member(f"job-{at}", tuple(chunks)) for at, chunks in enumerate(sizes)]
    unknown = choose(packer, jobs)
    assert unknown.tokens == choose(Packer(BUCKETS, 320), jobs).tokens, "nothing is bounded before something is known"
    for tokens in (10, 200, 35, 120, 64, 300, 20, 90, 150, 240) * 3:
        packer.went_well(packer.next_alone(member("other", (tokens,))), tokens / tokens_a_second)
    choice = choose(packer, jobs)
    assert choice.chunks
    if len(choice.chunks) > 1:
        assert choice.tokens / tokens_a_second <= 1.1 * most
