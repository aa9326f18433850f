"""`provenance.json`: what an adapter was made of. No wall-clock time: equal jobs give equal bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.numerics import OTHER_NUMERICS, NumericsKey, ProbeVerdict
from mlora_sched.spec.state import StoppedBy

_DECISIVE = ("mlora_sched", "torch", "transformers")
_PACKAGES = (*_DECISIVE, "safetensors", "tokenizers", "numpy")


def versions_now() -> dict[str, str]:
    """Of this release and of the libraries that compute a job's steps."""
    return {name: version(name) for name in _DECISIVE}


@dataclass(frozen=True)
class Origin:
    """What all jobs of one worker have in common.

    Attributes:
        base_name, base_location, base_hash: the base, and sha256 over its weights.
        numerics, verdict: the numerics key, and what the probe found.
    """

    base_name: str
    base_location: str
    base_hash: str
    numerics: NumericsKey
    verdict: ProbeVerdict


def provenance(
    spec: JobSpec,
    origin: Origin,
    data_hashes: dict[str, str],
    *,
    steps: int,
    planned: int,
    resumes: int,
    version_history: Sequence[Mapping[str, Any]],
    stopped_by: StoppedBy | None = None,
    other_numerics: bool = False,
) -> dict[str, Any]:
    """The record beside an adapter.

    Args:
        data_hashes: content hash of the tokenised rows, by "train" and "validation".
        steps, planned: optimiser steps finished, and of the whole job. stopped_by: what ended it before the last.
        resumes: how often the job went on from a checkpoint. version_history: from which step on under which versions.
        other_numerics: it went on under another numerics key, so nothing exact is claimed.
    """
    quantised = ("bitsandbytes",) if origin.numerics.quantize == "nf4" else ()
    return {
        "spec": spec.model_dump(mode="json"),
        "base": {"name": origin.base_name, "location": origin.base_location, "sha256": origin.base_hash},
        "data": data_hashes,
        "seed": spec.training.seed,
        "steps": steps,
        "planned_steps": planned,
        "stopped_by": stopped_by,
        "resumes": resumes,
        "version_history": list(version_history),
        "versions": {name: version(name) for name in (*_PACKAGES, *quantised)},
        "numerics": origin.numerics.model_dump(mode="json"),
        "same_as_alone": OTHER_NUMERICS if other_numerics else str(origin.verdict),
        "probe": origin.verdict.model_dump(mode="json"),
    }
