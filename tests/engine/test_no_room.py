"""Memory that runs out outside a pack's passes costs nobody anything but time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapters.methods import METHOD_CASES, MethodCase

from engine.bench import Bench
from engine.test_trainer_resume import job_of
from mlora_sched.adapters.base import Adapter
from mlora_sched.spec.wire import StepDone

METHODS = pytest.mark.parametrize("case", METHOD_CASES, ids=str)
DORA = next(case for case in METHOD_CASES if case.method == "dora")
SAID = "tried to allocate 3 GiB"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bench]:
    """Every method's job, never disturbed."""
    benches = {}
    for case in METHOD_CASES:
        bench = Bench(tmp_path_factory.mktemp(case.method))
        benches[case.method] = bench.run(job_of(bench, case))
    return benches


def assert_as(bench: Bench, other: Bench) -> None:
    assert bench.succeeded()
    assert bench.figures() == other.figures()
    assert bench.adapter() == other.adapter()


def full(times: int, of: type[Adapter], monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> Callable[[], int]:
    """Adapters of a class run out of memory when they have half begun a step, so often; how often is left."""
    real, left = of.begin_step, [times]

    def begin_step(self: Adapter) -> None:
        real(self)
        if left[0] > 0:
            left[0] -= 1
            said = SAID if error is torch.OutOfMemoryError else "DefaultCPUAllocator: can't allocate memory"
            raise error(said)

    monkeypatch.setattr(of, "begin_step", begin_step)
    return lambda: left[0]


@METHODS
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError], ids=["gpu", "cpu"])
def test_a_step_that_cannot_begin_is_a_pack_that_ran_out_of_memory(
    tmp_path: Path,
    case: MethodCase,
    error: type[Exception],
    undisturbed: dict[str, Bench],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a good step, and once more when the job begins that step anew."""
    bench = Bench(tmp_path)
    bench.attach(job_of(bench, case))
    while not bench.of(StepDone):
        bench.packs(1)
    owner = type(bench.trainer.residents["job"].state.adapter)
    left = full(2, owner, monkeypatch, error)
    assert_as(bench.finish(), undisturbed[case.method])
    assert left() == 0
    assert [note.startswith("out of memory in a pack of ") for note in bench.notes()] == [True, True]
