"""Routed pairs on single linears, whose weighted sum is one product: the op and the adapter of DynMoLE, MoLA, LoRAMoE.

h = W x + s Σ_e w_e B_e A_e drop(x). Each linear has a router: p = softmax(G x) in float32, of x as it is, not dropped.
A method says what weights w follow from p (`Mixing`), and what its auxiliary losses add to the gradient of p.

Since Σ_e w_e B_e A_e x = [B_1 … B_E] (w ⊗ [A_1; …; A_E] x), the As of all experts and of all linears that share an
input are one product, the Bs of a linear another. Experts that a token does not take have weight 0: nothing is sorted
by expert, nothing waits for the device, and no loop runs over experts. That costs the products of all experts, which is
cheap as long as experts times rank is small beside the widths of the linear.

Not here: experts of whole FFNs (`mixlora`), which see one another's outputs.

Legend: N rows of a segment, D input width, O output width, P linears that share their input, E experts, R rank,
K = P·E·R.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mlora_sched.adapters.base import Adapter, AdapterFiles, target_names, target_sites, to_file
from mlora_sched.adapters.experts import expert_specs
from mlora_sched.adapters.lora import by_group, check_config, take
from mlora_sched.adapters.params import Param, Params, ParamSpec, wide
from mlora_sched.adapters.part import SegmentPart, stream_seed
from mlora_sched.adapters.routed_files import by_expert, in_file
from mlora_sched.adapters.routing import RouterStats
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.ffn import RoutedOp
from mlora_sched.model.site import Site, SiteGroup, SiteOp
from mlora_sched.spec.adapter_common import AdapterCommon, layers_in
from mlora_sched.spec.plain import PlainMethod


class Mixing(ABC):
    """How the weights of the experts follow from their probabilities, and what a method asks of its routers beside.

    Args:
        sites: names of the P linears, in the order of the first dimension.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        self.sites = tuple(sites)

    @abstractmethod
    def weigh(self, p_PEN: Tensor, part: SegmentPart) -> Tensor:
        """Weights (P, E, N), 0 where a token does not take an expert; statistics go to `part.routing`, by site."""

    @abstractmethod
    def backward(self, dw_PEN: Tensor, p_PEN: Tensor, w_PEN: Tensor) -> Tensor:
        """The gradient of the probabilities by that of the weights."""

    @abstractmethod
    def losses_backward(self, p_PEN: Tensor, w_PEN: Tensor, part: SegmentPart) -> Tensor | None:
        """The gradient of the chunk's auxiliary losses by the probabilities, in a shape that broadcasts to theirs.

        All routers have seen the chunk by then. None where the losses are switched off. Not yet weighted.
        """


@dataclass(frozen=True)
class _Saved:
    s_KN: Tensor
    p_PEN: Tensor
    w_PEN: Tensor


class MixedOp:
    """The routed pairs of one job at the linears of one group, which share their input.

    Args:
        a: (P·E, R, D), of all linears. router: (P·E, D), likewise. bs: (E, O, R) of each linear; they lie in memory as
            (E, R, O), so that all experts of one are (E·R, O).
        at: the place of each linear in its group.
        group: name of the group; it names the dropout mask.
    """

    rescales = False

    def __init__(
        self,
        a: Param,
        router: Param,
        bs: Sequence[Param],
        at: Sequence[int],
        mixing: Mixing,
        scale: float,
        dropout: float,
        group: str,
    ) -> None:
        self.mixing, self.scale, self.dropout, self.group = mixing, scale, dropout, group
        self._a_KD, self._da_KD = a.compute.flatten(0, 1), a.grad.flatten(0, 1)
        self._router, self._linears = router, len(bs)
        self._bs = [
            (place, b.compute.mT.flatten(0, 1), b.grad.mT.flatten(0, 1)) for place, b in zip(at, bs, strict=True)
        ]

    def forward(self, x_ND: Tensor, ys: Sequence[Tensor], part: SegmentPart) -> _Saved:
        """y += s · (w ⊗ A drop(x)) Bᵀ; keeps A drop(x)ᵀ, probabilities and weights."""
        p_PEN = self._probabilities(x_ND)
        w_PEN = self.mixing.weigh(p_PEN, part)
        s_KN = torch.mm(self._a_KD, part.drop(self.group, x_ND, self.dropout).T)
        part.release()
        u_KN = _scaled(s_KN, w_PEN)
        for (place, bt_JO, _), u_JN in zip(self._bs, u_KN.chunk(self._linears), strict=True):
            ys[place].addmm_(u_JN.T, bt_JO, alpha=self.scale)
        return _Saved(s_KN, p_PEN, w_PEN)

    def _probabilities(self, x_ND: Tensor) -> Tensor:
        logits_CN = torch.mm(self._router.value, wide(x_ND).T)
        return torch.softmax(logits_CN.view(self._linears, -1, len(x_ND)), dim=1)

    def backward(self, dys: Sequence[Tensor], x_ND: Tensor, saved: _Saved, part: SegmentPart) -> tuple[Tensor, Tensor]:
        """Accumulate the gradients of A, B and the routers in float32; return ds and the gradient of the logits."""
        du_KN = self._experts_backward(dys, saved, part)
        dw_PEN = (wide(du_KN) * wide(saved.s_KN)).view(*saved.p_PEN.shape[:2], -1, len(x_ND)).sum(dim=2)
        ds_KN = _scaled(du_KN, saved.w_PEN, du_KN)
        self._da_KD.addmm_(wide(ds_KN), wide(part.drop(self.group, x_ND, self.dropout)), beta=part.beta)
        dlogits_CN = self._logits_backward(dw_PEN, saved, part)
        self._router.grad.addmm_(dlogits_CN, wide(x_ND), beta=part.beta)
        return ds_KN, dlogits_CN.to(x_ND.dtype)

    def _logits_backward(self, dw_PEN: Tensor, saved: _Saved, part: SegmentPart) -> Tensor:
        """Their gradient by the weights and by the auxiliary losses, (P·E, N)."""
        dp_PEN = self.mixing.backward(dw_PEN, saved.p_PEN, saved.w_PEN)
        aux = self.mixing.losses_backward(saved.p_PEN, saved.w_PEN, part)
        if aux is not None:
            dp_PEN = torch.add(dp_PEN, aux, alpha=part.aux_weight)
        mean_P1N = (dp_PEN * saved.p_PEN).sum(dim=1, keepdim=True)
        return ((dp_PEN - mean_P1N) * saved.p_PEN).flatten(0, 1)

    def _experts_backward(self, dys: Sequence[Tensor], saved: _Saved, part: SegmentPart) -> Tensor:
        """Accumulate dB; return the gradient of what it read."""
        u_KN = _scaled(saved.s_KN, saved.w_PEN)
        du_KN = torch.empty_like(u_KN)
        pieces = zip(self._bs, u_KN.chunk(self._linears), du_KN.chunk(self._linears), strict=True)
        for (place, bt_JO, grad_JO), u_JN, du_JN in pieces:
            dy_NO = dys[place]
            du_JN.addmm_(bt_JO, dy_NO.T, beta=0.0, alpha=self.scale)
            grad_JO.addmm_(wide(u_JN), wide(dy_NO), beta=part.beta, alpha=self.scale)
        return du_KN

    def add_dx(self, carry: tuple[Tensor, Tensor], dx_ND: Tensor, part: SegmentPart) -> None:
        """dx += dlogits G, and (ds A) through the mask."""
        ds_KN, dlogits_CN = carry
        dx_ND.addmm_(dlogits_CN.T, self._router.compute)
        if self.dropout == 0.0 or not part.training:
            dx_ND.addmm_(ds_KN.T, self._a_KD)
        else:
            dx_ND.addcmul_(ds_KN.T @ self._a_KD, part.mask(self.group, dx_ND, self.dropout))
            part.release()


def _scaled(rows_KN: Tensor, w_PEN: Tensor, out_KN: Tensor | None = None) -> Tensor:
    """The rows of each expert times its weights, (K, N)."""
    found = torch.empty_like(rows_KN) if out_KN is None else out_KN
    linears, experts, n = w_PEN.shape
    rows_PERN, found_PERN = (rows.view(linears, experts, -1, n) for rows in (rows_KN, found))
    torch.mul(rows_PERN, w_PEN.to(rows_KN.dtype)[:, :, None], out=found_PERN)
    return found


def stats_of_group(p_PEN: Tensor, taken_PEN: Tensor) -> list[RouterStats]:
    """Of every router of a group, in order. `taken_PEN`: where a token takes an expert, a boolean each."""
    experts, tokens = p_PEN.shape[1:]
    chosen_PE, probability_PE = taken_PEN.sum(dim=2, dtype=p_PEN.dtype), p_PEN.sum(dim=2)
    entropy_P = torch.special.entr(p_PEN).sum(dim=(1, 2)) / (math.log(experts) if experts > 1 else 1.0)
    rows = zip(chosen_PE, probability_PE, entropy_P, strict=True)
    return [RouterStats(chosen_E, probability_E, entropy, tokens) for chosen_E, probability_E, entropy in rows]


class MixedAdapter(Adapter):
    """Routed pairs on every targeted linear; what is of the method alone, its subclasses say.

    Attributes:
        root: first part of the names of tensors in files.
        settings: keys of `adapter_config.json`, beside those of every method, without which the weights mean nothing.
    """

    root: ClassVar[str]
    settings: ClassVar[tuple[str, ...]]

    def __init__(self, spec: AdapterCommon, base: FrozenBase, seed: int) -> None:
        self.spec, self.base, self.sites = spec, base, target_sites(spec, base)
        self.layers = layers_in(base.sites)
        self.params = Params(self._specs(seed), base.device, base.dtype)
        self.site_ops: dict[str, SiteOp] = {g.name: self._op(g, members) for g, members in by_group(self.sites)}
        self.routed_ops: dict[str, RoutedOp] = {}

    @classmethod
    def build(cls, spec: Any, base: FrozenBase, seed: int) -> Adapter:
        return cls(spec, base, seed)

    @abstractmethod
    def _experts(self, site: Site) -> int:
        """Experts of a linear; equal for those that share an input."""

    @abstractmethod
    def _mixing(self, sites: Sequence[str]) -> Mixing:
        """For linears that share their input, by name."""

    @abstractmethod
    def _own_config(self) -> dict[str, Any]:
        """`settings` with their values, and what training alone needed."""

    def _specs(self, seed: int) -> Iterator[ParamSpec]:
        """By group: the routers, joined; the As, joined; the Bs."""
        for _, members in by_group(self.sites):
            for at, site in enumerate(members):
                name = f"{site.name}.moe_gate.weight"
                yield ParamSpec(name, _router_start(site, self._experts(site), seed), joined=at > 0)
            pairs = [self._pairs(site, seed) for site in members]
            yield from (dataclasses.replace(a, joined=at > 0) for at, (a, _) in enumerate(pairs))
            yield from (b for _, b in pairs)

    def _pairs(self, site: Site, seed: int) -> tuple[ParamSpec, ...]:
        """A (E, R, D) and B (E, O, R) of a linear."""
        return tuple(expert_specs(site, self._experts(site), self.spec.r, PlainMethod.LORA, seed))

    def _op(self, group: SiteGroup, members: Sequence[Site]) -> MixedOp:
        names = [site.name for site in members]
        return MixedOp(
            self.params.joined([f"{name}.lora_A.weight" for name in names]),
            self.params.joined([f"{name}.moe_gate.weight" for name in names]),
            [self.params[f"{name}.lora_B.weight"] for name in names],
            [group.sites.index(site) for site in members],
            self._mixing(names),
            self.spec.alpha / self.spec.r,
            self.spec.dropout,
            group.name,
        )

    def config(self) -> dict[str, Any]:
        """`adapter_config.json`."""
        return {
            **self.marks,
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base.portable_name,
            "r": self.spec.r,
            "lora_alpha": self.spec.alpha,
            "lora_dropout": self.spec.dropout,
            "target_modules": target_names(self.spec.target_modules, self.sites, self.base.places.linears),
            "bias": "none",
            **self._own_config(),
        }

    def files(self) -> AdapterFiles:
        return AdapterFiles(self.config(), {name: to_file(place) for name, place in self._places().items()})

    def read(self, files: AdapterFiles) -> None:
        check_config(files.config, self.config(), self.settings)
        take(files.tensors, self._places())
        self.begin_step()

    def _places(self) -> dict[str, Tensor]:
        """The parameters by their names in files: one tensor for a router, one an expert for the pairs."""
        found: dict[str, Tensor] = {}
        for name in self.params:
            value = self.params[name].value
            found |= by_expert(self.root, name, value) if value.dim() == 3 else {in_file(self.root, name): value}
        return found


def _router_start(site: Site, experts: int, seed: int) -> Tensor:
    """Kaiming-uniform with a = √5, which is a bound of 1/√D."""
    generator = torch.Generator().manual_seed(stream_seed(seed, "start", f"{site.name}.moe_gate"))
    bound = 1.0 / math.sqrt(site.in_features)
    return torch.empty(experts, site.in_features).uniform_(-bound, bound, generator=generator)
