"""rsLoRA (Kalajdzievski, 2023, arXiv 2312.03732): LoRA with s = alpha / √r."""

from __future__ import annotations

import math
from typing import Any

from mlora_sched.adapters.lora import LoraAdapter


class RsLoraAdapter(LoraAdapter):
    """LoRA, scaled by the root of the rank."""

    @property
    def scale(self) -> float:
        return self.spec.alpha / math.sqrt(self.spec.r)

    def peft_config(self) -> dict[str, Any]:
        return super().peft_config() | {"use_rslora": True}
