"""Dropout masks: a function of (job seed, step, chunk, group) and of nothing else, with the right share dropped."""

from __future__ import annotations

import pytest
import torch
from engine.bases import llama_config, model_of

from mlora_sched.adapters.part import SegmentPart
from mlora_sched.model.base import adopt


def part(seed: int = 1, step: int = 2, chunk: int = 3, start: int = 0, rows: int = 200) -> SegmentPart:
    return SegmentPart("job", start, start + rows, training=True, stream=(seed, step, chunk))


X = torch.ones(200, 100)


def test_kept_elements_are_scaled_up_and_the_share_is_right() -> None:
    mask = part().mask("group", X, 0.3)
    kept = mask > 0
    torch.testing.assert_close(mask[kept], torch.full_like(mask[kept], 1 / 0.7))
    # 20,000 draws: five standard deviations
    assert abs(kept.float().mean().item() - 0.7) < 5 * (0.21 / X.numel()) ** 0.5


def test_the_place_in_the_pack_does_not_matter() -> None:
    assert torch.equal(part(start=0).mask("group", X, 0.3), part(start=64).mask("group", X, 0.3))


@pytest.mark.parametrize("other", [{"seed": 2}, {"step": 3}, {"chunk": 2}], ids=str)
def test_every_part_of_the_key_matters(other: dict[str, int]) -> None:
    assert not torch.equal(part().mask("group", X, 0.3), part(**other).mask("group", X, 0.3))


def test_groups_have_masks_of_their_own_and_come_back_unchanged() -> None:
    one = part()
    first, second = one.mask("a", X, 0.3).clone(), one.mask("b", X, 0.3).clone()
    assert not torch.equal(first, second)
    assert torch.equal(one.mask("a", X, 0.3), first)


def test_nothing_is_dropped_outside_training() -> None:
    idle = SegmentPart("job", 0, 200, training=False)
    assert idle.drop("group", X, 0.9) is X


def test_sites_with_one_input_share_a_group_and_no_others_do() -> None:
    base = adopt(model_of(llama_config(layers=1)), name="tiny")
    groups = {name.removeprefix("model.layers.0."): site.group.name for name, site in base.sites.items()}
    assert groups["self_attn.q_proj"] == groups["self_attn.k_proj"] == groups["self_attn.v_proj"]
    assert groups["mlp.gate_proj"] == groups["mlp.up_proj"]
    assert len(set(groups.values())) == 4
