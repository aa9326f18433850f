"""What the tables of foreign keys are made of: a key, what comes of it, and rules for the common cases.

A rule is a pure function of a key and of the document it stands in, so that keys which decide a field together may be
met in any order: each of them gives the same value. Rules of one trainer only are in that trainer's module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from pydantic import JsonValue

from mlora_sched.convert.result import Fate, Source
from mlora_sched.errors import SpecError, shown


@dataclass(frozen=True)
class Key:
    """A key of a foreign document.

    Attributes:
        name: as users are told of it, with its place where it stands in a list.
        value: as it was decoded.
        document: the whole document, without keys that have no value.
    """

    name: str
    value: Any
    document: Mapping[str, Any]

    def sibling(self, name: str) -> Key:
        """Another key of the document's top level, whose value is None when it is not there."""
        return Key(name, self.document.get(name), self.document)

    @property
    def is_off(self) -> bool:
        """Nothing is asked for: no value, or false."""
        return self.value is None or self.value is False

    def refuse(self, why: str) -> NoReturn:
        """Say that the document cannot be converted because of this key."""
        raise SpecError(f"{self.name}: {shown(self.value)}: {why}")


@dataclass(frozen=True)
class Outcome:
    """What comes of a key: its fate, why, and the dotted fields of the spec with their values."""

    fate: Fate
    reason: str = ""
    fields: Mapping[str, JsonValue] = field(default_factory=dict)


Rule = Callable[[Key], Outcome]
Reader = Callable[[Key], JsonValue]


@dataclass(frozen=True)
class Foreign:
    """All that is known of one trainer's configs.

    Attributes:
        rules: by key. families: by the beginning of a key, for whole groups of them.
        kept_empty: keys that mean something even without a value.
        nested: takes keys that hold records of their own apart: gives each inner key with its rule.
        check: raises where the document as a whole asks for what cannot be done.
        defaults: fields that are not set by any key though the trainer's default is not ours, with the reason.
    """

    source: Source
    rules: Mapping[str, Rule]
    families: Mapping[str, Rule]
    kept_empty: frozenset[str]
    nested: Callable[[Mapping[str, Any]], Mapping[str, Sequence[tuple[Key, Rule]]]]
    check: Callable[[Mapping[str, Any]], None]
    defaults: Callable[[Mapping[str, Any]], Mapping[str, tuple[JsonValue, str]]]

    def rule_of(self, name: str) -> Rule | None:
        """The rule for a key; None for one that nobody knows."""
        if name in self.rules:
            return self.rules[name]
        return next((rule for start, rule in self.families.items() if name.startswith(start)), None)


# ---------------------------------------------------------------------- reading values


def whole(key: Key) -> int:
    """A whole number.

    Raises:
        SpecError: it is none.
    """
    value = number(key)
    if not value.is_integer():
        key.refuse("is no whole number")
    return int(value)


def number(key: Key) -> float:
    """A finite number, also one that YAML takes for text (`1e-4`).

    Raises:
        SpecError: it is none.
    """
    try:
        value = float("nan") if isinstance(key.value, bool) else float(key.value)
    except (ValueError, TypeError, OverflowError):
        value = float("nan")
    return value if math.isfinite(value) else key.refuse("is no number")


def text(key: Key) -> str:
    """A text that is not empty.

    Raises:
        SpecError: it is none.
    """
    if not isinstance(key.value, str) or not key.value:
        key.refuse("is no text")
    return key.value


def switch(key: Key) -> bool:
    """True or false; no value is false.

    Raises:
        SpecError: it is something else.
    """
    if key.value is not None and not isinstance(key.value, bool):
        key.refuse("is neither true nor false")
    return bool(key.value)


def texts(key: Key) -> list[str]:
    """Several texts: a list, or one text with commas between them.

    Raises:
        SpecError: it is neither.
    """
    parts = key.value.split(",") if isinstance(key.value, str) else key.value
    if not isinstance(parts, list) or not all(isinstance(part, str) and part.strip() for part in parts):
        key.refuse("is no list of names")
    return [part.strip() for part in parts]


# ---------------------------------------------------------------------- rules


def mapped(fields: Mapping[str, JsonValue]) -> Outcome:
    """It means the same here."""
    return Outcome(Fate.MAPPED, "", fields)


def changed(fields: Mapping[str, JsonValue], reason: str) -> Outcome:
    """It is expressed otherwise, or only nearly."""
    return Outcome(Fate.CHANGED, reason, fields)


def dropped(reason: str) -> Outcome:
    """It has no counterpart."""
    return Outcome(Fate.DROPPED, reason)


def copy(target: str, read: Reader) -> Rule:
    """The value as it is becomes the field `target`."""
    return lambda key: mapped({target: read(key)})


def drop(reason: str) -> Rule:
    """The key is left out, whatever it says."""
    return lambda _: dropped(reason)


def refuse(why: str) -> Rule:
    """The key is left out where it is off; where it is not, the document cannot be converted."""

    def rule(key: Key) -> Outcome:
        return dropped("is off") if key.is_off else key.refuse(why)

    return rule


def equals(expected: float, why: str) -> Rule:
    """A number that cannot be set here: dropped, and `why` says what it is here where it is not the same."""

    def rule(key: Key) -> Outcome:
        return dropped(f"it is {expected:g} here, too" if number(key) == expected else why)

    return rule


def by_reason(make: Callable[[str], Rule], names: Mapping[str, str]) -> dict[str, Rule]:
    """The same rule for every key with the same reason: `names` holds keys, with spaces between them, by reason."""
    return {name: make(reason) for reason, keys in names.items() for name in keys.split()}
