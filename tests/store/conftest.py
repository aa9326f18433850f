"""A store on an empty database that does not wait for the disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event

from mlora_sched.store.db import open_database
from mlora_sched.store.jobs import JobStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    engine = open_database(tmp_path / "state" / "mlora.sqlite")
    engine.dispose()
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    yield JobStore(engine)
    engine.dispose()
