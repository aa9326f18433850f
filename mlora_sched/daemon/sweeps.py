"""Stop the trials of sweeps at their rungs, let the good ones go on and the others end, as `sched.sweep` decides.

What was decided stands in the database (`jobs.until`, `jobs.stop`), so a daemon that was restarted goes on from there.
A trial that waits for others stays in the queue and is kept back here; one that is given up is attached once more, to
end with its adapter. Nothing here looks at figures unless a trial has got somewhere since.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from mlora_sched.daemon.roster import Roster, by_submission
from mlora_sched.sched.sweep import Decision, Standing, Trial, Verdict, below_median, halving, rungs
from mlora_sched.spec.state import JobState, Request, StoppedBy, WaitReason
from mlora_sched.spec.sweep import AshaStop, MedianStop, SweepSpec
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import LiveJob, TrialChange, TrialState
from mlora_sched.store.sweeps import steps_between

_Seen = tuple[object, ...]
_Figures = Mapping[str, Mapping[int, float]]
"""By trial and step, such that less is better."""

_PARTS = 20
"""So often at most a trial is compared with the median in its course, however many figures it has."""
_MEDIAN_FROM = 8
"""No trial is compared with the median in this part of its steps, unless the spec says otherwise."""

_STANDINGS = {
    JobState.PAUSED: Standing.PAUSED,
    JobState.SUCCEEDED: Standing.SUCCEEDED,
    JobState.FAILED: Standing.GONE,
    JobState.CANCELLED: Standing.GONE,
}

_PENDING = {Request.PAUSE: Standing.PAUSED, Request.RESUME: Standing.GOING}
"""All trials of a sweep may be asked for at once; it comes true of one after another."""


class Sweeps:
    """Looks at the trials once a round.

    Args:
        let_go: take a job that the worker has out of its hands, so that it comes back with what was decided.
    """

    def __init__(self, store: JobStore, roster: Roster, let_go: Callable[[str], None]) -> None:
        self._store, self._roster = store, roster
        self._changed = roster.follow()
        self._sweep_of: dict[str, str] = {}
        self._stirred: set[str] = set()
        """Sweeps to look at: something of a trial has changed, or a figure had not come yet."""
        self._let_go = let_go
        self._specs: dict[str, SweepSpec] = {}
        """A sweep never changes, so those of the live trials are read once."""
        self._seen: dict[str, _Seen] = {}
        self._waits: dict[str, dict[str, str]] = {}
        """By sweep the trials that wait at a rung, and why."""
        self._figures: dict[str, dict[str, dict[int, float]]] = {}
        """By sweep, trial and step, as far as they decide anything; each is read once."""

    def look(self, now: float) -> bool:
        """Decide what can be decided; True when something of a job has changed."""
        for job_id in list(self._changed):
            job = self._roster.get(job_id)
            if job is not None and job.sweep is not None:
                self._sweep_of[job_id] = job.sweep
            sweep_id = self._sweep_of.get(job_id)
            if sweep_id is not None:
                self._stirred.add(sweep_id)
            if job is None:
                self._sweep_of.pop(job_id, None)
            self._changed.discard(job_id)
        for known in (self._specs, self._seen, self._waits, self._figures):
            for gone in self._stirred & known.keys() - set(self._roster.sweeps()):
                del known[gone]
        changed = False
        for sweep_id in sorted(self._stirred):
            trials = sorted(self._roster.of_sweep(sweep_id).values(), key=by_submission)
            changed |= bool(trials) and self._look_at(sweep_id, trials, now)
            if self._is_settled(sweep_id):
                self._stirred.discard(sweep_id)
        return changed

    def _is_settled(self, sweep_id: str) -> bool:
        """Nothing is to be looked at until something has changed."""
        spec = self._specs.get(sweep_id)
        return spec is None or spec.stop is None or sweep_id in self._seen

    @property
    def reasons(self) -> dict[str, str]:
        """The trials that wait at a rung, and why."""
        return {job_id: reason for waits in self._waits.values() for job_id, reason in waits.items()}

    def _look_at(self, sweep_id: str, jobs: Sequence[LiveJob], now: float) -> bool:
        if sweep_id not in self._specs:
            self._specs[sweep_id] = self._store.sweep_spec(sweep_id)
        spec = self._specs[sweep_id]
        if spec.stop is None:
            return False
        seen = tuple(_got_to(job, spec) for job in jobs)
        if self._seen.get(sweep_id) == seen:
            return False
        states = self._store.trial_states(sweep_id, spec.metric)
        figures = self._read(sweep_id, spec, states)
        if isinstance(spec.stop, AshaStop):
            changes = self._by_rungs(sweep_id, states, figures, spec.stop)
        else:
            changes = _by_median(states, figures, spec.stop)
        if changes:
            self._store.set_trials(changes, now)
            at_once = {state.job_id for state in states if state.until is None}
            for change in changes:
                if change.stop is not None and change.job_id in at_once:
                    self._let_go(change.job_id)
        if any(_figure_is_missing(state, figures[state.job_id]) for state in states):
            self._seen.pop(sweep_id, None)
        else:
            self._seen[sweep_id] = seen
        return bool(changes)

    def _read(self, sweep_id: str, spec: SweepSpec, states: Sequence[TrialState]) -> _Figures:
        """The figures that decide anything: a look costs what has come since the last one."""
        assert spec.stop is not None
        before = self._figures.get(sweep_id, {})
        known = {state.job_id: before.get(state.job_id, {}) for state in states}
        wanted = {state.job_id: _points(state, spec.stop) - known[state.job_id].keys() for state in states}
        for job_id, more in self._store.figures(spec.metric, wanted).items():
            known[job_id] = {**known[job_id], **more}
        self._figures[sweep_id] = known
        return known

    def _by_rungs(
        self, sweep_id: str, states: Sequence[TrialState], figures: _Figures, stop: AshaStop
    ) -> list[TrialChange]:
        known = [state for state in states if state.total_steps is not None]
        trials = [_trial(state, _rungs(state, stop), figures[state.job_id]) for state in states]
        by_number = {trial.number: trial for trial in trials}
        decided = halving(trials, stop.factor)
        changes = [
            TrialChange(state.job_id, _until(state, by_number[state.number], 0))
            for state in known
            if state.until is None and not state.state.is_final
        ]
        waits = {}
        for state in known:
            decision, trial = decided.get(state.number), by_number[state.number]
            if decision is None or state.until is None or state.stop is not None:
                continue
            match decision.verdict:
                case Verdict.WAIT:
                    waits[state.job_id] = _reason(state, decision)
                case Verdict.PRUNE:
                    note = f"sweep: given up at step {state.until}, {_placed(decision)}"
                    changes.append(TrialChange(state.job_id, state.until, StoppedBy.PRUNED, note))
                case Verdict.GO_ON:
                    until = _until(state, trial, trial.passed + 1)
                    note = f"sweep: goes on at step {state.until}, {_placed(decision)}"
                    changes.append(TrialChange(state.job_id, until, note=note))
        self._waits[sweep_id] = waits
        return changes


def _got_to(job: LiveJob, spec: SweepSpec) -> tuple[object, ...]:
    """What of a job can change what is decided: an evaluation is certainly known when the step after it is."""
    if isinstance(spec.stop, AshaStop):
        there: object = job.until is not None and job.step >= job.until
    else:
        every = steps_between(spec.metric, job.spec.training, job.load)
        there = (job.step - 1) // _stride(job.total_steps, every)
    return job.id, job.state, job.request, job.total_steps, job.until, job.stop, there


def _stride(total_steps: int | None, every: int | None) -> int:
    """Steps between two figures of a trial that are looked at, where there is one after `every` steps."""
    every = every or 1
    return every * max(1, math.ceil((total_steps or 0) / (every * _PARTS)))


def _points(state: TrialState, stop: AshaStop | MedianStop) -> set[int]:
    """The steps that a trial has got to whose figures decide anything; the last one where it has succeeded."""
    if isinstance(stop, AshaStop):
        steps = {*_rungs(state, stop), *(() if state.until is None else (state.until,))}
    else:
        stride = _stride(state.total_steps, state.every)
        steps = set(range(stride, state.step + 1, stride))
    if state.state is JobState.SUCCEEDED:
        steps.add(state.step)
    return {step for step in steps if step <= state.step}


def _figure_is_missing(state: TrialState, figures: Mapping[int, float]) -> bool:
    """The trial has done the steps to its rung, and the evaluation there has not been heard of."""
    at_rung = state.until is not None and state.until <= state.step and state.stop is None
    return at_rung and not state.state.is_final and state.until not in figures


def _rungs(state: TrialState, stop: AshaStop) -> tuple[int, ...]:
    """None where it is not known when there are figures: such a trial goes to its end."""
    if state.total_steps is None or state.every is None:
        return ()
    return rungs(state.total_steps, stop.factor, stop.min_steps, state.every)


def _trial(state: TrialState, steps: tuple[int, ...], figures: Mapping[int, float]) -> Trial:
    standing = _PENDING.get(state.request) or _STANDINGS.get(state.state, Standing.GOING)
    if state.stop is StoppedBy.PRUNED or state.stopped_by is StoppedBy.PRUNED:
        standing = Standing.PRUNED if standing is not Standing.GONE else standing
    passed = 0 if state.until is None else sum(step < state.until for step in steps)
    return Trial(state.number, standing, steps, passed, figures)


def _until(state: TrialState, trial: Trial, rung: int) -> int:
    """Where a trial that may go on to a rung stops; behind the last one nowhere, which is a step that never comes."""
    assert state.total_steps is not None
    return trial.rungs[rung] if rung < len(trial.rungs) else state.total_steps + 1


def _reason(state: TrialState, decision: Decision) -> str:
    others = "1 other trial" if decision.waits_for == 1 else f"{decision.waits_for} other trials"
    return f"{WaitReason.SWEEP.value}: waits at step {state.until} for {others}"


def _placed(decision: Decision) -> str:
    return f"{decision.place} of {decision.of} that were there"


def _by_median(states: Sequence[TrialState], figures: _Figures, stop: MedianStop) -> list[TrialChange]:
    least = {state.number: stop.min_steps or (state.total_steps or 0) // _MEDIAN_FROM for state in states}
    given_up = below_median([_trial(state, (), figures[state.job_id]) for state in states], least, stop.min_trials)
    ids = {state.number: state.job_id for state in states}
    return [
        TrialChange(ids[number], step, StoppedBy.PRUNED, f"sweep: given up at step {step}, worse than the median")
        for number, step in given_up.items()
    ]
