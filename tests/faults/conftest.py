"""One tiny base, and what every kind of job gets from it undisturbed, for all tests of faults."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.program import make_base

from .work import Work


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("work")
    return Work(make_base(folder / "tiny"), folder)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name leaves room for a socket's."""
    made = Path(tempfile.mkdtemp(prefix="mlora-"))
    yield made
    shutil.rmtree(made)
