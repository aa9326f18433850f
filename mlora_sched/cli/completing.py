"""What a shell may put after a verb: ids and names of jobs and sweeps. Says nothing when no daemon answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import click
from click.shell_completion import CompletionItem

from mlora_sched.spec.state import JobState

if TYPE_CHECKING:
    from mlora_sched.client import Client

_Found = TypeVar("_Found")

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
    from mlora_sched.spec.query import JobQuery

    query = JobQuery(states=_STATES.get(context.info_name), limit=_OFFERED)
    jobs = _asked(context, lambda client: client.jobs_page(query).jobs)
    return _items([(job.id, job.name, f"{job.shown_state} {job.name}") for job in jobs], incomplete)


def complete_sweeps(context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Likewise the sweeps."""
    sweeps = _asked(context, lambda client: client.sweeps(limit=_OFFERED))
    return _items([(one.id, one.name, f"{one.state.value} {one.name}") for one in sweeps], incomplete)


def _asked(context: click.Context, ask: Callable[[Client], Sequence[_Found]]) -> Sequence[_Found]:
    """What the daemon answers; nothing where none does, or not soon."""
    from mlora_sched.client import Client, SshTarget, default_where
    from mlora_sched.errors import MloraError

    try:
        where = context.params.get("socket") or default_where()
        if isinstance(where, SshTarget):  # a connection made for every press of a key would be felt
            return []
        with Client(where, timeout=_SECONDS) as client:
            return ask(client)
    except MloraError:
        return []


def _items(entries: Sequence[tuple[str, str, str]], incomplete: str) -> list[CompletionItem]:
    """Of ids, names and what is said of each."""
    names = Counter(name for _, name, _ in entries)
    found = []
    for entry_id, name, help_ in entries:
        texts = [name] if names[name] == 1 else [entry_id]
        if incomplete and entry_id not in texts:
            texts.append(entry_id)
        found += [CompletionItem(text, help=help_) for text in texts if text.startswith(incomplete)]
    return found
