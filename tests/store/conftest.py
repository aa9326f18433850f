"""A store on an empty database, and small builders."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlora_sched.store.db import open_database
from mlora_sched.store.jobs import JobStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    engine = open_database(tmp_path / "state" / "mlora.sqlite")
    yield JobStore(engine)
    engine.dispose()
