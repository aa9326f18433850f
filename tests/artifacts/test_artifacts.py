"""Directories are there whole or not at all; checkpoints are checked; provenance never changes by itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mlora_sched.adapters.base import AdapterFiles
from mlora_sched.artifacts.adapter_files import read_adapter, write_adapter, write_json
from mlora_sched.artifacts.atomic import atomic_directory
from mlora_sched.artifacts.checkpoint import (
    Checkpoint,
    Keep,
    checkpoint_dir,
    list_checkpoints,
    prune,
    read_newest,
    write_checkpoint,
)
from mlora_sched.artifacts.provenance import Origin, provenance
from mlora_sched.errors import SpecError
from mlora_sched.spec.job import parse_job
from mlora_sched.spec.numerics import Exactness, NumericsKey, ProbeVerdict

ADAPTER = AdapterFiles({"peft_type": "LORA", "r": 2}, {"b": torch.ones(2), "a": torch.arange(3.0)})


def tree(folder: Path) -> dict[str, str]:
    """Every file below, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- directories


def test_a_directory_appears_with_its_content(tmp_path: Path) -> None:
    target = tmp_path / "parent" / "made"
    with atomic_directory(target) as draft:
        (draft / "one").write_text("1")
        assert not target.exists()
    assert tree(tmp_path) == {"parent/made/one": "1"}
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "made"
    for content in ({"one": "1", "two": "2"}, {"one": "3"}):
        with atomic_directory(target) as draft:
            for name, text in content.items():
                (draft / name).write_text(text)
    assert tree(tmp_path) == {"made/one": "3"}


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("there", [True, False])
def test_an_exception_leaves_the_old_and_nothing_else(tmp_path: Path, error: type[BaseException], there: bool) -> None:
    target = tmp_path / "made"
    if there:
        target.mkdir()
        (target / "old").write_text("as it was")
    before = tree(tmp_path)

    def write_half() -> None:
        with atomic_directory(target) as draft:
            (draft / "new").write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert tree(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == (["made"] if there else [])


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    killed = atomic_directory(tmp_path / "made")
    (killed.__enter__() / "half").write_text("never finished")
    (tmp_path / ".made-by-a-user").mkdir()
    (tmp_path / ".made.other").mkdir()
    with atomic_directory(tmp_path / "made") as draft:
        (draft / "one").write_text("1")
    assert tree(tmp_path) == {"made/one": "1"}
    assert {path.name for path in tmp_path.iterdir()} == {"made", ".made-by-a-user", ".made.other"}


# ---------------------------------------------------------------- checkpoints


def write(job_dir: Path, step: int, **state: Any) -> Path:
    tensors = {"value/all": torch.full((4,), float(step)), "exp_avg/all": torch.zeros(4)}
    write_checkpoint(job_dir, step, Checkpoint(tensors, {"progress": {"step": step}} | state), ADAPTER, {"steps": step})
    return checkpoint_dir(job_dir, step)


def test_the_newest_checkpoint_comes_back(tmp_path: Path) -> None:
    for step in (2, 1_000_000, 30):
        write(tmp_path, step)
    assert list_checkpoints(tmp_path) == [2, 30, 1_000_000]
    found, notes = read_newest(tmp_path)
    assert found is not None
    assert notes == []
    assert found.state == {"progress": {"step": 1_000_000}}
    assert torch.equal(found.tensors["value/all"], torch.full((4,), 1_000_000.0))


def test_no_checkpoint(tmp_path: Path) -> None:
    assert read_newest(tmp_path) == (None, [])
    assert list_checkpoints(tmp_path) == []


def test_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    write(tmp_path, 3)
    for name in ("step-3", "step-000004.old", ".step-000005.tmp-x", "notes"):
        (tmp_path / "checkpoints" / name).mkdir()
    assert list_checkpoints(tmp_path) == [3]


@given(st.data())
def test_any_changed_byte_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    write(folder, 1)
    made = write(folder, 2, figures=[1.5, None], text="naïve")
    path = made / data.draw(st.sampled_from(["state.json", "train_state.safetensors"]))
    content = bytearray(path.read_bytes())
    at, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    content[at] ^= 1 << bit
    path.write_bytes(content)
    found, notes = read_newest(folder)
    assert found is not None
    if notes:
        assert found.state == {"progress": {"step": 1}}
    else:  # white space, or another way to write the same
        assert path.name == "state.json"
        assert found.state == {"progress": {"step": 2}, "figures": [1.5, None], "text": "naïve"}


@given(
    steps=st.sets(st.integers(1, 40), min_size=1, max_size=8),
    now=st.integers(1, 40),
    newest=st.integers(0, 4),
    best=st.integers(-1, 40),
    every=st.none() | st.integers(1, 9),
    limit=st.integers(1, 3),
    recorded=st.integers(0, 40),
)
def test_what_is_kept(
    tmp_path_factory: pytest.TempPathFactory,
    steps: set[int],
    now: int,
    newest: int,
    best: int,
    every: int | None,
    limit: int,
    recorded: int,
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    for step in steps:
        checkpoint_dir(folder, step).mkdir(parents=True)
    left = prune(folder, now, Keep(newest, every, limit, {best}, recorded))
    kept = set[int]()
    for step in (past := {step for step in steps if step <= now}):
        younger = {other for other in past if other > step}
        asked = every is not None and step % every == 0
        if (
            len(younger) < newest
            or step == best
            or (asked and sum(other % every == 0 for other in younger) < limit)
            or (step <= recorded and not any(other <= recorded for other in younger))
        ):
            kept.add(step)
    assert list_checkpoints(folder) == left == sorted(kept)


# ---------------------------------------------------------------- adapters


def test_an_adapter_comes_back(tmp_path: Path) -> None:
    write_adapter(tmp_path, ADAPTER, {})
    files = read_adapter(tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors")
    assert files.config == ADAPTER.config
    assert files.tensors.keys() == ADAPTER.tensors.keys()
    assert all(torch.equal(files.tensors[name], value) for name, value in ADAPTER.tensors.items())
    assert not (tmp_path / "adapter_model.bin").exists()


def test_equal_adapters_give_equal_bytes(tmp_path: Path) -> None:
    turned = AdapterFiles(dict(reversed(ADAPTER.config.items())), dict(reversed(ADAPTER.tensors.items())))
    for name, files in (("one", ADAPTER), ("two", turned)):
        (tmp_path / name).mkdir()
        write_adapter(tmp_path / name, files, {"steps": 1})
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_routed_adapter_has_a_second_form(tmp_path: Path) -> None:
    write_adapter(tmp_path, AdapterFiles({"peft_type": "MIXLORA"}, ADAPTER.tensors, as_pickle=True), {})
    pickled = torch.load(tmp_path / "adapter_model.bin", weights_only=True)
    there = load_file(tmp_path / "adapter_model.safetensors")
    assert pickled.keys() == there.keys()
    assert all(torch.equal(pickled[name], there[name]) for name in there)


def test_a_pickle_under_another_name_is_never_read(tmp_path: Path) -> None:
    torch.save(ADAPTER.tensors, tmp_path / "adapter_model.safetensors")
    write_json(tmp_path / "adapter_config.json", ADAPTER.config)
    with pytest.raises(SpecError, match="cannot be read as a PEFT adapter in safetensors"):
        read_adapter(tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors")


def damage_config(folder: Path, text: str) -> None:
    (folder / "adapter_config.json").write_text(text)


def resize_model(folder: Path, size: int) -> None:
    os.truncate(folder / "adapter_model.safetensors", size)  # a hole: it takes no disk


def replace_model(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda folder: damage_config(folder, " " * (1 << 20) + "{}"),
            "adapter_config.json has more than 1048576 bytes",
        ),
        (lambda folder: damage_config(folder, "[]"), "adapter_config.json holds no object"),
        (lambda folder: damage_config(folder, '{"r": ' + "9" * 5000 + "}"), "cannot be read"),
        (lambda folder: damage_config(folder, "[" * 100_000), "cannot be read"),
        (lambda folder: resize_model(folder, (4 << 30) + 1), "has 4294967297 bytes, more than 4294967296"),
        (lambda folder: resize_model(folder, 2 << 30), "cannot be read"),
        (lambda folder: replace_model(folder, {"a": torch.ones(2, dtype=torch.int64)}), "a is I64, none of F64"),
    ],
)
def test_what_is_no_adapter_is_refused_before_it_is_loaded(
    tmp_path: Path, spoil: Callable[[Path], None], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(tmp_path, ADAPTER, {})
    spoil(tmp_path)
    monkeypatch.setattr("mlora_sched.artifacts.adapter_files.load_file", lambda _: pytest.fail("loaded"))
    with pytest.raises(SpecError, match=f"adapter.init_from: .*{says}"):
        read_adapter(tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors")


def test_too_many_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_adapter(tmp_path, ADAPTER, {})
    monkeypatch.setattr("mlora_sched.artifacts.adapter_files._MAX_TENSORS", 1)
    with pytest.raises(SpecError, match="has 2 tensors, more than 1"):
        read_adapter(tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_all_files_of_an_adapter_have_the_mode_that_the_umask_asks_for(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_adapter(tmp_path, AdapterFiles({"peft_type": "MIXLORA"}, ADAPTER.tensors, as_pickle=True), {})
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert len(modes) == 4
    assert set(modes.values()) == {mode}, modes


# ---------------------------------------------------------------- provenance


def origin() -> Origin:
    verdict = ProbeVerdict(exactness=Exactness.EXACT, largest_difference=0.0, buckets=(32, 64))
    numerics = NumericsKey(
        device="cpu", torch="2", transformers="5", dtype="float32", threads=1, attention="packed", buckets=(32, 64)
    )
    return Origin("demo", "/bases/demo", "ab" * 32, numerics, verdict)


def record(name: str = "job") -> dict[str, Any]:
    spec = parse_job({"name": name, "data": {"train": "a.jsonl"}, "training": {"seed": 7}})
    return provenance(spec, origin(), {"train": "cd" * 32}, steps=3, planned=3, resumes=1, version_history=[])


def test_provenance_names_everything_that_made_the_adapter() -> None:
    made = record()
    assert made["spec"]["training"]["learning_rate"] == 2e-4, "defaults are resolved"
    assert made["base"] == {"name": "demo", "location": "/bases/demo", "sha256": "ab" * 32}
    assert (made["data"], made["seed"], made["steps"], made["resumes"]) == ({"train": "cd" * 32}, 7, 3, 1)
    assert (
        made["versions"]["torch"] == torch.__version__.split("+")[0] or made["versions"]["torch"] in torch.__version__
    )
    assert (made["numerics"]["threads"], made["same_as_alone"]) == (1, "exact")


def test_equal_jobs_have_equal_provenance_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first = json.dumps(record())
    monkeypatch.setattr("time.time", lambda: 4e9)
    monkeypatch.setattr("os.getpid", lambda: 4_000_000)
    assert json.dumps(record()) == first
    assert json.dumps(record("other")) != first
