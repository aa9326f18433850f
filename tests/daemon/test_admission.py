"""The budget that the policy is told: it falls at once and rises steadily, lest jobs move with every noise."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlora_sched.daemon.admission import RISE_SECONDS, Admission, corrections_key
from mlora_sched.settings import BaseRef, DaemonSettings
from mlora_sched.spec.job import Priority, parse_job
from mlora_sched.spec.state import JobState, Request
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import LiveJob
from mlora_sched.worker.fake import READY

from .rig import Rig
from .stand_in import MIB, SHAPE, report, stand_in

BASE = BaseRef(name="demo", location="/base")
SETTINGS = DaemonSettings(state_dir=Path("/x"), bases=(BASE,))


def ready(store: JobStore) -> Admission:
    """Of a device with 850 MiB for jobs, 1000 in all."""
    admission = Admission(store, SETTINGS, BASE, stand_in)
    admission.ready(READY.model_copy(update={"shape": SHAPE, "memory": report(850)}))
    return admission


def told(admission: Admission, budget: int, now: float) -> int:
    """What the policy is told, in MiB, when the worker reports `budget`."""
    admission.hear(report(850, budget=budget * MIB))
    memory = admission.limits({}, now).memory
    assert memory is not None
    return memory // MIB


def test_a_fall_counts_at_once_and_a_small_rise_when_it_has_lasted(rig: Rig) -> None:
    admission = ready(rig.store)
    assert told(admission, 850, 0.0) == 850
    assert told(admission, 849, 1.0) == 849
    assert told(admission, 840, 2.0) == 840
    assert told(admission, 845, 3.0) == 840
    assert told(admission, 849, 2.0 + RISE_SECONDS - 0.1) == 840
    assert told(admission, 845, 2.0 + RISE_SECONDS) == 845
    assert told(admission, 855, 2.5 + RISE_SECONDS) == 855, "ten of a thousand"
    assert told(admission, -5, 3.0 + RISE_SECONDS) == -5


def test_without_a_report_there_is_no_bound(rig: Rig) -> None:
    admission = Admission(rig.store, SETTINGS, BASE, stand_in)
    assert admission.limits({}, 0.0).memory is None
    admission.ready(READY)
    assert admission.limits({}, 0.0).memory is None


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        {"quantize": "nf4"},
        {"checkpoint_activations": True},
        {"compile": True},
        {"device": "cuda:0"},
    ],
)
def test_all_that_decides_estimates_is_in_the_key_of_corrections(options: dict[str, object]) -> None:
    assert corrections_key(SETTINGS.model_copy(update=options), BASE) != corrections_key(SETTINGS, BASE)


def test_the_base_and_its_place_are_in_the_key_of_corrections() -> None:
    others = [BaseRef(name="demo", location="/other"), BaseRef(name="other", location="/base")]
    assert len({corrections_key(SETTINGS, base) for base in (BASE, *others)}) == 3


def test_two_devices_of_a_kind_share_corrections() -> None:
    one, two = (SETTINGS.model_copy(update={"device": device}) for device in ("cuda:0", "cuda:1"))
    assert corrections_key(one, BASE) == corrections_key(two, BASE)


def live(step: int = 0, r: int = 8, largest_chunk: int | None = 900) -> LiveJob:
    """A job that needs a MiB for each rank, and one for each token of a chunk."""
    spec = parse_job({"name": "job", "data": {"train": "a.jsonl"}, "adapter": {"r": r}})
    return LiveJob(
        id="j",
        seq=1,
        owner="ann",
        base="demo",
        state=JobState.QUEUED,
        request=Request.NONE,
        reason="",
        priority=Priority.NORMAL,
        spec=spec,
        files={},
        epoch=0,
        step=step,
        total_steps=9,
        crashes=0,
        largest_chunk=largest_chunk,
        longest=largest_chunk,
    )


def test_what_has_trained_may_try_alone_whatever_estimates_say_by_now(rig: Rig) -> None:
    admission = ready(rig.store)
    fresh, trained = admission.facts(live(0)), admission.facts(live(5))
    assert (fresh.resident + fresh.chunk) > 850 * MIB
    assert (trained.resident + trained.chunk) == 850 * MIB
    assert set(admission.impossible([live(0)])) == {"j"}
    assert admission.impossible([live(5)]) == {}


def test_what_nobody_has_measured_is_not_impossible(rig: Rig) -> None:
    assert ready(rig.store).impossible([live(0, largest_chunk=None)]) == {}
