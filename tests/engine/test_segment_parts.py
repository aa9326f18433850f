"""What an adapter's ops are told of their segment: whose rows, where, how long each is and of which task."""

from __future__ import annotations

import numpy as np
import pytest

from engine.bases import base_of, llama_config
from engine.one_step import BUCKETS, member_of
from mlora_sched.adapters.part import SegmentPart
from mlora_sched.data.pack import Chunk, build_pack
from mlora_sched.data.token_set import Row
from mlora_sched.engine.step import run_pack


def row(length: int, task: int | None) -> Row:
    return Row(np.ones(length, np.int32), np.ones(length, np.bool_), task)


def test_a_part_knows_its_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of(llama_config())
    members = {name: member_of(base, {"method": "lora", "r": 2}) for name in ("told", "plain")}
    parts: list[SegmentPart] = []

    def remember(part: SegmentPart) -> dict[str, float]:
        parts.append(part)
        return {}

    for member in members.values():
        monkeypatch.setattr(member.adapter, "chunk_figures", remember)
    pieces = [
        (Chunk("told", 0, (3, 0, 1), 20), [row(7, 1), row(2, 0), row(11, 1)]),
        (Chunk("plain", 0, (0, 1), 9), [row(4, None), row(5, None)]),
        (Chunk("told", 1, (2,), 6), [row(6, 2)]),
    ]
    run_pack(base, build_pack(pieces, BUCKETS), members, training=True, buckets=BUCKETS)
    assert [(part.job_id, part.start, part.stop, part.lengths, part.tasks) for part in parts] == [
        ("told", 0, 20, (7, 2, 11), (1, 0, 1)),
        ("plain", 20, 29, (4, 5), ()),
        ("told", 29, 35, (6,), (2,)),
    ]
