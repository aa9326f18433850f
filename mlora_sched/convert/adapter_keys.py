"""What both trainers take from PEFT: which method an adapter has. Targets are written differently, see the tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from mlora_sched.convert.reasons import ONE_METHOD
from mlora_sched.convert.table import Key, Outcome, Rule, dropped, mapped, number, switch

LOADED = "loraplus_lr_ratio"


@dataclass(frozen=True)
class MethodKeys:
    """How a trainer calls the switches for DoRA and rsLoRA."""

    dora: str
    rslora: str


def method_of(document: Mapping[str, Any], keys: MethodKeys) -> str:
    """The one method that a document's switches ask for.

    Raises:
        SpecError: they ask for two.
    """
    asked = {
        name: method
        for name, method in {keys.dora: "dora", keys.rslora: "rslora", LOADED: "loraplus"}.items()
        if not Key(name, document.get(name), document).is_off
    }
    if len(asked) > 1:
        Key(min(asked), document[min(asked)], document).refuse(ONE_METHOD.format(" and ".join(sorted(asked))))
    return next(iter(asked.values()), "lora")


def method_rules(keys: MethodKeys) -> Mapping[str, Rule]:
    """Rules for the switches."""

    def switched(key: Key) -> Outcome:
        return _method(key, keys) if switch(key) else dropped("is off")

    def ratio(key: Key) -> Outcome:
        return mapped({"adapter.method": method_of(key.document, keys), "adapter.lr_ratio": number(key)})

    return {keys.dora: switched, keys.rslora: switched, LOADED: ratio}


def _method(key: Key, keys: MethodKeys) -> Outcome:
    fields: dict[str, JsonValue] = {"adapter.method": method_of(key.document, keys)}
    return mapped(fields)


def base_name(location: str) -> str:
    """Under which name `serve --base LOCATION` serves a base: the last part of its path or repository."""
    return location.rstrip("/").rpartition("/")[2].partition("@")[0]
