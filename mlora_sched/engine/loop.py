"""The trainer: resident jobs, and the packs of a slice.

    slice → packer → build_pack → run_pack → take → finish_step / finish_evaluation → reports

Reports are yielded after every pack, so that whoever drives the trainer can look at its mailbox in between. A job
that fails is dropped alone; when a pack fails, every other job in it goes back to the first chunk of its step, so
that nothing of the failure is left. No process, pipe or database is known here.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from mlora_sched.artifacts.provenance import Origin
from mlora_sched.data.pack import build_pack
from mlora_sched.engine.attaching import Delays, fresh_state
from mlora_sched.engine.memory import REMEDIES, TrainerMemory
from mlora_sched.engine.packer import Choice, Packer, kept_waiting
from mlora_sched.engine.parking import ParkedJob, Parking, parked_bytes
from mlora_sched.engine.reports import Served, attached, detached, eval_done, failed, held, put_off, step_done
from mlora_sched.engine.resident import FAULTS, Resident, Saved, code_fault, once_more, own_code, restart
from mlora_sched.engine.saver import Saver, Saving
from mlora_sched.engine.saving import resume
from mlora_sched.engine.step import PartError, SegmentResult, begin_steps, run_pack
from mlora_sched.engine.turns import Turns
from mlora_sched.errors import JobFault
from mlora_sched.memory.device import host_memory
from mlora_sched.memory.formula import PackPlan
from mlora_sched.memory.meter import Measurement
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.device import free_caches, is_out_of_memory
from mlora_sched.sched.phases import Phase
from mlora_sched.spec.state import ErrorCode
from mlora_sched.spec.wire import JobStart, Note, Report, Slice

TRIES_ALONE = 3
"""How often in a row a pack of one chunk may run out of memory, for no reason that is known, before its job fails."""


class Trainer:
    """Trains the jobs that are attached to one base.

    Args:
        tokenizer: of the base. origin: what goes into every provenance; its buckets are the pack lengths used.
        pack_tokens: most tokens of a pack; a larger chunk runs alone, as long as a bucket holds it.
        memory: sizes the packs by what there is; without it they are `pack_tokens` large until memory runs out.
        saving: how jobs are saved; unless told otherwise only where they ask for it, and at once.
        pack_seconds: most time of a pack, as far as that is known beforehand; a chunk that takes longer runs alone.
    """

    def __init__(
        self,
        base: FrozenBase,
        tokenizer: Any,
        origin: Origin,
        pack_tokens: int,
        memory: TrainerMemory | None = None,
        saving: Saving | None = None,
        pack_seconds: float = math.inf,
    ) -> None:
        self.base, self.tokenizer, self.origin, self.memory = base, tokenizer, origin, memory
        self.saver = Saver(origin, saving or Saving())
        self.packer = Packer(origin.verdict.buckets, pack_tokens, pack_seconds)
        self.residents: dict[str, Resident] = {}
        self.parking = Parking(host_memory(None) if memory is None else memory.allowance.host)
        self._delays = Delays(memory)
        self._turns = Turns(self.residents)

    # ------------------------------------------------------------------ who is resident

    def attach(self, start: JobStart) -> list[Report]:
        """Make a job resident: parked, or from its newest checkpoint, or anew; or report why it cannot be.

        One for which there is no memory now is given back, parked where it was parked.
        """
        reports, said = self.saver.settle(start.job_id), None
        try:
            with own_code(start):
                reports.extend(self._attach(start))
        except torch.OutOfMemoryError as error:
            said = str(error)  # and no more of it: its traceback holds what was made
        except FAULTS as error:
            reports.append(self._turn_away(start, error))
        return reports if said is None else reports + self._put_off(start, said)

    def _turn_away(self, start: JobStart, error: BaseException) -> Report:
        self.residents.pop(start.job_id, None)
        self.parking.jobs.pop(start.job_id, None)
        self._delays.over(start.job_id)
        return failed(start, error)

    def _put_off(self, start: JobStart, said: str) -> list[Report]:
        """Give a job back that has run out of memory while it was attached; one that always does has failed."""
        free_caches(self.base.device)
        self.residents.pop(start.job_id, None)
        parked = self.parking.find(start)
        try:
            holds = None if parked is None else parked.resident.bytes
            told = self._delays.again(start, holds, self.residents.values(), said)
        except JobFault as fault:
            return [self._turn_away(start, fault)]
        if parked is None:
            self.parking.jobs.pop(start.job_id, None)
            gone = put_off(start)
        else:
            parked.resident.start = start  # it is let go under the epoch that it was last attached with
            gone = detached(parked.resident, parked=True)
        return [Note(message=f"{told}; it waits until there is memory", job_id=start.job_id), gone]

    def _attach(self, start: JobStart) -> Iterator[Report]:
        parked = self.parking.find(start)
        enter = self._enter if parked is None else parked.wake
        resident, notes = once_more(self.base.device, lambda: enter(start))
        self.parking.jobs.pop(start.job_id, None)
        self._delays.over(start.job_id)
        self.residents[start.job_id] = resident
        self._turns.join(start)
        yield attached(resident)
        yield from (Note(message=note, job_id=start.job_id) for note in notes)
        resident.obey()
        if resident.state.phase is Phase.DONE:  # as told, or its worker died between the last checkpoint and the export
            yield from self._close(resident)
        elif resident.held:
            yield from self.detach(start.job_id, keep=True, park=True)

    def _enter(self, start: JobStart) -> tuple[Resident, list[str]]:
        """A job that was not here, and what its owner should know."""
        resident = Resident(start, fresh_state(start, self.base, self.tokenizer, self.packer.buckets, self.memory))
        notes = resume(resident.state, resident.job_dir, self.origin, start.recorded) if start.resume else []
        resident.saved = Saved(time.monotonic(), resident.state.step, resident.state.step)
        return resident, notes

    def detach(self, job_id: str, *, keep: bool, park: bool = False) -> list[Report]:
        """Let a job go. Unknown jobs give no report.

        Args:
            keep: its last finished step is saved first. park: it is kept in the host's memory instead, where there is
                room; of a parked job it says that it stays there.
        """
        resident, parked = self.residents.pop(job_id, None), self.parking.jobs.get(job_id)
        if resident is not None:
            told: list[Report] = []
            if keep and park and self._park(resident, told):
                return told
            return told + self._let_go(resident, None, keep=keep)
        if parked is None:
            return self.saver.abandon(job_id) or []
        if keep and park:
            return [detached(parked.resident, parked=True)]
        return self._unpark(parked, keep=keep)

    def _park(self, resident: Resident, told: list[Report]) -> bool:
        """Move a job to the host's memory, False where it does not fit there; `told` gets what is to be reported."""
        need = parked_bytes(resident)
        if need > self.parking.limit:
            return False
        told += self.saver.settle(resident.start.job_id)
        for job in self.parking.excess(need):
            told += self._unpark(job)
        try:
            parked = self.parking.add(resident)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False  # the limit was more than the host has; what was saved for it stays saved
        told += [Note(message=parked.note, job_id=resident.start.job_id), detached(resident, parked=True)]
        self.saver.back_up(resident, parked.settled())
        return True

    def _unpark(self, job: ParkedJob, *, keep: bool = True) -> list[Report]:
        """Save a parked job and drop it; it goes on from its checkpoint."""
        del self.parking.jobs[job.resident.start.job_id]
        return self._let_go(job.resident, job, keep=keep)

    def _let_go(self, resident: Resident, parked: ParkedJob | None, *, keep: bool) -> list[Report]:
        if not keep:
            return [*self.saver.settle(resident.start.job_id), detached(resident)]
        try:
            with own_code(resident.start):
                self.saver.let_go(resident, None if parked is None else parked.settled())
        except FAULTS as error:
            return [failed(resident.start, error)]
        return self.saver.written()

    def close(self) -> list[Report]:
        """Save what is parked: the host's memory goes with the process."""
        reports = [report for job in list(self.parking.jobs.values()) for report in self._unpark(job)]
        return reports + self.saver.close()

    def news(self) -> list[Report]:
        """What has been saved, and how memory stands where that is known and has changed, since this was last asked."""
        here, away = self.residents.values(), self.parking.jobs.values()
        return [*self.saver.written(), *([] if self.memory is None else self.memory.news(held(here, away)))]

    # ------------------------------------------------------------------ a slice

    def slice(self, wanted: Slice, begin: Callable[[Iterable[str]], None] = lambda _: None) -> Iterator[list[Report]]:
        """Train the named jobs until the time is up or nothing can run; yield reports after every pack.

        Jobs may be attached and detached between two packs. `begin` is told the jobs of each before it runs.
        """
        served = Served()
        self.saver.thin = wanted.thin
        self._turns.hear(wanted)
        while served.seconds < wanted.seconds:
            present = self._turns.present()
            choice = self.packer.choose(present, self._turns.accounts(present), self._fits())
            choice = choice if choice.chunks else self._anyway() or choice
            if not choice.chunks:
                if hopeless := self._drop_what_never_fits():
                    yield hopeless
                elif self.saver.wait_for_one():
                    yield self.saver.written()
                    continue
                break
            begin(choice.members)
            left_out = kept_waiting(present, choice)
            reports, length = self._run(choice)
            self._turns.served(present, left_out)
            served.add(choice.tokens, length)
            yield reports + self.saver.written()
        yield [served.report(wanted.slice_id, self._turns.lifted(), self.packer.times.known)]

    def _fits(self) -> Callable[[PackPlan], bool] | None:
        """Whether there is memory for a pack beside the jobs that are here now."""
        if self.memory is None:
            return None
        estimator, free = self.memory.estimator, self._free(self.memory)
        return lambda plan: estimator.pack(plan) <= free

    def _free(self, memory: TrainerMemory) -> int:
        """What is left for a pack beside the jobs that are here; on a CPU what is being written takes of it, too."""
        return memory.free(self.residents.values()) - (self.saver.bytes if self.base.device.type == "cpu" else 0)

    def _anyway(self) -> Choice | None:
        """The next chunk of a job that has the device for itself and would never fit, but for chunks that did run."""
        if self.memory is None or len(self.residents) != 1 or not self.memory.ours:
            return None
        (resident,) = self.residents.values()
        choice = self.packer.next_alone(resident)
        return choice if resident.proven and self._never_fits(resident, choice) else None

    def _drop_what_never_fits(self) -> list[Report]:
        """Nothing fits: who would not fit with the device for itself has failed, and the others wait.

        What was attached had been estimated to fit; measuring has taught otherwise since.
        """
        reports: list[Report] = []
        for resident in list(self.residents.values()):
            fault = self._never_fits(resident, self.packer.next_alone(resident))
            if fault is not None and not resident.proven:
                del self.residents[resident.start.job_id]
                reports.append(failed(resident.start, fault))
        return reports

    def _never_fits(self, resident: Resident, choice: Choice) -> JobFault | None:
        """Why a job's next chunk would not fit with the device for itself; None where it would."""
        if self.memory is None:
            return None
        try:
            self.memory.check_alone(resident.bytes, self.packer.plan(choice), choice.tokens)
        except JobFault as fault:
            return fault
        return None

    def _run(self, choice: Choice) -> tuple[list[Report], int]:
        """Run one pack; reports, and its length in rows."""
        states = {name: resident.state for name, resident in choice.members.items()}
        pack = build_pack([(chunk, states[chunk.job_id].rows(chunk)) for chunk in choice.chunks], self.packer.buckets)
        plan = self.packer.plan(choice)
        found, said, began = Measurement(), None, time.monotonic()
        try:
            begin_steps(states)
            measuring = self.memory and self.memory.measuring(plan, self.residents.values())
            with measuring or contextlib.nullcontext(found) as found:
                training = choice.phase is Phase.TRAIN
                results = run_pack(self.base, pack, states, training=training, buckets=self.packer.buckets)
        except PartError as error:
            return self._drop_culprit(error, choice), pack.length
        except torch.OutOfMemoryError as error:
            said = str(error)  # and no more of it: its traceback holds the pack's tensors
        finally:
            choice.charge(time.monotonic() - began)
        if said is not None:
            return self._recover(choice, plan, found, said), pack.length
        if self.memory is not None:
            self.memory.record(plan, found, self.residents.values())
        for chunk in choice.chunks:
            resident = choice.members[chunk.job_id]
            resident.starved, resident.ran = 0, True
        reports = self._take(results, choice.phase)
        self.packer.went_well(choice, time.monotonic() - began)
        return reports, pack.length

    # ------------------------------------------------------------------ packs that fail

    def _drop_culprit(self, error: PartError, choice: Choice) -> list[Report]:
        """Fail the job whose adapter raised; the others of the pack begin their step anew."""
        culprit = self.residents.pop(error.job_id)
        restart(resident for resident in choice.members.values() if resident is not culprit)
        return [failed(culprit.start, code_fault(culprit.start, error.code, error.__cause__))]

    def _recover(self, choice: Choice, plan: PackPlan, found: Measurement, said: str) -> list[Report]:
        """A pack has run out of memory: its jobs begin their step anew, in smaller packs.

        A chunk that runs out of memory by itself is tried again; when it would not fit with the device for itself, or
        nothing explains the failure and it goes on failing, it ends its job.
        """
        free_caches(self.base.device)
        if self.memory is not None:
            said = f"{said} ({self.memory.record_failure(plan, found, self.residents.values())})"
        if len(choice.chunks) > 1:
            self.packer.shrink(choice.tokens)
            what = f"a pack of {len(choice.chunks)} chunks, {choice.tokens} tokens"
            then = f"its jobs begin their step anew in packs of at most {self.packer.room} tokens"
        else:
            (resident,) = choice.members.values()
            fault = self._hopeless(resident, choice, plan, said)
            if fault is not None:
                del self.residents[resident.start.job_id]
                return [failed(resident.start, fault)]
            what, then = f"a pack of one chunk, {choice.tokens} tokens", "its job begins its step anew"
        restart(choice.members.values())
        return [Note(message=f"out of memory in {what}: {said}; {then}")]

    def _hopeless(self, resident: Resident, choice: Choice, plan: PackPlan, said: str) -> JobFault | None:
        """Why the job of a chunk that ran out of memory by itself cannot go on; None where it can be tried again."""
        fault, fits = self._never_fits(resident, choice), self._fits()
        if fault is not None and not resident.proven:
            return fault
        if fault is not None or fits is None or fits(plan):  # else it is not tried again before there is more memory
            resident.starved += 1
        if resident.starved < TRIES_ALONE:
            return None
        message = f"a chunk of {choice.tokens} tokens does not fit on the device by itself: {said}; {REMEDIES}"
        return JobFault(ErrorCode.OUT_OF_MEMORY, message)

    # ------------------------------------------------------------------ results

    def _take(self, results: Sequence[SegmentResult], phase: Phase) -> list[Report]:
        reports: list[Report] = []
        for result in results:
            resident = self.residents.get(result.job_id)
            if resident is None:  # failed on an earlier chunk of this pack
                continue
            try:
                with own_code(resident.start), resident.at_work():
                    if resident.state.take(result):
                        reports.extend(self._finish(resident, phase))
                if resident.held:
                    reports.extend(self.detach(result.job_id, keep=True, park=True))
            except FAULTS as error:
                del self.residents[result.job_id]
                reports.append(failed(resident.start, error))
        return reports

    def _finish(self, resident: Resident, phase: Phase) -> Iterator[Report]:
        """Close a complete phase: report it, save where due, export after the last."""
        state, best = resident.state, False
        self._turns.commit(resident)
        if phase is Phase.TRAIN:
            yield step_done(resident, stepped := state.finish_step(resident.lap()))
            stepped.check()
        else:
            figures = state.finish_evaluation(resident.lap())
            best = figures.best and state.save_steps is not None and state.step > 0
            yield eval_done(resident, figures)
        resident.obey()
        if state.phase is not Phase.EVALUATE and (best or state.save_due or self.saver.due(resident)):
            yield from once_more(self.base.device, lambda: self._save(resident))
        if state.phase is Phase.DONE:
            yield from once_more(self.base.device, lambda: self._close(resident))

    def _save(self, resident: Resident) -> list[Report]:
        """Save a job that goes on, beside its steps where there is memory for a copy."""
        memory, need, on_gpu = self.memory, parked_bytes(resident), self.base.device.type != "cpu"
        self.saver.checkpoint(resident, beside=on_gpu or memory is None or need <= self._free(memory))
        return self.saver.written()

    def _close(self, resident: Resident) -> list[Report]:
        """Export the adapter of a job that is done, and let the job go."""
        self.saver.export(resident)
        del self.residents[resident.start.job_id]
        return self.saver.written()
