"""The keys of a LLaMA-Factory config, as its arguments have them. Its data sets are in `llamafactory_data`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from mlora_sched.convert import llamafactory_data, reasons, trainer
from mlora_sched.convert.adapter_keys import MethodKeys, base_name, method_of, method_rules
from mlora_sched.convert.llamafactory_left_out import DROPPED, FAMILIES, REFUSED
from mlora_sched.convert.result import Source
from mlora_sched.convert.table import (
    Foreign,
    Key,
    Outcome,
    Rule,
    by_reason,
    changed,
    copy,
    drop,
    dropped,
    mapped,
    number,
    refuse,
    switch,
    text,
    texts,
    whole,
)
from mlora_sched.errors import SpecError

NAMES = trainer.Names(
    rows="per_device_train_batch_size",
    rows_default=8,
    total="",
    epochs="num_train_epochs",
    epochs_default=3.0,
    scheduler="lr_scheduler_type",
    optimizer="optim",
    held_out=("val_size", "eval_dataset"),
    packing="packing",
)
METHODS = MethodKeys(dora="use_dora", rslora="use_rslora")
_DEFAULT_RANK = 8
_DEFAULT_SAVE_STEPS = 500


def _stage(key: Key) -> Outcome:
    return mapped({"objective.type": "sft"}) if key.value == "sft" else key.refuse(reasons.NOT_SFT)


def _finetuning_type(key: Key) -> Outcome:
    if key.value != "lora":
        key.refuse("trains weights of the base, which is shared and frozen here; write finetuning_type: lora")
    return mapped({"adapter.method": method_of(key.document, METHODS)})


def _model(key: Key) -> Outcome:
    return changed({"base_model": base_name(text(key))}, f"the name under which `serve --base {key.value}` serves it")


def _targets(key: Key) -> Outcome:
    names = texts(key)
    if names == ["all"]:
        return mapped({"adapter.target_modules": "all-linear"})
    return mapped({"adapter.target_modules": list[JsonValue](names)})


def _start(key: Key) -> Outcome:
    folders = texts(key)
    if len(folders) > 1:
        key.refuse("a job starts from one adapter; keep the one to go on with")
    return mapped({"adapter.init_from": folders[0]})


def _val_size(key: Key) -> Outcome:
    size = number(key)
    if size == 0:
        return dropped("nothing is held out")
    if not key.sibling("eval_dataset").is_off:
        key.refuse("eval_dataset is set, too; keep one of them")
    if size >= 1:
        return dropped(
            "a number of rows: write their share (such as 0.05), or a file, as data.validation; until then "
            "nothing is held out"
        )
    fields: dict[str, JsonValue] = {"data.validation": size}
    if key.document.get("eval_strategy") in (None, "no"):
        return changed(fields, "held-out rows are evaluated every epoch here")
    return mapped(fields)


def _train_on(key: Key) -> Outcome:
    """`train_on_prompt` and `mask_history`, which exclude one another."""
    whole_row, last = switch(key.sibling("train_on_prompt")), switch(key.sibling("mask_history"))
    if whole_row and last:
        key.refuse("train_on_prompt and mask_history are both set; keep one of them")
    return mapped({"data.train_on": "all" if whole_row else "last" if last else "answers"})


def _shuffling(key: Key) -> Outcome:
    return mapped({"data.shuffle": not switch(key)})


def _eval_at(key: Key) -> Outcome:
    if not trainer.held_out(key.document, NAMES):
        return dropped("there is nothing to evaluate on")
    strategy = key.document.get("eval_strategy") or "no"
    if key.name == "eval_strategy" and key.value == "no":
        return dropped(
            "held-out rows are evaluated before the first and after the last step all the same, and every epoch"
        )
    return _at("training.eval_every", key, strategy, "eval_steps")


def _save_at(key: Key) -> Outcome:
    strategy = key.document.get("save_strategy") or "steps"
    if key.name == "save_strategy" and key.value == "no":
        return dropped("no checkpoint is kept; crashes cost no more than a minute all the same")
    return _at("training.save_every", key, strategy, "save_steps")


def _at(target: str, key: Key, strategy: object, steps: str) -> Outcome:
    """An interval from a strategy and its number of steps; either key may be the one that is looked at."""
    if strategy not in ("steps", "epoch", "best", "no"):
        name = steps.replace("steps", "strategy")
        key.sibling(name).refuse("is no strategy; write steps, epoch or no")
    if key.name != steps:
        if strategy == "steps":
            return dropped(f"{steps} decides")
        fields: dict[str, JsonValue] = {target: "epoch"}
        return (
            mapped(fields) if strategy == "epoch" else changed(fields, "every epoch, and each new best held-out loss")
        )
    return trainer.at_interval(target, NAMES, key) if strategy == "steps" else dropped("the strategy decides")


def _defaults(document: Mapping[str, Any]) -> dict[str, tuple[JsonValue, str]]:
    found: dict[str, tuple[JsonValue, str]] = {
        field: (value, f"{name} is {value} where it is not set")
        for name, field, value in (
            ("cutoff_len", "data.max_length", 2048),
            ("learning_rate", "training.learning_rate", 5e-5),
            ("lr_scheduler_type", "training.lr_scheduler", "linear"),
        )
        if document.get(name) is None
    }
    if document.get("lora_alpha") is None:
        rank = document.get("lora_rank")
        alpha = 2 * (_DEFAULT_RANK if rank is None else whole(Key("lora_rank", rank, document)))
        found["adapter.alpha"] = (alpha, "lora_alpha is twice lora_rank where it is not set")
    if document.get("warmup_ratio") is None and document.get("warmup_steps") is None:
        found["training.warmup_ratio"] = (0.0, "there is no warm-up where none is set")
    if (document.get("save_strategy") or "steps") == "steps" and document.get("save_steps") is None:
        found["training.save_every"] = (_DEFAULT_SAVE_STEPS, f"save_steps is {_DEFAULT_SAVE_STEPS} where it is not set")
    return found | trainer.batch_default(document, NAMES) | trainer.epochs_default(document, NAMES)


_RULES: dict[str, Rule] = {
    **by_reason(drop, DROPPED),
    **by_reason(refuse, REFUSED),
    **trainer.rules(NAMES),
    **method_rules(METHODS),
    "stage": _stage,
    "finetuning_type": _finetuning_type,
    "model_name_or_path": _model,
    "adapter_name_or_path": _start,
    "lora_rank": copy("adapter.r", whole),
    "lora_alpha": copy("adapter.alpha", number),
    "lora_dropout": copy("adapter.dropout", number),
    "lora_target": _targets,
    "cutoff_len": copy("data.max_length", whole),
    "val_size": _val_size,
    "train_on_prompt": _train_on,
    "mask_history": _train_on,
    "disable_shuffling": _shuffling,
    "eval_strategy": _eval_at,
    "eval_steps": _eval_at,
    "save_strategy": _save_at,
    "save_steps": _save_at,
}


def _has_data(document: Mapping[str, Any]) -> None:
    """LoRA and SFT are what is done where nothing is said; data must be named."""
    if "dataset" not in document:
        raise SpecError("dataset: is missing; name a data set, or a file such as rows.jsonl")


def llamafactory(dataset_info: Mapping[str, Any] | None) -> Foreign:
    """The table, for the data sets of a `dataset_info.json`, or none to look names up in."""
    return Foreign(
        source=Source.LLAMAFACTORY,
        rules=_RULES | llamafactory_data.rules(dataset_info),
        families=by_reason(drop, FAMILIES),
        kept_empty=frozenset(),
        nested=lambda _: {},
        check=_has_data,
        defaults=_defaults,
    )
