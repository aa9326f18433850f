"""`docs/formats.md` against files that were really written: names, keys, tensors and their shapes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from adapters.methods import METHOD_CASES, MethodCase
from engine.bases import base_of, llama_config, prepared
from safetensors.torch import load_file

from docs.pages import quoted, rows, section, text_of
from mlora_sched.adapters.base import AdapterFiles
from mlora_sched.adapters.registry import build_adapter
from mlora_sched.artifacts.adapter_files import write_adapter
from mlora_sched.artifacts.checkpoint import write_checkpoint
from mlora_sched.artifacts.provenance import Origin, provenance
from mlora_sched.engine.saving import adapter_files, draft_of
from mlora_sched.engine.train_state import TrainState
from mlora_sched.model.base import FrozenBase
from mlora_sched.spec.experts import RouterLoad
from mlora_sched.spec.job import JobSpec, parse_job
from mlora_sched.spec.log import MetricsLine
from mlora_sched.spec.numerics import Exactness, NumericsKey, ProbeVerdict
from mlora_sched.spec.wire import EvalDone, StepDone

PAGE = text_of("formats.md")
FAMILIES = {
    "LORA": "LoRA, rsLoRA, LoRA+, DoRA",
    "MIXLORA": "MixLoRA",
    "LLAVA_MOLE": "LLaVA-MoLE",
    "DYNMOLE": "DynMoLE",
    "MOLA": "MoLA",
    "LORAMOE": "LoRAMoE",
}
RANK = 4


def first_cells(title: str) -> set[str]:
    """The words in the first column of a section's tables."""
    return {word for cells in rows(section(PAGE, title)) for word in quoted(cells[0])}


@pytest.fixture(scope="module")
def base() -> FrozenBase:
    return base_of(llama_config())


def spec_of(case: MethodCase) -> JobSpec:
    return parse_job({"name": "job", "adapter": case.adapter(), "data": {"train": "x.jsonl", "validation": 0.1}})


def origin() -> Origin:
    verdict = ProbeVerdict(exactness=Exactness.EXACT, largest_difference=0.0, buckets=(32,))
    fields = dict.fromkeys(NumericsKey.model_fields, "x") | {"threads": 1, "buckets": (32,), "compile": True}
    return Origin("tiny", "tiny", "0" * 64, NumericsKey.model_validate(fields), verdict)


def record(case: MethodCase) -> dict[str, Any]:
    return provenance(
        spec_of(case), origin(), {"train": "1", "validation": "2"}, steps=1, planned=2, resumes=0, version_history=[]
    )


@pytest.fixture(scope="module", params=METHOD_CASES, ids=str)
def case(request: pytest.FixtureRequest) -> MethodCase:
    found: MethodCase = request.param
    return found


@pytest.fixture(scope="module")
def files(case: MethodCase, base: FrozenBase) -> AdapterFiles:
    return build_adapter(spec_of(case).adapter, base, seed=0).files()


def test_config_keys(files: AdapterFiles) -> None:
    table = {name for name in first_cells(FAMILIES[files.config["peft_type"]]) if "." not in name}
    assert table == set(files.config)


def test_config_values_that_are_fixed(files: AdapterFiles) -> None:
    for cells in rows(section(PAGE, FAMILIES[files.config["peft_type"]])):
        keys, values = quoted(cells[0]), quoted(cells[1])
        if len(cells) == 2 and len(keys) == 1 and [cells[1]] == [f"`{value}`" for value in values]:
            assert files.config[keys[0]] == values[0]


def test_tensors(case: MethodCase, files: AdapterFiles) -> None:
    """Every tensor has a row with its shape, and every row that speaks of this method has a tensor."""
    table = [
        (_pattern(cells[0]), cells[1], cells[2])
        for cells in rows(section(PAGE, FAMILIES[files.config["peft_type"]]))
        if len(cells) == 3
    ]
    used = set()
    for name, tensor in files.tensors.items():
        (row,) = [row for row in table if row[0].fullmatch(name)]
        used.add(row)
        axes = row[1].strip("()").split(", ")
        assert len(axes) == tensor.dim()
        for axis, size in zip(axes, tensor.shape, strict=True):
            assert {"r": RANK, "experts": case.settings.get("num_experts", size)}.get(axis, size) == size, name
    others = [row for row in table if row not in used]
    optional = {row[2] for row in table} & {"dora"} - {case.method}
    assert {row[2] for row in others} == optional


def _pattern(cell: str) -> re.Pattern[str]:
    """`{i}` and `{e}` are numbers, the other names in braces are dotted names."""
    (name,) = quoted(cell)
    escaped = re.escape(name).replace(r"\{i\}", r"\d+").replace(r"\{e\}", r"\d+")
    return re.compile(re.sub(r"\\{(\w+)\\}", r"[\\w.]+", escaped))


def test_files_of_an_adapter(case: MethodCase, files: AdapterFiles, tmp_path: Path) -> None:
    write_adapter(tmp_path, files, record(case))
    first_four = [quoted(cells[0])[0] for cells in rows(section(PAGE, "An adapter directory"))][:4]
    written = {path.name for path in tmp_path.iterdir()}
    assert written == set(first_four) - (set() if case.method == "mixlora" else {"adapter_model.bin"})


def test_provenance(tmp_path: Path) -> None:
    write_adapter(tmp_path, AdapterFiles({}, {}, notes=("a sentence",)), record(METHOD_CASES[0]))
    written = json.loads((tmp_path / "provenance.json").read_text())
    assert first_cells("`provenance.json`") == set(written)
    for cells in rows(section(PAGE, "`provenance.json`")):
        (key,) = quoted(cells[0])
        if key in ("base", "numerics", "probe", "data"):
            assert set(written[key]) <= set(quoted(cells[1])), key


def test_metrics_lines() -> None:
    cells = list(rows(section(PAGE, "`metrics.jsonl`")))
    table = {quoted(row[0])[0]: row[1] for row in cells if len(row) == 3}
    load = RouterLoad(router="0.mlp", share=(0.5, 0.5), per_token=1.0, entropy=1.0)
    step = StepDone(
        job_id="j",
        epoch=1,
        step=1,
        loss=1.0,
        lr=1.0,
        grad_norm=1.0,
        tokens=1,
        target_tokens=1,
        extra={"aux_loss": 1.0, "entropy_loss": 1.0, "router_entropy": 1.0},
        routers=(load,),
    )
    held_out = EvalDone(job_id="j", epoch=1, step=1, loss=1.0, accuracy=1.0, tokens=1)
    written = {"step": MetricsLine.of(step).to_json(step.routers), "eval": MetricsLine.of(held_out).to_json()}
    for event, line in written.items():
        keys = {key for key, where in table.items() if where.partition(",")[0] in ("both", event)}
        assert set(json.loads(line)) == keys
    (of_router,) = json.loads(written["step"])["experts"]
    assert list(of_router) == [quoted(row[0])[0] for row in cells if len(row) == 2]


def test_checkpoints(case: MethodCase, base: FrozenBase, tmp_path: Path) -> None:
    spec = spec_of(case)
    adapter = build_adapter(spec.adapter, base, seed=0)
    state = TrainState("job", spec, prepared((9, 12), seed=1, validation=(7,)), adapter)
    state.progress.step = 120
    kept = state.kept()
    write_checkpoint(tmp_path, 120, draft_of(state, origin(), kept), adapter_files(state, kept), record(case))
    (folder,) = (tmp_path / "checkpoints").iterdir()
    text = section(PAGE, "Checkpoints")
    assert f"`checkpoints/{folder.name}/`" in text
    exported = [quoted(cells[0])[0] for cells in rows(section(PAGE, "An adapter directory"))][:4]
    beside = {path.name for path in folder.iterdir()} - set(exported)
    assert beside == first_cells("Checkpoints")
    words = quoted(text)
    written = json.loads((folder / "state.json").read_text())
    assert {*written, *written["progress"]} <= set(words)
    for name in load_file(folder / "train_state.safetensors"):
        kind, _, group = name.partition("/")
        assert f"{kind}/{{group}}" in words
        assert group in words
