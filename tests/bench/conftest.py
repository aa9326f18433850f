"""One base and one trainer for all scenarios, at the smallest size, on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mlora_sched.bench.setting import Setting, start
from mlora_sched.toybase.train import Recipe, Size, make_base


@pytest.fixture(scope="package")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    threads = torch.get_num_threads()
    base = tmp_path_factory.mktemp("bench") / "base"
    make_base(base, Recipe.of(Size.TINY, steps=0, threads=1))
    work: Path = tmp_path_factory.mktemp("work")
    yield Setting(base, start(base, 1), 1, 2, None, work, lambda _: None)
    torch.set_num_threads(threads)
