"""`--set`: the same as editing the spec by hand, and the same complaints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.errors import SpecError
from mlora_sched.spec.job import load_job, parse_job
from mlora_sched.spec.override import Override, apply_overrides, parse_override

KEYS = st.text("abcdefg_", min_size=1, max_size=3)
SCALARS = st.none() | st.booleans() | st.integers(-99, 99) | st.text("xyz 1e-:#'[{", max_size=6)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))
SECTIONS = st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=3) | SCALARS, max_size=4)
PATHS = st.lists(KEYS, min_size=1, max_size=3).map(tuple)


def edited(document: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """What a person does in the file: go to the section, make it where it is missing, write the key."""
    document = copy.deepcopy(document)
    section = document
    for key in path[:-1]:
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
    section[path[-1]] = value
    return document


def leads_through_sections(document: Any, path: tuple[str, ...]) -> bool:
    for key in path[:-1]:
        document = document.get(key)
        if document is None:
            return True
        if not isinstance(document, dict):
            return False
    return True


@given(document=SECTIONS, path=PATHS, value=VALUES)
def test_it_is_editing_by_hand(document: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    before = copy.deepcopy(document)
    override = parse_override(f"{'.'.join(path)}={yaml.safe_dump(value, default_flow_style=True)}")
    assert override == Override(path, value)
    if leads_through_sections(document, path):
        assert apply_overrides(document, [override]) == edited(document, path, value)
    else:
        with pytest.raises(SpecError, match="no section with keys"):
            apply_overrides(document, [override])
    assert document == before, "the document that was given stays as it is"


@given(document=SECTIONS, path=PATHS, first=VALUES, second=VALUES)
def test_the_last_one_counts(document: dict[str, Any], path: tuple[str, ...], first: Any, second: Any) -> None:
    if leads_through_sections(document, path):
        both = apply_overrides(document, [Override(path, first), Override(path, second)])
        assert both == apply_overrides(document, [Override(path, second)])


RAW = {"name": "toy", "data": {"train": "a.jsonl"}}


def test_a_spec_with_fields_set(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(RAW))
    texts = ("training.learning_rate=1e-4", "name=other", "data.train=[b.jsonl, c.jsonl]", "data.validation=0.1")
    spec = load_job(path, [parse_override(text) for text in texts])
    assert spec == parse_job(
        {
            "name": "other",
            "data": {"train": ["b.jsonl", "c.jsonl"], "validation": 0.1},
            "training": {"learning_rate": 1e-4},
        }
    )


@pytest.mark.parametrize("text", ["training.learning_rat=1", "adapter.lora_r=8", "training.epochs=many", "seed=3"])
def test_complaints_are_those_of_a_file(tmp_path: Path, text: str) -> None:
    override = parse_override(text)
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(RAW))
    with pytest.raises(SpecError) as by_set:
        load_job(path, [override])
    path.write_text(yaml.safe_dump(edited(RAW, override.path, override.value)))
    with pytest.raises(SpecError) as by_hand:
        load_job(path)
    assert by_set.value.message == by_hand.value.message.replace(f"{path}: ", "--set ")
    assert override.field.rpartition(".")[2] in by_set.value.message


def test_what_the_file_holds_is_its_own_fault(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump({**RAW, "training": {"epochs": "many"}}))
    with pytest.raises(SpecError) as caught:
        load_job(path, [parse_override("training.epoch=1")])
    file, by_set = sorted(caught.value.message.splitlines(), key=lambda line: line.startswith("--set"))
    assert file.startswith(f"{path}: training.epochs: ")
    assert by_set.startswith("--set training.epoch: unknown key")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training.epochs", "write FIELD=VALUE"),
        ("=3", "write FIELD=VALUE"),
        ("a..b=3", "write FIELD=VALUE"),
        ("data.train=[a", "--set data.train: is not YAML"),
        ("metadata={a: 1, a: 2}", "a: is written twice"),
    ],
)
def test_what_is_no_override(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message.replace("[", r"\[")):
        parse_override(text)


def test_no_section_on_the_way() -> None:
    with pytest.raises(SpecError, match=r"data.train.0: data.train is 'a.jsonl' here.*set data.train as a whole"):
        apply_overrides(RAW, [parse_override("data.train.0=b.jsonl")])
    assert apply_overrides([1], [parse_override("a=1")]) == [1], "what is no spec is complained about as such"
