"""What a user reads when a spec is wrong: the field, the value, the remedy."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlora_sched.errors import SpecError
from mlora_sched.spec.job import JobSpec, load_job, local_files, parse_job

MINIMAL: dict[str, Any] = {"name": "toy", "data": {"train": "a.jsonl"}}


def tasks(names: object, column: str | None = "kind") -> dict[str, Any]:
    return {"data": {"train": "a", "task_column": column, "tasks": names}}


def problem(**changes: Any) -> str:
    with pytest.raises(SpecError) as caught:
        parse_job(MINIMAL | changes, "toy.yaml")
    return caught.value.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adaptr": {}}, "adaptr: unknown key; did you mean adapter?"),
        ({"r": 8}, "r: unknown key; did you mean adapter.r?"),
        ({"num_experts": 8}, "num_experts: unknown key; did you mean adapter.num_experts?"),
        ({"data": {"train": "a", "shufle": True}}, "data.shufle: unknown key; did you mean data.shuffle?"),
        ({"adapter": {"zzz": 1}}, "adapter.zzz: unknown key; known keys here are alpha, dropout, "),
        (
            {"adapter": {"num_experts": 4}},
            "adapter.num_experts: unknown key; it does not go with method lora; leave it out or choose another method",
        ),
        ({"adapter": {"method": "lorra"}}, "adapter.method: 'lorra' is no method; choose one of lora, rslora"),
        ({"adapter": {"method": "MixLoRA"}}, "adapter.method: 'MixLoRA' is no method; did you mean mixlora?"),
        ({"adapter": {"method": "llava-mole"}}, "adapter.method: 'llava-mole' is no method; did you mean llava_mole?"),
        (
            {"adapter": {"method": "MixDoRA"}},
            "adapter.method: 'MixDoRA' is no method; here it is mixlora with expert_method: dora",
        ),
        (
            {"adapter": {"method": "mixlora", "attention": {"rank": 4}}},
            "adapter.attention.rank: unknown key; here it is adapter.attention.r",
        ),
        ({"adapter": {"rank": 4}}, "adapter.rank: unknown key; here it is adapter.r"),
        ({"adapter": {"r": "many"}}, "adapter.r: 'many': should be a valid integer"),
        ({"adapter": {"r": 0}}, "adapter.r: 0: should be greater than or equal to 1"),
        ({"adapter": {"method": "mixlora", "top_k": 9}}, "adapter: top_k 9 is more than num_experts 8; lower top_k"),
        ({"adapter": {"init_from": ""}}, "adapter.init_from: '': string should have at least 1 character"),
        ({"adapter": 7}, "adapter: 7: is no section of keys; write adapter: {method: lora | rslora | loraplus"),
        ({"adapter": "lora"}, "adapter: 'lora': is no section of keys; write adapter: {method: lora}"),
        ({"adapter": "qlora"}, "adapter: 'qlora': is no section of keys; write adapter: {method: lora | rslora"),
        ({"objective": "sft"}, "objective: 'sft': is no section of keys; write objective: {type: sft}"),
        ({"data": "a.jsonl"}, "data: 'a.jsonl': is no section of keys; write data: {train: a.jsonl}"),
        ({"data": 4}, "data: 4: is no section of keys; write data: {train: ...}"),
        ({"training": 3}, "training: 3: is no section of keys"),
        ({"data": {}}, "data.train: is missing; it is required"),
        ({"data": {"train": []}}, "data.train: []: tuple should have at least 1 item"),
        ({"data": {"train": [""]}}, "data.train.0: '': string should have at least 1 character"),
        ({"data": {"train": "a", "validation": 2}}, "data.validation: 2 is no fraction between 0 and 1"),
        ({"data": {"train": "a", "validation": "1e1"}}, "data.validation: 10 is no fraction between 0 and 1"),
        ({"data": {"train": "a", "validation": ""}}, "data.validation: is empty; write a fraction"),
        ({"data": {"train": "a", "validation": [1]}}, "data.validation: [1]: should be a valid number or a valid"),
        ({"data": {"train": "a", "template": "zephyr"}}, "data.template: 'zephyr' is none of auto, chat, alpaca, none"),
        (tasks(["a"]), "data.tasks: has 1 of them; write 2 to 256, or leave out both tasks and task_column"),
        (tasks([]), "data.tasks: has 0 of them; write 2 to 256"),
        (tasks([str(n) for n in range(257)]), "data.tasks: has 257 of them; write 2 to 256"),
        (tasks(["a", "b", "a"]), "data.tasks: names 'a' twice; write every task once"),
        (tasks(["a", True]), "data.tasks: True is bool, not text; write it in quotes"),
        (tasks([0, 1]), "data.tasks: 0 is int, not text; write it in quotes"),
        (tasks(["a", ""]), "data.tasks.1: '': string should have at least 1 character"),
        (tasks("ab"), "data.tasks: 'ab': should be a valid tuple"),
        (tasks(["a", "b"], ""), "data.task_column: '': string should have at least 1 character"),
        (tasks(["a", "b"], None), "data: tasks is set and task_column is not; name the column"),
        (tasks(None), "data: task_column is 'kind' and tasks is not set; list what the column holds"),
        ({"name": "a b"}, "name: 'a b': string should match pattern"),
        ({"training": {"epochs": 1, "max_steps": 3}}, "training: epochs and max_steps are both set; keep one"),
        ({"training": {"eval_every": "2x"}}, "training.eval_every: '2x' is no interval; write a number of steps"),
        ({"training": {"learning_rate": math.nan}}, "training.learning_rate: nan: should be a finite number"),
        ({"limits": {"max_tokens": 0}}, "limits.max_tokens: 0: should be greater than or equal to 1"),
        (
            {"limits": {"max_time": "soon"}},
            "limits.max_time: 'soon' is no duration; write a number with one of s, m, h",
        ),
        ({"limits": {"max_time": 0}}, "limits.max_time: 0: should be greater than 0"),
        ({"limits": {"max_time": 1e12}}, "limits.max_time: 1000000000000.0: should be less than or equal to 315360000"),
        ({"limits": {"max_time": [1]}}, "limits.max_time: [1]: should be a valid number"),
        ({"limits": "2h"}, "limits: '2h': is no section of keys"),
        ({"max_time": "2h"}, "max_time: unknown key; did you mean limits.max_time?"),
        ({"guards": {"loss_spike": 1}}, "guards.loss_spike: 1: should be greater than 1"),
        ({"guards": {"grad_norm": 0}}, "guards.grad_norm: 0: should be greater than 0"),
        ({"guards": {"patience": 0}}, "guards.patience: 0: should be greater than or equal to 1"),
        ({"guards": {"max_grad_norm": 9}}, "guards.max_grad_norm: unknown key; here it is training.max_grad_norm"),
        ({"priority": "urgent"}, "priority: 'urgent': should be 'low', 'normal' or 'high'"),
        ({"metadata": {"when": {1, 2}}}, "metadata.when: {1, 2}: was not a valid JSON value"),
    ],
)
def test_each_mistake_names_field_value_and_remedy(changes: dict[str, Any], message: str) -> None:
    assert f"toy.yaml: {message}" in problem(**changes)


@pytest.mark.parametrize(
    ("adapter", "ends"),
    [
        (
            {"method": "mola", "zzz": 1},
            "known keys here are alpha, dropout, experts, init_from, method, r, router_aux_loss_coef, target_modules, "
            "top_k",
        ),
        ({"zzz": 1}, "known keys here are alpha, dropout, init_from, method, r, target_modules"),
        ({"method": "mixlora", "router_dynloss_coef": 1}, "did you mean adapter.router_aux_loss_coef?"),
        ({"method": "dynmole", "router_dynloss_coef": 1}, "did you mean adapter.router_dyn_loss_coef?"),
    ],
)
def test_only_keys_that_the_method_has_are_proposed(adapter: dict[str, Any], ends: str) -> None:
    assert problem(adapter=adapter).endswith(ends)


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("act_fn", "leave it out: the activation belongs to the base"),
        ("routing_strategy", "here it is adapter.method; of mixlora also adapter.routing"),
        ("expert_lora", "here it is adapter.r, adapter.alpha and adapter.expert_method; adapter.attention has its own"),
        ("blc_weight", "here it is adapter.router_aux_loss_coef"),
        ("lora_rank", "here it is adapter.r"),
        ("finetuning_type", "here it is adapter.method"),
        ("stage", "here it is objective.type"),
        ("cutoff_len", "here it is data.max_length"),
        ("val_set_size", "here it is data.validation"),
        ("micro_batch_size", "here it is training.batch_size"),
        ("num_train_epochs", "here it is training.epochs"),
        ("loss_watchdog_threshold", "here it is guards.loss_spike"),
        ("load_in_4bit", "leave it out: quantisation belongs to the base"),
    ],
)
def test_keys_of_other_trainers_are_answered_with_ours(key: str, ours: str) -> None:
    assert f"toy.yaml: {key}: unknown key; {ours}" in problem(**{key: 1})
    assert f"toy.yaml: training.{key}: unknown key; {ours}" in problem(training={key: 1})


@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens", "wte", "modules_to_save"])
def test_shared_modules_are_refused_with_the_reason(module: str) -> None:
    message = problem(adapter={"target_modules": ["q_proj", module]})
    assert f"{module} cannot be trained: head and embeddings belong to the base" in message


def test_all_mistakes_are_named_at_once() -> None:
    lines = problem(name="", lora_r=8, training={"epochs": -1}).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["name", "training.epochs", "lora_r"]


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_a_spec_is_a_mapping(raw: object) -> None:
    with pytest.raises(SpecError, match="a job spec is a mapping of keys"):
        parse_job(raw)


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
SECTIONS = st.sampled_from(["name", "base_model", "adapter", "data", "objective", "training", "metadata"])
KEYS = st.sampled_from(
    ["method", "r", "target_modules", "train", "validation", "template", "epochs", "eval_every", "x"]
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first inputs cost imports
@given(st.dictionaries(SECTIONS, JSON_LIKE | st.dictionaries(KEYS, JSON_LIKE, max_size=4), max_size=8))
def test_whatever_is_written_is_a_spec_or_is_explained(raw: dict[str, Any]) -> None:
    """No input raises anything but SpecError, and every line of that starts with the file."""
    try:
        spec = parse_job(MINIMAL | raw, "f")
    except SpecError as error:
        lines = error.message
    else:
        lines = "f: is valid"
        assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    assert lines.startswith("f: ")


def write(path: Path, spec: object) -> Path:
    path.write_text(yaml.safe_dump(spec))
    return path


def test_yaml_numbers_that_yaml_takes_for_text(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text("name: toy\ndata: {train: a.jsonl, validation: 1e-1}\ntraining: {learning_rate: 2e-4}\n")
    spec = load_job(path)
    assert (spec.data.validation, spec.training.learning_rate) == (0.1, 2e-4)
    assert spec.files == ("a.jsonl",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: toy\ndata: {train: a}\nname: other\n", ", line 3: name: is written twice here (first in line 1)"),
        ("name: toy\nadapter:\n  r: 8\n  'r': 4\n", ", line 4: r: is written twice here (first in line 3)"),
        ("metadata: [{a: 1, a: 1}]", ", line 1: a: is written twice here (first in line 1); keep one of them"),
        ("a: [", ": is not YAML: "),
        ("name: toy\n---\nname: other", ": is not YAML: "),
        ("metadata: {when: 2026-13-01}", ": is not YAML: month must be in 1..12"),
        ("training: {seed: " + "9" * 5000 + "}", ": is not YAML: "),
        ("[" * 5000, ": is nested too deeply to be a job spec"),
    ],
    ids=range(8),
)
def test_documents_of_no_one_meaning_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_job(path)
    assert caught.value.message.startswith(f"{path}{says}")


def test_a_merged_key_may_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    shared = "metadata: {small: &small {r: 4, alpha: 8}, large: &large {<<: *small, r: 64}}"
    path.write_text(f"name: toy\ndata: {{train: a.jsonl}}\n{shared}\nadapter: {{<<: *large, dropout: 0.1}}\n")
    adapter = load_job(path).adapter
    assert (adapter.r, adapter.alpha, adapter.dropout) == (64, 8.0, 0.1)


def test_files_are_found_beside_the_spec(tmp_path: Path) -> None:
    data = {"train": ["a.jsonl", "sub/b.jsonl"], "validation": "v.csv", "template": "chat.jinja"}
    spec = load_job(write(tmp_path / "toy.yaml", {"name": "toy", "data": data, "adapter": {"init_from": "start/"}}))
    wanted = ["a.jsonl", "sub/b.jsonl", "v.csv", "chat.jinja", "start/adapter_config.json"]
    wanted.append("start/adapter_model.safetensors")
    assert list(spec.files) == wanted
    for name in wanted[:2] + wanted[4:5]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(SpecError) as caught:
        local_files(spec, tmp_path)
    assert [line.partition(": no such file")[0] for line in caught.value.message.splitlines()] == [
        "toy: data.validation: v.csv",
        "toy: data.template: chat.jinja",
        "toy: adapter.init_from: start/adapter_model.safetensors",
    ]
    for name in wanted:
        (tmp_path / name).touch()
    assert local_files(spec, tmp_path) == {name: tmp_path / name for name in wanted}


def test_what_is_there_but_no_file_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    spec = parse_job({"name": "toy", "data": {"train": ["rows.jsonl", "pipe.csv"]}})
    with pytest.raises(SpecError) as caught:
        local_files(spec, tmp_path)
    assert caught.value.message.splitlines() == [
        f"toy: data.train: rows.jsonl: is a directory; name a file ({tmp_path / 'rows.jsonl'})",
        f"toy: data.train: pipe.csv: is no ordinary file ({tmp_path / 'pipe.csv'})",
    ]


def test_an_absolute_path_stays_what_it_is(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.touch()
    spec = parse_job({"name": "toy", "data": {"train": str(data)}})
    assert local_files(spec, Path("/elsewhere")) == {str(data): data}
