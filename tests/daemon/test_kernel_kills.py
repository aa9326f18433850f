"""The kernel's counters of processes that it ended: read where they are, 0 where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlora_sched.daemon import kernel_kills
from mlora_sched.daemon.kernel_kills import KernelKills, out_of_memory_kills


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose counters are files of the test's."""
    monkeypatch.setattr(kernel_kills, "_VMSTAT", tmp_path / "vmstat")
    monkeypatch.setattr(kernel_kills, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(kernel_kills, "_CGROUPS", tmp_path / "cgroups")
    return tmp_path


def group(proc: Path, name: str, kills: int) -> None:
    folder = proc / "cgroups" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.events").write_text(f"low 0\nhigh 3\noom 9\noom_kill {kills}\noom_group_kill 0\n")


def test_both_counters_are_read(proc: Path) -> None:
    (proc / "vmstat").write_text("nr_free_pages 17\noom_kill 4\noom_kill_other 90\n")
    (proc / "cgroup").write_text("1:name=systemd:/x\n0::/user/daemon\n")
    group(proc, "user/daemon", 2)
    assert out_of_memory_kills() == 6


def test_inside_a_container_the_group_is_the_root(proc: Path) -> None:
    (proc / "cgroup").write_text("0::/host/path/that/is/not/here\n")
    group(proc, ".", 5)
    assert out_of_memory_kills() == 5


def test_a_machine_without_counters_has_no_evidence(proc: Path) -> None:
    assert out_of_memory_kills() == 0
    assert not KernelKills().grew()


def test_evidence_is_new_for_two_looks() -> None:
    """The last report of a worker may be read after its end."""
    count = [7]
    kills = KernelKills(lambda: count[0])
    assert not kills.grew()
    count[0] = 8
    assert kills.grew()
    kills.look()
    assert kills.grew()
    kills.look()
    assert not kills.grew()
