"""LoRA (Hu et al., 2021, arXiv 2106.09685): h = W x + s · B A x, s = alpha / r, A Kaiming-uniform, B zero.

Also the ground that rsLoRA, LoRA+ and DoRA stand on. Dropout applies to the adapter's input only; the base always
sees x itself. The mask is part of the backward.

Legend: N rows of a segment, D input width, O output width, R rank, K rank times the pairs that share their input.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mlora_sched.adapters.base import Adapter, AdapterFiles, target_names, target_sites, to_file
from mlora_sched.adapters.params import Param, Params, ParamSpec, wide
from mlora_sched.adapters.part import SegmentPart, stream_seed
from mlora_sched.errors import SpecError
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.ffn import RoutedOp
from mlora_sched.model.site import Site, SiteGroup, SiteOp
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.adapter_common import AdapterCommon
from mlora_sched.spec.plain import LoraSpec

PEFT_PREFIX = "base_model.model."
_DECISIVE = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "expert_lora", "num_experts", "routing_strategy")
"""Keys of `adapter_config.json` that decide what the weights mean; one that is absent, or null, counts as False."""
_PER_MODULE = ("alpha_pattern", "rank_pattern", "layer_replication", "modules_to_save")
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts of PEFT's `init_lora_weights` after which the pairs stand on other weights than the base's."""


class LoraOp:
    """The low-rank pairs of one job at the sites of one group, which share their input.

    The As lie behind one another, so that the group takes one product with its input, one for dA and one for dx.

    Args:
        a: (K, D), of all pairs. bs: (O, R) of each; they lie in memory as (R, O), so that their transposes are
            contiguous.
        at: the place of each pair's site in its group.
        group: name of the group; it names the dropout mask.
    """

    rescales = False

    def __init__(
        self, a: Param, bs: Sequence[Param], at: Sequence[int], scale: float, dropout: float, group: str
    ) -> None:
        self.a, self.bs, self.at = a, tuple(bs), tuple(at)
        self.scale, self.dropout, self.group = scale, dropout, group
        self._pairs = [(place, b.compute.T, b.grad.T) for place, b in zip(at, bs, strict=True)]
        self._a_KD = a.compute

    def forward(self, x_ND: Tensor, ys: Sequence[Tensor], part: SegmentPart) -> Tensor:
        """y += s · drop(x) Aᵀ Bᵀ; keeps A drop(x)ᵀ, which is small."""
        s_KN = torch.mm(self._a_KD, part.drop(self.group, x_ND, self.dropout).T)
        for (place, bt_RO, _), s_RN in zip(self._pairs, s_KN.chunk(len(self._pairs)), strict=True):
            ys[place].addmm_(s_RN.T, bt_RO, alpha=self.scale)
        part.release()
        return s_KN

    def backward(self, dys: Sequence[Tensor], x_ND: Tensor, saved: Tensor, part: SegmentPart) -> Tensor:
        """Accumulate dA and dB in float32; return ds."""
        ds_KN = torch.empty_like(saved)
        pieces = zip(self._pairs, saved.chunk(len(self._pairs)), ds_KN.chunk(len(self._pairs)), strict=True)
        for (place, bt_RO, grad_RO), s_RN, ds_RN in pieces:
            dy_NO = dys[place]
            ds_RN.addmm_(bt_RO, dy_NO.T, beta=0.0, alpha=self.scale)
            grad_RO.addmm_(wide(s_RN), wide(dy_NO), beta=part.beta, alpha=self.scale)
        dropped_ND = part.drop(self.group, x_ND, self.dropout)
        self.a.grad.addmm_(wide(ds_KN), wide(dropped_ND), beta=part.beta)
        return ds_KN

    def add_dx(self, carry: Tensor, dx_ND: Tensor, part: SegmentPart) -> None:
        """dx += (ds A), through the mask."""
        if self.dropout == 0.0 or not part.training:
            dx_ND.addmm_(carry.T, self._a_KD)
        else:
            mask = part.mask(self.group, dx_ND, self.dropout)
            dx_ND.addcmul_(carry.T @ self._a_KD, mask)
            part.release()


class LoraAdapter(Adapter):
    """Low-rank pairs on every targeted site."""

    marks: ClassVar[Mapping[str, object]] = {"peft_type": "LORA", "use_rslora": False, "use_dora": False}
    group_a, group_b = "all", "all"

    def __init__(self, spec: AdapterCommon, base: FrozenBase, sites: Sequence[Site]) -> None:
        self.spec, self.base, self.sites = spec, base, sites
        self.routed_ops: dict[str, RoutedOp] = {}

    @classmethod
    def build(cls, spec: Any, base: FrozenBase, seed: int) -> Adapter:
        return cls.on(spec, base, target_sites(spec, base), seed)

    @classmethod
    def on(cls, spec: Any, base: FrozenBase, sites: Sequence[Site], seed: int) -> LoraAdapter:
        """A fresh adapter on these sites."""
        adapter = cls(spec, base, sites)
        adapter.place(Params(adapter.specs(seed), base.device, base.dtype))
        return adapter

    @classmethod
    def spec_of(cls, config: Mapping[str, Any]) -> AdapterSpec:
        refuse_patterns(config)
        return cls._meant(config, LoraSpec, "lora")

    @property
    def scale(self) -> float:
        """s."""
        return self.spec.alpha / self.spec.r

    def place(self, params: Params) -> None:
        """Take its parameters, which may lie among others, and make the ops that work with them."""
        self.params = params
        self.site_ops: dict[str, SiteOp] = {
            group.name: self._op(group, members) for group, members in by_group(self.sites)
        }

    def specs(self, seed: int) -> Iterator[ParamSpec]:
        """What is to be trained."""
        for _, members in by_group(self.sites):
            yield from group_pairs(members, self.spec.r, seed, self.groups)

    @property
    def groups(self) -> tuple[str, str]:
        """Optimiser groups of A and B."""
        return self.group_a, self.group_b

    def _op(self, group: SiteGroup, members: Sequence[Site]) -> SiteOp:
        return group_op(self.params, group, members, self.scale, self.spec.dropout)

    def peft_config(self) -> dict[str, Any]:
        """`adapter_config.json` for PEFT's LORA type."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base.portable_name,
            "r": self.spec.r,
            "lora_alpha": self.spec.alpha,
            "lora_dropout": self.spec.dropout,
            "target_modules": target_names(self.spec.target_modules, self.sites, self.base.places.linears),
            "fan_in_fan_out": any(site.stored_transposed for site in self.sites),
            "use_rslora": False,
            "use_dora": False,
            "bias": "none",
            "inference_mode": True,
        }

    def files(self) -> AdapterFiles:
        return AdapterFiles(self.peft_config(), {name: to_file(place) for name, place in self._places().items()})

    def read(self, files: AdapterFiles) -> None:
        check_config(files.config, self.peft_config())
        take(files.tensors, self._places())
        self.begin_step()

    def _places(self) -> dict[str, Tensor]:
        """The parameters by their names in files."""
        return {PEFT_PREFIX + name: self.params[name].value for name in self.params}


def by_group(sites: Sequence[Site]) -> list[tuple[SiteGroup, list[Site]]]:
    """The groups of these sites, each with those of its sites that are among them, in the group's order."""
    groups = dict.fromkeys(site.group for site in sites)
    return [(group, [site for site in group.sites if site in sites]) for group in groups]


def group_pairs(sites: Sequence[Site], rank: int, seed: int, groups: tuple[str, str]) -> Iterator[ParamSpec]:
    """The parameters of the pairs at the sites of one group: all A, joined, then all B."""
    pairs = [tuple(lora_pair(site, site.name, rank, seed, groups)) for site in sites]
    yield from (dataclasses.replace(a, joined=at > 0) for at, (a, _) in enumerate(pairs))
    yield from (b for _, b in pairs)


def group_op(params: Params, group: SiteGroup, sites: Sequence[Site], scale: float, dropout: float) -> LoraOp:
    """The op over the parameters that `group_pairs` laid out."""
    a = params.joined([f"{site.name}.lora_A.weight" for site in sites])
    bs = [params[f"{site.name}.lora_B.weight"] for site in sites]
    return LoraOp(a, bs, [group.sites.index(site) for site in sites], scale, dropout, group.name)


def lora_pair(site: Site, prefix: str, rank: int, seed: int, groups: tuple[str, str]) -> Iterator[ParamSpec]:
    """The two parameters of a pair at a site: A Kaiming-uniform with a = √5 (bound 1/√D), B zero."""
    generator = torch.Generator().manual_seed(stream_seed(seed, "start", prefix))
    bound = 1.0 / math.sqrt(site.in_features)
    a_RD = torch.empty(rank, site.in_features).uniform_(-bound, bound, generator=generator)
    yield ParamSpec(f"{prefix}.lora_A.weight", a_RD, groups[0])
    yield ParamSpec(f"{prefix}.lora_B.weight", torch.zeros(site.out_features, rank), groups[1], transposed=True)


def check_config(found: dict[str, Any], own: dict[str, Any], keys: Sequence[str] = ()) -> None:
    """Refuse to start from an adapter whose settings, `keys` among them, change what its weights mean."""
    try:
        refuse_patterns(found)
    except SpecError as error:
        raise SpecError(f"adapter.init_from: its {error}") from None
    for key in (*_DECISIVE, *keys):
        if _said(found, key) != _said(own, key):
            raise SpecError(
                f"adapter.init_from: its adapter_config.json says {key} = {found.get(key)!r}, the job needs "
                f"{own.get(key)!r}; change the job's adapter settings or start from another adapter"
            )


def _said(config: Mapping[str, Any], key: str) -> Any:
    value = config.get(key)
    return False if value is None else value


def refuse_patterns(found: Mapping[str, Any]) -> None:
    """Refuse settings of PEFT with which the weights would mean something else here.

    Raises:
        SpecError: the message begins with "adapter_config.json".
    """
    for key in _PER_MODULE:
        if found.get(key):
            raise SpecError(
                f"adapter_config.json sets {key}, which is not known here; take an adapter with one rank and one "
                f"alpha for all modules"
            )
    if found.get("bias", "none") != "none":
        raise SpecError(
            f"adapter_config.json says that biases were trained (bias = {found['bias']!r}); take one with bias none"
        )
    start = found.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGE_THE_BASE):
        raise SpecError(
            f"adapter_config.json: init_lora_weights = {start!r} stands on a changed base; let PEFT save it as a plain "
            f"LoRA (path_initial_model_for_weight_conversion)"
        )
    if found.get("alora_invocation_tokens"):
        raise SpecError("adapter_config.json: alora_invocation_tokens is not known here; take a LoRA that is always on")


def take(tensors: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
    """Copy the tensors of a file to their places, by name: all must be there, in the shapes of these, and no others.

    Nothing is copied where one does not fit.

    Raises:
        SpecError: the message begins with "adapter.init_from".
    """
    missing, extra = sorted(places.keys() - tensors.keys()), sorted(tensors.keys() - places.keys())
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"holds {extra[0]}, which the job does not train"
        raise SpecError(f"adapter.init_from: {what}; give the job the target_modules of that adapter")
    for name, place in places.items():
        if tensors[name].shape != place.shape:
            found, need = tuple(tensors[name].shape), tuple(place.shape)
            raise SpecError(f"adapter.init_from: {name} has shape {found}, this base and rank need {need}")
    for name, place in places.items():
        place.copy_(tensors[name])
