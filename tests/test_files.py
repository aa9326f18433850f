"""Drafts are removed and nothing else is; checkpoints are found where they are written."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.files import DISK, DRAFT, checkpoint_dir, list_checkpoints, remove_drafts


def test_drafts_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("x")
    (tmp_path / f"{DRAFT}file").write_text("half")
    (tmp_path / f"{DRAFT}folder" / "inside").mkdir(parents=True)
    (tmp_path / "below" / f"{DRAFT}x").mkdir(parents=True)
    remove_drafts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "below"}
    assert list((tmp_path / "below").iterdir()) != []


def test_no_folder_has_no_drafts(tmp_path: Path) -> None:
    remove_drafts(tmp_path / "gone")


@given(st.sets(st.integers(0, 10**9)))
def test_names_of_checkpoints_sort_and_read_back(tmp_path_factory: object, steps: set[int]) -> None:
    job = Path(tmp_path_factory.mktemp("job"))  # type: ignore[attr-defined]
    assert list_checkpoints(job) == []
    for step in steps:
        checkpoint_dir(job, step).mkdir(parents=True)
    if steps:
        for other in (".step-000001.tmp-x", "step-1", "step-00000x"):
            (job / "checkpoints" / other).mkdir()
    assert list_checkpoints(job) == sorted(steps)


def test_files_and_folders_can_be_synced(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    DISK.sync(tmp_path / "a")
    DISK.sync(tmp_path)
