"""What both trainers take from the Trainer of transformers: length, batch, schedule, optimiser, evaluation, saving.

Their names for it differ a little, so rules are made from a `Names`. Data and adapters are not the Trainer's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from mlora_sched.convert.table import (
    Key,
    Outcome,
    Rule,
    changed,
    copy,
    drop,
    dropped,
    equals,
    mapped,
    number,
    text,
    whole,
)

_SCHEDULES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
_NEAR_SCHEDULES = {
    "polynomial": "linear",
    "cosine_with_restarts": "cosine",
    "cosine_with_min_lr": "cosine",
    "cosine_warmup_with_min_lr": "cosine",
    "one_cycle": "cosine",
    "rex": "cosine",
    "inverse_sqrt": "cosine",
    "warmup_stable_decay": "constant",
}
_ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw_torch_xla", "adamw")
_ADAMW_SMALL = (
    "adamw_8bit",
    "adamw_bnb_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw",
    "adamw_torch_8bit",
    "adamw_torch_4bit",
    "adamw_anyprecision",
)


@dataclass(frozen=True)
class Names:
    """How a trainer calls what the rules ask for, and its defaults.

    Attributes:
        rows: rows of one device's forward; `rows_default` where it is not set. total: rows of a step, "" for none.
        epochs, scheduler, optimizer: the keys. epochs_default: where neither epochs nor max_steps is set.
        held_out: keys of which one says that rows are held out.
        packing: the key that puts several rows into one sequence.
    """

    rows: str
    rows_default: int
    total: str
    epochs: str
    epochs_default: float
    scheduler: str
    optimizer: str
    held_out: tuple[str, ...]
    packing: str


def rules(names: Names) -> Mapping[str, Rule]:
    """The table of the Trainer's keys."""
    batch = _batch_rule(names)
    total = {names.total: batch} if names.total else {}
    return total | {
        names.rows: batch,
        "gradient_accumulation_steps": batch,
        names.epochs: _epochs,
        "max_steps": _max_steps,
        "learning_rate": copy("training.learning_rate", number),
        names.scheduler: _scheduler,
        "warmup_ratio": _warmup_rule(names),
        "warmup_steps": _warmup_rule(names),
        names.optimizer: _optimizer,
        "weight_decay": copy("training.weight_decay", number),
        "max_grad_norm": copy("training.max_grad_norm", number),
        "adam_beta1": equals(0.9, "AdamW's first beta is 0.9 here and cannot be set"),
        "adam_beta2": equals(0.999, "AdamW's second beta is 0.999 here and cannot be set"),
        "adam_epsilon": equals(1e-8, "AdamW's epsilon is 1e-8 here and cannot be set"),
        "seed": copy("training.seed", whole),
        "save_total_limit": _save_total_limit,
        "logging_steps": drop("every step's figures are kept (`mlora-sched logs`, `metrics.jsonl`)"),
    }


# ---------------------------------------------------------------------- length and batch


def max_steps(document: Mapping[str, Any]) -> int | None:
    """Steps that the document fixes, or None where its epochs decide."""
    key = Key("max_steps", document.get("max_steps"), document)
    steps = 0 if key.value is None else whole(key)
    return steps if steps > 0 else None


def _max_steps(key: Key) -> Outcome:
    steps = max_steps(key.document)
    return dropped("sets no limit") if steps is None else mapped({"training.max_steps": steps})


def _epochs(key: Key) -> Outcome:
    if max_steps(key.document) is not None:
        return dropped("max_steps decides")
    return mapped({"training.epochs": number(key)})


def _batch_rule(names: Names) -> Rule:
    def rule(key: Key) -> Outcome:
        rows, how = _batch(key, names)
        if names.total and key.name != names.total and not key.sibling(names.total).is_off:
            how = f"{names.total} decides: {how}"
        return changed({"training.batch_size": rows}, how)

    return rule


def _batch(key: Key, names: Names) -> tuple[int, str]:
    """Rows of an optimiser step, and how they come about."""
    packed = (
        f"; with {names.packing} these were packed sequences of several rows each, here they are rows: raise it"
        if not key.sibling(names.packing).is_off
        else ""
    )
    if names.total and not (total := key.sibling(names.total)).is_off:
        return whole(total), f"rows of one step on all devices{packed}"
    rows, steps = key.sibling(names.rows), key.sibling("gradient_accumulation_steps")
    row_count = names.rows_default if rows.is_off else whole(rows)
    step_count = 1 if steps.is_off else whole(steps)
    return row_count * step_count, (
        f"{names.rows} {row_count} × gradient_accumulation_steps {step_count} = {row_count * step_count} "
        f"(× the number of GPUs, if there were several){packed}"
    )


def batch_default(document: Mapping[str, Any], names: Names) -> dict[str, tuple[JsonValue, str]]:
    """The batch of a document that does not speak of it."""
    asked = (names.rows, "gradient_accumulation_steps", *([names.total] if names.total else []))
    if any(document.get(name) is not None for name in asked):
        return {}
    return {"training.batch_size": (names.rows_default, f"{names.rows} is {names.rows_default} where it is not set")}


def epochs_default(document: Mapping[str, Any], names: Names) -> dict[str, tuple[JsonValue, str]]:
    """The length of a document that does not speak of it."""
    if max_steps(document) is not None or document.get(names.epochs) is not None:
        return {}
    return {
        "training.epochs": (names.epochs_default, f"{names.epochs} is {names.epochs_default:g} where it is not set")
    }


# ---------------------------------------------------------------------- schedule and optimiser


def _scheduler(key: Key) -> Outcome:
    name = text(key)
    if name in _SCHEDULES:
        return mapped({"training.lr_scheduler": _SCHEDULES[name]})
    if name in _NEAR_SCHEDULES:
        near = _NEAR_SCHEDULES[name]
        return changed({"training.lr_scheduler": near}, f"{name} is not there; {near} is the nearest")
    return key.refuse("is no schedule that is there; write cosine, linear or constant")


def _warmup_rule(names: Names) -> Rule:
    def rule(key: Key) -> Outcome:
        steps, ratio = key.sibling("warmup_steps"), key.sibling("warmup_ratio")
        if key.document.get(names.scheduler) == "constant":
            return changed({"training.warmup_ratio": 0.0}, "the constant schedule has no warm-up there")
        if steps.is_off or number(steps) == 0:
            by_steps = ratio.is_off
            value = 0.0 if by_steps else number(ratio)
            fields: dict[str, JsonValue] = {"training.warmup_ratio": value}
            return mapped(fields) if by_steps or key.name == "warmup_ratio" else dropped("warmup_ratio decides")
        if key.name == "warmup_ratio":
            return dropped("warmup_steps decides")
        return _warmup_steps(steps)

    return rule


def _warmup_steps(key: Key) -> Outcome:
    steps, total = number(key), max_steps(key.document)
    if 0 < steps < 1:  # newer releases of transformers read it as a share
        return mapped({"training.warmup_ratio": steps})
    if total is None:
        return dropped(
            f"here it is a share of all steps, which are not known yet: write {whole(key)}/steps as "
            f"training.warmup_ratio (`validate --base` counts them); until then it is the default, 0.03"
        )
    return changed({"training.warmup_ratio": warmup_share(whole(key), total)}, f"{whole(key)} of {total} steps")


def warmup_share(steps: int, total: int) -> float:
    """The ratio whose warm-up is `steps` of `total` (at most all of them), as few digits as that takes."""
    if steps >= total:
        return 1.0
    for digits in range(1, 17):
        share = round(steps / total, digits)
        if math.ceil(share * total) == steps:
            return share
    return math.nextafter(steps / total, 0.0)  # the quotient itself may be rounded to more than that many steps


def _optimizer(key: Key) -> Outcome:
    fields: dict[str, JsonValue] = {"training.optimizer": "adamw"}
    if key.value in _ADAMW:
        return mapped(fields)
    if key.value in _ADAMW_SMALL:
        return changed(fields, f"AdamW's state is float32 here, not as {key.value} keeps it")
    return key.refuse("is not there; write adamw_torch, and choose the learning rate anew")


# ---------------------------------------------------------------------- evaluation and saving


def held_out(document: Mapping[str, Any], names: Names) -> bool:
    """Whether there is something to evaluate on."""
    return any(not Key(name, document.get(name), document).is_off and document[name] != 0 for name in names.held_out)


def every(key: Key, names: Names) -> tuple[JsonValue, str]:
    """An interval as ours, and a reason where it is not written the same: steps, or a share (below 1) of all steps."""
    value = number(key)
    if value >= 1:
        return whole(key), ""
    if value <= 0:
        key.refuse("is no number of steps and no share of them")
    total = max_steps(key.document)
    if total is not None:
        return max(1, round(value * total)), f"{value:g} of {total} steps"
    epochs = key.sibling(names.epochs)
    count = names.epochs_default if epochs.value is None else number(epochs)
    return epoch_share(value * count), f"{value:g} of {count:g} epochs"


def epoch_share(share: float) -> str:
    """A share of an epoch as our intervals are written."""
    return "epoch" if share == 1 else f"{max(share, 1e-6):.6f}".rstrip("0").rstrip(".") + "ep"


def at_interval(target: str, names: Names, key: Key) -> Outcome:
    """`key` says how often; `target` is our field."""
    value, reason = every(key, names)
    return changed({target: value}, reason) if reason else mapped({target: value})


def _save_total_limit(key: Key) -> Outcome:
    limit = whole(key)
    return mapped({"training.save_total_limit": limit}) if limit >= 1 else dropped("sets no limit; here it is 2")
