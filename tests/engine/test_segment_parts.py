"""What an adapter's ops are told of their segment: whose rows, where, and how long each sequence is."""

from __future__ import annotations

import pytest

from engine.bases import base_of, llama_config
from engine.one_step import member_of, step
from mlora_sched.adapters.part import SegmentPart


def test_a_part_knows_its_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of(llama_config())
    members = {name: member_of(base, {"method": "lora", "r": 2}) for name in ("one", "two")}
    told: list[SegmentPart] = []

    def remember(part: SegmentPart) -> dict[str, float]:
        told.append(part)
        return {}

    for member in members.values():
        monkeypatch.setattr(member.adapter, "chunk_figures", remember)
    lengths = (7, 1, 12)
    step(base, members, lengths=lengths)
    assert [(part.job_id, part.start) for part in told] == [("one", 0), ("one", 20), ("two", 40), ("two", 60)]
    assert all(part.stop - part.start == sum(lengths) for part in told)
    assert {part.lengths for part in told} == {lengths}
