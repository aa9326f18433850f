"""What a shell may put after a verb: ids and names of jobs, asked of the daemon. Says nothing when none answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

import click
from click.shell_completion import CompletionItem

from mlora_sched.spec.state import JobState

_SECONDS = 0.5
"""How long a shell may be kept waiting for the daemon."""

_OFFERED = 200
"""So many jobs are offered, the newest."""

_LIVE = tuple(state for state in JobState if not state.is_final)
_ENDED = tuple(state for state in JobState if state.is_final)
_STATES: Mapping[str | None, tuple[JobState, ...]] = MappingProxyType(
    {
        "cancel": _LIVE,
        "pause": _LIVE,
        "priority": _LIVE,
        "resume": (JobState.PAUSED,),
        "rm": _ENDED,
        "wait": _LIVE,
    }
)
"""Verbs that go with jobs in some states only."""


def complete_jobs(context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The jobs that a verb can be about: by name where only one job has it, else by id; ids once one is begun."""
    from mlora_sched.client import Client, SshTarget, default_where
    from mlora_sched.errors import MloraError
    from mlora_sched.spec.query import JobQuery

    try:
        where = context.params.get("socket") or default_where()
        if isinstance(where, SshTarget):  # a connection made for every press of a key would be felt
            return []
        with Client(where, timeout=_SECONDS) as client:
            jobs = client.jobs_page(JobQuery(states=_STATES.get(context.info_name), limit=_OFFERED)).jobs
    except MloraError:
        return []
    names = Counter(job.name for job in jobs)
    found = []
    for job in jobs:
        texts = [job.name] if names[job.name] == 1 else [job.id]
        if incomplete and job.id not in texts:
            texts.append(job.id)
        help_ = f"{job.shown_state} {job.name}"
        found += [CompletionItem(text, help=help_) for text in texts if text.startswith(incomplete)]
    return found
