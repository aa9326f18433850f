"""Settings that must be in place before torch is imported."""

from __future__ import annotations

from mlora_sched.environment import prepare_process

prepare_process()
