"""Reading the machine's memory, with and without a limit of its control groups."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path

import psutil
import torch

from mlora_sched.memory.device import CpuReader, host_memory, reader_of

MIB = 2**20


def group(path: Path, limit: int | None, current: int = 0, inactive: int = 0, active: int = 0) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "memory.max").write_text("max\n" if limit is None else f"{limit}\n")
    (path / "memory.current").write_text(f"{current}\n")
    (path / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\nactive_file {active}\nfile 7\n")


def reader_in(folder: Path, own: str) -> CpuReader:
    (folder / "own").write_text(f"4:memory:/old\n0::/{own}\n")
    return CpuReader(folder, folder / "own")


def test_without_a_limit_it_is_the_machine(tmp_path: Path) -> None:
    group(tmp_path / "a", None)
    reading = reader_in(tmp_path, "a").read()
    assert reading.total == psutil.virtual_memory().total
    assert 0 < reading.free <= reading.total
    assert 0 < reading.own <= psutil.Process().memory_info().rss


def test_the_tightest_group_above_us_counts_and_pages_of_files_do_not(tmp_path: Path) -> None:
    group(tmp_path / "a", 300 * MIB, current=250 * MIB, inactive=50 * MIB)
    group(tmp_path / "a" / "b", 200 * MIB, current=70 * MIB, inactive=20 * MIB)
    group(tmp_path / "a" / "b" / "c", None)
    group(tmp_path / "other", MIB)
    reading = reader_in(tmp_path, "a/b/c").read()
    assert reading.total == 200 * MIB
    assert reading.free == 100 * MIB, "what the group above leaves"
    group(tmp_path / "a", 300 * MIB, current=250 * MIB, inactive=50 * MIB, active=30 * MIB)
    assert reader_in(tmp_path, "a/b/c").read().free == 130 * MIB, "pages in use can be read again as well"
    group(tmp_path / "a" / "b", 200 * MIB, current=190 * MIB)
    assert reader_in(tmp_path, "a/b/c").read().free == 10 * MIB


def test_a_group_that_is_over_its_limit_has_nothing_free(tmp_path: Path) -> None:
    group(tmp_path / "a", 100 * MIB, current=120 * MIB)
    assert reader_in(tmp_path, "a").read().free == 0


def test_a_limit_that_is_lifted_while_we_run_limits_no_more(tmp_path: Path) -> None:
    group(tmp_path / "a", 300 * MIB)
    group(tmp_path / "a" / "b", 100 * MIB)
    reader = reader_in(tmp_path, "a/b")
    group(tmp_path / "a" / "b", None)
    assert reader.read().total == 300 * MIB


def test_no_groups_no_limit(tmp_path: Path) -> None:
    assert CpuReader(tmp_path, tmp_path / "none").read().total == psutil.virtual_memory().total


def test_memory_that_a_process_touches_is_its_own() -> None:
    reader = reader_of(torch.device("cpu"))
    gc.collect()
    before = reader.read().own
    # mapped, since malloc may have kept as much from earlier tests
    with mmap.mmap(-1, 256 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block.write(b"\1" * (256 * MIB))
        assert reader.read().own - before >= 128 * MIB


def test_parked_jobs_may_have_half_of_the_host_unless_told_otherwise() -> None:
    assert host_memory(5) == 5
    assert host_memory(0) == 0
    assert 0 < host_memory(None) <= psutil.virtual_memory().total // 2
