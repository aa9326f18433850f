"""What the methods that add one low-rank pair to a linear can be asked for. The mathematics lives in `adapters/`."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from mlora_sched.spec.adapter_common import AdapterCommon


class PlainMethod(StrEnum):
    """Methods that experts, and the ordinary adapter beside them, can be of."""

    LORA = "lora"
    RSLORA = "rslora"
    DORA = "dora"


class LoraSpec(AdapterCommon):
    """LoRA (Hu et al., 2021)."""

    method: Literal["lora"] = "lora"


class RsLoraSpec(AdapterCommon):
    """rsLoRA (Kalajdzievski, 2023): scale alpha / sqrt(r)."""

    method: Literal["rslora"]


class LoraPlusSpec(AdapterCommon):
    """LoRA+ (Hayou et al., 2024): B learns `lr_ratio` times faster than A."""

    method: Literal["loraplus"]
    lr_ratio: float = Field(default=16.0, ge=1.0)


class DoraSpec(AdapterCommon):
    """DoRA (Liu et al., 2024): magnitude and direction are trained apart."""

    method: Literal["dora"]
