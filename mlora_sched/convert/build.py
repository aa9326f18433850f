"""Turn a foreign config into a job spec, with an account of every key. What keys mean, the tables know."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, JsonValue

from mlora_sched.convert.axolotl import AXOLOTL
from mlora_sched.convert.llamafactory import llamafactory
from mlora_sched.convert.result import Conversion, Entry, Fate, Source
from mlora_sched.convert.table import Foreign, Key, Outcome, Rule, dropped
from mlora_sched.errors import SpecError
from mlora_sched.spec.job import parse_job

TABLES: Mapping[Source, Foreign] = {table.source: table for table in (AXOLOTL, llamafactory(None))}


def convert(
    raw: object,
    name: str,
    *,
    source: Source | None = None,
    dataset_info: Mapping[str, Any] | None = None,
    where: str = "config",
) -> Conversion:
    """Convert a decoded config.

    Args:
        raw: the document.
        name: what the job shall be called.
        source: whose config it is; told by its keys where that is None.
        dataset_info: what LLaMA-Factory's `dataset_info.json` holds, None where there is none.
        where: names the document in errors.

    Raises:
        SpecError: it is no config of theirs, or asks for what cannot be done; names the key and the remedy.
    """
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise SpecError(f"{where}: is no mapping of keys, as configs of Axolotl and LLaMA-Factory are")
    source = detect(raw, where) if source is None else source
    table = llamafactory(dataset_info) if source is Source.LLAMAFACTORY else TABLES[source]
    asked = {key: value for key, value in raw.items() if not _is_empty(value) or key in table.kept_empty}
    try:
        table.check(asked)
        outcomes = {key.name: _outcome(key, rule, table) for key, rule in _keys(raw, asked, table)}
        defaults = table.defaults(asked)
    except SpecError as error:
        raise SpecError(f"{where}: {error.message}") from None
    fields = _merged(outcomes)
    filled = {"name": (name, "what the job is called"), **defaults}
    filled = {field: why for field, why in filled.items() if field not in fields}
    spec = _spec(fields | {field: value for field, (value, _) in filled.items()}, outcomes, where)
    return Conversion(
        source=table.source,
        spec=spec,
        mapped=_entries(outcomes, Fate.MAPPED),
        changed=_entries(outcomes, Fate.CHANGED),
        dropped=_entries(outcomes, Fate.DROPPED),
        filled=tuple(Entry(key=field, fields=(field,), reason=reason) for field, (_, reason) in filled.items()),
    )


def detect(raw: Mapping[str, Any], where: str = "config") -> Source:
    """Whose config it is, by the keys that only one of them knows.

    Raises:
        SpecError: it could be both or neither.
    """
    own = {
        source: {key for key in raw if key in table.rules and all(key not in other.rules for other in _others(source))}
        for source, table in TABLES.items()
    }
    most = max(own, key=lambda source: len(own[source]))
    if any(len(own[source]) == len(own[most]) for source in own if source is not most):
        raise SpecError(
            f"{where}: cannot tell whether it is a config of Axolotl or of LLaMA-Factory; say it with --from"
        )
    return most


def _others(source: Source) -> Iterator[Foreign]:
    return (table for other, table in TABLES.items() if other is not source)


def _is_empty(value: object) -> bool:
    """A key is written and nothing is said by it, as templates for configs have it."""
    return value is None or value in ("", [], {})


def _keys(raw: Mapping[str, Any], asked: Mapping[str, Any], table: Foreign) -> Iterator[tuple[Key, Rule | None]]:
    """Every key of `raw` once, with its rule; None for one that nobody knows. Rules see what is `asked` for."""
    nested = table.nested(asked)
    for name, value in raw.items():
        inner = nested.get(name)
        if inner:
            yield from inner
        else:
            yield Key(name, value, asked), table.rule_of(name)


def _outcome(key: Key, rule: Rule | None, table: Foreign) -> Outcome:
    if rule is None:
        near = difflib.get_close_matches(key.name, table.rules, n=1, cutoff=0.8)
        hint = f"; did you mean {near[0]}?" if near else ", and has no effect here"
        return dropped(f"no key of {table.source.label} that is known here{hint}")
    if _is_empty(key.value) and key.name not in table.kept_empty:
        return dropped("has no value")
    return rule(key)


def _merged(outcomes: Mapping[str, Outcome]) -> dict[str, JsonValue]:
    """All fields that keys set. Keys that decide a field together give it the same value."""
    fields: dict[str, JsonValue] = {}
    for outcome in outcomes.values():
        for field, value in outcome.fields.items():
            assert fields.setdefault(field, value) == value, field
    return fields


def _spec(fields: Mapping[str, JsonValue], outcomes: Mapping[str, Outcome], where: str) -> dict[str, JsonValue]:
    """The fields as a spec, `{"adapter.r": 8}` as `{"adapter": {"r": 8}}`, in the order in which the models have them.

    Raises:
        SpecError: they are no valid spec; names the keys from which the bad fields come.
    """
    spec: dict[str, Any] = {}
    for field, value in fields.items():
        section, _, name = field.partition(".")
        if name:
            spec.setdefault(section, {})[name] = value
        else:
            spec[section] = value
    try:
        job = parse_job(spec, where)
    except SpecError as error:
        raise SpecError("\n".join([error.message, *_origins(error.message, outcomes, where)])) from None
    return {section: _ordered(spec[section], getattr(job, section)) for section in _order(job) if section in spec}


def _order(model: BaseModel) -> list[str]:
    """A model's fields as they are documented: what decides which others there are comes first."""
    return sorted(type(model).model_fields, key=lambda name: name != "method")


def _ordered(value: JsonValue, model: object) -> JsonValue:
    if not isinstance(value, dict) or not isinstance(model, BaseModel):
        return value
    return {name: value[name] for name in _order(model) if name in value}


def _origins(message: str, outcomes: Mapping[str, Outcome], where: str) -> Iterator[str]:
    """For each field that a message speaks of, which keys it comes from."""
    for key, outcome in outcomes.items():
        for field in outcome.fields:
            if field in message:
                yield f"{where}: {key} gives {field}"


def _entries(outcomes: Mapping[str, Outcome], fate: Fate) -> tuple[Entry, ...]:
    return tuple(
        Entry(key=key, fields=tuple(outcome.fields), reason=outcome.reason)
        for key, outcome in outcomes.items()
        if outcome.fate is fate
    )
