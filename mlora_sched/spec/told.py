"""How people read what a trial of a sweep sets. Apart from `spec.sweep`, so that a verb that prints it loads little."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from mlora_sched.errors import shown


def value_text(value: JsonValue) -> str:
    """One value; numbers with four significant digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else shown(value)


def told(values: Mapping[str, JsonValue]) -> str:
    """All that a trial sets: `learning_rate=0.001 r=8`."""
    return " ".join(f"{field.partition('.')[2]}={value_text(value)}" for field, value in values.items())
