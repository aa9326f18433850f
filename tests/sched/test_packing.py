"""What every pack must obey, whatever jobs wait: checked on random candidates, and on a few drawn by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.sched.packing import Candidate, Chosen, next_pack

SIZES = st.lists(st.integers(1, 120), max_size=8).map(tuple)


@st.composite
def candidates(draw: st.DrawFn) -> tuple[Candidate, ...]:
    count = draw(st.integers(0, 7))
    return tuple(
        Candidate(f"job-{at}", draw(SIZES), served=draw(st.integers(0, 500)), share=draw(st.integers(1, 50)))
        for at in range(count)
    )


ROOM = st.integers(1, 300)


def taken(jobs: tuple[Candidate, ...], chosen: tuple[Chosen, ...]) -> dict[str, int]:
    """Tokens that each chosen job has in the pack."""
    by_id = {job.job_id: job for job in jobs}
    return {choice.job_id: sum(by_id[choice.job_id].chunk_tokens[: choice.chunks]) for choice in chosen}


def need(job: Candidate) -> float:
    return job.served / job.share


@given(candidates(), ROOM)
def test_jobs_give_some_of_their_next_chunks_each_job_once(jobs: tuple[Candidate, ...], room: int) -> None:
    chosen = next_pack(jobs, room)
    waiting = {job.job_id: len(job.chunk_tokens) for job in jobs}
    assert len({choice.job_id for choice in chosen}) == len(chosen)
    assert all(1 <= choice.chunks <= waiting[choice.job_id] for choice in chosen)


@given(candidates(), ROOM)
def test_the_room_is_passed_by_a_lone_chunk_only(jobs: tuple[Candidate, ...], room: int) -> None:
    chosen = next_pack(jobs, room)
    if sum(taken(jobs, chosen).values()) > room:
        assert [choice.chunks for choice in chosen] == [1]


@given(candidates(), ROOM)
def test_nothing_that_fits_is_left_out(jobs: tuple[Candidate, ...], room: int) -> None:
    """Work-conserving: the next chunk of every job is in, or is larger than the room that is left."""
    chosen = next_pack(jobs, room)
    left = room - sum(taken(jobs, chosen).values())
    counts = {choice.job_id: choice.chunks for choice in chosen}
    for job in jobs:
        for size in job.chunk_tokens[counts.get(job.job_id, 0) :][:1]:
            assert size > left


@given(candidates(), ROOM)
def test_empty_only_when_nobody_has_work(jobs: tuple[Candidate, ...], room: int) -> None:
    assert bool(next_pack(jobs, room)) == any(job.chunk_tokens for job in jobs)


@given(candidates(), ROOM)
def test_who_had_least_of_its_share_comes_first(jobs: tuple[Candidate, ...], room: int) -> None:
    """The first of the pack is who had least; who is left out wholly has had as much as those in, or does not fit."""
    chosen = next_pack(jobs, room)
    by_id = {job.job_id: job for job in jobs}
    order = [need(by_id[choice.job_id]) for choice in chosen]
    assert order == sorted(order)
    if chosen:
        working = [job for job in jobs if job.chunk_tokens]
        assert chosen[0].job_id == min(working, key=need).job_id


@given(candidates(), ROOM)
def test_choice_depends_on_nothing_else(jobs: tuple[Candidate, ...], room: int) -> None:
    idle = Candidate("idle", (), served=0, share=1)
    assert next_pack(jobs, room) == next_pack([idle, *jobs], room)


@given(candidates(), ROOM)
def test_rounds_take_one_chunk_a_job(jobs: tuple[Candidate, ...], room: int) -> None:
    """Nobody gets a further chunk while another, that came before or after, has had none and would fit."""
    chosen = {choice.job_id: choice.chunks for choice in next_pack(jobs, room)}
    most = max(chosen.values(), default=0)
    for job in jobs:
        has = chosen.get(job.job_id, 0)
        if has < len(job.chunk_tokens) and has + 1 < most:
            assert job.chunk_tokens[has] > room - sum(_first(jobs, chosen, has + 1).values())


def _first(jobs: tuple[Candidate, ...], chosen: dict[str, int], rounds: int) -> dict[str, int]:
    """Tokens of the pack after so many rounds."""
    return {job.job_id: sum(job.chunk_tokens[: min(rounds, chosen.get(job.job_id, 0))]) for job in jobs}


def test_ties_keep_the_callers_preference() -> None:
    first, second = Candidate("b", (10,), 0, 1), Candidate("a", (10,), 0, 1)
    assert next_pack([first, second], 10) == (Chosen("b", 1),)
    assert next_pack([second, first], 10) == (Chosen("a", 1),)


def test_service_is_weighed_by_share() -> None:
    rich, poor = Candidate("rich", (10,), 40, 8), Candidate("poor", (10,), 10, 1)
    assert next_pack([poor, rich], 10) == (Chosen("rich", 1),)


def test_a_chunk_that_does_not_fit_blocks_the_later_ones_of_its_job() -> None:
    """Chunks of a job are added in order, so a small one may not overtake."""
    job, other = Candidate("job", (6, 9, 1), 0, 1), Candidate("other", (2, 2), 0, 1)
    assert next_pack([job, other], 10) == (Chosen("job", 1), Chosen("other", 2))


def test_a_first_chunk_larger_than_the_room_goes_alone() -> None:
    large, small = Candidate("large", (50, 1), 0, 1), Candidate("small", (1,), 1, 1)
    assert next_pack([small, large], 10) == (Chosen("large", 1),)
