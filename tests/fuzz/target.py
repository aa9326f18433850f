"""What a fuzzer calls: bytes as a spec in YAML and as a body in JSON. Either is a spec, or is refused as one."""

from __future__ import annotations

import json

from mlora_sched.errors import SpecError
from mlora_sched.spec.job import JobSpec, parse_job
from mlora_sched.spec.strict_yaml import load_yaml


def as_yaml(data: bytes) -> JobSpec | None:
    """The spec that these bytes are as a file, None where it is refused; every other error is a bug."""
    try:
        return parse_job(load_yaml(data.decode("utf-8", "replace"), "fuzz"), "fuzz")
    except SpecError:
        return None


def as_json(data: bytes) -> JobSpec | None:
    """As `as_yaml`, for a value as it arrives in a request."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        return None
    try:
        return parse_job(raw, "fuzz")
    except SpecError:
        return None


def both(data: bytes) -> None:
    """One input; a spec that is taken comes out of its own JSON the same."""
    for spec in (as_yaml(data), as_json(data)):
        if spec is not None:
            assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
