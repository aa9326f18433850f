"""`run` without a daemon: jobs that do not fit together take turns."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
import torch
from engine.bench import WORLD, Bench
from engine.memory_kit import MIB, Device, PlainSizes, memory_of
from promise.world import base_in

from mlora_sched.cli.local.run import _let_in, _take_turns
from mlora_sched.engine import attaching
from mlora_sched.spec.wire import Detached, JobStart

JOB = 118_784
"""Bytes of the jobs here."""


def test_jobs_that_do_not_fit_together_take_turns(tmp_path: Path) -> None:
    """There is room for three jobs, or for two and a chunk."""
    plain = Bench(tmp_path / "plain")
    plain.run(plain.start("job-0", rows=(60,) * 7, max_steps=3))
    device = Device(total=380_224 + JOB + 96 * PlainSizes.row, others=0)
    bench = Bench(tmp_path / "turns", memory=memory_of(base_in(WORLD), device=device, host=MIB))
    for at in range(3):
        job = bench.start(f"job-{at}", rows=(60,) * 7, max_steps=3)
        bench.attach(job.model_copy(update={"resume": False}))
    device.others = 24 * PlainSizes.row
    waiting: deque[JobStart] = deque()
    turns = 0
    while bench.trainer.residents or waiting:
        before, packs = len(bench.trainer.residents), -1
        for reports in bench.slice():
            bench.reports += reports
            packs += 1
        bench.reports += _take_turns(bench.trainer, waiting, before, packs)
        turns += 1
        assert turns < 50
    assert any(isinstance(report, Detached) and report.parked for report in bench.reports)
    assert all(bench.succeeded(f"job-{at}") for at in range(3))
    assert bench.adapter("job-0") == plain.adapter("job-0")


def test_jobs_are_let_in_while_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three jobs, room for two and a chunk; nobody is turned away, and one that finds no memory keeps its place."""
    device = Device(total=380_224 + 2 * JOB + 64 * PlainSizes.row)
    sizes = PlainSizes(job_bytes=JOB)
    bench = Bench(tmp_path, memory=memory_of(base_in(WORLD), sizes, device=device, host=MIB))
    waiting = deque(bench.start(f"job-{at}", data={"max_length": 60}, max_steps=2) for at in range(3))
    with monkeypatch.context() as patch:
        patch.setattr(attaching, "build_adapter", _full)
        bench.reports += _let_in(bench.trainer, waiting)
    assert [start.job_id for start in waiting] == ["job-0", "job-1", "job-2"]
    bench.reports += _let_in(bench.trainer, waiting)
    assert list(bench.trainer.residents) == ["job-0", "job-1"]
    while bench.trainer.residents or waiting:
        before, packs = len(bench.trainer.residents), -1
        for reports in bench.slice():
            bench.reports += reports
            packs += 1
        bench.reports += _take_turns(bench.trainer, waiting, before, packs)
    assert all(bench.succeeded(f"job-{at}") for at in range(3))
    assert len(bench.of(Detached, "job-0")) == 1
    assert not any(bench.of(Detached, name) for name in ("job-1", "job-2"))


def _full(*_: object) -> object:
    raise torch.OutOfMemoryError("tried to allocate 3 GiB")
