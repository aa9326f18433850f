"""Statements about sweeps: handing one in with all its trials, looking at them, and what was decided of each.

Trials are jobs; a sweep's row says what they have in common. Who goes on is `sched.sweep`'s to say.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, and_, case, func, insert, select, update

from mlora_sched.errors import Ambiguous, NotFound, Refused
from mlora_sched.spec.api import JobView, SweepView
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.limits import Metric
from mlora_sched.spec.load import JobLoad
from mlora_sched.spec.query import STATE_ORDER
from mlora_sched.spec.state import JobState, Request, StoppedBy
from mlora_sched.spec.sweep import Sweep, SweepSpec
from mlora_sched.spec.sweep_view import SweepDetail, TrialView
from mlora_sched.spec.training import TrainingSpec
from mlora_sched.store import requests, rows, schema
from mlora_sched.store.db import reading, writing
from mlora_sched.store.moves import add_event
from mlora_sched.store.records import Terms, TrialChange, TrialState
from mlora_sched.store.submissions import add_job

SMOOTHED = 10
"""Steps of which a training loss is the mean: that of a single batch says little."""

_MIN_PREFIX = 4
_MOST_NAMED = 10
_VIEW = [schema.jobs.c[name] for name in JobView.model_fields]
_STATE = ("id", "trial", "state", "request", "step", "total_steps", "until", "stop", "stopped_by", "spec", "load")
_BAD = (JobState.FAILED, JobState.CANCELLED)
_FIGURE = {Metric.EVAL_LOSS: schema.metrics.c.loss, Metric.EVAL_ACCURACY: schema.metrics.c.accuracy}


class SweepSide:
    """The part of the store that knows sweeps. `JobStore` adds the rest."""

    _engine: Engine

    def insert_sweep(
        self, sweep_id: str, document: Sweep, files: Mapping[str, str], owner: str, base: str, now: float, terms: Terms
    ) -> tuple[SweepView, tuple[str, ...]]:
        """Add a sweep and all its trials, or what `owner` has submitted before under the same key.

        Args:
            sweep_id: `s-` and hexadecimal digits; ids of trials are made of it.
            files: sha256 of every file that a trial names.

        Returns:
            The sweep, and the ids of its trials by number.

        Raises:
            NotFound: one of `terms.after` is gone.
            Refused: one of them has not succeeded and never will; the key is another sweep's; or a quota of `owner`
                stands against so many jobs. Then there are none.
        """
        kept = _kept(document, files, terms)
        with writing(self._engine) as connection:
            before = _under_key(connection, owner, kept, terms.key)
            if before is not None:
                return _view(connection, before), _jobs_of(connection, before.id)
            values = {"id": sweep_id, "name": document.spec.name, "owner": owner, "spec": kept, "key": terms.key}
            connection.execute(insert(schema.sweeps).values(created=now, **values))
            of_job = Terms(after=terms.after, retries=terms.retries)
            for trial in document.trials():
                own = {name: files[name] for name in trial.spec.files}
                job_id = f"j-{_derived(sweep_id, trial.number)}"
                which = {"sweep": sweep_id, "trial": trial.number}
                add_job(connection, job_id, trial.spec, own, owner, base, now, of_job, **which)
            return _view(connection, _row(connection, sweep_id)), _jobs_of(connection, sweep_id)

    def sweep_submitted_before(
        self, owner: str, document: Sweep, files: Mapping[str, str], terms: Terms
    ) -> tuple[SweepView, tuple[str, ...]] | None:
        """The sweep that `owner` has submitted under the key, with its jobs; None when there is none.

        Raises:
            Refused: it is another one; only what it starts after is not compared.
        """
        with reading(self._engine) as connection:
            row = _under_key(connection, owner, _kept(document, files, terms), terms.key)
            return None if row is None else (_view(connection, row), _jobs_of(connection, row.id))

    def sweeps(self, scope: str | None, limit: int | None = None, user: str | None = None) -> list[SweepView]:
        """The sweeps of one owner (None: of everybody), newest first; of these only `user`'s, where one is given."""
        table = schema.sweeps
        query = select(table).order_by(table.c.seq.desc()).limit(limit)
        for owner in (scope, user):
            if owner is not None:
                query = query.where(table.c.owner == owner)
        with reading(self._engine) as connection:
            return [_view(connection, row) for row in connection.execute(query).all()]

    def resolve_sweep(self, text: str, owner: str | None, named_by: str | None = None) -> str:
        """The full id of the sweep that `text` means: an id, its beginning or a name. See `JobStore.resolve`.

        Raises:
            NotFound: no sweep fits.
            Ambiguous: several fit.
        """
        table = schema.sweeps
        prefix = "s-" + text.removeprefix("s-")
        with reading(self._engine) as connection:
            found: Sequence[str] = ()
            if len(prefix) >= len("s-") + _MIN_PREFIX:
                found = _fitting(connection, func.substr(table.c.id, 1, len(prefix)) == prefix, owner)
            if not found:
                found = _fitting(connection, table.c.name == text, named_by or owner)
        if not found:
            raise NotFound(f"no sweep {text}; `mlora-sched sweep ls` lists yours")
        if len(found) > 1:
            named = ", ".join(found[:_MOST_NAMED]) + (", …" if len(found) > _MOST_NAMED else "")
            raise Ambiguous(f"{text} fits several sweeps: {named}; write one of these ids")
        return found[0]

    def sweep(self, sweep_id: str) -> SweepDetail:
        """All of a sweep, its trials best first.

        Raises:
            NotFound: there is no such sweep.
        """
        with reading(self._engine) as connection:
            row = _row(connection, sweep_id)
            document = _document(row)
            figures = _newest(connection, sweep_id, document.sweep.metric)
            values = list(document.sweep.draws())
            query = select(*_VIEW, schema.jobs.c.until, schema.jobs.c.stop).where(schema.jobs.c.sweep == sweep_id)
            trials = []
            found: Sequence[Any] = connection.execute(query).all()
            for job in found:
                at, figure = figures.get(job.id, (None, None))
                stops = job.until is not None and job.until < (job.total_steps or 0) and job.stop is None
                trials.append(
                    TrialView(
                        number=job.trial,
                        values=values[job.trial - 1],
                        job=rows.job_view(job),
                        figure=figure,
                        at=at,
                        until=job.until if stops and not JobState(job.state).is_final else None,
                    )
                )
            view = _view(connection, row)
        sign = _sign(document.sweep.metric)
        trials.sort(key=lambda one: (one.job.state in _BAD, one.figure is None, sign * (one.figure or 0), one.number))
        return SweepDetail(sweep=view, document=document, trials=tuple(trials))

    def request_of_sweep(self, sweep_id: str, request: Request, now: float) -> SweepDetail:
        """Ask the daemon to pause, resume or cancel all trials of which it can be asked.

        Raises:
            NotFound: there is no such sweep.
            Refused: it cannot be asked of any.
        """
        with writing(self._engine) as connection:
            _row(connection, sweep_id)
            asked = 0
            why = "has no trials any more"
            for job_id in _jobs_of(connection, sweep_id):
                try:
                    requests.ask(connection, job_id, request, now)
                except Refused as refused:
                    why = refused.message
                else:
                    asked += 1
            if not asked:
                raise Refused(f"sweep {sweep_id}: {why}")
        return self.sweep(sweep_id)

    # ------------------------------------------------------------------ the daemon's

    def sweep_spec(self, sweep_id: str) -> SweepSpec:
        """What a sweep tries, and by which rule."""
        with reading(self._engine) as connection:
            return _document(_row(connection, sweep_id)).sweep

    def trial_states(self, sweep_id: str, metric: Metric) -> list[TrialState]:
        """How every trial of a sweep stands, by number."""
        jobs = schema.jobs
        query = select(*(jobs.c[name] for name in _STATE)).where(jobs.c.sweep == sweep_id).order_by(jobs.c.trial)
        with reading(self._engine) as connection:
            return [_trial_state(row, metric) for row in connection.execute(query)]

    def figures(self, metric: Metric, wanted: Mapping[str, Collection[int]]) -> dict[str, dict[int, float]]:
        """Those that there are of the wanted figures, by job and step, such that less is better.

        Only these are read: a trial may have many thousands.
        """
        with reading(self._engine) as connection:
            return {job_id: _figures(connection, job_id, metric, steps) for job_id, steps in wanted.items() if steps}

    def set_trials(self, changes: Sequence[TrialChange], now: float) -> None:
        """Write what was decided of trials, and note it in their events."""
        jobs = schema.jobs
        with writing(self._engine) as connection:
            for change in changes:
                stop = None if change.stop is None else change.stop.value
                values = {"until": change.until, "stop": stop}
                connection.execute(update(jobs).where(jobs.c.id == change.job_id).values(values))
                if change.note:
                    add_event(connection, change.job_id, change.note, now)


def _kept(document: Sweep, files: Mapping[str, str], terms: Terms) -> str:
    """What is written down of a sweep: all that decides its trials, as it was written, and nothing filled in."""
    plain = {
        "document": document.model_dump(mode="json", exclude_unset=True),
        "files": dict(files),
        "retries": terms.retries,
    }
    return json.dumps(plain, sort_keys=True)


def _document(row: Row[Any]) -> Sweep:
    return Sweep.model_validate(json.loads(row.spec)["document"])


def _derived(sweep_id: str, number: int) -> str:
    """An id for a trial: as random as the sweep's, and the same if it is made again."""
    return hashlib.sha256(f"{sweep_id} {number}".encode()).hexdigest()[:32]


def _row(connection: Connection, sweep_id: str) -> Row[Any]:
    row = connection.execute(select(schema.sweeps).where(schema.sweeps.c.id == sweep_id)).one_or_none()
    if row is None:
        raise NotFound(f"no sweep {sweep_id}; `mlora-sched sweep ls` lists yours")
    return row


def _under_key(connection: Connection, owner: str, kept: str, key: str | None) -> Row[Any] | None:
    if key is None:
        return None
    table = schema.sweeps
    row = connection.execute(select(table).where(table.c.owner == owner, table.c.key == key)).one_or_none()
    if row is not None and row.spec != kept:
        raise Refused(
            f"key: {key}: is that of the sweep {row.name} ({row.id}), which was submitted with other values; "
            "use another key for another sweep"
        )
    return row


def _fitting(connection: Connection, fits: ColumnElement[bool], owner: str | None) -> Sequence[str]:
    table = schema.sweeps
    query = select(table.c.id).where(fits).order_by(table.c.seq.desc()).limit(_MOST_NAMED + 1)
    return list(connection.scalars(query if owner is None else query.where(table.c.owner == owner)))


def _jobs_of(connection: Connection, sweep_id: str) -> tuple[str, ...]:
    jobs = schema.jobs
    return tuple(connection.scalars(select(jobs.c.id).where(jobs.c.sweep == sweep_id).order_by(jobs.c.trial)))


def _view(connection: Connection, row: Row[Any]) -> SweepView:
    jobs, spec = schema.jobs, _document(row).sweep
    pruned = func.sum(case((jobs.c.stopped_by == StoppedBy.PRUNED.value, 1), else_=0))
    sums = [func.sum(jobs.c[name]) for name in ("step", "total_steps", "tokens")]
    query = select(jobs.c.state, func.count(), pruned, func.count(jobs.c.total_steps), *sums)
    found = connection.execute(query.where(jobs.c.sweep == row.id).group_by(jobs.c.state)).all()
    states = [JobState(one[0]) for one in found]
    planned = [one[3] == one[1] for one in found if one[0] not in {state.value for state in _BAD}]
    best = _best(connection, row.id, spec.metric)
    return SweepView(
        id=row.id,
        name=row.name,
        owner=row.owner,
        created=row.created,
        metric=spec.metric.value,
        rule="" if spec.stop is None else spec.stop.rule,
        state=next((state for state in STATE_ORDER if state in states), JobState.CANCELLED),
        trials=sum(one[1] for one in found),
        ended=sum(one[1] for one in found if JobState(one[0]).is_final),
        pruned=sum(one[2] for one in found),
        steps=sum(one[4] for one in found),
        total_steps=sum(one[5] or 0 for one in found) if planned and all(planned) else None,
        tokens=sum(one[6] for one in found),
        best=None if best is None else best.id,
        best_trial=None if best is None else best.trial,
        figure=None if best is None else best.figure,
    )


def _newest_query(metric: Metric) -> Any:
    """Job, trial, state and the newest figure of every trial that has one."""
    jobs, metrics = schema.jobs, schema.metrics
    chosen = [jobs.c.id, jobs.c.trial, jobs.c.state]
    if metric is Metric.LOSS:
        of_job = and_(metrics.c.job_id == jobs.c.id, metrics.c.event == "step", metrics.c.step > jobs.c.step - SMOOTHED)
        figures = func.max(metrics.c.step).label("at"), func.avg(metrics.c.loss).label("figure")
        return select(*chosen, *figures).join(metrics, of_job).group_by(jobs.c.id)
    last = select(func.max(metrics.c.step)).where(metrics.c.job_id == jobs.c.id, metrics.c.event == "eval")
    newest = and_(
        metrics.c.job_id == jobs.c.id,
        metrics.c.event == "eval",
        metrics.c.step == last.correlate(jobs).scalar_subquery(),
        metrics.c.step > 0,
    )
    return select(*chosen, metrics.c.step.label("at"), _FIGURE[metric].label("figure")).join(metrics, newest)


def _newest(connection: Connection, sweep_id: str, metric: Metric) -> dict[str, tuple[int, float]]:
    """Step and figure, by job."""
    query = _newest_query(metric).where(schema.jobs.c.sweep == sweep_id)
    return {row.id: (row.at, row.figure) for row in connection.execute(query)}


def _best(connection: Connection, sweep_id: str, metric: Metric) -> Row[Any] | None:
    found = connection.execute(_newest_query(metric).where(schema.jobs.c.sweep == sweep_id)).all()
    good = [row for row in found if JobState(row.state) not in _BAD and row.figure is not None]
    return min(good, key=lambda row: (_sign(metric) * row.figure, row.trial), default=None)


def _figures(connection: Connection, job_id: str, metric: Metric, steps: Collection[int]) -> dict[int, float]:
    metrics = schema.metrics
    if metric is not Metric.LOSS:
        found = _column(connection, job_id, "eval", steps, _FIGURE[metric])
        return {step: _sign(metric) * figure for step, figure in found.items()}
    spans = {step: range(max(1, step - SMOOTHED + 1), step + 1) for step in steps}
    found = _column(connection, job_id, "step", {one for span in spans.values() for one in span}, metrics.c.loss)
    means = {
        step: statistics.fmean(found[one] for one in span if one in found)
        for step, span in spans.items()
        if step in found
    }
    return {step: _sign(metric) * mean for step, mean in means.items()}


def _column(
    connection: Connection, job_id: str, event: str, steps: Collection[int], column: ColumnElement[Any]
) -> dict[int, float]:
    metrics = schema.metrics
    query = select(metrics.c.step, column.label("figure"))
    query = query.where(metrics.c.job_id == job_id, metrics.c.event == event, metrics.c.step.in_(steps))
    return {row.step: row.figure for row in connection.execute(query) if row.figure is not None}


def steps_between(metric: Metric, training: TrainingSpec, load: JobLoad | None) -> int | None:
    """Steps between two figures of a trial; None while that is not known."""
    if metric is Metric.LOSS:
        return 1
    if isinstance(training.eval_every, int):
        return training.eval_every
    return None if load is None else load.eval_steps


def _trial_state(row: Row[Any], metric: Metric) -> TrialState:
    training = JobSpec.model_validate_json(row.spec).training
    load = None if row.load is None else JobLoad.model_validate_json(row.load)
    return TrialState(
        job_id=row.id,
        number=row.trial,
        state=JobState(row.state),
        request=Request(row.request),
        step=row.step,
        total_steps=row.total_steps,
        every=steps_between(metric, training, load),
        until=row.until,
        stop=None if row.stop is None else StoppedBy(row.stop),
        stopped_by=None if row.stopped_by is None else StoppedBy(row.stopped_by),
    )


def _sign(metric: Metric) -> int:
    return -1 if metric.higher_is_better else 1
