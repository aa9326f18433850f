"""The board, kept from change to change, is as if made anew; what fits is found as by a look at every job."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mlora_sched.sched import blocks
from mlora_sched.sched.board import Board, queues
from mlora_sched.sched.plan import JobFacts, Policy, Space
from mlora_sched.sched.policies.fair import AGEING_SECONDS
from mlora_sched.spec.job import Priority

from .snapshots import OWNERS, policies

SEQS = st.integers(0, 25)
FACTS = st.builds(
    JobFacts,
    id=st.just(""),
    owner=st.sampled_from(OWNERS),
    priority=st.sampled_from(list(Priority)),
    seq=SEQS,
    remaining=st.integers(0, 9).map(float),
    since=st.integers(0, 3).map(lambda ages: ages * AGEING_SECONDS / 2),
    resident=st.integers(0, 9),
    chunk=st.integers(0, 9),
)
SPACES = st.builds(Space, st.integers(-1, 10), st.integers(-1, 20))


class Boards(RuleBasedStateMachine):
    """Any changes, in any order, beside a plain dict of who waits."""

    @initialize(policy=policies, block=st.sampled_from([1, 2, 5]))
    def begin(self, policy: Policy, block: int) -> None:
        self._patch = mock.patch.object(blocks, "BLOCK", block)
        self._patch.start()
        self.policy, self.board, self.now = policy, Board(policy), 0.0
        self.waiting: dict[str, JobFacts] = {}

    def teardown(self) -> None:
        self._patch.stop()

    @rule(job=FACTS)
    def put(self, job: JobFacts) -> None:
        """A new job, or one of which something else is known now, its owner included."""
        job = replace(job, id=f"j-{job.seq}")
        self.board.put(job)
        self.waiting[job.id] = job

    @rule(seq=SEQS)
    def put_as_it_is(self, seq: int) -> None:
        if (job := self.waiting.get(f"j-{seq}")) is not None:
            self.board.put(job)

    @rule(seq=SEQS)
    def drop(self, seq: int) -> None:
        self.board.drop(f"j-{seq}")
        self.waiting.pop(f"j-{seq}", None)

    @rule(seqs=st.sets(SEQS))
    def keep_only(self, seqs: set[int]) -> None:
        for job in self.waiting.values():
            if job.seq not in seqs:
                self.board.drop(job.id)
        self.waiting = {job.id: job for job in self.waiting.values() if job.seq in seqs}

    @rule(seconds=st.sampled_from([-1.0, 0.0, 1.0, AGEING_SECONDS / 2, AGEING_SECONDS, 3 * AGEING_SECONDS]))
    def advance(self, seconds: float) -> None:
        """Time that goes backwards is not believed."""
        self.board.advance(self.now + seconds)
        self.now = max(self.now, self.now + seconds)

    @invariant()
    def it_is_what_it_would_be_made_anew(self) -> None:
        groups: dict[str, list[JobFacts]] = defaultdict(list)
        for job in sorted(self.waiting.values(), key=lambda job: self.policy.merit(job, self.now)):
            groups[self.policy.group(job)].append(job)
        assert _lists(self.board.queues) == groups == _lists(queues(self.policy, self.waiting.values(), self.now))
        assert len(self.board) == len(self.waiting)
        assert all(job_id in self.board for job_id in self.waiting)
        assert {group: len(jobs) for group, jobs in self.board.queues.items()} == {
            group: len(jobs) for group, jobs in groups.items()
        }

    @rule(space=SPACES, shrinking=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=9))
    def those_that_fit_are_found_in_order(self, space: Space, shrinking: list[tuple[int, int]]) -> None:
        """Each into what is left after those before it took some."""
        for group, jobs in self.board.queues.items():
            left, taken = [space], iter(shrinking)
            found = []
            for job in jobs.that_fit(lambda: left[0]):  # noqa: B023 - called in this turn of the loop only
                found.append(job)
                left[0] = _less(left[0], next(taken, (0, 0)))
            assert found == _first_fitting(self.board.queues[group], space, shrinking)


def _less(space: Space, taken: tuple[int, int]) -> Space:
    return Space(space.resident - taken[0], space.together - taken[1])


def _first_fitting(jobs: Sequence[JobFacts], space: Space, shrinking: list[tuple[int, int]]) -> list[JobFacts]:
    """By a look at every job."""
    found, taken = [], iter(shrinking)
    for job in jobs:
        if job.resident <= space.resident and job.resident + job.chunk <= space.together:
            found.append(job)
            space = _less(space, next(taken, (0, 0)))
    return found


def _lists(board: Mapping[str, Sequence[JobFacts]]) -> dict[str, list[JobFacts]]:
    return {group: list(jobs) for group, jobs in board.items()}


TestBoards = Boards.TestCase
TestBoards.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_job_is_found_by_its_place() -> None:
    found = blocks.RankedBlocks()
    for seq in range(300):
        found.add((0, 0.0, seq), JobFacts(f"j-{seq}", "ann", Priority.NORMAL, seq, 0.0))
    assert [found[0].seq, found[150].seq, found[-1].seq] == [0, 150, 299]
    assert [job.seq for job in found[298:]] == [298, 299]
