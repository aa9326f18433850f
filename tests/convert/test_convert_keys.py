"""Every key of a config is accounted for exactly once, and what comes out is a spec or an error that names a key."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlora_sched.convert.build import TABLES, convert, detect
from mlora_sched.convert.result import Conversion, Source
from mlora_sched.errors import SpecError
from mlora_sched.spec.job import JobSpec, parse_job

SMALL = st.integers(1, 64)
SHARE = st.floats(0.01, 0.99)
EITHER = st.booleans()
ANYTHING = st.one_of(
    st.none(), EITHER, st.integers(-5, 2000), st.floats(-1, 10), st.text("a1-. é", max_size=4), st.just([])
)
FILES = st.sampled_from(["a.jsonl", "sets/b.parquet", "someone/data", "./c.csv"])
RATE = st.one_of(st.floats(1e-6, 1e-2), st.just("2e-4"))
SCHEDULES = st.sampled_from(["cosine", "linear", "constant", "constant_with_warmup", "polynomial"])
OPTIMIZERS = st.sampled_from(["adamw_torch", "adamw_bnb_8bit", "paged_adamw_32bit"])
INTERVAL = st.one_of(SMALL, SHARE)
STRATEGY = st.sampled_from(["steps", "epoch", "no", "best"])
COMMON = {
    "gradient_accumulation_steps": SMALL,
    "max_steps": st.one_of(SMALL, st.just(-1)),
    "learning_rate": RATE,
    "warmup_ratio": SHARE,
    "warmup_steps": st.one_of(st.integers(0, 50), SHARE),
    "weight_decay": SHARE,
    "max_grad_norm": SHARE,
    "adam_beta2": SHARE,
    "seed": st.integers(0, 2**31),
    "lora_alpha": SMALL,
    "lora_dropout": st.floats(0, 0.9),
    "loraplus_lr_ratio": st.floats(1, 32),
    "save_steps": INTERVAL,
    "save_strategy": STRATEGY,
    "save_total_limit": st.integers(0, 5),
    "eval_steps": INTERVAL,
    "eval_strategy": STRATEGY,
    "logging_steps": SMALL,
    "deepspeed": st.just("zero2.json"),
    "bf16": EITHER,
}
DATA_SET = st.fixed_dictionaries(
    {"path": FILES},
    optional={
        "type": st.sampled_from(["alpaca", "chat_template", "completion", "sharegpt"]),
        "data_files": st.one_of(FILES, st.lists(FILES, min_size=1, max_size=2)),
        "ds_type": st.just("json"),
        "field_messages": st.sampled_from(["messages", "turns"]),
        "roles_to_train": st.just(["assistant"]),
        "shards": SMALL,
        "no_such_field": ANYTHING,
    },
)
AXOLOTL = COMMON | {
    "base_model": st.just("meta-llama/Llama-3.1-8B"),
    "micro_batch_size": SMALL,
    "batch_size": SMALL,
    "num_epochs": SMALL,
    "lr_scheduler": SCHEDULES,
    "optimizer": OPTIMIZERS,
    "lora_r": SMALL,
    "lora_target_linear": EITHER,
    "lora_target_modules": st.sampled_from([["q_proj", "v_proj"], ["mlp.down_proj"], "all-linear"]),
    "peft_use_dora": EITHER,
    "peft_use_rslora": EITHER,
    "sequence_len": st.integers(8, 4096),
    "excess_length_strategy": st.sampled_from(["drop", "truncate", "raise"]),
    "val_set_size": st.one_of(SHARE, st.just(0), st.just(500)),
    "test_datasets": st.lists(DATA_SET, max_size=2),
    "train_on_inputs": EITHER,
    "curriculum_sampling": EITHER,
    "chat_template": st.sampled_from(["tokenizer_default", "llama3", "jinja"]),
    "chat_template_jinja": st.sampled_from(["house.jinja", "{% for m in messages %}{% endfor %}"]),
    "evals_per_epoch": SMALL,
    "saves_per_epoch": SMALL,
    "wandb_project": st.just("p"),
    "sample_packing": EITHER,
    "lora_modules_to_save": st.sampled_from([[], ["lm_head"], None]),
    "rl": st.sampled_from([None, "dpo"]),
}
LLAMAFACTORY = COMMON | {
    "model_name_or_path": st.just("Qwen/Qwen3-4B"),
    "adapter_name_or_path": st.sampled_from(["saves/one", "saves/one,saves/two"]),
    "per_device_train_batch_size": SMALL,
    "num_train_epochs": SMALL,
    "lr_scheduler_type": SCHEDULES,
    "optim": OPTIMIZERS,
    "stage": st.sampled_from(["sft", "dpo"]),
    "finetuning_type": st.sampled_from(["lora", "full"]),
    "lora_rank": SMALL,
    "lora_target": st.sampled_from(["all", "q_proj,v_proj", ["q_proj"]]),
    "use_dora": EITHER,
    "use_rslora": EITHER,
    "cutoff_len": st.integers(8, 4096),
    "val_size": st.one_of(SHARE, st.just(0), st.just(500)),
    "eval_dataset": st.just("held_out"),
    "train_on_prompt": EITHER,
    "mask_history": EITHER,
    "disable_shuffling": EITHER,
    "template": st.sampled_from(["llama3", "alpaca", "empty"]),
    "dataset_dir": st.sampled_from(["data", "sets"]),
    "packing": EITHER,
    "additional_target": st.sampled_from([None, "lm_head"]),
}
UNKNOWN = st.dictionaries(st.sampled_from(["lora_rr", "zzz", "wandb_new", "Learning_Rate"]), ANYTHING, max_size=2)


def some(always: dict[str, st.SearchStrategy[Any]], known: dict[str, st.SearchStrategy[Any]]) -> Any:
    """Documents with the keys of `always` and a few of the known ones, in any order."""
    keys = st.lists(st.sampled_from(sorted(known)), unique=True, max_size=9)
    return keys.flatmap(lambda names: st.fixed_dictionaries({name: known[name] for name in names} | always))


AXOLOTL_CONFIGS = some(
    {"datasets": st.lists(DATA_SET, min_size=1, max_size=2), "adapter": st.sampled_from(["lora", "qlora"])}, AXOLOTL
)
LLAMAFACTORY_CONFIGS = some({"dataset": st.sampled_from(["one", "one,two", ["two"]])}, LLAMAFACTORY)
INFOS = st.one_of(
    st.none(),
    st.just({"one": {"file_name": "one.json"}}),
    st.just({"two": {"hf_hub_url": "x/y", "formatting": "sharegpt", "tags": {"role_tag": "role"}}}),
)


def flat(document: dict[str, Any]) -> list[str]:
    """The keys of a document as a reader would count them: a data set's keys by their place."""
    keys: list[str] = []
    for key, value in document.items():
        if key in ("datasets", "test_datasets") and isinstance(value, list) and value and isinstance(value[0], dict):
            keys += [f"{key}.{place}.{inner}" for place, record in enumerate(value) for inner in record]
        else:
            keys.append(key)
    return sorted(keys)


def accounted(result: Conversion) -> list[str]:
    return sorted(entry.key for entry in (*result.mapped, *result.changed, *result.dropped))


def attempt(document: dict[str, Any], source: Source, info: dict[str, Any] | None = None) -> Conversion | SpecError:
    try:
        return convert(document, "job", source=source, dataset_info=info, where="c.yml")
    except SpecError as error:
        return error


def check(document: dict[str, Any], result: Conversion | SpecError) -> None:
    if isinstance(result, SpecError):
        named = [key for key in flat(document) if f"c.yml: {key}" in result.message]
        assert named, result.message
        return
    assert accounted(result) == flat(document)
    assert isinstance(parse_job(result.spec), JobSpec)
    assert all(entry.reason for entry in (*result.changed, *result.dropped, *result.filled))
    assert not any(entry.fields for entry in result.dropped)
    set_by = {field for entry in (*result.mapped, *result.changed, *result.filled) for field in entry.fields}
    assert set_by == {
        f"{section}.{name}" if isinstance(value, dict) else section
        for section, value in result.spec.items()
        for name in (value if isinstance(value, dict) else [""])
    }


@settings(deadline=None)
@given(AXOLOTL_CONFIGS, UNKNOWN)
def test_every_key_of_axolotl_is_accounted_for(document: dict[str, Any], unknown: dict[str, Any]) -> None:
    check(document | unknown, attempt(document | unknown, Source.AXOLOTL))


@settings(deadline=None)
@given(LLAMAFACTORY_CONFIGS, UNKNOWN, INFOS)
def test_every_key_of_llamafactory_is_accounted_for(
    document: dict[str, Any], unknown: dict[str, Any], info: dict[str, Any] | None
) -> None:
    check(document | unknown, attempt(document | unknown, Source.LLAMAFACTORY, info))


@pytest.mark.parametrize("source", Source)
@settings(deadline=None)
@given(st.data())
def test_any_value_of_a_known_key_is_read_or_refused(source: Source, data: st.DataObject) -> None:
    """Values of other types than the key's own must not get through as something else, nor end in a traceback."""
    start: dict[str, Any] = (
        {"adapter": "lora", "datasets": [{"path": "a.jsonl"}]}
        if source is Source.AXOLOTL
        else {"dataset": "one", "stage": "sft"}
    )
    known = st.sampled_from(sorted(TABLES[source].rules))
    values = st.one_of(ANYTHING, st.just({"a": 1}), st.just([1]), st.just(["x"]))
    document = start | data.draw(st.dictionaries(known, values, min_size=1, max_size=3))
    check(document, attempt(document, source))


@settings(deadline=None)
@given(AXOLOTL_CONFIGS, LLAMAFACTORY_CONFIGS)
def test_whose_config_it_is_is_told_by_its_keys(axolotl: dict[str, Any], llamafactory: dict[str, Any]) -> None:
    assert detect(axolotl) is Source.AXOLOTL
    assert detect(llamafactory | {"finetuning_type": "lora"}) is Source.LLAMAFACTORY
