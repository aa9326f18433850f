"""`show --experts` and what else people see of routers, from a worker's report to the terminal."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from serving import Served, SpecMaker
from test_verbs import answer, complaint, submit

from mlora_sched.cli.main import run
from mlora_sched.spec.experts import RouterLoad
from mlora_sched.spec.wire import StepDone

Capture = pytest.CaptureFixture[str]
MIXLORA = {"method": "mixlora", "num_experts": 4, "top_k": 2}
LOADS = tuple(
    RouterLoad(router=f"model.layers.{layer}.mlp", share=share, per_token=2.0, entropy=0.75)
    for layer, share in enumerate(((0.25, 0.25, 0.25, 0.25), (0.5, 0.25, 0.25, 0.0)))
)


def route(served: Served, job_id: str, steps: int) -> None:
    """Train one step more, then again the last of `steps`, this time with what its routers did."""
    served.train(job_id, steps)
    epoch = next(job.epoch for job in served.store.live() if job.id == job_id)
    told = StepDone(
        job_id=job_id,
        epoch=epoch,
        step=steps,
        loss=1 / steps,
        lr=0.1,
        grad_norm=0.5,
        tokens=12,
        target_tokens=6,
        extra={"aux_loss": 0.25, "router_entropy": 0.75},
        routers=LOADS,
    )
    served.store.record([told], now=time.time())


def test_the_load_is_shown_with_its_warnings(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    [job_id] = submit(capsys, spec(adapter=MIXLORA))
    assert run(["show", job_id, "--experts"]) == 0
    assert "nothing is recorded of the experts of job toy yet" in capsys.readouterr().out
    route(served, job_id, 2)
    assert run(["show", job_id, "--experts"]) == 0
    shown = capsys.readouterr().out
    assert "1 mlp      0.75    2   50%  █ 50% ▄ 25% ▄ 25% ·  0%" in shown
    assert "layer 1 mlp: expert 3 got no token in the last recorded step (of 12 tokens)" in shown
    found = answer(capsys, "show", job_id, "--experts")
    assert (found["job"], found["steps"], found["tokens"], len(found["warnings"])) == (job_id, [2], 12, 1)
    assert [(one["router"], one["dead"]) for one in found["routers"]] == [
        ("model.layers.0.mlp", []),
        ("model.layers.1.mlp", [3]),
    ]


def test_plain_show_says_it_in_a_line(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    [job_id] = submit(capsys, spec(adapter=MIXLORA))
    assert answer(capsys, "show", job_id)["experts"] is None
    route(served, job_id, 1)
    assert run(["show", job_id]) == 0
    assert re.search(r"^experts +2 routers, entropy 0.75, 1 dead$", capsys.readouterr().out, re.MULTILINE)


def test_of_a_method_without_routers_it_says_so(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    [job_id] = submit(capsys, spec())
    error = complaint(capsys, "show", job_id, "--experts", code=2)
    assert error["message"].startswith("job toy trains lora, which has no experts")


def test_metrics_of_a_recorded_step_are_pulled_with_it(
    served: Served, spec: SpecMaker, capsys: Capture, tmp_path: Path
) -> None:
    [job_id] = submit(capsys, spec(adapter=MIXLORA))
    route(served, job_id, 2)
    served.finish(job_id)
    assert run(["pull", job_id, str(tmp_path / "out")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("experts") for line in lines] == [None, [load.model_dump(mode="json") for load in LOADS]]
    capsys.readouterr()
    assert run(["logs", job_id, "--metrics", "--json"]) == 0
    assert not any("experts" in json.loads(line) for line in capsys.readouterr().out.splitlines())
