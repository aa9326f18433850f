"""The contract of an adapter method.

A method builds its parameters for a job, offers ops for sites (and, if it routes, for FFNs), and says how it is
written to and read from files. Everything a tenant gets is computed per segment from that segment alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mlora_sched.adapters.params import Params
from mlora_sched.adapters.part import SegmentPart
from mlora_sched.errors import SpecError
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.ffn import RoutedOp
from mlora_sched.model.site import Site, SiteOp
from mlora_sched.spec.adapter import ALL_LINEAR, AdapterCommon


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as it is written: `adapter_config.json` and tensors, by their names in the file."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


class Adapter(ABC):
    """One job's adapter.

    Attributes:
        params: what is trained.
        site_ops: ops by name of the site group. routed_ops: ops by FFN name.
        lr_scales: factor on the learning rate by optimiser group; groups not named have 1.
    """

    lr_scales: Mapping[str, float] = MappingProxyType({})
    params: Params
    site_ops: dict[str, SiteOp]
    routed_ops: dict[str, RoutedOp]

    @classmethod
    @abstractmethod
    def build(cls, spec: Any, base: FrozenBase, seed: int) -> Adapter:
        """A fresh adapter for this base.

        Raises:
            SpecError: the targets do not exist in the base, or the method cannot sit on it.
        """

    @abstractmethod
    def files(self) -> AdapterFiles:
        """The adapter in its file format, float32, on the CPU."""

    @abstractmethod
    def read(self, files: AdapterFiles) -> None:
        """Take weights from files of this method (`init_from`).

        Raises:
            SpecError: the files are of another method, shape or target set; the message says which.
        """

    def begin_step(self) -> None:
        """Called before the first chunk of every step: derived values of the parameters are brought up to date."""
        self.params.refresh()

    def derived(self) -> Iterable[Tensor]:
        """What it keeps on the device beside its parameters."""
        return ()

    def forget_derived(self) -> None:
        """Let that go, since the job is parked; `begin_step` makes it anew."""
        return

    def chunk_figures(self, part: SegmentPart) -> dict[str, float]:  # noqa: ARG002 - most methods have none
        """Auxiliary losses and statistics of a chunk after its forward, by name, unweighted."""
        return {}


_EXPERT_NAMES = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""On a mixture base PEFT takes these names for the experts' projections of older transformers releases, wherever they
stand (a shared expert, a dense first layer), and then looks for weights that no adapter of ours has."""


def target_sites(spec: AdapterCommon, base: FrozenBase) -> Sequence[Site]:
    """The sites a job's `target_modules` name: all, or those whose path ends with one of them (as PEFT matches).

    On a mixture base only sites that PEFT can name there.

    Raises:
        SpecError: a name that no site of the base has.
    """
    sites = {name: site for name, site in base.sites.items() if not (base.is_mixture and _is_expert_name(name))}
    if spec.target_modules == ALL_LINEAR:
        return tuple(sites.values())
    for name in spec.target_modules:
        if not any(_ends_with(site, name) for site in sites):
            known = sorted({site.rpartition(".")[2] for site in sites})
            why = (
                "cannot be adapted on a mixture of experts: PEFT would take it for the experts' own"
                if any(_ends_with(site, name) for site in base.sites)
                else f"is no linear of base {base.name}"
            )
            raise SpecError(f"adapter.target_modules: {name!r} {why}; choose from {', '.join(known)}")
    return tuple(site for name, site in sites.items() if any(_ends_with(name, want) for want in spec.target_modules))


def target_names(spec: AdapterCommon, sites: Sequence[Site]) -> list[str]:
    """What a PEFT config names as its targets: the spec's own names, or the leaf names of every site."""
    if spec.target_modules == ALL_LINEAR:
        return sorted({site.name.rpartition(".")[2] for site in sites})
    return sorted(spec.target_modules)


def _is_expert_name(site: str) -> bool:
    return site.rpartition(".")[2] in _EXPERT_NAMES


def _ends_with(site: str, name: str) -> bool:
    return site == name or site.endswith("." + name)


def to_file(value: Tensor) -> Tensor:
    """A float32 copy on the CPU, contiguous, as safetensors wants it."""
    return value.detach().to(device="cpu", dtype=torch.float32, copy=True).contiguous()
