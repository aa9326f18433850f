"""What every pack obeys, whatever waits: the room, the order of a job's chunks, whose turn it is, and who is owed."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.sched.packing import Candidate, Chosen, Piece, Room, next_pack
from mlora_sched.sched.plan import Account

GROUPS = ("ann", "bob", "cid")
PIECES = st.builds(Piece, st.integers(1, 120), st.integers(1, 120).map(float))
ROOMS = st.builds(Room, st.integers(1, 300), st.just(math.inf) | st.integers(1, 300).map(float))
ACCOUNTS = st.dictionaries(
    st.sampled_from(GROUPS), st.builds(Account, st.integers(0, 200).map(float), st.sampled_from([0.5, 1.0, 2.0]))
)


@st.composite
def candidates(draw: st.DrawFn) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(
            f"job-{at}",
            draw(st.sampled_from(GROUPS)),
            draw(st.integers(0, 2)),
            tuple(draw(st.lists(PIECES, max_size=6))),
        )
        for at in range(draw(st.integers(0, 7)))
    )


def taken(jobs: Sequence[Candidate], chosen: Sequence[Chosen]) -> dict[str, Sequence[Piece]]:
    """The chunks of each job that are in the pack."""
    pieces = {job.job_id: job.pieces for job in jobs}
    return {choice.job_id: pieces[choice.job_id][: choice.chunks] for choice in chosen}


def left(jobs: Sequence[Candidate], chosen: Sequence[Chosen]) -> list[Candidate]:
    """Whose chunks are not all in the pack, with those that are not."""
    counts = {choice.job_id: choice.chunks for choice in chosen}
    rest = [replace(job, pieces=job.pieces[counts.get(job.job_id, 0) :]) for job in jobs]
    return [job for job in rest if job.pieces]


def paid(jobs: Sequence[Candidate], chosen: Sequence[Chosen], accounts: Mapping[str, Account]) -> dict[str, Account]:
    """The accounts with the pack."""
    after = {job.group: accounts.get(job.group, Account(0.0)) for job in jobs}
    pieces = taken(jobs, chosen)
    for job in jobs:
        for piece in pieces.get(job.job_id, ()):
            after[job.group] = after[job.group].after(piece.work)
    return after


@given(candidates(), ACCOUNTS, ROOMS)
def test_jobs_give_some_of_their_next_chunks_each_job_once(
    jobs: tuple[Candidate, ...], accounts: dict[str, Account], room: Room
) -> None:
    chosen = next_pack(jobs, accounts, room)
    waiting = {job.job_id: len(job.pieces) for job in jobs}
    assert len({choice.job_id for choice in chosen}) == len(chosen)
    assert all(1 <= choice.chunks <= waiting[choice.job_id] for choice in chosen)
    assert bool(chosen) == any(waiting.values())


@given(candidates(), ACCOUNTS, ROOMS)
def test_the_room_is_passed_by_a_lone_chunk_only(
    jobs: tuple[Candidate, ...], accounts: dict[str, Account], room: Room
) -> None:
    pieces = [piece for each in taken(jobs, next_pack(jobs, accounts, room)).values() for piece in each]
    if sum(piece.tokens for piece in pieces) > room.tokens or sum(piece.work for piece in pieces) > room.work:
        assert len(pieces) == 1


@given(candidates(), ACCOUNTS, ROOMS)
def test_what_fits_is_left_out_only_for_the_sake_of_who_is_behind(
    jobs: tuple[Candidate, ...], accounts: dict[str, Account], room: Room
) -> None:
    """Work-conserving: a next chunk is in, or larger than the room that is left, or its group would be further than a
    chunk of another group that is too large would have brought that one."""
    chosen = next_pack(jobs, accounts, room)
    for pieces in taken(jobs, chosen).values():
        for piece in pieces:
            room = room.without(piece)
    after, rest = paid(jobs, chosen, accounts), left(jobs, chosen)
    for job in rest:
        if room.fits(job.pieces[0]):
            reach = after[job.group].after(job.pieces[0].work).paid
            others = [one for one in rest if one.group != job.group and not room.fits(one.pieces[0])]
            assert any(reach > after[one.group].after(one.pieces[0].work).paid for one in others)


@given(candidates(), ROOMS)
def test_one_group_leaves_nothing_out_that_fits(jobs: tuple[Candidate, ...], room: Room) -> None:
    alone = [replace(job, group="") for job in jobs]
    chosen = next_pack(alone, {}, room)
    for pieces in taken(alone, chosen).values():
        for piece in pieces:
            room = room.without(piece)
    assert not any(room.fits(job.pieces[0]) for job in left(alone, chosen))


@given(candidates(), ACCOUNTS, ROOMS)
def test_who_has_paid_least_comes_first_with_the_job_of_the_lowest_level(
    jobs: tuple[Candidate, ...], accounts: dict[str, Account], room: Room
) -> None:
    chosen = next_pack(jobs, accounts, room)
    if chosen:
        first = next(job for job in jobs if job.job_id == chosen[0].job_id)
        waiting = [job for job in jobs if job.pieces]
        least = min(accounts.get(job.group, Account(0.0)).paid for job in waiting)
        assert accounts.get(first.group, Account(0.0)).paid == least
        own = [job for job in waiting if job.group == first.group]
        assert (first.level, -first.pieces[0].tokens) == min((job.level, -job.pieces[0].tokens) for job in own)


@given(candidates(), ACCOUNTS, ROOMS)
def test_choice_depends_on_nothing_else(jobs: tuple[Candidate, ...], accounts: dict[str, Account], room: Room) -> None:
    idle = Candidate("idle", "eve", 0, ())
    assert next_pack(jobs, accounts, room) == next_pack([idle, *jobs], accounts | {"eve": Account(0.0)}, room)


@given(
    st.lists(st.tuples(st.sampled_from(GROUPS), st.lists(PIECES, min_size=1, max_size=4)), min_size=1, max_size=6),
    st.dictionaries(st.sampled_from(GROUPS), st.sampled_from([0.5, 1.0, 2.0])),
    st.integers(1, 150),
)
def test_between_groups_that_always_wait_service_differs_by_two_chunks_at_most(
    endless: list[tuple[str, list[Piece]]], weights: dict[str, float], tokens: int
) -> None:
    """Over any packs in a row, service by weight; each of the groups has more chunks than any pack takes."""
    accounts = {group: Account(0.0, weights.get(group, 1.0)) for group, _ in endless}
    largest = max(piece.work / accounts[group].weight for group, pieces in endless for piece in pieces)
    ahead: dict[tuple[str, str], list[float]] = {(a, b): [0.0] for a in accounts for b in accounts}
    done = Counter[str]()
    for _ in range(40):
        jobs = [
            Candidate(f"job-{at}", group, at % 2, _endless(pieces, done[f"job-{at}"], tokens + 1))
            for at, (group, pieces) in enumerate(endless)
        ]
        chosen = next_pack(jobs, accounts, Room(tokens))
        accounts = paid(jobs, chosen, accounts)
        done.update({choice.job_id: choice.chunks for choice in chosen})
        for (a, b), seen in ahead.items():
            seen.append(accounts[a].paid - accounts[b].paid)
    assert all(max(seen) - min(seen) <= 2 * largest + 1e-9 for seen in ahead.values())


def _endless(pieces: Sequence[Piece], done: int, many: int) -> tuple[Piece, ...]:
    """The next so many of a job that goes round and round."""
    return tuple(itertools.islice(itertools.cycle(pieces), done % len(pieces), done % len(pieces) + many))


def candidate(job_id: str, *tokens: int, group: str = "", level: int = 0) -> Candidate:
    """Chunks whose work is their tokens."""
    return Candidate(job_id, group or job_id, level, tuple(Piece(each, float(each)) for each in tokens))


def test_ties_go_to_the_larger_chunk_then_to_the_callers_preference() -> None:
    first, second, large = candidate("b", 10), candidate("a", 10), candidate("c", 12)
    assert next_pack([first, second], {}, Room(10)) == (Chosen("b", 1),)
    assert next_pack([second, first], {}, Room(10)) == (Chosen("a", 1),)
    assert next_pack([second, first, large], {}, Room(12)) == (Chosen("c", 1),)


def test_who_has_twice_the_weight_gets_twice_as_much() -> None:
    jobs = [candidate("rich", *[10] * 50), candidate("poor", *[10] * 50)]
    chosen = next_pack(jobs, {"rich": Account(0.0, 2.0)}, Room(90))
    assert Counter({choice.job_id: choice.chunks for choice in chosen}) == {"rich": 6, "poor": 3}


def test_a_chunk_that_does_not_fit_blocks_the_later_ones_of_its_job() -> None:
    """Chunks of a job are added in order, so a small one may not overtake."""
    job, other = candidate("job", 6, 9, 1, group="ann"), candidate("other", 2, 2, group="ann")
    assert next_pack([job, other], {}, Room(10)) == (Chosen("job", 1), Chosen("other", 2))


def test_a_first_chunk_larger_than_the_room_goes_alone() -> None:
    large, small = candidate("large", 50, 1), candidate("small", 1)
    assert next_pack([small, large], {"small": Account(1.0)}, Room(10)) == (Chosen("large", 1),)


def test_nobody_is_served_for_ever_for_fitting_beside_others() -> None:
    """Two whose chunks take more than half a pack each, and a third whose chunks fit beside either."""
    jobs = [candidate("a", *[60] * 90), candidate("b", *[60] * 90), candidate("c", *[40] * 90)]
    accounts = {job.group: Account(0.0) for job in jobs}
    for _ in range(60):
        chosen = next_pack(jobs, accounts, Room(100))
        accounts, jobs = paid(jobs, chosen, accounts), left(jobs, chosen)
    assert max(each.paid for each in accounts.values()) - min(each.paid for each in accounts.values()) <= 60
