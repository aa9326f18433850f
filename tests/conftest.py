"""Settings that must be in place before torch is imported."""

from __future__ import annotations

import gc

import pytest

from mlora_sched.environment import prepare_process

prepare_process()


@pytest.fixture(autouse=True, scope="module")
def _old_objects_are_left_alone() -> None:
    """What is there before a module's tests stays: the many full collections in them need not look at it."""
    gc.collect()
    gc.freeze()
