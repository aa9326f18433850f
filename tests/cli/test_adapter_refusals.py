"""Adapters that cannot be, or not on this base: `validate` and `estimate` name the field, the value and a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from model.architectures import config_of
from promise.world import tokenizer

from mlora_sched.cli.main import run

Capture = pytest.CaptureFixture[str]
MIXLORA, LLAVA = {"method": "mixlora"}, {"method": "llava_mole"}
LAYER_FFN = "is a part of the FFN, which carries experts; name it in adapter.target_modules, and other linears here"
MIXTURE = (
    "puts experts on a dense FFN, but the FFN of base bare is itself a mixture; use lora on its attention, or dynmole "
    "or mola, which have a router for each linear"
)

BY_SPEC = [
    ({**MIXLORA, "num_experts": 2, "top_k": 3}, "top_k 3 is more than num_experts 2; lower top_k"),
    ({**MIXLORA, "num_experts": 1}, "top_k 2 is more than num_experts 1; lower top_k"),
    ({**MIXLORA, "num_experts": 0}, "adapter.num_experts: 0: should be greater than or equal to 1"),
    ({**LLAVA, "num_experts": 0}, "adapter.num_experts: 0: should be greater than or equal to 1"),
    ({**MIXLORA, "top_p": 0.5}, "top_p is asked for with routing: dynamic only; set that, or leave top_p out"),
    ({**MIXLORA, "routing": "dynamic", "top_k": 3}, "top_k is not asked for with routing: dynamic, which takes top_p"),
    ({**MIXLORA, "routing": "dynamic", "top_p": 0}, "adapter.top_p: 0: should be greater than 0"),
    ({**MIXLORA, "expert_method": "mixlora"}, "adapter.expert_method: 'mixlora': should be 'lora', 'rslora' or 'dora'"),
    ({"method": "mola", "experts": []}, "experts: the list is empty; give one number a decoder layer, or a preset"),
    ({"method": "mola", "experts": [4, 0]}, "experts: 0 is not between 1 and 256"),
    ({"method": "mola", "experts": 1}, "top_k 2 is more than the 1 experts of a layer; lower top_k"),
    ({"method": "dynmole", "num_experts": 2, "keep_top_k": 3}, "keep_top_k 3 is more than num_experts 2"),
    ({"method": "loramoe", "num_experts": 0}, "adapter.num_experts: 0: should be greater than or equal to 1"),
    ({**LLAVA, "attention": {"target_modules": ["lm_head"]}}, "lm_head cannot be trained: head and embeddings belong"),
]
BY_BASE = {
    "llama": [
        ({"method": "mola", "experts": [4, 4, 4]}, "adapter.experts: the list has 3 numbers, base bare has 2 decoder"),
        (
            {"method": "loramoe", "target_modules": ["q_proj"]},
            "q_proj is no part of an FFN, and loramoe sits on the FFN",
        ),
        ({**MIXLORA, "target_modules": ["q_proj"]}, "q_proj names no part of the FFN; mixlora needs at least one of"),
        ({**LLAVA, "target_modules": ["fc1"]}, "adapter.target_modules: 'fc1' is no linear of base bare; choose from"),
        (
            {**MIXLORA, "attention": {"target_modules": ["q_proj", "up_proj"]}},
            f"adapter.attention.target_modules: up_proj {LAYER_FFN}",
        ),
        ({**LLAVA, "attention": {"target_modules": "all-ffn"}}, f"attention.target_modules: gate_proj {LAYER_FFN}"),
        (
            {**LLAVA, "attention": {"target_modules": ["query"]}},
            "adapter.attention.target_modules: 'query' is no linear",
        ),
    ],
    "mixtral": [
        (MIXLORA, f"adapter.method: mixlora {MIXTURE}"),
        (LLAVA, f"adapter.method: llava_mole {MIXTURE}"),
        ({"target_modules": "all-ffn"}, "base bare (mixtral) has none; choose from k_proj, o_proj, q_proj, v_proj"),
    ],
    "qwen3_moe": [({**MIXLORA, "target_modules": ["gate_proj"]}, f"adapter.method: mixlora {MIXTURE}")],
    "opt": [
        (MIXLORA, "base bare (opt) has none; use lora, rslora, loraplus or dora, or dynmole or mola"),
        ({"target_modules": "all-ffn"}, "base bare (opt) has none; choose from fc1, fc2,"),
    ],
}
GOOD: list[dict[str, Any]] = [
    {**MIXLORA, "routing": "dynamic", "top_p": 0.6},
    {**MIXLORA, "expert_method": "dora", "attention": {"method": "rslora", "r": 2}},
    {**LLAVA, "target_modules": "all-ffn"},
]


def written(folder: Path, adapters: list[dict[str, Any]]) -> list[str]:
    """A spec file of each."""
    (folder / "train.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n' * 5)
    paths = []
    for at, adapter in enumerate(adapters):
        paths.append(folder / f"job-{at}.yaml")
        content = {"name": f"job-{at}", "adapter": adapter, "data": {"train": "train.jsonl", "max_length": 64}}
        paths[-1].write_text(yaml.safe_dump(content))
    return [str(path) for path in paths]


def bare(folder: Path, model_type: str) -> str:
    """A base without weights."""
    config_of(model_type).save_pretrained(folder / "bare")
    tokenizer().save_pretrained(folder / "bare")
    return str(folder / "bare")


def test_settings_that_no_base_could_take(tmp_path: Path, capsys: Capture) -> None:
    paths = written(tmp_path, [adapter for adapter, _ in BY_SPEC])
    assert run(["validate", *paths]) == 2
    said = [part for part in capsys.readouterr().err.split(str(tmp_path)) if ".yaml" in part]
    for path, part, (_, message) in zip(paths, said, BY_SPEC, strict=True):
        assert Path(path).name in part
        assert message in part


@pytest.mark.parametrize("model_type", BY_BASE)
def test_adapters_that_this_base_cannot_carry(model_type: str, tmp_path: Path, capsys: Capture) -> None:
    """Told from its config alone, each under its file; `estimate` says the same."""
    base, paths = bare(tmp_path, model_type), written(tmp_path, [adapter for adapter, _ in BY_BASE[model_type]])
    assert run(["validate", *paths, "--base", base]) == 2
    said = capsys.readouterr().err.removeprefix("error: ").splitlines()
    for path, line, (_, message) in zip(paths, said, BY_BASE[model_type], strict=True):
        assert line.startswith(f"{path}: ")
        assert message in line
    if model_type == "llama":  # profiling takes seconds
        assert run(["estimate", *paths, "--base", base]) == 2
        assert capsys.readouterr().err.removeprefix("error: ").splitlines() == said


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_adapters_that_it_can(model_type: str, tmp_path: Path, capsys: Capture) -> None:
    base, paths = bare(tmp_path, model_type), written(tmp_path, GOOD)
    assert run(["validate", *paths, "--base", base]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.startswith(f"{path}: ok: ") for path, line in zip(paths, said, strict=True)] == [True] * len(GOOD)
    if model_type == "gpt2":
        assert run(["estimate", *paths, "--base", base]) == 0


def test_every_trial_of_a_sweep_is_looked_at(tmp_path: Path, capsys: Capture) -> None:
    (path,) = written(tmp_path, [{"method": "lora"}])
    content = yaml.safe_load(Path(path).read_text())
    content["sweep"] = {
        "metric": "loss",
        "parameters": {"adapter.target_modules": {"values": ["all-linear", ["q_proj"], ["c_attn"]]}},
    }
    Path(path).write_text(yaml.safe_dump(content))
    assert run(["validate", path, "--base", bare(tmp_path, "llama")]) == 2
    assert f"{path}: adapter.target_modules: 'c_attn' is no linear of base bare" in capsys.readouterr().err
