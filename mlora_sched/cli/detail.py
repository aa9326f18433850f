"""What `show` prints of one job: facts, the loss curve, the spec, the newest events. Lines out; it asks nobody."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlora_sched.cli.curve import HELD_OUT, Point, curve, is_logarithmic
from mlora_sched.cli.experts_view import brief_text
from mlora_sched.cli.style import loss_text, one_line, progress, why
from mlora_sched.cli.times import arrival, moment, range_text, span
from mlora_sched.memory.sizes import format_size
from mlora_sched.spec.activity import ActiveJob
from mlora_sched.spec.api import JobView
from mlora_sched.spec.detail import JobDetail
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.log import EventView, MetricsLine

CURVE_HEIGHT = 10


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found out about a job at a time.

    Attributes:
        active: how it stands among the live jobs, None when it has ended.
        lines: its metrics, by step.
        now: seconds since the Unix epoch.
    """

    detail: JobDetail
    active: ActiveJob | None
    lines: Sequence[MetricsLine]
    now: float


def detail_lines(looked: Looked, width: int, *, plain: bool = False) -> Iterator[str]:
    """Everything about one job; `plain` draws with ASCII only."""
    facts = {name: text for name, text in _facts(looked).items() if text}
    margin = max(map(len, facts))
    yield from (f"{name:<{margin}}  {text}" for name, text in facts.items())
    yield from _curve(looked.lines, width, plain)
    yield from _spec(looked.detail.spec)
    yield from _events(looked.detail.events)


def _facts(looked: Looked) -> Mapping[str, str]:
    detail, job = looked.detail, looked.detail.job
    return {
        "id": job.id,
        "name": job.name,
        "owner": job.owner,
        "base": job.base,
        "state": job.shown_state,
        "reason": one_line(why(job)),
        "queue": "" if job.position is None else f"place {job.position}",
        "starts": _between(job.starts_low, job.starts_high, looked.now),
        "step": progress(job),
        "eta": _eta(job, looked.now),
        "loss": loss_text(job.loss),
        "held-out loss": loss_text(job.eval_loss),
        "tokens": f"{job.tokens:,}",
        "experts": brief_text(detail.experts),
        "device": _device(looked),
        "alone": _alone(job),
        "memory": _memory(looked.active),
        "results": detail.exactness,
        "created": moment(job.created),
        "started": moment(job.started),
        "ended": moment(job.ended),
        "starts after": ", ".join(detail.after),
        "tried again": f"{job.retried} of {job.retries} times" if job.retries else "",
        "artifacts": f"removed on {moment(job.artifacts_removed)} (--keep-artifacts)" if job.artifacts_removed else "",
        "checkpoints": ", ".join(
            f"{step} (best)" if step == detail.best_checkpoint else str(step) for step in detail.checkpoints
        ),
    }


def _eta(job: JobView, now: float) -> str:
    """When the last step will be done, as it goes of late."""
    comes = arrival(job)
    if comes is None:
        return _between(job.ends_low, job.ends_high, now)
    return f"in about {span(comes.likely)} ({span(comes.early)} to {span(comes.late)}), {moment(now + comes.likely)}"


def _between(low: float | None, high: float | None, now: float) -> str:
    """As the daemon foretells it, from the work that is ahead."""
    if low is None or high is None:
        return ""
    low, high = max(low, now), max(high, now)
    return f"in {range_text(low - now, high - now)}, between {moment(low)} and {moment(high)}"


def _device(looked: Looked) -> str:
    """The job's part of what the device did: of late among the jobs that train, in all of the time since it started."""
    job, active = looked.detail.job, looked.active
    told = []
    if active is not None and active.share:
        told.append(f"{active.share:.0%} of the work of late")
    if job.work_seconds and job.started is not None:
        since = max(job.work_seconds, (looked.now if job.ended is None else job.ended) - job.started)
        part = f"{job.work_seconds / since:.0%} of the {span(since)} since it started"
        told.append(f"{span(job.work_seconds)} in all, {part}")
    return "; ".join(told)


def _alone(job: JobView) -> str:
    """How long it would take with the device for itself, by the device's time that its steps took."""
    if job.state.is_final or not job.work_seconds or not job.step or job.total_steps is None:
        return ""
    each = job.work_seconds / job.step
    return f"about {span(each * job.total_steps)} for all {job.total_steps} steps, by the device's time they take"


def _memory(active: ActiveJob | None) -> str:
    held = () if active is None else ((active.device, "the device"), (active.host, "the host, parked"))
    return ", ".join(f"{format_size(size)} of {what}" for size, what in held if size)


def _curve(lines: Sequence[MetricsLine], width: int, plain: bool) -> Iterator[str]:
    trained = [Point(line.step, line.loss) for line in lines if line.event == "step"]
    held_out = [Point(line.step, line.loss) for line in lines if line.event == "eval"]
    if len(trained) < 2:
        return
    notes = [f"{HELD_OUT} held out"] if held_out else []
    notes += ["logarithmic"] if is_logarithmic(trained, held_out) else []
    yield ""
    yield "loss" + (f" ({', '.join(notes)})" if notes else "")
    yield from (f"  {line}" for line in curve(trained, held_out, width - 2, CURVE_HEIGHT, plain=plain))


def _spec(spec: JobSpec) -> Iterator[str]:
    import yaml

    yield ""
    yield "spec"
    text = yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True), sort_keys=False)
    yield from (f"  {line}" for line in text.splitlines())


def _events(events: Sequence[EventView]) -> Iterator[str]:
    if events:
        yield ""
        yield "events"
    for event in events:
        yield f"  {moment(event.time)}  {one_line(event.message)}"
