"""A driver that refuses memory has no other error than one whose device is lost: its text tells them apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.bench import Bench
from mlora_sched.engine import parking
from mlora_sched.engine.resident import own_code
from mlora_sched.engine.step import begin_steps
from mlora_sched.model.device import is_out_of_memory
from mlora_sched.spec.wire import CheckpointSaved, Detached

REFUSED, LOST = "CUDA error: out of memory", "CUDA error: an illegal memory access was encountered"


class _Raises:
    def __init__(self, said: str) -> None:
        self._said = said

    def begin_step(self) -> None:
        raise torch.AcceleratorError(self._said)


def test_it_is_told_by_its_text(tmp_path: Path) -> None:
    assert is_out_of_memory(torch.AcceleratorError(REFUSED))
    assert not is_out_of_memory(torch.AcceleratorError(LOST))


@pytest.mark.parametrize(("said", "kind"), [(REFUSED, torch.OutOfMemoryError), (LOST, torch.AcceleratorError)])
def test_it_ends_a_pack_or_the_worker(tmp_path: Path, said: str, kind: type[Exception]) -> None:
    start = Bench(tmp_path).start()
    with pytest.raises(kind, match=said), own_code(start):
        raise torch.AcceleratorError(said)
    with pytest.raises(kind, match=said):
        begin_steps({"job": _Raises(said)})


@pytest.mark.parametrize(("said", "kind"), [(REFUSED, None), (LOST, torch.AcceleratorError)])
def test_in_a_pack(tmp_path: Path, said: str, kind: type[Exception] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    bench.attach(bench.start(max_steps=2))
    op = next(iter(bench.trainer.residents["job"].state.adapter.site_ops.values()))
    real, left = op.forward, [1]

    def forward(*args: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise torch.AcceleratorError(said)
        return real(*args)

    monkeypatch.setattr(op, "forward", forward)
    if kind is None:
        assert bench.finish().succeeded()
        assert len(bench.notes()) == 1
    else:
        with pytest.raises(kind, match=said):
            bench.finish()


def test_a_host_that_gives_no_pinned_memory_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    bench.attach(bench.start(max_steps=5))
    bench.packs(2)

    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.AcceleratorError(REFUSED)

    with monkeypatch.context() as patch:
        patch.setattr(parking.torch, "empty_like", full)
        told = bench.detach("job", keep=True, park=True)
    assert [type(report) for report in told] == [CheckpointSaved, Detached]
