"""LoRA+ (Hayou et al., 2024, arXiv 2402.12354): LoRA whose B learns `lr_ratio` times faster than its A."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlora_sched.adapters.lora import LoraAdapter
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.site import Site
from mlora_sched.spec.plain import LoraPlusSpec


class LoraPlusAdapter(LoraAdapter):
    """LoRA with two optimiser groups."""

    group_a, group_b = "A", "B"

    def __init__(self, spec: LoraPlusSpec, base: FrozenBase, sites: Sequence[Site]) -> None:
        super().__init__(spec, base, sites)
        self.lr_scales: Mapping[str, float] = {"A": 1.0, "B": spec.lr_ratio}
