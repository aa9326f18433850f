"""The contract of an adapter method.

A method builds its parameters for a job, offers ops for sites (and, if it routes, for FFNs), and says how it is
written to and read from files. Everything a tenant gets is computed per segment from that segment alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from mlora_sched.adapters.params import Params
from mlora_sched.adapters.part import SegmentPart
from mlora_sched.errors import SpecError
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.ffn import RoutedOp
from mlora_sched.model.site import Site, SiteOp
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.adapter_common import (
    ALL_FFN,
    ALL_LINEAR,
    AdapterCommon,
    Linears,
    Targets,
    chosen,
    ends_with,
)
from mlora_sched.spec.placement import placed

Spec = TypeVar("Spec", bound=AdapterCommon)
_NAMES_IN_FILE = {"alpha": "lora_alpha", "experts": "num_experts"}
"""Fields of specs that `adapter_config.json` calls otherwise."""


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as it is written: `adapter_config.json` and tensors, by their names in the file.

    Attributes:
        as_pickle: the tensors are written as a PyTorch file too, for a program that reads nothing else.
        notes: what a user of the files should know.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    as_pickle: bool = False
    notes: tuple[str, ...] = ()


class Adapter(ABC):
    """One job's adapter.

    Attributes:
        params: what is trained.
        site_ops: ops by name of the site group. routed_ops: ops by FFN name.
        lr_scales: factor on the learning rate by optimiser group; groups not named have 1.
        marks: keys of `adapter_config.json`, with their values, by which the method's files are known; a key that is
            absent counts as False.
    """

    marks: ClassVar[Mapping[str, object]]
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

    @classmethod
    def wrote(cls, config: Mapping[str, Any]) -> bool:
        """The config is of this method's files, or of those of one that is written in the same way."""
        return all((config.get(key) or False) == value for key, value in cls.marks.items())

    @classmethod
    @abstractmethod
    def spec_of(cls, config: Mapping[str, Any]) -> AdapterSpec:
        """The spec of an adapter whose weights mean what this `adapter_config.json` says. Dropout is 0: it is to run.

        Raises:
            SpecError: it is of another method, lacks a setting, or has one that is not known here. The message begins
                with "adapter_config.json".
        """

    @classmethod
    def _meant(
        cls,
        config: Mapping[str, Any],
        spec: type[Spec],
        method: str,
        keys: Sequence[str] = (),
        more: Mapping[str, object] = MappingProxyType({}),
    ) -> Spec:
        """What `spec_of` returns, read from the keys of every method and from `keys`, which specs call the same.

        Args:
            more: fields that the method has read for itself.

        Raises:
            SpecError: as `spec_of` says.
        """
        if not cls.wrote(config):
            says = ", ".join(f"{key} = {config.get(key)!r}" for key in cls.marks)
            raise SpecError(f"adapter_config.json says {says}, which is not {method}")
        fields = ("r", "alpha", "target_modules", *keys)
        given = {field: _in_config(config, _NAMES_IN_FILE.get(field, field)) for field in fields}
        try:
            return spec.model_validate({"method": method, **given, **more}, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            # of the ordinary adapter beside experts, the keys at the top
            at = [part for part in first["loc"] if part != "attention"]
            says = first["msg"].removeprefix("Value error, ")
            if not at:  # of several fields, which the message names
                raise SpecError(f"adapter_config.json: {says}") from None
            key = _NAMES_IN_FILE.get(str(at[0]), str(at[0]))
            raise SpecError(f"adapter_config.json: {key} = {first['input']!r}: {says}") from None

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


def target_names(named: Targets, sites: Sequence[Site], linears: Linears) -> list[str]:
    """What a config names as its targets, so that its readers find these sites and no others.

    The names that a spec gives, as far as they lead to any of the sites; else the last names of the sites; else, where
    those are also the names of other linears (GPT-2 has a `c_proj` in its attention, too), whole paths.

    Args:
        named: the spec's. linears: all of the base's.
    """
    paths = {site.name for site in sites}
    leaves = {path.rpartition(".")[2] for path in paths}
    given = set() if isinstance(named, str) else {n for n in named if any(ends_with(path, n) for path in paths)}
    for names in (given, leaves):
        if set(chosen(tuple(names), linears)) == paths:
            return sorted(names)
    return sorted(paths)


def _in_config(config: Mapping[str, Any], key: str) -> Any:
    if key not in config:
        raise SpecError(f"adapter_config.json lacks {key}, so what the weights mean is not known")
    value = config[key]
    if key == "target_modules" and isinstance(value, str) and value not in (ALL_LINEAR, ALL_FFN):
        raise SpecError(
            f"adapter_config.json: target_modules = {value!r} is a pattern of PEFT's, which is not known here; write "
            f"the names of the modules in a list"
        )
    return tuple(value) if isinstance(value, list) else value


def to_file(value: Tensor) -> Tensor:
    """A float32 copy on the CPU, contiguous, as safetensors wants it."""
    return value.detach().to(device="cpu", dtype=torch.float32, copy=True).contiguous()
