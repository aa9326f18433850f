"""Which chunks the next pack holds: all of one phase, as many as the room and the memory allow.

Where it is known how long packs take (`times`), they are also kept under a bound of seconds.

The phases that a pack of all of them would hold take turns (`sched.phases`).
Among the jobs of a phase `sched.packing.next_pack` chooses by the groups' accounts and a room; where what it chooses
would not fit the memory, the largest room is sought at which it does. More jobs on the device thus mean fewer tokens in
a pack. Nothing is measured or allocated here.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mlora_sched.data.pack import Chunk, bucket_for
from mlora_sched.engine.resident import Resident
from mlora_sched.memory.formula import PackPlan, SegmentPlan
from mlora_sched.sched.packing import Candidate, Offer, Piece, Room, in_time, next_pack
from mlora_sched.sched.phases import Phase, Phases
from mlora_sched.sched.plan import Account
from mlora_sched.sched.step_time import Pack, StepTimeModel

RECOVERY = 32
"""Packs that must go well before packs that were made smaller may be twice as large again."""


@dataclass(frozen=True)
class Choice:
    """A pack to be: its chunks in pack order, their jobs, and what they are all for. Empty when there is no work.

    `work` is what they cost, in the unit of `sched.work`.
    """

    chunks: tuple[Chunk, ...]
    members: dict[str, Resident]
    phase: Phase
    work: float = 0.0

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
        seconds: likewise its time, as far as that is known.

    Attributes:
        times: what is known of how long packs take.
        room: most tokens of a pack now: less than `most` for a while after a pack has run out of memory.
    """

    def __init__(self, buckets: Sequence[int], most: int, seconds: float = math.inf) -> None:
        self.buckets, self.seconds, self.times = tuple(buckets), seconds, StepTimeModel()
        self.most = self.room = min(most, self.buckets[-1])
        self._well, self._phases = 0, Phases()

    def choose(
        self,
        present: Sequence[Resident],
        accounts: Mapping[str, Account],
        fits: Callable[[PackPlan], bool] | None = None,
    ) -> Choice:
        """The next pack; empty when nobody has a chunk, or not one chunk fits.

        Args:
            present: of equals the first goes first. accounts: of their groups, what has run of unfinished steps
                counted. fits: whether there is memory for a pack; None when nobody knows.
        """
        due = _fill(present, accounts, Phase.DONE, Room(self.room))
        if not due.chunks:
            return due
        kind = self._phases.choose(due.members[chunk.job_id].state.phase for chunk in due.chunks)
        for phase in dict.fromkeys([kind, *(one.state.phase for one in in_turn(present, accounts))]):
            members = [resident for resident in present if resident.state.phase is phase]
            choice = self._of_phase(members, accounts, phase, fits)
            if choice.chunks:
                return choice
        return Choice((), {}, Phase.DONE)

    def next_alone(self, resident: Resident) -> Choice:
        """The next chunk of one job, by itself."""
        state = resident.state
        chunks = tuple(state.waiting_chunks[:1])
        return Choice(chunks, {state.job_id: resident}, state.phase, sum(map(state.work, chunks)))

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

    def went_well(self, choice: Choice, seconds: float) -> None:
        """A pack has run and has taken so long. After enough of them packs may be larger again."""
        self.times.learn(self._timed(choice), seconds)
        self._well += 1
        if self._well >= RECOVERY:
            self.room, self._well = min(self.most, 2 * self.room), 0

    def _of_phase(
        self,
        members: Sequence[Resident],
        accounts: Mapping[str, Account],
        phase: Phase,
        fits: Callable[[PackPlan], bool] | None,
    ) -> Choice:
        whole = self._fill(members, accounts, phase, self.room)
        if fits is None or not whole.chunks or fits(self.plan(whole)):
            return whole
        alone = {resident.state.job_id: self.next_alone(resident) for resident in members}
        able = [one for one in members if fits(self.plan(alone[one.state.job_id]))]
        if not able:
            return Choice((), {}, phase)
        best = alone[in_turn(able, accounts)[0].state.job_id]
        rooms = [*(bucket for bucket in self.buckets if bucket < self.room), self.room]
        low, high = 0, len(rooms)
        while low < high:
            middle = (low + high) // 2
            choice = self._fill(able, accounts, phase, rooms[middle])
            if fits(self.plan(choice)):
                best, low = choice, middle + 1
            else:
                high = middle
        return best

    def _fill(self, members: Sequence[Resident], accounts: Mapping[str, Account], phase: Phase, tokens: int) -> Choice:
        """A pack of at most so many tokens that takes no longer than it may; one chunk may take any time."""

        def offer(work: float) -> Offer[Choice]:
            choice = _fill(members, accounts, phase, Room(tokens, work))
            return Offer(choice, len(choice.chunks), choice.work, self.times.seconds(self._timed(choice)))

        return in_time(offer, self.seconds)

    def _timed(self, choice: Choice) -> Pack:
        """The pack as far as its time goes."""
        rows = bucket_for(choice.tokens, self.buckets)
        assert rows is not None
        return Pack(choice.work, rows - choice.tokens, len(choice.members))


def in_turn(residents: Sequence[Resident], accounts: Mapping[str, Account]) -> list[Resident]:
    """Whose turn it is: by what groups have paid, then by level; those that have a chunk."""

    def turn(resident: Resident) -> tuple[float, int]:
        account = accounts.get(resident.turn.group)
        return (0.0 if account is None else account.paid), resident.turn.level

    return sorted((one for one in residents if one.state.waiting_chunks), key=turn)


def unfinished(residents: Sequence[Resident]) -> dict[str, float]:
    """What has run of the residents' unfinished steps, by group."""
    work: dict[str, float] = defaultdict(float)
    for resident in residents:
        work[resident.turn.group] += resident.state.unfinished_work
    return dict(work)


def kept_waiting(residents: Sequence[Resident], choice: Choice) -> set[str]:
    """The groups that had more chunks than a pack has taken."""
    taken = Counter(chunk.job_id for chunk in choice.chunks)
    return {one.turn.group for one in residents if len(one.state.waiting_chunks) > taken[one.state.job_id]}


def _fill(members: Sequence[Resident], accounts: Mapping[str, Account], phase: Phase, room: Room) -> Choice:
    """What `next_pack` takes of these jobs' waiting chunks."""
    waiting = {resident.state.job_id: resident.state.waiting_chunks for resident in members}
    candidates = [
        Candidate(
            resident.state.job_id,
            resident.turn.group,
            resident.turn.level,
            tuple(Piece(chunk.tokens, resident.state.work(chunk)) for chunk in waiting[resident.state.job_id]),
        )
        for resident in members
    ]
    residents = {resident.state.job_id: resident for resident in members}
    chosen = next_pack(candidates, accounts, room)
    chunks = tuple(chunk for choice in chosen for chunk in waiting[choice.job_id][: choice.chunks])
    work = sum(residents[chunk.job_id].state.work(chunk) for chunk in chunks)
    return Choice(chunks, {choice.job_id: residents[choice.job_id] for choice in chosen}, phase, work)
