"""One job's trouble is that job's alone: it fails with its reason, the others get what they would have got."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.methods import METHOD_CASES, MethodCase, case_of
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from engine.bench import Bench
from mlora_sched.adapters.lora import LoraAdapter, LoraOp
from mlora_sched.data.pack import PackedBatch
from mlora_sched.engine import loop, step
from mlora_sched.engine.attaching import TRIES_TO_ATTACH
from mlora_sched.engine.loop import Trainer
from mlora_sched.engine.packer import RECOVERY
from mlora_sched.engine.step import SegmentResult
from mlora_sched.spec.state import ErrorCode
from mlora_sched.spec.wire import Attached, EvalDone, GroupAccount, Slice, SliceDone, StepDone, Turn

MIXLORA = case_of("mixlora")


@pytest.fixture(scope="module")
def neighbour(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the neighbour of every test here gets alone."""
    bench = Bench(tmp_path_factory.mktemp("alone"))
    return bench.run(with_neighbour(bench)).adapter("neighbour")


def with_neighbour(bench: Bench) -> Any:
    return bench.start("neighbour", held_out=(21, 30), adapter=MIXLORA.adapter(dropout=0.1), max_steps=4)


def assert_only(bench: Bench, code: ErrorCode, says: str, neighbour: bytes) -> None:
    """`job` has failed so, its neighbour is as alone."""
    failed = bench.failure()
    assert failed.code is code
    assert says in failed.message
    assert bench.succeeded("neighbour")
    assert bench.adapter("neighbour") == neighbour


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("held_out", [(), (30,)])
def test_a_rate_that_explodes(tmp_path: Path, neighbour: bytes, held_out: tuple[int, ...]) -> None:
    bench = Bench(tmp_path)
    job = bench.start(held_out=held_out, learning_rate=1e30, max_steps=6, eval_every=1 if held_out else None)
    bench.run(job, with_neighbour(bench))
    assert_only(bench, ErrorCode.NON_FINITE_LOSS, "lower training.learning_rate", neighbour)
    if held_out:  # the evaluation is the first to see it
        steps = len(bench.of(StepDone))
        assert f"held-out loss is nan after step {steps}" in bench.failure().message


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["value", "grad"])
def test_what_is_not_finite_in_the_adapter(
    tmp_path: Path, neighbour: bytes, monkeypatch: pytest.MonkeyPatch, where: str, bad: float
) -> None:
    bench = Bench(tmp_path, pack_tokens=128)
    bench.attach(bench.start(max_steps=4, batch_size=7))
    bench.attach(with_neighbour(bench))
    adapter = bench.trainer.residents["job"].state.adapter
    (group,) = adapter.params.groups.values()
    if where == "value":
        group.value[0] = bad
    else:
        op = next(iter(adapter.site_ops.values()))
        real = op.backward

        def backward(*args: Any) -> Any:
            carry = real(*args)
            group.grad[0] = bad
            return carry

        monkeypatch.setattr(op, "backward", backward)
    bench.finish()
    says = "loss is nan at step 1" if where == "value" else f"gradient norm is {abs(bad)} at step 1"
    assert_only(bench, ErrorCode.NON_FINITE_LOSS, says, neighbour)
    assert bench.of(StepDone) == []


@pytest.mark.parametrize("sum_of_losses", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite(
    tmp_path: Path, neighbour: bytes, monkeypatch: pytest.MonkeyPatch, sum_of_losses: float
) -> None:
    """It comes with the second chunk of the third step."""
    bench = Bench(tmp_path, pack_tokens=128)
    bench.attach(bench.start(max_steps=4, batch_size=7))
    bench.attach(with_neighbour(bench))
    state = bench.trainer.residents["job"].state
    real = state.take

    def take(result: SegmentResult) -> bool:
        bad = state.step == 2 and result.chunk == 1
        return real(replace(result, loss_sum=sum_of_losses) if bad else result)

    monkeypatch.setattr(state, "take", take)
    bench.finish()
    assert_only(bench, ErrorCode.NON_FINITE_LOSS, f"loss is {sum_of_losses} at step 3", neighbour)
    assert [report.step for report in bench.of(StepDone)] == [1, 2]


def test_weights_that_a_step_makes_infinite(tmp_path: Path, neighbour: bytes) -> None:
    """Decay at a rate that overshoots: losses and gradients were finite until then."""
    bench = Bench(tmp_path)
    bench.run(bench.start(learning_rate=1e30, weight_decay=1e30, max_steps=4), with_neighbour(bench))
    assert_only(bench, ErrorCode.NON_FINITE_LOSS, "step 1 made weights that are not finite", neighbour)


@pytest.mark.parametrize("rate", [1.0, 100.0, 1e6])
def test_a_rate_that_spoils_its_job_spoils_nobody_elses(tmp_path: Path, neighbour: bytes, rate: float) -> None:
    """Figures stay finite, or the job fails: either is its own affair."""
    bench = Bench(tmp_path)
    bench.run(bench.start(learning_rate=rate, max_grad_norm=0, max_steps=6), with_neighbour(bench))
    assert bench.succeeded() or bench.failure().code is ErrorCode.NON_FINITE_LOSS
    assert bench.succeeded("neighbour")
    assert bench.adapter("neighbour") == neighbour


@pytest.mark.parametrize("method", METHOD_CASES, ids=str)
def test_nothing_of_an_abandoned_step_comes_through(tmp_path: Path, method: MethodCase) -> None:
    """Gradients that a failed pack left behind, here as bad as can be, are written over and not multiplied by zero."""
    alone = Bench(tmp_path / "alone")
    alone.run(alone.start(adapter=method.adapter(), max_steps=2))
    bench = Bench(tmp_path / "disturbed")
    bench.attach(bench.start(adapter=method.adapter(), max_steps=2))
    params = bench.trainer.residents["job"].state.adapter.params
    for name in params:
        params[name].grad.fill_(torch.nan)
    bench.finish()
    assert bench.adapter() == alone.adapter()


# ---------------------------------------------------------------- an adapter's own code


def _raise(*_: object, **__: object) -> Any:
    raise ZeroDivisionError("a bug of this method")


def _raise_late(calls: int, real: Callable[..., Any]) -> Callable[..., Any]:
    left = [calls]

    def late(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        return real(*args, **kwargs) if left[0] >= 0 else _raise()

    return late


SAYS = "its lora adapter raised ZeroDivisionError: a bug of this method"


@pytest.mark.parametrize(
    ("owner", "method", "calls"),
    [
        (LoraAdapter, "build", 0),
        (LoraAdapter, "begin_step", 0),
        (LoraOp, "forward", 0),
        (LoraOp, "forward", 5),
        (LoraOp, "backward", 0),
        (LoraOp, "backward", 2),
        (LoraOp, "add_dx", 1),
        (LoraAdapter, "begin_step", 3),
        (LoraAdapter, "chunk_figures", 0),
        (LoraAdapter, "chunk_figures", 3),
        (LoraAdapter, "files", 0),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_an_adapter_that_raises(
    tmp_path: Path, neighbour: bytes, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, calls: int
) -> None:
    """At attachment, in a pack, after a step, at the export; the neighbour's own method uses other ops of its own."""
    bench = Bench(tmp_path)
    bench.attach(bench.start("neighbour", held_out=(21, 30), adapter=MIXLORA.adapter(dropout=0.1), max_steps=4))
    bench.packs(1)
    if owner is LoraOp:
        bench.attach(bench.start(max_steps=4))
        op = list(bench.trainer.residents["job"].state.adapter.site_ops.values())[3]
        monkeypatch.setattr(op, method, _raise_late(calls, getattr(op, method)), raising=True)
    elif method == "begin_step":  # the neighbour has a LoRA inside, whose step begins likewise
        bench.attach(bench.start(max_steps=4))
        adapter = bench.trainer.residents["job"].state.adapter
        monkeypatch.setattr(adapter, method, _raise_late(calls, adapter.begin_step))
    else:
        broken = _raise_late(calls, getattr(owner, method))
        monkeypatch.setattr(owner, method, broken)
        bench.attach(bench.start(max_steps=4))
    bench.finish()
    assert_only(bench, ErrorCode.ADAPTER_ERROR, SAYS, neighbour)


def test_an_objective_that_raises(tmp_path: Path, neighbour: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the batch with this many targets, which is the job's second and none of its neighbour's."""
    plain, bench = Bench(tmp_path / "plain"), Bench(tmp_path / "raises")
    rows = (61, 82, 55, 73)
    plain.run(plain.start(rows=rows, max_steps=4))
    (targets,) = {report.target_tokens for report in plain.of(StepDone)[1:2]}
    real = step.row_weight
    monkeypatch.setattr(step, "row_weight", lambda count: _raise() if count == targets else real(count))
    bench.run(bench.start(rows=rows, max_steps=4), with_neighbour(bench))
    says = "its sft objective raised ZeroDivisionError: a bug of this method"
    assert_only(bench, ErrorCode.ADAPTER_ERROR, says, neighbour)
    assert [report.step for report in bench.of(StepDone)] == [1]


def test_a_row_that_the_tokenizer_cannot_read(
    tmp_path: Path, neighbour: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes to the trainer where nobody has prepared the data before, as under `run`."""
    core = Tokenizer(models.WordLevel({"<eos>": 0, "ab": 1}, unk_token="[UNK]"))  # and there is no [UNK]
    bench = Bench(tmp_path)
    bench.attach(with_neighbour(bench))
    with monkeypatch.context() as patch:
        patch.setattr(bench.trainer, "tokenizer", PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>"))
        bench.attach(bench.start())
    bench.finish()
    assert_only(bench, ErrorCode.BAD_DATA, "train.jsonl, line 1: the base's tokenizer cannot read it", neighbour)


def test_an_adapter_that_raises_when_it_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    bench.attach(bench.start(max_steps=4))
    while not bench.of(StepDone):
        bench.packs(1)
    monkeypatch.setattr(LoraAdapter, "files", _raise)
    bench.detach("job", keep=True)
    assert bench.failure().code is ErrorCode.ADAPTER_ERROR


# ---------------------------------------------------------------- memory and disk


def _full_above(rows: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Packs of more tokens run out of memory at the end of their backward; the tokens of every tried pack."""
    real, tried = loop.run_pack, list[int]()

    def limited(base: Any, pack: PackedBatch, *args: Any, **kwargs: Any) -> Any:
        tried.append(pack.tokens)
        results = real(base, pack, *args, **kwargs)
        if pack.tokens > rows:
            raise torch.OutOfMemoryError("tried to allocate 3 GiB")
        return results

    monkeypatch.setattr(loop, "run_pack", limited)
    return tried


def test_a_full_device_gets_smaller_packs(tmp_path: Path, neighbour: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Bench(tmp_path / "alone")
    alone.run(alone.start(max_steps=3))
    tried = _full_above(100, monkeypatch)
    bench = Bench(tmp_path / "full")
    bench.run(bench.start(max_steps=3), with_neighbour(bench))
    assert bench.succeeded()
    assert bench.adapter() == alone.adapter()
    assert bench.adapter("neighbour") == neighbour
    assert max(tried) > 100
    full = [tokens for tokens in tried if tokens > 100]
    assert len(full) == len(bench.notes())
    assert full == tried[: len(full)], "once small enough, packs stay so for long"
    says = f"tokens: tried to allocate 3 GiB; its jobs begin their step anew in packs of at most {full[-1] // 2} tokens"
    assert bench.notes()[-1].startswith("out of memory in a pack of ")
    assert bench.notes()[-1].endswith(says)


def test_packs_grow_again_after_enough_good_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a device lacked once it may have again; while it still lacks it, each failure shrinks the packs further."""
    bench = Bench(tmp_path)
    bench.attach(bench.start(max_steps=100))
    bench.attach(bench.start("other", max_steps=100))
    packer = bench.trainer.packer
    with monkeypatch.context() as full:
        _full_above(100, full)
        while packer.room > 100:
            bench.packs(1)
    small = packer.room
    bench.packs(RECOVERY)
    assert packer.room == 2 * small
    bench.packs(3 * RECOVERY)
    assert packer.room == packer.most


def test_a_chunk_that_does_not_fit_by_itself_fails_its_job(
    tmp_path: Path, neighbour: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    _full_above(70, monkeypatch)
    bench = Bench(tmp_path)
    bench.run(bench.start(rows=(100, 20), batch_size=2, chunk_tokens=128, max_steps=2), with_neighbour(bench))
    assert_only(bench, ErrorCode.OUT_OF_MEMORY, "does not fit on the device by itself", neighbour)
    tokens = int(bench.failure().message.split("a chunk of ")[1].split()[0])
    assert 119 <= tokens <= 124  # 120 characters, and the end tokens
    assert "tried to allocate 3 GiB" in bench.failure().message
    assert "lower data.max_length, training.chunk_tokens or adapter.r" in bench.failure().message


def test_an_adapter_that_does_not_fit(tmp_path: Path, neighbour: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Any:
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    bench = Bench(tmp_path)
    bench.attach(with_neighbour(bench))
    monkeypatch.setattr(LoraAdapter, "build", full)
    for _ in range(TRIES_TO_ATTACH):
        bench.attach(bench.start())
    bench.finish()
    assert_only(bench, ErrorCode.OUT_OF_MEMORY, "does not fit on the device", neighbour)


@pytest.mark.parametrize("what", ["save_every", "export"])
def test_a_disk_that_refuses(tmp_path: Path, neighbour: bytes, what: str) -> None:
    """A file lies where the job's directory of checkpoints, or the adapter, is to be."""
    bench = Bench(tmp_path)
    job = bench.start(max_steps=3, save_every=2 if what == "save_every" else None)
    if what == "save_every":
        (tmp_path / "job" / "checkpoints").write_text("in the way")
    bench.attach(job)
    bench.attach(with_neighbour(bench))
    if what == "export":
        bench.trainer.residents["job"].start = job.model_copy(update={"job_dir": str(tmp_path / "job/train.jsonl/x")})
    bench.finish()
    assert [report.step for report in bench.of(StepDone)] == [1, 2, 3], "what was trained is told all the same"
    if what == "export":
        assert_only(bench, ErrorCode.STORAGE, "its files cannot be read or written", neighbour)
        return
    assert bench.succeeded()
    assert bench.adapter("neighbour") == neighbour
    assert any(note.startswith("the checkpoint of step 2 could not be written: ") for note in bench.notes())


# ---------------------------------------------------------------- what cannot be attached


def test_a_row_longer_than_the_base_takes(tmp_path: Path, neighbour: bytes) -> None:
    bench = Bench(tmp_path)
    bench.run(bench.start(rows=(600,), chunk_tokens=16), with_neighbour(bench))
    assert_only(bench, ErrorCode.BAD_SPEC, "data.max_length: a row has 60", neighbour)
    assert "base tiny takes 512; set data.max_length to 512 or less" in bench.failure().message


def test_a_chunk_larger_than_every_pack(tmp_path: Path, neighbour: bytes) -> None:
    bench = Bench(tmp_path)
    bench.run(bench.start(rows=(200, 200), chunk_tokens=500), with_neighbour(bench))
    assert_only(bench, ErrorCode.BAD_SPEC, "training.chunk_tokens: a chunk of this job may have 40", neighbour)
    assert "--pack-tokens" in bench.failure().message


def test_a_chunk_larger_than_the_room_runs_alone(tmp_path: Path) -> None:
    wide, narrow = Bench(tmp_path / "wide"), Bench(tmp_path / "narrow", pack_tokens=64)
    for bench in (wide, narrow):
        bench.run(bench.start(rows=(120, 30, 90), chunk_tokens=200, max_steps=2))
    assert narrow.adapter() == wide.adapter()


def test_a_bad_row_is_named(tmp_path: Path, neighbour: bytes) -> None:
    bench = Bench(tmp_path)
    job = bench.start()
    with Path(job.files["train.jsonl"]).open("a") as file:
        file.write(json.dumps({"prompt": "no completion here"}) + "\n")
    bench.run(job, with_neighbour(bench))
    assert_only(bench, ErrorCode.BAD_DATA, "train.jsonl, line 8", neighbour)


def test_a_file_that_is_gone(tmp_path: Path, neighbour: bytes) -> None:
    bench = Bench(tmp_path)
    job = bench.start()
    Path(job.files["train.jsonl"]).unlink()
    bench.run(job, with_neighbour(bench))
    assert_only(bench, ErrorCode.BAD_DATA, "train.jsonl", neighbour)


def test_a_target_that_the_base_has_not(tmp_path: Path, neighbour: bytes) -> None:
    bench = Bench(tmp_path)
    bench.run(bench.start(adapter={"target_modules": ["c_attn"]}), with_neighbour(bench))
    assert_only(bench, ErrorCode.BAD_SPEC, "adapter.target_modules: 'c_attn' is no linear of base tiny", neighbour)


# ---------------------------------------------------------------- slices


def test_a_job_attached_within_a_slice_joins_at_the_next_pack(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.attach(bench.start("first", max_steps=30))
    running = iter(bench.slice(["first"]))
    bench.reports += next(running)
    bench.attach(bench.start("second", max_steps=2))
    bench.reports += next(running)
    assert len(bench.of(StepDone, "second")) == 1
    bench.reports += next(running)
    assert bench.succeeded("second")


def test_a_job_let_go_within_a_slice_leaves_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for name in ("first", "second"):
        bench.attach(bench.start(name, max_steps=3))
    running = iter(bench.slice())
    bench.reports += next(running)
    bench.detach("first", keep=False)
    for reports in running:
        bench.reports += reports
    assert bench.of(StepDone, "first")[-1].step == 1
    assert bench.succeeded("second")


def test_a_slice_ends_when_nobody_has_work_and_counts_what_it_did(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.attach(bench.start(max_steps=2, held_out=(10,)))
    reports = [report for some in bench.slice() for report in some]
    bench.reports += reports
    done = reports[-1]
    assert isinstance(done, SliceDone)
    assert (done.packs, done.slice_id) == (4, 0)  # an evaluation, two steps, an evaluation
    evaluated = [report for report in reports if isinstance(report, EvalDone)]
    trained = sum(report.tokens for report in bench.of(StepDone))
    assert trained + len(evaluated) * 10 <= done.tokens <= trained + len(evaluated) * 13
    assert done.rows % 32 == 0
    assert done.rows > done.tokens


def test_an_idle_slice_ends_at_once(tmp_path: Path) -> None:
    (reports,) = Bench(tmp_path).slice(["unknown"])
    (done,) = reports
    assert isinstance(done, SliceDone)
    assert (done.packs, done.tokens, done.rows) == (0, 0, 0)


def test_service_follows_the_weights(tmp_path: Path) -> None:
    """With room for one chunk a pack, the job of a group of twice the weight is served twice as often."""
    bench = Bench(tmp_path, pack_tokens=64)
    for name in ("two", "one"):
        bench.attach(bench.start(name, rows=(40,) * 4, batch_size=1, max_steps=60))
    turns = (Turn(job_id="two", group="two"), Turn(job_id="one", group="one"))
    accounts = (GroupAccount(group="two", paid=0, weight=2), GroupAccount(group="one", paid=0))
    running: Any = Trainer.slice(bench.trainer, Slice(slice_id=1, turns=turns, accounts=accounts, seconds=1000.0))
    for _ in range(30):
        bench.reports += next(running)
    assert (len(bench.of(StepDone, "two")), len(bench.of(StepDone, "one"))) == (20, 10)
    assert all(isinstance(report, Attached | StepDone) for report in bench.reports)
