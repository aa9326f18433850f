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
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.ffn import RoutedOp
from mlora_sched.model.site import Site, SiteOp
from mlora_sched.spec.adapter_common import ALL_LINEAR, AdapterCommon
from mlora_sched.spec.placement import placed


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


def target_sites(spec: AdapterCommon, base: FrozenBase) -> Sequence[Site]:
    """The sites a job's adapter sits on.

    Raises:
        SpecError: a name that no site of the base has, or the method cannot sit on this base.
    """
    return tuple(base.sites[name] for name in placed(spec, base.places))


def target_names(spec: AdapterCommon, sites: Sequence[Site]) -> list[str]:
    """What a PEFT config names as its targets: the spec's own names, or the leaf names of every site."""
    if spec.target_modules == ALL_LINEAR:
        return sorted({site.name.rpartition(".")[2] for site in sites})
    return sorted(spec.target_modules)


def to_file(value: Tensor) -> Tensor:
    """A float32 copy on the CPU, contiguous, as safetensors wants it."""
    return value.detach().to(device="cpu", dtype=torch.float32, copy=True).contiguous()
