"""Which class makes which method's adapters. One line a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlora_sched.adapters.base import Adapter
from mlora_sched.adapters.dora import DoraAdapter
from mlora_sched.adapters.dynmole import DynMoleAdapter
from mlora_sched.adapters.llava_mole import LlavaMoleAdapter
from mlora_sched.adapters.lora import LoraAdapter
from mlora_sched.adapters.loramoe import LoraMoeAdapter
from mlora_sched.adapters.loraplus import LoraPlusAdapter
from mlora_sched.adapters.mixlora import MixLoraAdapter
from mlora_sched.adapters.mola import MolaAdapter
from mlora_sched.adapters.rslora import RsLoraAdapter
from mlora_sched.errors import SpecError
from mlora_sched.model.base import FrozenBase
from mlora_sched.spec.adapter import AdapterSpec

METHODS: dict[str, type[Adapter]] = {
    "lora": LoraAdapter,
    "rslora": RsLoraAdapter,
    "loraplus": LoraPlusAdapter,
    "dora": DoraAdapter,
    "mixlora": MixLoraAdapter,
    "llava_mole": LlavaMoleAdapter,
    "dynmole": DynMoleAdapter,
    "mola": MolaAdapter,
    "loramoe": LoraMoeAdapter,
}


def build_adapter(spec: AdapterSpec, base: FrozenBase, seed: int) -> Adapter:
    """A fresh adapter of the spec's method.

    Raises:
        SpecError: the method cannot sit on this base with these settings.
    """
    return METHODS[spec.method].build(spec, base, seed)


def spec_of(config: Mapping[str, Any]) -> AdapterSpec:
    """The spec of an adapter whose weights mean what this `adapter_config.json` says, without dropout.

    A method that differs in training only comes back as the one it is written as (LoRA+ as LoRA).

    Raises:
        SpecError: no method of ours writes such a config, or it has settings that are not known here. The message
            begins with "adapter_config.json".
    """
    for adapter in METHODS.values():
        if adapter.wrote(config):
            return adapter.spec_of(config)
    keys = dict.fromkeys(key for adapter in METHODS.values() for key in adapter.marks)
    says = ", ".join(f"{key} = {config[key]!r}" for key in keys if key in config) or "nothing of its method"
    raise SpecError(f"adapter_config.json says {says}, which is none of {', '.join(METHODS)}")
