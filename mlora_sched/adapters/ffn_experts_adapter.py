"""What MixLoRA and LLaVA-MoLE share as adapters: experts on every targeted FFN, an ordinary adapter on other targets.

Parameters, ops, and files in the shape that the `mixlora` package introduced: `adapter_config.json`, and tensors under
`{root}.layers.{i}.`. What the methods differ in (router, choosing, balance, settings) is theirs to say. The mathematics
is in `mlora_sched.adapters.ffn_experts`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor

from mlora_sched.adapters.base import Adapter, AdapterFiles, target_names, to_file
from mlora_sched.adapters.dora import DoraAdapter
from mlora_sched.adapters.experts import Experts, expert_specs, experts_of
from mlora_sched.adapters.ffn_experts import Balance, FfnExpertsOp
from mlora_sched.adapters.lora import LoraAdapter, check_config, take
from mlora_sched.adapters.params import Params, ParamSpec
from mlora_sched.adapters.part import SegmentPart
from mlora_sched.adapters.routed_files import by_expert, in_file
from mlora_sched.adapters.routing import Choosing, Router
from mlora_sched.adapters.rslora import RsLoraAdapter
from mlora_sched.errors import SpecError
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.device import numbers
from mlora_sched.model.ffn import PackedFfn, RoutedOp
from mlora_sched.spec.adapter_common import AdapterCommon, Targets
from mlora_sched.spec.placement import placed
from mlora_sched.spec.plain import PlainMethod
from mlora_sched.spec.routed import FfnExpertsSpec

_PLAIN: dict[PlainMethod, type[LoraAdapter]] = {
    PlainMethod.LORA: LoraAdapter,
    PlainMethod.RSLORA: RsLoraAdapter,
    PlainMethod.DORA: DoraAdapter,
}
_ROUTER = ("weight", "bias")


class FfnExpertsAdapter(Adapter):
    """Experts on every targeted FFN, an ordinary adapter on every other target.

    Attributes:
        root: first part of the names of tensors in files.
        settings: keys of `adapter_config.json`, beside those of every method, without which the weights mean nothing.
    """

    root: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, spec: Any, base: FrozenBase, seed: int) -> None:
        own: FfnExpertsSpec = spec
        linears = base.places.linears
        placed(own, base.places)
        self.base = base
        self.plain = self._plain_part(own)
        inside = set(own.expert_targets(linears))
        self.expert_sites = tuple(base.sites[name] for name in linears.paths if name in inside)
        self.ffns = tuple(ffn for ffn in base.ffns.values() if any(site.name in inside for site in ffn.linears))
        self._settings = own
        self.params = Params(self._specs(seed), base.device, base.dtype)
        self.plain.place(self.params)
        self.site_ops = self.plain.site_ops
        self._ops = {ffn.name: self._op(ffn) for ffn in self.ffns}
        self.routed_ops: dict[str, RoutedOp] = dict(self._ops)

    @classmethod
    def build(cls, spec: Any, base: FrozenBase, seed: int) -> Adapter:
        return cls(spec, base, seed)

    # ------------------------------------------------------------------ what the methods say

    @property
    @abstractmethod
    def choosing(self) -> Choosing: ...

    @property
    @abstractmethod
    def balance(self) -> Balance: ...

    @abstractmethod
    def _router_specs(self, ffn: PackedFfn, seed: int) -> Iterator[ParamSpec]:
        """The parameters of an FFN's router: `{ffn}.moe_gate.weight`, and its bias where it has one."""

    @abstractmethod
    def _own_config(self) -> dict[str, Any]:
        """The method's own keys of `adapter_config.json`."""

    # ------------------------------------------------------------------ parts

    def _plain_part(self, spec: FfnExpertsSpec) -> LoraAdapter:
        linears = self.base.places.linears
        sites = [self.base.sites[name] for name in spec.plain_targets(linears)]
        return _PLAIN[spec.attention.method](spec.plain, self.base, sites)

    def _specs(self, seed: int) -> Iterator[ParamSpec]:
        spec = self._settings
        yield from self.plain.specs(seed)
        for ffn in self.ffns:
            yield from self._router_specs(ffn, seed)
        for site in self.expert_sites:
            yield from expert_specs(site, spec.num_experts, spec.r, spec.expert_method, seed)

    def _op(self, ffn: PackedFfn) -> FfnExpertsOp:
        spec, params = self._settings, self.params
        pairs = (spec.expert_method, spec.r, spec.alpha)
        router = Router(*(params[name] for half in _ROUTER if (name := f"{ffn.name}.moe_gate.{half}") in params))
        inner = [experts_of(params, site, *pairs, with_bias=True) for site in ffn.inner]
        outer = experts_of(params, ffn.outer, *pairs, with_bias=False)
        return FfnExpertsOp(ffn, router, self.choosing, self.balance, inner, outer, spec.dropout)

    def _experts(self) -> Iterator[Experts]:
        for op in self._ops.values():
            yield from op.experts

    def begin_step(self) -> None:
        self.plain.begin_step()  # brings the copies of all parameters up to date
        for experts in self._experts():
            experts.begin_step()

    def derived(self) -> Iterator[Tensor]:
        yield from self.plain.derived()
        for experts in self._experts():
            yield from experts.derived()

    def forget_derived(self) -> None:
        self.plain.forget_derived()
        for experts in self._experts():
            experts.forget()

    def chunk_figures(self, part: SegmentPart) -> dict[str, float]:
        """`aux_loss`: the chunk's balance loss, with its coefficient."""
        (found,) = numbers(self.balance.loss(part)[None])
        return {"aux_loss": found}

    # ------------------------------------------------------------------ files

    def files(self) -> AdapterFiles:
        return AdapterFiles(self.config(), {name: to_file(place) for name, place in self._places().items()})

    def read(self, files: AdapterFiles) -> None:
        own = self.config()
        check_config(files.config, own, [key for key in self.settings if key in own])
        take(files.tensors, self._places())
        self.begin_step()

    def _places(self) -> dict[str, Tensor]:
        """The parameters by their names in files; those of all experts of a site in pieces, one an expert."""
        found: dict[str, Tensor] = {}
        for name in self.params:
            value = self.params[name].value
            if any(name.startswith(f"{site.name}.") for site in self.expert_sites):
                found |= by_expert(self.root, name, value)
            else:
                found[in_file(self.root, name)] = value
        return found

    def config(self) -> dict[str, Any]:
        """`adapter_config.json`: at its top the ordinary adapter's settings, under `expert_lora` the experts' where
        they are others."""
        spec, plain = self._settings, self.plain
        own = _pair_keys(spec, spec.expert_method)
        top = _pair_keys(plain.spec, spec.attention.method) if plain.sites else own
        written: dict[str, Any] = {
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base.portable_name,
            # the mixlora package asserts a dropout above zero
            "lora_dropout": spec.dropout or 1e-9,
            "target_modules": target_names(self._named(), (*plain.sites, *self.expert_sites), self.base.places.linears),
            "bias": "none",
            "num_experts": spec.num_experts,
            "router_aux_loss_coef": spec.router_aux_loss_coef,
        }
        others = {} if own == top else {"expert_lora": own}
        return written | top | others | self._own_config()

    def _named(self) -> Targets:
        """The names that the spec gives, of experts and of the ordinary adapter."""
        own, beside = self._settings.target_modules, self._settings.attention.target_modules
        if beside is None or isinstance(own, str) or isinstance(beside, str):
            return own
        return (*own, *beside)


def _pair_keys(spec: AdapterCommon, method: PlainMethod) -> dict[str, Any]:
    return {
        "r": spec.r,
        # the mixlora package asserts an integer
        "lora_alpha": int(spec.alpha) if spec.alpha.is_integer() else spec.alpha,
        "use_rslora": method is PlainMethod.RSLORA,
        "use_dora": method is PlainMethod.DORA,
    }


def meant_by(config: Mapping[str, Any]) -> dict[str, object]:
    """Fields of a spec that `config` wrote: rank, alpha and method of the experts and of the ordinary adapter.

    Raises:
        SpecError: `expert_lora` is no section.
    """
    found = config.get("expert_lora")
    experts = {} if found is None else found
    if not isinstance(experts, Mapping):
        raise SpecError(f"adapter_config.json: expert_lora = {experts!r} is no section with r, lora_alpha and the like")
    top = {"r": config.get("r"), "alpha": config.get("lora_alpha"), "method": _method_of(config)}
    return {
        "r": experts.get("r", top["r"]),
        "alpha": experts.get("lora_alpha", top["alpha"]),
        "expert_method": _method_of(experts) if experts else top["method"],
        "attention": top,
    }


def _method_of(config: Mapping[str, Any]) -> PlainMethod:
    if config.get("use_dora"):
        return PlainMethod.DORA
    return PlainMethod.RSLORA if config.get("use_rslora") else PlainMethod.LORA
