"""Secrets that people have let slip into what is stored and shown: found by their form or their name, and replaced.

A net with meshes: it knows how keys and tokens commonly look, and no more. It decides nothing about access.
"""

from __future__ import annotations

import itertools
import re

from pydantic import JsonValue

REDACTED = "[redacted]"

_PEM = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)"  # or it was cut off
)
_HEADER = re.compile(r"(?i)(\bauthorization[\"']?\s{0,4}[=:]\s{0,4}[\"']?(?:bearer|basic)\s{1,8})[A-Za-z0-9._~+/=-]+")
_BEARER = re.compile(
    r"(?i)(\b(?:bearer|basic)\s{1,8})(?=[A-Za-z._~+/-]{0,256}[0-9=])[A-Za-z0-9._~+/=-]{16,}"  # else it is a word
)
_NAMED = re.compile(
    r"(?i)(?<![A-Za-z0-9])((?:[A-Za-z0-9]{1,32}[_-]){0,4}"
    r"(?:secret|password|passwd|passphrase|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|(?:access|api|auth|bearer|hf|hub|refresh|session|wandb|github)[_-]?token"
    r"|pwd(?=[\"']?\s{0,4}[=:]\s{0,4}[\"']?[^\s\"'/~.]))"  # a shell's PWD is a path
    r"[\"']?\s{0,4}[=:]\s{0,4}[\"']?)[^\s\"',;&]{6,}"
)
_TOKEN = re.compile(  # some token, which has both digits and letters, and is none of a vocabulary
    r"(?i)(?<![A-Za-z0-9])(?<!(?:pad|eos|bos|unk|sep|cls|per)[_-])(?<!mask[_-])(?<!image[_-])(?<!special[_-])"
    r"(token[\"']?\s{0,4}[=:]\s{0,4}[\"']?)(?=[A-Za-z._~+/=-]{0,256}[0-9])(?=[0-9._~+/=-]{0,256}[A-Za-z])"
    r"[A-Za-z0-9._~+/=-]{8,}"
)
_KNOWN = re.compile(
    r"(?<![A-Za-z0-9])"
    r"(?:mlora_[A-Za-z0-9_-]{40,}|hf_[A-Za-z0-9]{16,}|gh[opsu]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}"
    r"|glpat-[A-Za-z0-9_-]{16,}|xox[abprs]-[A-Za-z0-9-]{10,}|AKIA[A-Z0-9]{16}"
    # a long part that is no word: `sk-learn-pipeline-v2` is the name of something
    r"|sk-(?:[A-Za-z0-9]{1,32}[_-]){0,6}(?=[A-Za-z]{0,64}[0-9])[A-Za-z0-9]{20,}[A-Za-z0-9_-]*"
    r"|(?<![_-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*)"
)
_URL = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]{0,31}://)[^\s/@:]{0,256}:[^\s/@]{1,256}@")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_PASSWORD_WORDS = {"password", "passwd", "passphrase", "pwd"}
_SECRET_WORDS = _PASSWORD_WORDS | {"secret", "credential", "credentials", "apikey"}
_SECRET_PAIRS = {("api", "key"), ("access", "key"), ("private", "key"), ("secret", "key"), ("auth", "key")}
_VOCABULARY = {"pad", "eos", "bos", "unk", "sep", "cls", "mask", "image", "special", "per"}
"""What stands before `token` where it is one of a text's."""
_PLACEHOLDER = re.compile(r"<.*>|\[.*\]")
"""A value in brackets, such as a vocabulary's `<|end|>`, somebody's `<your key>`, and `REDACTED`."""
_LEAST_PASSWORD = 6
_LEAST_SECRET = 8


def redact(text: str) -> str:
    """The text with what looks like a secret replaced by `REDACTED`; what says which secret it was stays."""
    text = _PEM.sub(REDACTED, text)
    for before in (_HEADER, _BEARER, _NAMED, _TOKEN):
        text = before.sub(rf"\1{REDACTED}", text)
    text = _KNOWN.sub(REDACTED, text)
    return _URL.sub(rf"\1{REDACTED}@", text)


def is_secret_name(name: str) -> bool:
    """Whether a key's name says that its value is a secret: `api_key`, `hfToken`; not `max_tokens`, `eos_token`."""
    words = _words(name)
    if words[-1:] == ["token"] and not _VOCABULARY.intersection(words[-2:-1]):
        return True
    return bool(_SECRET_WORDS.intersection(words)) or any(pair in _SECRET_PAIRS for pair in itertools.pairwise(words))


def redact_values(values: dict[str, JsonValue]) -> tuple[dict[str, JsonValue], tuple[str, ...]]:
    """A JSON object without its secrets, and where they were: `["tracking.api_key", "notes[2]"]`.

    Below a key with a secret's name every text goes that is long enough to be one; numbers stay, wherever they are.
    """
    found: list[str] = []
    return _clean_object(values, "", "", found), tuple(found)


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def _clean_object(values: dict[str, JsonValue], secret: str, path: str, found: list[str]) -> dict[str, JsonValue]:
    """`secret` is the name of the nearest key above that says that what is below is one, or empty."""
    clean: dict[str, JsonValue] = {}
    for name, value in values.items():
        shown = redact(name)
        place = f"{path}.{shown}" if path else shown
        if shown != name:
            found.append(place)
        clean[shown] = _clean(value, name if is_secret_name(name) else secret, place, found)
    return clean


def _clean(value: JsonValue, secret: str, path: str, found: list[str]) -> JsonValue:
    if isinstance(value, dict):
        return _clean_object(value, secret, path, found)
    if isinstance(value, list):
        return [_clean(inner, secret, f"{path}[{at}]", found) for at, inner in enumerate(value)]
    if not isinstance(value, str):
        return value
    clean = REDACTED if secret and _is_secret(secret, value) else redact(value)
    if clean != value:
        found.append(path)
    return clean


def _is_secret(name: str, value: str) -> bool:
    words = _words(name)
    if words == ["pwd"] and value.startswith(("/", "~", ".")):
        return False  # a shell's
    least = _LEAST_PASSWORD if _PASSWORD_WORDS.intersection(words) else _LEAST_SECRET
    return len(value) >= least and _PLACEHOLDER.fullmatch(value) is None
