"""Which chunks the next pack holds: all of one phase, as many as the room and the memory allow.

The phase is that of the job that has had least of its share. Among the jobs of that phase `sched.packing.next_pack`
chooses by a room in tokens; where what it chooses would not fit the memory, the largest room is sought at which it
does. More jobs on the device thus mean fewer tokens in a pack. Nothing is measured or allocated here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mlora_sched.data.pack import Chunk, bucket_for
from mlora_sched.engine.resident import Resident
from mlora_sched.engine.train_state import Phase
from mlora_sched.memory.formula import PackPlan, SegmentPlan
from mlora_sched.sched.packing import Candidate, next_pack

RECOVERY = 32
"""Packs that must go well before packs that were made smaller may be twice as large again."""


class Member(NamedTuple):
    """A job that takes part in the slice, and its weight there."""

    resident: Resident
    share: int


@dataclass(frozen=True)
class Choice:
    """A pack to be: its chunks in pack order, their jobs, and what they are all for. Empty when there is no work."""

    chunks: tuple[Chunk, ...]
    members: dict[str, Resident]
    phase: Phase

    @property
    def tokens(self) -> int:
        """Real rows of the pack."""
        return sum(chunk.tokens for chunk in self.chunks)

    def charge(self, seconds: float) -> None:
        """Divide the time that the pack took among its jobs, by their tokens."""
        tokens = self.tokens
        for chunk in self.chunks:
            self.members[chunk.job_id].worked += seconds * chunk.tokens / tokens


class Packer:
    """Chooses packs.

    Args:
        buckets: pack lengths in use, ascending.
        most: most tokens of a pack; a larger chunk runs alone, as long as a bucket holds it.

    Attributes:
        room: most tokens of a pack now: less than `most` for a while after a pack has run out of memory.
    """

    def __init__(self, buckets: Sequence[int], most: int) -> None:
        self.buckets = tuple(buckets)
        self.most = self.room = min(most, self.buckets[-1])
        self._well = 0

    def choose(self, present: Sequence[Member], fits: Callable[[PackPlan], bool] | None = None) -> Choice:
        """The next pack; empty when nobody has a chunk, or not one chunk fits.

        Args:
            present: in order of preference. fits: whether there is memory for a pack; None when nobody knows.
        """
        least = sorted(present, key=_service)
        for phase in dict.fromkeys(member.resident.state.phase for member in least):
            members = [member for member in present if member.resident.state.phase is phase]
            choice = self._of_phase(members, phase, fits)
            if choice.chunks:
                return choice
        return Choice((), {}, Phase.DONE)

    def next_alone(self, resident: Resident) -> Choice:
        """The next chunk of one job, by itself."""
        state = resident.state
        return Choice(tuple(state.waiting_chunks[:1]), {state.job_id: resident}, state.phase)

    def plan(self, choice: Choice) -> PackPlan:
        """The pack as far as its memory goes."""
        states = [choice.members[chunk.job_id].state for chunk in choice.chunks]
        pairs = list(zip(choice.chunks, states, strict=True))
        rows = bucket_for(choice.tokens, self.buckets)
        assert rows is not None, f"{choice.tokens} tokens fit no bucket; a job with such a chunk is not attached"
        lengths = [length for chunk, state in pairs for length in state.lengths(chunk)]
        return PackPlan(
            rows=rows,
            segments=tuple(
                SegmentPlan(state.spec.adapter, chunk.tokens, state.targets(chunk)) for chunk, state in pairs
            ),
            training=choice.phase is Phase.TRAIN,
            squares=sum(length**2 for length in lengths),
            longest=max(lengths),
            joined=choice.tokens < rows or len(set(lengths)) > 1,
        )

    def shrink(self, tokens: int) -> None:
        """A pack of so many tokens has run out of memory: the next ones are at most half as large."""
        self.room, self._well = max(1, min(self.room, tokens) // 2), 0

    def went_well(self) -> None:
        """A pack has run. After enough of them packs may be larger again."""
        self._well += 1
        if self._well >= RECOVERY:
            self.room, self._well = min(self.most, 2 * self.room), 0

    def _of_phase(self, members: Sequence[Member], phase: Phase, fits: Callable[[PackPlan], bool] | None) -> Choice:
        whole = _fill(members, phase, self.room)
        if fits is None or not whole.chunks or fits(self.plan(whole)):
            return whole
        alone = [(member, self.next_alone(member.resident)) for member in members]
        able = [(member, choice) for member, choice in alone if fits(self.plan(choice))]
        if not able:
            return Choice((), {}, phase)
        best = min(able, key=lambda pair: _service(pair[0]))[1]
        rooms = [*(bucket for bucket in self.buckets if bucket < self.room), self.room]
        low, high = 0, len(rooms)
        while low < high:
            middle = (low + high) // 2
            choice = _fill([member for member, _ in able], phase, rooms[middle])
            if fits(self.plan(choice)):
                best, low = choice, middle + 1
            else:
                high = middle
        return best


def _fill(members: Sequence[Member], phase: Phase, room: int) -> Choice:
    """What `next_pack` takes of these jobs' waiting chunks."""
    candidates = [
        Candidate(
            resident.state.job_id,
            tuple(chunk.tokens for chunk in resident.state.waiting_chunks),
            resident.served,
            share,
        )
        for resident, share in members
    ]
    residents = {resident.state.job_id: resident for resident, _ in members}
    chosen = next_pack(candidates, room)
    chunks = tuple(
        chunk for choice in chosen for chunk in residents[choice.job_id].state.waiting_chunks[: choice.chunks]
    )
    return Choice(chunks, {choice.job_id: residents[choice.job_id] for choice in chosen}, phase)


def _service(member: Member) -> float:
    """How much of its share a job has had."""
    return member.resident.served / member.share
