"""The fuzzer's corpus again, and what hypothesis makes of text and of good specs: a spec, or refused as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.target import as_json, as_yaml, both
from mlora_sched.errors import SpecError
from mlora_sched.spec.strict_yaml import MAX_VALUES, load_yaml

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
EXAMPLES = sorted((Path(__file__).parents[2] / "jobs").glob("*.yaml"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
QUIET = settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_the_corpus(path: Path) -> None:
    both(path.read_bytes())


@QUIET
@given(st.text(max_size=200) | VALUES.map(yaml.safe_dump))
def test_any_text(text: str) -> None:
    as_yaml(text.encode("utf-8", "replace"))


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """One of the example specs with a value replaced, removed or added somewhere."""
    spec = yaml.safe_load(draw(st.sampled_from(EXAMPLES)).read_text())
    at = spec
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted(at)) | st.text(max_size=12))
        if isinstance(at.get(key), dict):
            at = at[key]
            continue
        if draw(st.booleans()):
            at[key] = draw(VALUES)
        else:
            at.pop(key, None)
    return spec


@QUIET
@given(mutated())
def test_good_specs_with_something_wrong(spec: Any) -> None:
    both(json.dumps(spec).encode())


def test_the_examples_are_specs() -> None:
    for path in EXAMPLES:
        spec = as_yaml(path.read_bytes())
        assert spec is not None
        assert as_json(json.dumps(yaml.safe_load(path.read_text())).encode()) == spec


def test_references_do_not_multiply_without_bound() -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    with pytest.raises(SpecError, match=f"more than {MAX_VALUES:,} values"):
        load_yaml("\n".join(lines), "job.yaml")
    assert load_yaml("\n".join(lines[:10]), "job.yaml")["a3"] == [[[["x"] * 2] * 2] * 2] * 2
