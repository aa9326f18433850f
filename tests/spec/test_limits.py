"""Limits and guards as they are written."""

from __future__ import annotations

from typing import Any

import pytest

from mlora_sched.spec.job import JobSpec, parse_job


def job(**sections: Any) -> JobSpec:
    return parse_job({"name": "toy", "data": {"train": "a.jsonl"}, **sections})


def test_all_is_off_unless_it_is_set() -> None:
    spec = job()
    assert set(spec.limits.model_dump().values()) == {None}
    assert spec.guards.model_dump() == {"loss_spike": None, "grad_norm": None, "patience": 3}


@pytest.mark.parametrize(("written", "seconds"), [("2h", 7200), ("90s", 90), (90, 90), (0.5, 0.5), ("1.5m", 90)])
def test_a_time_is_seconds_or_a_duration(written: object, seconds: float) -> None:
    assert job(limits={"max_time": written}).limits.max_time == seconds


def test_a_spec_is_read_back_as_it_was() -> None:
    spec = job(limits={"max_time": "2h", "max_tokens": 2_000_000}, guards={"loss_spike": 3, "grad_norm": 1e-3})
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
