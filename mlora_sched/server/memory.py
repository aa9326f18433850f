"""How the device's memory stands, as one caller may see it. Nothing is measured here: the worker reports it."""

from __future__ import annotations

from mlora_sched.server.auth import Caller
from mlora_sched.spec.memory import JobBytes
from mlora_sched.spec.memory_view import MemoryJob, MemoryView
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import LiveJob


def memory_view(store: JobStore, caller: Caller) -> MemoryView:
    """The newest report, with the jobs that hold something; of others' jobs only whose they are, state and bytes.

    Corrections name the methods of everybody's packs, also of the past: administrators see them.
    """
    status = store.worker_status()
    report = status.memory
    if report is None:
        return MemoryView(worker=status.in_words, device=status.device, warnings=status.warnings)
    live = {job.id: job for job in store.live()}
    jobs = [_shown(live[held.job_id], held, caller) for held in report.jobs if held.job_id in live]
    held = report.base + sum(job.device for job in report.jobs)
    estimated, measured = (max(0, peak - held) if report.rows else 0 for peak in (report.estimated, report.measured))
    return MemoryView(
        worker=status.in_words,
        device=status.device,
        total=report.total,
        limit=report.limit,
        others=report.others,
        base=report.base,
        margin=report.margin,
        budget=report.budget,
        host_limit=report.host_limit,
        jobs=tuple(sorted(jobs, key=lambda job: (job.owner, -job.device, -job.host, job.id or ""))),
        rows=report.rows,
        estimated=estimated,
        measured=measured,
        peak=report.peak,
        corrections=report.corrections if caller.is_admin else (),
        warnings=status.warnings,
    )


def _shown(job: LiveJob, held: JobBytes, caller: Caller) -> MemoryJob:
    known = caller.is_admin or job.owner == caller.user
    return MemoryJob(
        owner=job.owner,
        id=job.id if known else None,
        name=job.spec.name if known else None,
        state=job.state,
        device=held.device,
        host=held.host,
    )
