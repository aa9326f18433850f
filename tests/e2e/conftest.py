"""One tiny base for all tests of the daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.program import make_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")
