"""rsLoRA (Kalajdzievski, 2023, arXiv 2312.03732): LoRA with s = alpha / √r."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from mlora_sched.adapters.lora import LoraAdapter, refuse_patterns
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.plain import RsLoraSpec


class RsLoraAdapter(LoraAdapter):
    """LoRA, scaled by the root of the rank."""

    marks: ClassVar[Mapping[str, object]] = {**LoraAdapter.marks, "use_rslora": True}

    @classmethod
    def spec_of(cls, config: Mapping[str, Any]) -> AdapterSpec:
        refuse_patterns(config)
        return cls._meant(config, RsLoraSpec, "rslora")

    @property
    def scale(self) -> float:
        return self.spec.alpha / math.sqrt(self.spec.r)

    def peft_config(self) -> dict[str, Any]:
        return super().peft_config() | {"use_rslora": True}
