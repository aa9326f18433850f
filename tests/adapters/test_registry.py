"""A method is one file, one spec class, one registry line and one test row: none may be forgotten."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import pytest
import torch
from engine.bases import base_of, llama_config, prepared
from model.architectures import config_of
from oracle import ours

from adapters.methods import METHOD_CASES, MethodCase
from mlora_sched.adapters.base import AdapterFiles
from mlora_sched.adapters.ffn_experts_adapter import FfnExpertsAdapter
from mlora_sched.adapters.mixed_rank import MixedAdapter
from mlora_sched.adapters.params import Params
from mlora_sched.adapters.registry import METHODS, build_adapter
from mlora_sched.adapters.registry import spec_of as meaning_of
from mlora_sched.errors import SpecError
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.adapter_common import AdapterCommon
from mlora_sched.spec.job import parse_job
from mlora_sched.spec.plain import LoraSpec


def spec_of(adapter: dict[str, Any]) -> AdapterSpec:
    return parse_job({"name": "job", "adapter": adapter, "data": {"train": "x.jsonl"}}).adapter


def test_every_method_has_a_spec_and_a_test_row() -> None:
    union, _ = get_args(AdapterSpec)
    specs: tuple[type[AdapterCommon], ...] = get_args(union)
    named = {get_args(spec.model_fields["method"].annotation)[0] for spec in specs}
    assert named == set(METHODS)
    assert sorted(case.method for case in METHOD_CASES) == sorted(METHODS)


def values(params: Params) -> dict[str, torch.Tensor]:
    return {name: params[name].value.clone() for name in params}


@pytest.mark.parametrize("case", METHOD_CASES, ids=str)
def test_start_depends_on_the_seed_alone(case: MethodCase) -> None:
    base, spec = base_of(llama_config()), spec_of(case.adapter())
    first, again, other = (values(build_adapter(spec, base, seed).params) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("case", METHOD_CASES, ids=str)
def test_a_fresh_adapter_leaves_the_base_as_it_is(case: MethodCase) -> None:
    """B = 0; DoRA's magnitudes are the row norms; MixLoRA's experts are all the base's own FFN."""
    base = base_of(llama_config(mlp_bias=True), scale=4.0)
    rows = [prepared((17, 9), seed=1).train.row(i).input_ids for i in range(2)]
    adapter = build_adapter(spec_of(case.adapter()), base, seed=0)
    bare = build_adapter(LoraSpec(target_modules=("q_proj",), alpha=1e-30), base, seed=0)
    fresh, untouched = (torch.cat(ours.logits(base, which, rows)) for which in (adapter, bare))
    torch.testing.assert_close(fresh, untouched, rtol=0, atol=1e-6 * float(untouched.abs().max()))


@pytest.mark.parametrize("case", METHOD_CASES, ids=str)
def test_files_bring_back_every_weight(case: MethodCase) -> None:
    base, spec = base_of(llama_config()), spec_of(case.adapter())
    trained = build_adapter(spec, base, seed=1)
    for name in trained.params:
        trained.params[name].value.normal_()
    other = build_adapter(spec, base, seed=2)
    other.read(trained.files())
    kept = values(other.params)
    assert all(torch.equal(value, kept[name]) for name, value in values(trained.params).items())


@pytest.mark.parametrize("case", METHOD_CASES, ids=str)
def test_files_that_do_not_fit_are_refused(case: MethodCase) -> None:
    base = base_of(llama_config())
    files = build_adapter(spec_of(case.adapter()), base, seed=1).files()
    wider = build_adapter(spec_of(case.adapter(r=8)), base, seed=1)
    with pytest.raises(SpecError, match=r"adapter.init_from: .* r = 4, the job needs 8"):
        wider.read(files)
    same = build_adapter(spec_of(case.adapter()), base, seed=1)
    first, *others = files.tensors
    with pytest.raises(SpecError, match=r"adapter\.init_from: lacks"):
        same.read(AdapterFiles(files.config, {name: files.tensors[name] for name in others}))
    with pytest.raises(SpecError, match="which the job does not train"):
        same.read(AdapterFiles(files.config, {**files.tensors, "stray": torch.zeros(1)}))
    cut = {**files.tensors, first: files.tensors[first][..., :-1]}
    with pytest.raises(SpecError, match="has shape"):
        same.read(AdapterFiles(files.config, cut))


ROUTED = [case for case in METHOD_CASES if issubclass(METHODS[case.method], FfnExpertsAdapter | MixedAdapter)]


@pytest.mark.parametrize("case", ROUTED, ids=str)
def test_experts_of_different_shapes_are_refused(case: MethodCase) -> None:
    """All of a linear go into one tensor; that one of them does not fit must not come as an error of torch's."""
    adapter = build_adapter(spec_of(case.adapter()), base_of(llama_config()), seed=1)
    files, before = adapter.files(), values(adapter.params)
    name = next(name for name in files.tensors if ".experts.1.lora_A" in name)
    cut = {**files.tensors, name: files.tensors[name][:, :-1]}
    with pytest.raises(
        SpecError, match=rf"adapter\.init_from: {re.escape(name)} has shape \(4, 63\), .* need \(4, 64\)"
    ):
        adapter.read(AdapterFiles(files.config, cut))
    assert all(torch.equal(value, before[name]) for name, value in values(adapter.params).items())


@pytest.mark.parametrize(
    ("theirs", "own", "says"),
    [
        ({"alpha": 32, "attention": {"alpha": 8}}, {}, r"expert_lora = \{.*'lora_alpha': 32.*the job needs None"),
        ({}, {"alpha": 32, "attention": {"alpha": 8}}, r"expert_lora = None, the job needs \{.*'lora_alpha': 32"),
        ({"expert_method": "rslora"}, {}, "expert_lora"),
        ({"top_k": 1}, {}, "top_k = 1, the job needs 2"),
        ({"routing": "dynamic"}, {}, "routing_strategy = 'mixlora-dynamic', the job needs 'mixlora'"),
        ({"routing": "dynamic", "top_p": 0.5}, {"routing": "dynamic"}, "top_p = 0.5, the job needs 0.8"),
    ],
    ids=str,
)
def test_experts_that_mean_something_else_are_refused(theirs: dict[str, Any], own: dict[str, Any], says: str) -> None:
    """The tensors are the same in number, name and shape; only the config tells."""
    base, usual = base_of(llama_config()), {"method": "mixlora", "r": 4, "alpha": 8, "num_experts": 4}
    there, here = (build_adapter(spec_of({**usual, **more}), base, seed=1) for more in (theirs, own))
    assert there.files().tensors.keys() == here.files().tensors.keys()
    with pytest.raises(SpecError, match=rf"adapter\.init_from: .* says {says}"):
        here.read(there.files())


def test_null_in_a_config_is_as_if_the_key_were_absent() -> None:
    adapter = build_adapter(spec_of({"method": "mixlora", "num_experts": 2}), base_of(llama_config()), seed=1)
    files = adapter.files()
    config = files.config | {"expert_lora": None, "use_dora": None, "top_p": None}
    adapter.read(AdapterFiles(config, files.tensors))
    assert meaning_of(config) == meaning_of(files.config)


@pytest.mark.parametrize("case", METHOD_CASES, ids=str)
@pytest.mark.parametrize("some", [False, True], ids=["all", "some"])
def test_a_config_says_what_its_weights_mean(case: MethodCase, some: bool) -> None:
    """The adapter that its config asks for takes its tensors and writes them again."""
    base = base_of(llama_config())
    spec = spec_of(case.adapter(dropout=0.25, target_modules=list(case.some) if some else "all-linear"))
    files = build_adapter(spec, base, seed=1).files()
    meant = meaning_of(json.loads(json.dumps(files.config)))
    assert meant.dropout == 0.0
    again = build_adapter(meant, base, seed=2)
    again.read(files)
    back = again.files()
    assert meaning_of(back.config) == meant
    assert back.tensors.keys() == files.tensors.keys()
    assert all(torch.equal(back.tensors[name], value) for name, value in files.tensors.items())


LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peft_type": "IA3"}, "says peft_type = 'IA3', which is none of lora, "),
        ({"use_dora": True, "use_rslora": True}, "use_rslora = True, use_dora = True, which is none of"),
        ({"r": "8"}, "r = '8': Input should be a valid integer"),
        ({"r": 0}, "r = 0: Input should be greater"),
        ({"lora_alpha": None}, "lora_alpha = None: Input should be a valid number"),
        ({"target_modules": ".*proj"}, r"target_modules = '\.\*proj' is a pattern of PEFT's"),
        ({"target_modules": ["lm_head"]}, "lm_head cannot be trained"),
        ({"bias": "all"}, "biases were trained"),
        ({"rank_pattern": {"q_proj": 2}}, "sets rank_pattern"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4' stands on a changed base"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is not known here"),
        ({"use_rslora": True, "bias": "all"}, "biases were trained"),
        ({"use_dora": True, "bias": "all"}, "biases were trained"),
        ({"peft_type": "MIXLORA", "routing_strategy": "mixlora"}, "lacks num_experts"),
        (
            {"peft_type": "MIXLORA", "routing_strategy": "mixlora", "num_experts": 2, "top_k": 3},
            ": top_k 3 is more than num_experts 2; lower top_k",
        ),
        (
            {"peft_type": "MIXLORA", "routing_strategy": "mixlora", "num_experts": 2, "top_k": 2, "expert_lora": False},
            "expert_lora = False is no section",
        ),
        ({"peft_type": "LORAMOE", "num_experts": 10**9}, "num_experts = 1000000000: Input should be less than"),
        ({"peft_type": "MIXLORA", "routing_strategy": "mixlora-switch"}, "routing_strategy = 'mixlora-switch'"),
    ],
    ids=str,
)
def test_a_config_that_means_something_else_is_refused(change: dict[str, Any], says: str) -> None:
    assert meaning_of({**LORA, "init_lora_weights": "gaussian"}).method == "lora"
    with pytest.raises(SpecError, match=rf"^adapter_config\.json.*{says}"):
        meaning_of(LORA | change)


def test_a_config_of_another_method_is_refused_by_each() -> None:
    for method, adapter in METHODS.items():
        with pytest.raises(SpecError, match=f"which is not {method.removesuffix('plus')}"):
            adapter.spec_of({**LORA, "peft_type": "IA3"})


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SpecError, match=r"'query' is no linear of base tiny; choose from down_proj, .*q_proj"):
        build_adapter(LoraSpec(target_modules=("query",)), base_of(llama_config()), seed=0)


def test_names_that_peft_takes_for_experts_are_refused_on_a_mixture() -> None:
    """DeepSeek's shared expert and dense first layer have them."""
    base = base_of(config_of("deepseek_v3"))
    with pytest.raises(SpecError, match="'up_proj' cannot be adapted on a mixture of experts"):
        build_adapter(LoraSpec(target_modules=("up_proj",)), base, seed=0)
    everything = build_adapter(LoraSpec(), base, seed=0)
    assert everything.site_ops
    assert all(".self_attn." in site for site in everything.site_ops)
