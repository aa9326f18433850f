"""Which class makes which method's adapters. One line a method."""

from __future__ import annotations

from mlora_sched.adapters.base import Adapter
from mlora_sched.adapters.dora import DoraAdapter
from mlora_sched.adapters.lora import LoraAdapter
from mlora_sched.adapters.loraplus import LoraPlusAdapter
from mlora_sched.adapters.mixlora import MixLoraAdapter
from mlora_sched.adapters.rslora import RsLoraAdapter
from mlora_sched.model.base import FrozenBase
from mlora_sched.spec.adapter import AdapterSpec

METHODS: dict[str, type[Adapter]] = {
    "lora": LoraAdapter,
    "rslora": RsLoraAdapter,
    "loraplus": LoraPlusAdapter,
    "dora": DoraAdapter,
    "mixlora": MixLoraAdapter,
}


def build_adapter(spec: AdapterSpec, base: FrozenBase, seed: int) -> Adapter:
    """A fresh adapter of the spec's method.

    Raises:
        SpecError: the method cannot sit on this base with these settings.
    """
    return METHODS[spec.method].build(spec, base, seed)
