"""Starting from an exported adapter: what comes in is what went out, what does not fit is refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.methods import METHOD_CASES, MethodCase, case_of
from safetensors.torch import load_file, save_file

from engine.bases import base_of, llama_config
from engine.bench import WORLD, Bench
from mlora_sched.spec.state import ErrorCode
from mlora_sched.spec.wire import EvalDone

CONFIG, MODEL = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, EvalDone]]:
    """By method: the adapter of a job of three steps, and its last evaluation."""
    cases = {case.method: case for case in METHOD_CASES}
    made: dict[str, tuple[Path, EvalDone]] = {}

    def make(method: str) -> tuple[Path, EvalDone]:
        if method not in made:
            bench = Bench(tmp_path_factory.mktemp(method))
            bench.run(bench.start(held_out=(30, 12), adapter=cases[method].adapter(dropout=0.1), max_steps=3))
            made[method] = bench.folder / "job" / "adapter", bench.of(EvalDone)[-1]
        return made[method]

    return make


Trained = Callable[[str], tuple[Path, EvalDone]]


@pytest.mark.parametrize("case", METHOD_CASES, ids=str)
def test_a_job_begins_where_the_other_ended(case: MethodCase, trained: Trained, tmp_path: Path) -> None:
    """The same weights bit for bit, and the same held-out figures before the first step."""
    folder, ended = trained(case.method)
    bench = Bench(tmp_path)
    bench.attach(bench.start(held_out=(30, 12), adapter=case.adapter(), init_from=folder, max_steps=1))
    files = bench.trainer.residents["job"].state.adapter.files()
    there = load_file(folder / MODEL)
    assert files.tensors.keys() == there.keys()
    assert all(torch.equal(files.tensors[name], there[name]) for name in there)
    bench.finish()
    began = bench.of(EvalDone)[0]
    assert (began.step, began.loss, began.accuracy) == (0, ended.loss, ended.accuracy)
    assert bench.succeeded()


def test_other_seed_and_rate_are_the_new_jobs_own(trained: Trained, tmp_path: Path) -> None:
    """Only weights are taken: the step count, the schedule and the moments begin anew."""
    folder, _ = trained("lora")
    bench = Bench(tmp_path)
    bench.run(bench.start(init_from=folder, max_steps=4, seed=77, learning_rate=1e-3))
    assert bench.attached_at() == [0]
    assert bench.succeeded()


@pytest.mark.parametrize(
    ("method", "adapter", "says"),
    [
        ("lora", {"r": 8}, "says r = 4, the job needs 8"),
        ("lora", {"alpha": 16}, "says lora_alpha = 8.0, the job needs 16.0"),
        ("lora", {"method": "dora"}, "says use_dora = False, the job needs True"),
        ("rslora", {}, "says use_rslora = True, the job needs False"),
        ("dora", {}, "says use_dora = True, the job needs False"),
        ("mixlora", {}, "says peft_type = 'MIXLORA', the job needs 'LORA'"),
        ("lora", {"method": "mixlora"}, "says peft_type = 'LORA', the job needs 'MIXLORA'"),
        ("mixlora", {"method": "mixlora", "num_experts": 2}, "says num_experts = 4, the job needs 2"),
        ("lora", {"target_modules": ["q_proj"]}, "which the job does not train"),
    ],
    ids=str,
)
def test_an_adapter_of_other_settings_is_refused(
    trained: Trained, tmp_path: Path, method: str, adapter: dict[str, Any], says: str
) -> None:
    folder, _ = trained(method)
    bench = Bench(tmp_path)
    bench.run(bench.start(adapter=adapter, init_from=folder))
    failed = bench.failure()
    assert failed.code is ErrorCode.BAD_SPEC
    assert failed.message.startswith("adapter.init_from: ")
    assert says in failed.message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alpha_pattern", {"q_proj": 32}),
        ("rank_pattern", {"v_proj": 2}),
        ("modules_to_save", ["lm_head"]),
        ("bias", "all"),
    ],
)
def test_settings_of_peft_that_change_single_modules_are_refused(
    trained: Trained, tmp_path: Path, key: str, value: object
) -> None:
    """They would be silently wrong: the weights load, and mean something else."""
    folder, _ = trained("lora")
    shutil.copytree(folder, tmp_path / "foreign")
    config = json.loads((folder / CONFIG).read_text())
    (tmp_path / "foreign" / CONFIG).write_text(json.dumps(config | {key: value}))
    bench = Bench(tmp_path / "run")
    bench.run(bench.start(adapter={"method": "lora", "r": 4, "alpha": 8}, init_from=tmp_path / "foreign"))
    assert bench.failure().code is ErrorCode.BAD_SPEC
    assert key in bench.failure().message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layers": 3}, "lacks base_model.model.model.layers.2"),
        ({"layers": 1}, "holds base_model.model.model.layers.1"),
        ({"ff": 128}, "this base and rank need"),
    ],
    ids=str,
)
def test_an_adapter_of_another_base_is_refused(
    trained: Trained, tmp_path: Path, change: dict[str, int], says: str
) -> None:
    folder, _ = trained("lora")
    bench = Bench(tmp_path)
    config = llama_config(**({"ff": WORLD.ff} | change))
    config.vocab_size = 260
    bench.trainer.base = base_of(config)
    bench.run(bench.start(init_from=folder))
    assert bench.failure().code is ErrorCode.BAD_SPEC
    assert says in bench.failure().message


def _not_a_tensor_file(folder: Path) -> None:
    (folder / MODEL).write_bytes(b"PK\x03\x04 a pickle, by the look of it")


def _cut(folder: Path) -> None:
    (folder / MODEL).write_bytes((folder / MODEL).read_bytes()[:-1])


def _no_object(folder: Path) -> None:
    (folder / CONFIG).write_text("[]")


def _no_json(folder: Path) -> None:
    (folder / CONFIG).write_text("{")


def _renamed(folder: Path) -> None:
    tensors = load_file(folder / MODEL)
    save_file({f"model.{name}": value for name, value in tensors.items()}, folder / MODEL)


@pytest.mark.parametrize("damage", [_not_a_tensor_file, _cut, _no_object, _no_json, _renamed])
def test_files_that_are_no_adapter_are_refused(
    trained: Trained, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(trained("lora")[0], folder)
    damage(folder)
    bench = Bench(tmp_path)
    bench.run(bench.start(init_from=folder))
    assert bench.failure().code is ErrorCode.BAD_SPEC
    assert bench.failure().message.startswith("adapter.init_from: ")


def test_a_half_precision_adapter_is_taken_in_float32(trained: Trained, tmp_path: Path) -> None:
    """Others export in bfloat16: its values are taken as they are."""
    folder = tmp_path / "half"
    shutil.copytree(trained("lora")[0], folder)
    half = {name: value.bfloat16() for name, value in load_file(folder / MODEL).items()}
    save_file(half, folder / MODEL)
    bench = Bench(tmp_path)
    bench.attach(bench.start(init_from=folder))
    tensors = bench.trainer.residents["job"].state.adapter.files().tensors
    assert all(torch.equal(tensors[name], half[name].float()) for name in half)


def test_an_integer_rank_written_as_a_string_is_no_rank(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(trained("lora")[0], folder)
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(settings | {"r": "4"}))
    bench = Bench(tmp_path)
    bench.run(bench.start(init_from=folder))
    assert "says r = '4', the job needs 4" in bench.failure().message


def test_weights_that_are_not_finite_are_refused(trained: Trained, tmp_path: Path) -> None:
    """Where no token is routed to them, neither loss nor gradient would show them."""
    folder, _ = trained("mixlora")
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    tensors = load_file(broken / MODEL)
    name = next(name for name in tensors if "experts.3" in name)
    tensors[name][0, 0] = torch.inf
    save_file(tensors, broken / MODEL)
    bench = Bench(tmp_path)
    bench.run(bench.start(adapter=case_of("mixlora").adapter(), init_from=broken))
    failed = bench.failure()
    assert failed.code is ErrorCode.BAD_SPEC
    assert "adapter.init_from" in failed.message
    assert "not finite" in failed.message
