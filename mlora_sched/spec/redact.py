"""Secrets that people have let slip into what is stored and shown: found by their form or their name, and replaced.

A net with meshes: it knows how keys and tokens commonly look, and no more. It decides nothing about access.
"""

from __future__ import annotations

import itertools
import re

from pydantic import JsonValue

REDACTED = "[redacted]"

_BEARER = re.compile(r"(?i)\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{8,}")
_URL = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]{0,31}://)[^\s/@:]{0,256}:[^\s/@]{1,256}@")
_KNOWN = re.compile(
    r"(?<![A-Za-z0-9])"
    r"(?:mlora_[A-Za-z0-9_-]{40,}|hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[opsu]_[A-Za-z0-9]{20,}"
    r"|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|xox[abprs]-[A-Za-z0-9-]{10,}|AKIA[A-Z0-9]{16})"
)
_NAMED = re.compile(
    r"(?i)(?<![A-Za-z0-9])((?:[A-Za-z0-9]{1,32}[_-]){0,4}"
    r"(?:secret|password|passwd|passphrase|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|(?:access|api|auth|bearer|hf|hub|refresh|session|wandb|github)[_-]?token)"
    r"[\"']?\s{0,4}[=:]\s{0,4}[\"']?)[^\s\"',;&]{6,}"
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SECRET_WORDS = {"token", "secret", "password", "passwd", "passphrase", "credential", "credentials", "apikey"}
_SECRET_PAIRS = {("api", "key"), ("access", "key"), ("private", "key"), ("secret", "key"), ("auth", "key")}


def redact(text: str) -> str:
    """The text with what looks like a secret replaced by `REDACTED`; what says which secret it was stays."""
    text = _BEARER.sub(rf"\1\2{REDACTED}", text)
    text = _URL.sub(rf"\1{REDACTED}@", text)
    text = _NAMED.sub(rf"\1{REDACTED}", text)
    return _KNOWN.sub(REDACTED, text)


def is_secret_name(name: str) -> bool:
    """Whether a key's name says that its value is a secret: `api_key`, `hfToken`, `db.password`; not `max_tokens`."""
    words = [word.lower() for word in _WORD.findall(name)]
    return bool(_SECRET_WORDS.intersection(words)) or any(pair in _SECRET_PAIRS for pair in itertools.pairwise(words))


def redact_values(values: dict[str, JsonValue]) -> tuple[dict[str, JsonValue], tuple[str, ...]]:
    """A JSON object without its secrets, and where they were: `["tracking.api_key", "notes[2]"]`.

    What stands below a key with a secret's name is replaced as a whole, unless it is nothing.
    """
    found: list[str] = []
    clean = {name: _clean(value, name, name, found) for name, value in values.items()}
    return clean, tuple(found)


def _clean(value: JsonValue, name: str, path: str, found: list[str]) -> JsonValue:
    if is_secret_name(name) and value not in (None, "", REDACTED, True, False):
        found.append(path)
        return REDACTED
    if isinstance(value, dict):
        return {key: _clean(inner, key, f"{path}.{key}", found) for key, inner in value.items()}
    if isinstance(value, list):
        return [_clean(inner, "", f"{path}[{at}]", found) for at, inner in enumerate(value)]
    if isinstance(value, str) and (clean := redact(value)) != value:
        found.append(path)
        return clean
    return value
