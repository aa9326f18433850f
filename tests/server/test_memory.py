"""Memory over HTTP and on the command line: refusals at submission, who sees what, release and reclaim, `watch`."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from daemon.stand_in import MIB, SHAPE, report
from serving import Served, SpecMaker

from mlora_sched.cli.main import run
from mlora_sched.cli.memory_bar import memory_bar
from mlora_sched.client import Client
from mlora_sched.errors import Refused, SpecError
from mlora_sched.memory.sizes import format_size
from mlora_sched.server import auth
from mlora_sched.server.auth import Caller
from mlora_sched.spec.memory import Correction, JobBytes
from mlora_sched.spec.memory_view import MemoryView
from mlora_sched.spec.state import WorkerPhase
from mlora_sched.store.records import Release, WorkerStatus

Capture = pytest.CaptureFixture[str]
ANN, BOB, ROOT = Caller("ann", False), Caller("bob", False), Caller("root", True)
CORRECTION = Correction(methods="lora", rows=128, training=True, factor=1.25, error=0.01, packs=9)


@pytest.fixture
def act_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[Caller], None]:
    """Makes the server take every new connection for one of this caller."""
    return lambda who: monkeypatch.setattr(auth, "peer", lambda _connection: who)


def serve_memory(served: Served, room: int, **more: Any) -> None:
    status = WorkerStatus(
        base="demo",
        phase=WorkerPhase.READY,
        state="ready",
        device="cpu",
        shape=SHAPE,
        buckets=(1024,),
        memory=report(room, **more),
    )
    served.store.set_worker_status(status)


# ---------------------------------------------------------------- at submission


def test_a_job_that_cannot_fit_is_refused_with_what_would_help(
    served: Served, spec: SpecMaker, client: Client, capsys: Capture
) -> None:
    serve_memory(served, 1100)
    client.submit(spec("small", adapter={"r": 76}))
    with pytest.raises(SpecError, match=r"big: memory: needs 1\.1 GiB: .* set adapter\.r to 76 or less"):
        client.submit(spec("big", adapter={"r": 77}))
    assert run(["submit", str(spec("big", adapter={"r": 77})), "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["error"] == "SpecError"
    assert [job.name for job in served.store.list()] == ["small"]


def test_an_adapter_that_cannot_sit_on_the_base_is_refused(
    served: Served, spec: SpecMaker, client: Client, capsys: Capture
) -> None:
    serve_memory(served, 1100)
    for adapter, why in (
        (
            {"target_modules": ["q_proj"]},
            "adapter.target_modules: 'q_proj' is no linear of base demo; choose from proj",
        ),
        ({"method": "mixlora"}, "adapter.method: mixlora needs an FFN whose linears are known here"),
    ):
        with pytest.raises(SpecError, match=f"odd: {why}"):
            client.submit(spec("odd", adapter=adapter))
    sweep = {"metric": "loss", "parameters": {"adapter.target_modules": {"values": [["proj"], ["gone"]]}}}
    assert run(["submit", str(spec("odd", sweep=sweep))]) == 2
    assert "odd-t02: adapter.target_modules: 'gone' is no linear of base demo" in capsys.readouterr().err
    mixture = WorkerStatus(base="demo", shape=SHAPE.model_copy(update={"is_mixture": True}), buckets=(1024,))
    served.store.set_worker_status(mixture)
    with pytest.raises(
        SpecError, match="the FFN of base demo is itself a mixture; use lora on its attention, or dynmole or mola"
    ):
        client.submit(spec("odd", adapter={"method": "llava_mole"}))
    assert served.store.list() == []
    served.store.set_worker_status(WorkerStatus(base="other", shape=SHAPE, buckets=(1024,), memory=report(1100)))
    client.submit(spec("unknown", adapter={"method": "mixlora"}))


def test_what_the_kernel_made_a_worker_do_without_counts(served: Served, spec: SpecMaker, client: Client) -> None:
    """The device has 1250 MiB; of these a shrunk worker may use 900."""
    serve_memory(served, 750, total=1250 * MIB)
    client.submit(spec("patient", adapter={"r": 56}))
    with pytest.raises(SpecError, match=r"set adapter\.r to 56 or less"):
        client.submit(spec("big", adapter={"r": 57}))


def test_other_processes_and_unknown_devices_refuse_nobody(served: Served, spec: SpecMaker, client: Client) -> None:
    serve_memory(served, 1100, others=1100 * MIB, budget=0)
    client.submit(spec("patient", adapter={"r": 76}))
    served.store.set_worker_status(WorkerStatus())
    client.submit(spec("early", adapter={"r": 1024}))


# ---------------------------------------------------------------- who sees what


def job_of(served: Served, spec: SpecMaker, name: str) -> str:
    with Client(served.socket) as client:
        job_id = client.submit(spec(name)).id
    served.train(job_id, 1)
    return job_id


def two_jobs(served: Served, spec: SpecMaker, act_as: Callable[[Caller], None]) -> dict[str, str]:
    act_as(ANN)
    anns = job_of(served, spec, "secret")
    act_as(BOB)
    bobs = job_of(served, spec, "mine")
    held = (JobBytes(job_id=anns, device=30 * MIB, host=0), JobBytes(job_id=bobs, device=0, host=20 * MIB))
    serve_memory(
        served,
        1100,
        jobs=held,
        rows=128,
        estimated=(100 + 30 + 88) * MIB,
        measured=(100 + 30 + 80) * MIB,
        corrections=(CORRECTION,),
    )
    return {"ann": anns, "bob": bobs}


def test_of_others_jobs_only_owner_state_and_bytes_are_told(
    served: Served, spec: SpecMaker, act_as: Callable[[Caller], None]
) -> None:
    ids = two_jobs(served, spec, act_as)
    with Client(served.socket) as client:
        anns, bobs = client.memory().jobs
        raw = client._answer("GET", "/daemon/memory").text
    assert (anns.owner, anns.id, anns.name, anns.state.value) == ("ann", None, None, "RUNNING")
    assert (anns.device, anns.host) == (30 * MIB, 0)
    assert (bobs.id, bobs.name, bobs.host) == (ids["bob"], "mine", 20 * MIB)
    assert "secret" not in raw
    assert ids["ann"] not in raw
    act_as(ROOT)
    with Client(served.socket) as client:
        assert [job.name for job in client.memory().jobs] == ["secret", "mine"]


def test_packs_are_what_is_beside_base_and_jobs(
    served: Served, spec: SpecMaker, act_as: Callable[[Caller], None]
) -> None:
    two_jobs(served, spec, act_as)
    with Client(served.socket) as client:
        view = client.memory()
    assert (view.estimated, view.measured, view.held, view.parked) == (88 * MIB, 80 * MIB, 30 * MIB, 20 * MIB)
    assert view.free == (1100 - 30 - 88) * MIB


def test_only_administrators_see_what_was_learnt_of_everybodys_packs(
    served: Served, spec: SpecMaker, act_as: Callable[[Caller], None]
) -> None:
    """A correction names methods, and stays when the jobs that had them have gone."""
    two_jobs(served, spec, act_as)
    with Client(served.socket) as client:
        assert client.memory().corrections == client.activity().memory.corrections == ()
    act_as(ROOT)
    with Client(served.socket) as client:
        assert client.memory().corrections == client.activity().memory.corrections == (CORRECTION,)


def test_before_the_worker_has_reported(served: Served, client: Client, capsys: Capture) -> None:
    assert client.memory() == MemoryView(worker="starting", device="")
    assert run(["watch", "--memory"]) == 0
    assert "no report of its memory yet" in capsys.readouterr().out


# ---------------------------------------------------------------- watch


def test_watch_draws_once_into_a_pipe(
    served: Served, spec: SpecMaker, act_as: Callable[[Caller], None], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_jobs(served, spec, act_as)
    act_as(ROOT)
    monkeypatch.setenv("COLUMNS", "120")
    assert run(["watch", "--memory"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for wanted in (
        "█ base 100.0 MiB",
        "▓ jobs 30.0 MiB 1 attached",
        "▒ packs 88.0 MiB last pack, 128 rows: estimated 88.0 MiB, measured 80.0 MiB (+10.0%)",
        "× other processes 0 B",
        "░ margin 50.0 MiB kept free",
        "· free 982.0 MiB of a budget of 1.1 GiB for jobs and packs",
        "host 20.0 MiB 1 parked, of at most 1000.0 MiB",
        "▓ ann secret RUNNING 30.0 MiB",
        "bob mine RUNNING 20.0 MiB",
        "lora, training 128 1.250 1.0% 9",
    ):
        assert wanted in lines, lines
    assert "\x1b" not in "".join(lines)


def test_watch_in_json(served: Served, spec: SpecMaker, act_as: Callable[[Caller], None], capsys: Capture) -> None:
    two_jobs(served, spec, act_as)
    assert run(["watch", "--memory", "--json"]) == 0
    assert MemoryView.model_validate_json(capsys.readouterr().out).base == 100 * MIB


def bar_of(**sizes: int) -> Counter[str]:
    """The signs of a bar of 60."""
    view = MemoryView(worker="ready", device="cpu", **sizes)
    label = len("memory ") + 1 + len(format_size(view.limit))
    signs = Counter(memory_bar(view, 60 + label).plain.removeprefix("memory ")[:60])
    assert signs.total() == 60
    return signs


def test_the_bar_is_never_longer_than_what_the_daemon_may_use() -> None:
    bar = bar_of(total=100, limit=100, base=90, others=90, margin=50, budget=-130)
    assert bar == {"█": 54, "×": 6}
    assert bar_of(total=6000, limit=600, base=100) == {"█": 10, "·": 50}  # ten of the whole device would be one
    assert bar_of(total=6000, limit=6000, base=1) == {"█": 1, "·": 59}  # what is there is seen


@pytest.mark.parametrize(("others", "cells"), [(0, 0), (500, 0), (700, 20)])
def test_others_are_in_the_bar_where_the_rest_of_the_device_does_not_hold_them(others: int, cells: int) -> None:
    bar = bar_of(total=1100, limit=600, base=100, others=others)
    assert (bar["█"], bar["×"], bar["·"]) == (10, cells, 50 - cells)


# ---------------------------------------------------------------- release and reclaim


@pytest.fixture
def worker(served: Served) -> Iterator[Callable[[WorkerPhase, str], None]]:
    """Plays the loop: some time after a wish, the worker is somewhere else."""
    threads: list[threading.Thread] = []

    def later(phase: WorkerPhase, state: str) -> None:
        def play() -> None:
            wanted = phase is WorkerPhase.RELEASED
            while served.store.release().wanted is not wanted:
                time.sleep(0.01)
            served.store.set_worker_status(WorkerStatus(phase=phase, state=state))

        threads.append(threading.Thread(target=play))
        threads[-1].start()

    yield later
    for thread in threads:
        thread.join()


def test_release_and_reclaim_return_when_it_has_happened(
    served: Served, capsys: Capture, worker: Callable[[WorkerPhase, str], None]
) -> None:
    served.store.set_worker_status(WorkerStatus(phase=WorkerPhase.READY, state="ready"))
    worker(WorkerPhase.RELEASED, "released until then")
    before = time.time()
    assert run(["admin", "release", "--for", "2h", "--json"]) == 0
    view = json.loads(capsys.readouterr().out)
    assert (view["phase"], view["worker"]) == ("released", "released until then")
    wish = served.store.release()
    assert wish.until is not None
    assert before + 7200 <= wish.until <= time.time() + 7200
    assert view["release"]["caller"] == wish.caller
    worker(WorkerPhase.READY, "ready")
    assert run(["admin", "reclaim"]) == 0
    assert capsys.readouterr().out == "demo: ready\n"
    messages = [event.message for _, event in served.store.events(None)]
    assert messages == [f"release requested for 7200 s by {wish.caller}", f"reclaim requested by {wish.caller}"]


def test_a_release_that_is_taken_back_meanwhile_says_so(served: Served) -> None:
    served.store.set_worker_status(WorkerStatus(phase=WorkerPhase.READY, state="ready"))
    done = threading.Event()

    def play() -> None:
        while not served.store.release().wanted:
            time.sleep(0.01)
        with Client(served.socket) as other:
            other.reclaim(poll=0.01)
        done.set()

    thread = threading.Thread(target=play)
    thread.start()
    with Client(served.socket) as client, pytest.raises(Refused, match="taken back before it had happened"):
        client.release(poll=0.01)
    thread.join()
    assert done.is_set()


def test_a_release_whose_time_runs_out_before_it_has_happened_says_so(served: Served) -> None:
    served.store.set_worker_status(WorkerStatus(phase=WorkerPhase.READY, state="ready"))
    with Client(served.socket) as client, pytest.raises(Refused, match=r"0\.05 s, ran out before every job was saved"):
        client.release(0.05, poll=0.01)


def test_a_base_that_cannot_be_loaded_again_fails_the_reclaim(
    served: Served, capsys: Capture, worker: Callable[[WorkerPhase, str], None]
) -> None:
    served.store.set_release(Release(True, None, "root", time.time()))
    served.store.set_worker_status(WorkerStatus(phase=WorkerPhase.RELEASED, state="released"))
    worker(WorkerPhase.FAILED, "failed: no such model")
    assert run(["admin", "reclaim"]) == 1
    assert "the worker cannot serve: failed: no such model" in capsys.readouterr().err


def test_only_administrators_steer_the_device(served: Served, act_as: Callable[[Caller], None]) -> None:
    act_as(ANN)
    with Client(served.socket) as client:
        for ask in (client.release, client.reclaim):
            with pytest.raises(Refused, match="ann: only administrators"):
                ask()
    assert not served.store.release().wanted
    assert served.store.events(None) == []


@pytest.mark.parametrize("args", [["admin", "release", "--for", "soon"], ["admin"], ["admin", "seize"]])
def test_bad_usage(args: list[str], capsys: Capture) -> None:
    assert run(args) == 2
    assert capsys.readouterr().err != ""
