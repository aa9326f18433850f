"""`docs/spec.md` has every field of a job spec, with its default, and no other; its examples are specs."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from docs.pages import blocks, quoted, rows, text_of
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.adapter_common import ALL_LINEAR
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.plain import LoraSpec
from mlora_sched.spec.sweep import SweepSpec, parse_document

PAGE = text_of("spec.md")
METHODS = typing.get_args(typing.get_args(AdapterSpec)[0])
COMMON = set(LoraSpec.model_fields)


class Document(JobSpec):
    """All that a spec's file may hold."""

    sweep: SweepSpec | None = None


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated):
        for part in typing.get_args(annotation):
            yield from models_in(part)


def fields(model: type[BaseModel] = Document, prefix: str = "") -> dict[str, dict[str, Any]]:
    """Defaults by dotted field and by the class that has it."""
    found: dict[str, dict[str, Any]] = {}
    for name, info in model.model_fields.items():
        found.setdefault(prefix + name, {})[model.__name__] = info.get_default(call_default_factory=True)
        for inner in models_in(info.annotation):
            for path, defaults in fields(inner, f"{prefix}{name}.").items():
                found.setdefault(path, {}).update(defaults)
    return found


def documented() -> dict[str, list[str]]:
    """The rows that describe a field, by the field: four cells or five, where the second names the methods."""
    return {quoted(cells[0])[0]: cells for cells in rows(PAGE) if len(cells) >= 4 and quoted(cells[0])}


def test_every_field_is_described_and_no_other() -> None:
    assert sorted(documented()) == sorted(fields())


@pytest.mark.parametrize("field", sorted(fields()))
def test_the_default_is_the_models(field: str) -> None:
    cell = documented()[field][-2]
    defaults = {name: default for name, default in fields()[field].items() if default is not PydanticUndefined}
    if field == "adapter.method":  # the job fills it in before the method is chosen
        defaults = {"Document": "lora"}
    if not defaults:
        assert cell == "required"
        return
    written = [yaml.safe_load(text) for text in quoted(cell)]
    for default in defaults.values():
        assert any(_same(default, one) for one in written), f"{field}: {default!r} is not in {cell}"
    assert len(written) == len({repr(default) for default in defaults.values()})


def _same(default: Any, written: Any) -> bool:
    """Sections are written as the keys that make them."""
    if isinstance(default, BaseModel):
        adapter = isinstance(default, METHODS)
        return type(default).model_validate({"method": "lora", **written} if adapter else written) == default
    return bool(default == written and isinstance(default, bool) == isinstance(written, bool))


def test_fields_of_some_methods_name_them() -> None:
    for method in METHODS:
        name = typing.get_args(method.model_fields["method"].annotation)[0]
        for field in set(method.model_fields) - COMMON:
            assert name in documented()[f"adapter.{field}"][1].split(", ")


def test_choices_are_written_out() -> None:
    """Every value of an enum or a Literal stands in the row of its field."""
    missing = []
    for field, cells in documented().items():
        for value in choices(field):
            if value not in quoted(cells[-3]) and field != "adapter.method":
                missing.append((field, value))
    assert missing == []
    described = {quoted(cells[0])[0] for cells in rows(PAGE) if len(cells) == 2 and quoted(cells[0])}
    assert set(choices("adapter.method")) <= described


def choices(field: str) -> list[str]:
    """The values that a field's annotation allows, where it lists them."""
    owners: list[type[BaseModel]] = [Document]
    *parents, leaf = field.split(".")
    for parent in parents:
        having = [owner for owner in owners if parent in owner.model_fields]
        owners = [model for owner in having for model in models_in(owner.model_fields[parent].annotation)]
    found: list[str] = []
    for owner in owners:
        if leaf in owner.model_fields:
            found += _literals(owner.model_fields[leaf].annotation)
    return list(dict.fromkeys(found))


def _literals(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    if isinstance(annotation, type) and hasattr(annotation, "__members__"):
        return [member.value for member in annotation]  # type: ignore[attr-defined]
    return [value for part in typing.get_args(annotation) for value in _literals(part)]


@pytest.mark.parametrize("example", blocks(PAGE, "yaml"), ids=lambda text: text.partition("\n")[0])
def test_examples_are_specs(example: str) -> None:
    parse_document(yaml.safe_load(example))


def test_all_linear_is_what_the_page_calls_it() -> None:
    assert f"`{ALL_LINEAR}`" in documented()["adapter.target_modules"][2]
