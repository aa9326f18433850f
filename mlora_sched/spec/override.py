"""`--set FIELD=VALUE`: change single fields of a decoded spec, as if its file had been edited by hand.

It does not know which fields there are: what comes out is validated like any spec, and complained about in the same
words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mlora_sched.errors import SpecError, shown


@dataclass(frozen=True, slots=True)
class Override:
    """A field, by the keys that lead to it, and its new value as YAML has it."""

    path: tuple[str, ...]
    value: Any

    @property
    def field(self) -> str:
        """The path as people write it."""
        return ".".join(self.path)


def parse_override(text: str) -> Override:
    """Read `FIELD=VALUE`, where FIELD is a dotted path and VALUE is YAML.

    Raises:
        SpecError: it is not of that form, or VALUE is no YAML.
    """
    from mlora_sched.spec.strict_yaml import load_yaml  # costs time

    field, sign, value = text.partition("=")
    path = tuple(key.strip() for key in field.split("."))
    if not sign or not all(path):
        raise SpecError(f"--set {text}: write FIELD=VALUE, such as training.learning_rate=1e-4")
    return Override(path, load_yaml(value, f"--set {'.'.join(path)}"))


def apply_overrides(raw: Any, overrides: Iterable[Override]) -> Any:
    """The document with the fields set, in the order given; `raw` itself stays as it is.

    Sections on the way to a field are made where there are none. A document that is no mapping is returned as it is:
    reading it as a spec says what is wrong with it.

    Raises:
        SpecError: what a path leads through is no section.
    """
    if not isinstance(raw, dict):
        return raw
    for override in overrides:
        raw = _with(raw, override, 0)
    return raw


def _with(section: dict[Any, Any], override: Override, depth: int) -> dict[Any, Any]:
    key = override.path[depth]
    if depth == len(override.path) - 1:
        return {**section, key: override.value}
    inner = section.get(key)
    if inner is None:
        inner = {}
    if not isinstance(inner, dict):
        field = ".".join(override.path[: depth + 1])
        raise SpecError(
            f"--set {override.field}: {field} is {shown(inner)} here, no section with keys; set {field} as a whole"
        )
    return {**section, key: _with(inner, override, depth + 1)}
