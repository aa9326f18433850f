"""Settings that must be in place before torch is imported."""

from __future__ import annotations

import gc

from mlora_sched.environment import prepare_process

prepare_process()


def pytest_collection_finish() -> None:
    """What is imported by now stays for ever, so that the many full collections of the tests need not look at it."""
    gc.collect()
    gc.freeze()
