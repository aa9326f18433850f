"""The worker of a simulation: jobs as counts of chunks, packs as seconds, by `next_pack` and `Ledger` as in the engine.

What `engine.loop.Trainer.slice` and `engine.packer.Packer` do with tensors happens here with numbers: the phases of a
job, whose phase a pack is of, which chunks it holds, what is committed and when. Left out is what depends on no policy:
packs made smaller for want of memory, failures, saving. Time comes in and goes out as numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mlora_sched.sched.ledger import Ledger
from mlora_sched.sched.packing import Candidate, Chosen, Offer, Piece, Room, in_time, next_pack
from mlora_sched.sched.phases import Phase, Phases
from mlora_sched.sched.plan import Account, JobTurn
from mlora_sched.sched.step_time import Pack, seconds_of
from mlora_sched.spec.load import evaluations_left
from mlora_sched.spec.trace import Batch, Machine, TraceJob


class SimulatedJob:
    """A job of a trace on its way.

    Attributes:
        step: finished steps. pieces: the chunks of the running phase. ran: how many of them have run.
        group, level: its turn in packs. account: of the group when it was attached. named: a slice has named it.
    """

    def __init__(self, job: TraceJob, seq: int) -> None:
        self.job, self.seq, self.id, self.owner = job, seq, job.id, job.owner
        self.step, self._evaluated = 0, -1
        self.group, self.level, self.named, self.account = "", 0, False, Account(0.0)
        self._batches = [_pieces(batch) for batch in job.batches]
        self._evaluation = _pieces(job.evaluation)
        self.phase = Phase.TRAIN
        self._begin()

    @property
    def waiting(self) -> Sequence[Piece]:
        """Chunks of the running phase that have not run, in order."""
        return self.pieces[self.ran :]

    @property
    def unfinished_work(self) -> float:
        """Of the running phase, the chunks that have run."""
        return sum(piece.work for piece in self.pieces[: self.ran])

    @property
    def remaining(self) -> float:
        """Work still to do, as far as anybody can know; as `daemon.admission` reckons it."""
        steps, every = max(1, self.job.steps - self.step), self.job.eval_steps
        work = steps * self.job.step_work
        if every is None:
            return work
        evaluations = evaluations_left(every, self.step, self.step + steps)
        return work + evaluations * sum(piece.work for piece in self._evaluation)

    def take(self, chunks: int) -> float | None:
        """So many chunks have run; the work of the phase when it is complete with them, and the next one begins."""
        self.ran += chunks
        if self.ran < len(self.pieces):
            return None
        work = sum(piece.work for piece in self.pieces)
        if self.phase is Phase.TRAIN:
            self.step += 1
        else:
            self._evaluated = self.step
        self._begin()
        return work

    def restart(self) -> None:
        """Back to the first chunk of the phase: it has been let go."""
        self.ran = 0

    def _begin(self) -> None:
        over, every = self.step == self.job.last, self.job.eval_steps
        due = every is not None and (self.step % every == 0 or over)
        self.ran = 0
        if due and self._evaluated < self.step:
            self.phase, self.pieces = Phase.EVALUATE, self._evaluation
        elif over:
            self.phase, self.pieces = Phase.DONE, ()
        else:
            self.phase, self.pieces = Phase.TRAIN, self._batches[self.step % len(self._batches)]


def _pieces(batch: Batch) -> tuple[Piece, ...]:
    return tuple(Piece(chunk.tokens, chunk.work) for chunk in batch)


@dataclass(frozen=True, slots=True)
class SimulatedSlice:
    """As `spec.wire.Slice`: who takes part, and what their groups have paid by what is recorded."""

    turns: tuple[JobTurn, ...]
    accounts: Mapping[str, Account]


@dataclass(frozen=True, slots=True)
class SimulatedPack:
    """A pack that runs: whose chunks, and how long.

    Attributes:
        rows: computed, padding included. seconds: that it takes.
        work: of its chunks, by owner.
        kept_waiting: owners that had more chunks than it took.
    """

    chosen: tuple[Chosen, ...]
    tokens: int
    rows: int
    seconds: float
    work: Mapping[str, float]
    kept_waiting: frozenset[str] = frozenset()


def _unfinished(jobs: Iterable[SimulatedJob]) -> dict[str, float]:
    """What has run of the jobs' unfinished steps, by group."""
    work: dict[str, float] = defaultdict(float)
    for one in jobs:
        work[one.group] += one.unfinished_work
    return work


def _left_out(jobs: Sequence[SimulatedJob], pack: SimulatedPack) -> list[SimulatedJob]:
    """Those that have more chunks than the pack takes."""
    taken = dict(pack.chosen)
    return [one for one in jobs if len(one.pieces) - one.ran > taken.get(one.id, 0)]


class SimulatedWorker:
    """Forms packs of the jobs that are attached to it, slice after slice.

    Attributes:
        residents: the attached jobs. slices: those that have not begun.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._tokens = min(machine.pack_tokens, machine.buckets[-1])
        self._ledger, self._phases = Ledger(), Phases()
        self._named: frozenset[str] = frozenset()
        self._kept_waiting: frozenset[str] = frozenset()
        self.residents: dict[str, SimulatedJob] = {}
        self.slices: deque[SimulatedSlice] = deque()

    def lifted(self) -> dict[str, float]:
        """What a slice is answered with; see `sched.ledger`."""
        return self._ledger.lifted()

    def attach(self, job: SimulatedJob) -> None:
        """A job has come."""
        self.residents[job.id] = job
        self._ledger.join(job.group, job.account, _unfinished(self.residents.values()))

    def begin_slice(self) -> None:
        """The next slice begins."""
        wanted = self.slices.popleft()
        self._ledger.hear(wanted.accounts, {job.group for job in self.residents.values()})
        self._named = frozenset(turn.job_id for turn in wanted.turns)
        for turn in wanted.turns:
            resident = self.residents.get(turn.job_id)
            if resident is not None:
                resident.group, resident.level, resident.named = turn.group, turn.level, True

    def next_pack(self) -> SimulatedPack | None:
        """The pack that runs now; None when nobody who takes part has a chunk."""
        present = self._present()
        accounts = self._ledger.with_unfinished(_unfinished(present))
        ready = [one for one in present if one.ran < len(one.pieces)]
        if not ready:
            return None
        candidates = {one.id: Candidate(one.id, one.group, one.level, one.waiting) for one in present}
        due = next_pack(list(candidates.values()), accounts, Room(self._tokens))
        kind = self._phases.choose(self.residents[chosen.job_id].phase for chosen in due)
        members = [candidates[one.id] for one in present if one.phase is kind]
        pack = self._filled(members, accounts)
        left_out = _left_out(ready, pack)
        self._kept_waiting = frozenset(one.group for one in left_out)
        return replace(pack, kept_waiting=frozenset(one.owner for one in left_out))

    def _filled(self, candidates: Sequence[Candidate], accounts: Mapping[str, Account]) -> SimulatedPack:
        """A pack that takes no longer than it may, as `engine.packer` makes it."""

        def offer(work: float) -> Offer[SimulatedPack]:
            pack = self._pack(next_pack(candidates, accounts, Room(self._tokens, work)))
            chunks = sum(chosen.chunks for chosen in pack.chosen)
            return Offer(pack, chunks, sum(pack.work.values()), pack.seconds)

        return in_time(offer, self._machine.pack_seconds)

    def finish(self, pack: SimulatedPack) -> list[tuple[SimulatedJob, float]]:
        """A pack has run: the jobs that have completed a step or an evaluation with it, and its work."""
        committed = []
        for job_id, chunks in pack.chosen:
            job = self.residents[job_id]
            work = job.take(chunks)
            if work is not None:
                self._ledger.commit(job.group, work)
                committed.append((job, work))
                if job.phase is Phase.DONE:
                    del self.residents[job_id]
        self._ledger.served(self._kept_waiting, _unfinished(self._present()))
        return committed

    def _present(self) -> list[SimulatedJob]:
        return [one for one in self.residents.values() if one.id in self._named or not one.named]

    def _pack(self, chosen: tuple[Chosen, ...]) -> SimulatedPack:
        tokens, work = 0, defaultdict[str, float](float)
        for job_id, chunks in chosen:
            job = self.residents[job_id]
            for piece in job.pieces[job.ran : job.ran + chunks]:
                tokens += piece.tokens
                work[job.owner] += piece.work
        buckets = self._machine.buckets
        rows = buckets[bisect_left(buckets, tokens)]
        seconds = seconds_of(self._machine.step_time, Pack(sum(work.values()), rows - tokens, len(chosen)))
        return SimulatedPack(chosen, tokens, rows, seconds, dict(work))
