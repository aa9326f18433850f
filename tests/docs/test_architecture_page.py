"""What `docs/` says of the code's structure is so: layers, states, reasons; every path, module and link is there."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from docs.pages import PAGES, ROOT, blocks, quoted, rows, section, text_of
from mlora_sched.spec.state import TRANSITIONS, ErrorCode, JobState

PAGE = text_of("architecture.md")
PACKAGES = {path.name for path in (ROOT / "mlora_sched").iterdir() if (path / "__init__.py").exists()}


def test_layers_are_those_that_are_enforced() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        (contract, *_) = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    assert blocks(PAGE, "layers")[0].splitlines() == contract["layers"]


def test_every_package_has_its_place() -> None:
    layers = section(PAGE, "Layers")
    named = {word.partition(".")[0] for word in quoted(layers.replace("mlora_sched.", ""))}
    assert PACKAGES - named == set()


def test_transitions_are_those_of_the_code() -> None:
    table = {
        cells[0]: {word for word in cells[1].split(", ") if word}
        for cells in rows(section(PAGE, "States and requests"))
    }
    assert table == {state.value: {target.value for target in targets} for state, targets in TRANSITIONS.items()}
    assert set(table) == set(JobState)


def test_reasons_of_failure_are_all_named() -> None:
    assert {code.value for code in ErrorCode} <= set(quoted(section(PAGE, "States and requests")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page: Path) -> None:
    starts = ("mlora_sched/", "tests/", "docs/", "jobs/", "docker/")
    for word in quoted(page.read_text(encoding="utf-8")):
        if word.startswith(starts) and re.fullmatch(r"[\w./-]+", word) and "ID" not in word:
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_the_code_are_in_it(page: Path) -> None:
    """A dotted name that begins with a package of ours is a module, or something in one."""
    for word in quoted(page.read_text(encoding="utf-8")):
        name = word.removeprefix("mlora_sched.").removesuffix("()")
        if (
            re.fullmatch(r"[a-z]\w*(\.[A-Za-z_]\w*)+", name)
            and name.partition(".")[0] in PACKAGES
            and not _is_spec_field(name)
        ):
            assert _exists(f"mlora_sched.{name}"), word


def _is_spec_field(name: str) -> bool:
    """`data.train` is a key of job specs and no module."""
    return any(cells and f"`{name}`" == cells[0] for cells in rows(text_of("spec.md")))


def _exists(name: str) -> bool:
    if _is_module(name):
        return True
    module, _, attribute = name.rpartition(".")
    if _is_module(module):
        return hasattr(importlib.import_module(module), attribute)
    owner, _, method = module.rpartition(".")
    return _is_module(owner) and hasattr(getattr(importlib.import_module(owner), method, None), attribute)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
