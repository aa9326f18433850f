"""The keys of an Axolotl config, as its documentation and schemas have them. Its data sets are in `axolotl_data`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from mlora_sched.convert import axolotl_data, reasons, trainer
from mlora_sched.convert.adapter_keys import MethodKeys, base_name, method_of, method_rules
from mlora_sched.convert.axolotl_left_out import DROPPED, FAMILIES, REFUSED
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
    whole,
)
from mlora_sched.errors import SpecError

NAMES = trainer.Names(
    rows="micro_batch_size",
    rows_default=1,
    total="batch_size",
    epochs="num_epochs",
    epochs_default=1.0,
    scheduler="lr_scheduler",
    optimizer="optimizer",
    held_out=("val_set_size", "test_datasets"),
    packing="sample_packing",
)
METHODS = MethodKeys(dora="peft_use_dora", rslora="peft_use_rslora")


def _adapter(key: Key) -> Outcome:
    fields: dict[str, JsonValue] = {"adapter.method": method_of(key.document, METHODS)}
    if key.value == "lora":
        return mapped(fields)
    if key.value == "qlora":
        return changed(fields, f"LoRA; {reasons.FOUR_BITS}")
    if key.value is None:
        return key.refuse("trains all weights of the base, which is shared and frozen here; write adapter: lora")
    return key.refuse("is no method that can be converted; write lora or qlora")


def _base_model(key: Key) -> Outcome:
    name = base_name(text(key))
    return changed({"base_model": name}, f"the name under which `serve --base {key.value}` serves it")


def _targets(key: Key) -> Outcome:
    if switch(key.sibling("lora_target_linear")):
        return mapped({"adapter.target_modules": "all-linear"})
    if key.name == "lora_target_linear":
        return dropped("is off")
    if key.value == "all-linear":
        return mapped({"adapter.target_modules": "all-linear"})
    if isinstance(key.value, list) and all(isinstance(name, str) and _is_path(name) for name in key.value):
        return mapped({"adapter.target_modules": list(key.value)})
    return key.refuse("patterns are not read; name modules such as [q_proj, v_proj]")


def _is_path(name: str) -> bool:
    return all(part.isidentifier() or part.isdecimal() for part in name.split("."))


def _sequence_len(key: Key) -> Outcome:
    strategy = key.document.get("excess_length_strategy")
    fields: dict[str, JsonValue] = {"data.max_length": whole(key)}
    if strategy == "truncate":
        return mapped(fields)
    there = "stops at them" if strategy == "raise" else "leaves them out"
    return changed(fields, f"{reasons.LONG_ROWS} (and counted), Axolotl {there}")


def _val_set_size(key: Key) -> Outcome:
    size = number(key)
    if size == 0:
        return dropped("nothing is held out")
    if not key.sibling("test_datasets").is_off:
        key.refuse("test_datasets is set, too; keep one of them")
    if size >= 1:
        return dropped(
            "a number of rows: write their share (such as 0.05), or a file, as data.validation; until then "
            "nothing is held out"
        )
    return mapped({"data.validation": size})


def _train_on_inputs(key: Key) -> Outcome:
    return mapped({"data.train_on": "all" if switch(key) else "answers"})


def _curriculum(key: Key) -> Outcome:
    return mapped({"data.shuffle": not switch(key)})


def _eval_at(key: Key) -> Outcome:
    """`eval_steps`, `evals_per_epoch`, `eval_strategy`: the first of them that is set decides."""
    if not trainer.held_out(key.document, NAMES):
        return dropped("there is nothing to evaluate on")
    return _at("training.eval_every", key, ("eval_steps", "evals_per_epoch", "eval_strategy"))


def _save_at(key: Key) -> Outcome:
    return _at("training.save_every", key, ("save_steps", "saves_per_epoch", "save_strategy"))


def _at(target: str, key: Key, names: tuple[str, str, str]) -> Outcome:
    first = next(name for name in names if name in key.document)
    steps, per_epoch, _ = names
    if key.name != first:
        return dropped(f"{first} decides")
    if key.name == steps:
        return trainer.at_interval(target, NAMES, key)
    if key.name == per_epoch:
        count = number(key)
        if count <= 0:
            key.refuse("is no number of times")
        fields: dict[str, JsonValue] = {target: trainer.epoch_share(1 / count)}
        return mapped(fields) if count == 1 else changed(fields, f"{count:g} times an epoch")
    return _strategy(target, key)


def _strategy(target: str, key: Key) -> Outcome:
    if key.value == "epoch":
        return mapped({target: "epoch"})
    if key.value == "best":
        return changed({target: "epoch"}, "a new best held-out loss is saved, and every epoch")
    if key.value == "no":
        evaluates = target == "training.eval_every"
        what = "held-out rows are evaluated before the first and after the last step all the same, and every epoch"
        return dropped(what if evaluates else "no checkpoint is kept; crashes cost no more than a minute all the same")
    if key.value == "steps":
        return dropped("the number of steps is missing")
    return key.refuse("is no strategy; write steps, epoch or no")


def _trains_an_adapter(document: Mapping[str, Any]) -> None:
    """Refuse what says nothing of an adapter, because then there is none, and what has no data."""
    if "adapter" not in document:
        raise SpecError(
            "adapter: is missing: without it Axolotl trains all weights of the base, which is shared and frozen here; "
            "write adapter: lora"
        )
    if "datasets" not in document:
        raise SpecError("datasets: is missing; write - path: rows.jsonl and its type")


def _defaults(document: Mapping[str, Any]) -> dict[str, tuple[JsonValue, str]]:
    found: dict[str, tuple[JsonValue, str]] = {}
    if document.get("sequence_len") is None:
        found["data.max_length"] = (512, "sequence_len is 512 where it is not set")
    if not {"save_steps", "saves_per_epoch", "save_strategy"} & document.keys():
        found["training.save_every"] = ("epoch", "Axolotl saves every epoch where nothing else is set")
    return found | trainer.batch_default(document, NAMES) | trainer.epochs_default(document, NAMES)


_RULES: dict[str, Rule] = {
    **by_reason(drop, DROPPED),
    **by_reason(refuse, REFUSED),
    **trainer.rules(NAMES),
    **method_rules(METHODS),
    "base_model": _base_model,
    "adapter": _adapter,
    "lora_r": copy("adapter.r", whole),
    "lora_alpha": copy("adapter.alpha", number),
    "lora_dropout": copy("adapter.dropout", number),
    "lora_target_modules": _targets,
    "lora_target_linear": _targets,
    "lora_model_dir": copy("adapter.init_from", text),
    "sequence_len": _sequence_len,
    "val_set_size": _val_set_size,
    "train_on_inputs": _train_on_inputs,
    "curriculum_sampling": _curriculum,
    "chat_template": axolotl_data.chat_template,
    "chat_template_jinja": axolotl_data.chat_template_jinja,
    "datasets": axolotl_data.no_datasets,
    "test_datasets": axolotl_data.no_datasets,
    "eval_steps": _eval_at,
    "evals_per_epoch": _eval_at,
    "eval_strategy": _eval_at,
    "save_steps": _save_at,
    "saves_per_epoch": _save_at,
    "save_strategy": _save_at,
}

AXOLOTL = Foreign(
    source=Source.AXOLOTL,
    rules=_RULES,
    families=by_reason(drop, FAMILIES),
    kept_empty=frozenset({"adapter"}),
    nested=axolotl_data.nested,
    check=_trains_an_adapter,
    defaults=_defaults,
)
