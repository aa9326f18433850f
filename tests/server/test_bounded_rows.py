"""That what people ask for again and again neither fills the database nor makes an answer long."""

from __future__ import annotations

import pytest
from serving import Served, SpecMaker
from sqlalchemy import insert

from mlora_sched.client import Client
from mlora_sched.client.logs import LogKind
from mlora_sched.daemon import retention
from mlora_sched.daemon.retention import KEEP_EVENTS_SECONDS, Retention
from mlora_sched.errors import SpecError
from mlora_sched.server.routes.jobs import EVENTS_OF_PAGE
from mlora_sched.spec.log import EventView
from mlora_sched.store import schema
from mlora_sched.store.audit import TRIM_ROWS
from mlora_sched.store.db import writing

NOW = 10 * KEEP_EVENTS_SECONDS


def happen(served: Served, job_id: str | None, count: int, time: float = NOW) -> None:
    rows = [{"time": time, "job_id": job_id, "message": f"event {number}", "step": 0} for number in range(count)]
    with writing(served.store._engine) as connection:
        connection.execute(insert(schema.events), rows)


@pytest.mark.parametrize("beyond", [-1, 0, 1, EVENTS_OF_PAGE + 3])
def test_many_events_come_page_by_page_and_a_log_has_them_all(
    served: Served, spec: SpecMaker, client: Client, beyond: int
) -> None:
    job_id = client.submit(spec()).id
    happen(served, job_id, EVENTS_OF_PAGE - 1 + beyond)
    every = [event.message for _, event in served.store.events(job_id)]
    assert len(every) == EVENTS_OF_PAGE + beyond
    first = client.events(job_id)
    assert [event.message for event in first.events] == every[:EVENTS_OF_PAGE]
    assert first.more == (beyond > 0)
    (log,) = client.logs(job_id, kind=LogKind.EVENTS)
    assert [item.message for item in log if isinstance(item, EventView)] == every
    assert [event.message for event in client.detail(job_id).events] == every[-20:]


def test_the_oldest_of_too_many_events_are_cleared_away(
    served: Served, spec: SpecMaker, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MOST_EVENTS_OF_JOB", 5)
    crowded, few = client.submit(spec("a")).id, client.submit(spec("b")).id
    happen(served, crowded, TRIM_ROWS + 20)
    happen(served, few, 4)
    happen(served, None, 3, NOW - KEEP_EVENTS_SECONDS - 1)
    happen(served, None, 4)
    sweep = Retention(served.store, served.settings)
    sweep.bite(NOW)
    while sweep._sweep is not None:
        sweep.bite(NOW)
    left = [(event.job_id, event.message) for _, event in served.store.events(None)]
    assert [text for job, text in left if job == crowded] == [f"event {TRIM_ROWS + 15 + n}" for n in range(5)]
    assert [text for job, text in left if job == few] == ["submitted", *(f"event {n}" for n in range(4))]
    assert [text for job, text in left if job is None] == [f"event {n}" for n in range(4)]


@pytest.mark.parametrize("name", ["j-0", "j-00ff00ff", "j-" + "0" * 32, "s-00ff00ff"])
def test_no_job_is_called_like_an_id(served: Served, spec: SpecMaker, client: Client, name: str) -> None:
    with pytest.raises(SpecError, match=rf"{name}: name: is written like a (job|sweep)'s id; choose another"):
        client.submit(spec(name))
    assert served.store.list() == []


def test_a_spec_is_small(spec: SpecMaker, client: Client) -> None:
    with pytest.raises(SpecError, match=r"more than 131072; shorten metadata"):
        client.submit(spec(metadata={"x": "y " * (64 << 10)}))
