"""MixLoRA (Li et al., 2024, arXiv 2404.15159; code TUDB-Labs/MixLoRA): routed LoRA experts on a shared frozen FFN.

Router on the FFN's input in float32: p = softmax(G x); (w, idx) = top-k of p, ties to the lower expert; w /= Σ w.
Expert e: g = act(W_g x + s B_g A_g x), u = W_u x + s B_u A_u x, y = W_d(g·u) + s B_d A_d (g·u); out = Σ w_e y_e.
Since Σ_k w_k W_d a_k = W_d Σ_k w_k a_k, the frozen down projection runs once a token, as the other two do. The
attention carries ordinary LoRA beside the experts.

Balance loss, per chunk, over the router outputs of all layers and the chunk's tokens: f_{j,e} is the share of tokens
whose j-th choice is e, P_e the mean probability; loss = coef · E · Σ_j Σ_e f_{j,e} P_e. It is weighted by the chunk's
share of the batch's tokens, and its gradient is added to the router's by hand, since f needs every layer's forward.

Not here: top-p ("dynamic") and switch routing, DoRA experts.

Legend: N rows of a segment, K choices a token, M = N·K routed rows (sorted by expert), E experts, D hidden width,
F intermediate width, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mlora_sched.adapters.base import Adapter, AdapterFiles, target_names, target_sites, to_file
from mlora_sched.adapters.lora import (
    by_group,
    check_config,
    group_op,
    group_pairs,
    lora_pair,
    matching,
    refuse_patterns,
)
from mlora_sched.adapters.params import Param, Params, ParamSpec, wide
from mlora_sched.adapters.part import SegmentPart, stream_seed
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.device import numbers
from mlora_sched.model.experts import rows_by_expert
from mlora_sched.model.ffn import RoutedOp
from mlora_sched.model.site import SiteOp
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.routed import MixLoraSpec

EXPERT_SITES = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Routing:
    """How one chunk's tokens are sent through one FFN.

    Attributes:
        p_NE: router probabilities, float32. choice_NK: experts, int64. w_NK: their weights, float32, summing to 1.
        order_M: routed rows (token-major, choice-minor) sorted by expert, stably. back_M: its inverse.
        counts: rows of each expert.
    """

    p_NE: Tensor
    choice_NK: Tensor
    w_NK: Tensor
    order_M: Tensor
    back_M: Tensor
    counts: list[int]

    @property
    def token_M(self) -> Tensor:
        """The token of every sorted row."""
        return self.order_M // self.choice_NK.shape[1]

    @property
    def back_NK(self) -> Tensor:
        """Where a token's choices stand among the sorted rows."""
        return self.back_M.view(self.choice_NK.shape)


def route(x_ND: Tensor, router_ED: Tensor, top_k: int) -> Routing:
    """Top-k routing; equal probabilities go to the lower expert."""
    p_NE = torch.softmax(wide(x_ND) @ router_ED.T, dim=-1)
    sorted_p, sorted_e = torch.sort(p_NE, dim=-1, descending=True, stable=True)
    choice_NK = sorted_e[:, :top_k]
    w_NK = sorted_p[:, :top_k] / sorted_p[:, :top_k].sum(dim=-1, keepdim=True)
    order_M = torch.argsort(choice_NK.reshape(-1), stable=True)
    counts = rows_by_expert(choice_NK.reshape(-1), router_ED.shape[0])
    return Routing(p_NE, choice_NK, w_NK, order_M, torch.argsort(order_M), counts)


@dataclass(frozen=True)
class BalanceShare:
    """What one layer adds to a chunk's balance statistics: sums over its tokens."""

    chosen_E: Tensor
    probability_E: Tensor
    tokens: int


class ExpertPairs:
    """The low-rank pairs of all experts at one projection: A (E, R, in), B (E, out, R)."""

    def __init__(self, a: Param, b: Param, scale: float) -> None:
        self.a, self.b, self.scale = a, b, scale

    def shrink(self, x_M: Tensor, counts: Sequence[int]) -> Tensor:
        """A_e x for every sorted row, (M, R)."""
        pieces = zip(x_M.split(list(counts)), self.a.compute, strict=True)
        return torch.cat([x @ a_RD.T for x, a_RD in pieces])

    def expand(self, s_MR: Tensor, y_M: Tensor, counts: Sequence[int]) -> None:
        """y += s · B_e (A_e x), (M, out), in place."""
        sizes = list(counts)
        for y, s, b_OR in zip(y_M.split(sizes), s_MR.split(sizes), self.b.compute, strict=True):
            y.addmm_(s, b_OR.T, alpha=self.scale)

    def backward(self, dy_M: Tensor, x_M: Tensor, s_MR: Tensor, counts: Sequence[int], beta: float) -> Tensor:
        """Accumulate dA and dB (`SegmentPart.beta`); return the gradient of x through the pair, (M, in)."""
        sizes = list(counts)
        dxs = []
        for e, (dy, x, s) in enumerate(zip(dy_M.split(sizes), x_M.split(sizes), s_MR.split(sizes), strict=True)):
            ds_RM = (self.b.compute[e].T @ dy.T).mul_(self.scale)
            self.b.grad[e].T.addmm_(wide(s).T, wide(dy), beta=beta, alpha=self.scale)
            self.a.grad[e].addmm_(wide(ds_RM), wide(x), beta=beta)
            dxs.append(ds_RM.T @ self.a.compute[e])
        return torch.cat(dxs)


@dataclass(frozen=True)
class _Half:
    """Gate or up for the routed rows: the projected value and the shrunk input of its pair."""

    value_MF: Tensor
    s_MR: Tensor | None


@dataclass(frozen=True)
class _Saved:
    x_ND: Tensor
    x_MD: Tensor
    routing: Routing
    gate: _Half
    up: _Half
    act_in_MF: Tensor
    act_out_MF: Tensor
    product_MF: Tensor
    dropped_MF: Tensor
    down_mask_MF: Tensor | None
    s_down_MR: Tensor | None
    delta_MD: Tensor | None


class MixLoraOp:
    """The routed experts of one job at one FFN."""

    def __init__(self, ffn: str, router: Param, pairs: dict[str, ExpertPairs], spec: MixLoraSpec) -> None:
        self.ffn, self.router, self.pairs, self.spec = ffn, router, pairs, spec

    def forward(
        self, x_ND: Tensor, gate_NF: Tensor, up_NF: Tensor, act: nn.Module, part: SegmentPart
    ) -> tuple[Tensor, Tensor, _Saved]:
        routing = route(x_ND, self.router.value, self.spec.top_k)
        part.routing[self.ffn] = BalanceShare(_chosen(routing), routing.p_NE.sum(dim=0), len(x_ND))
        token_M = routing.token_M
        x_MD = part.drop(f"{self.ffn}.gate_up", x_ND, self.spec.dropout)[token_M]
        gate = self._half("gate_proj", gate_NF[token_M], x_MD, routing)
        up = self._half("up_proj", up_NF[token_M], x_MD, routing)
        with torch.enable_grad():
            act_in = gate.value_MF.detach().requires_grad_(part.training)
            act_out = act(act_in)
        product_MF = act_out.detach() * up.value_MF
        mixed_NF = _combine(product_MF, routing)
        mask, dropped, s_down, delta_MD = self._down(product_MF, routing, part)
        delta_ND = torch.zeros_like(x_ND) if delta_MD is None else _combine(delta_MD, routing)
        part.release()
        saved = _Saved(x_ND, x_MD, routing, gate, up, act_in, act_out, product_MF, dropped, mask, s_down, delta_MD)
        return mixed_NF, delta_ND, saved

    def backward(
        self, dmixed_NF: Tensor, ddelta_ND: Tensor, saved: _Saved, part: SegmentPart
    ) -> tuple[Tensor, Tensor, Tensor]:
        r = saved.routing
        token_M = r.token_M
        w_M1 = r.w_NK.reshape(-1)[r.order_M][:, None]
        dmixed_MF, ddelta_MD = dmixed_NF[token_M], ddelta_ND[token_M]
        dw_M = (wide(dmixed_MF) * wide(saved.product_MF)).sum(dim=1)
        dproduct_MF = dmixed_MF * w_M1.to(dmixed_MF.dtype)
        if saved.delta_MD is not None and saved.s_down_MR is not None:
            dw_M += (wide(ddelta_MD) * wide(saved.delta_MD)).sum(dim=1)
            dy_MD = ddelta_MD * w_M1.to(ddelta_MD.dtype)
            through = self.pairs["down_proj"].backward(dy_MD, saved.dropped_MF, saved.s_down_MR, r.counts, part.beta)
            dproduct_MF += through if saved.down_mask_MF is None else through * saved.down_mask_MF
        dup_MF = dproduct_MF * saved.act_out_MF.detach()
        (dgate_MF,) = torch.autograd.grad(saved.act_out_MF, saved.act_in_MF, dproduct_MF * saved.up.value_MF)
        dx_ND = self._dx_of_pairs(dgate_MF, dup_MF, saved, part)
        dx_ND += self._router_backward(dw_M, saved, part).to(dx_ND.dtype)
        return dx_ND, _sum_choices(dgate_MF, r), _sum_choices(dup_MF, r)

    def _half(self, name: str, base_MF: Tensor, x_MD: Tensor, routing: Routing) -> _Half:
        """The projection of the routed rows; `base_MF` is theirs alone, and changed in place."""
        if name not in self.pairs:
            return _Half(base_MF, None)
        s_MR = self.pairs[name].shrink(x_MD, routing.counts)
        self.pairs[name].expand(s_MR, base_MF, routing.counts)
        return _Half(base_MF, s_MR)

    def _down(
        self, product_MF: Tensor, routing: Routing, part: SegmentPart
    ) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
        """Mask, dropped product, shrunk product and the pair's output of the down projection."""
        if "down_proj" not in self.pairs:
            return None, product_MF, None, None
        mask = None
        if part.training and self.spec.dropout > 0:
            # drawn in token order, so that it does not depend on how tokens happen to be sorted
            mask = part.mask(f"{self.ffn}.down_proj", product_MF, self.spec.dropout)[routing.order_M]
        dropped = product_MF if mask is None else product_MF * mask
        s_MR = self.pairs["down_proj"].shrink(dropped, routing.counts)
        delta_MD = product_MF.new_zeros(len(product_MF), self.pairs["down_proj"].b.value.shape[1])
        self.pairs["down_proj"].expand(s_MR, delta_MD, routing.counts)
        return mask, dropped, s_MR, delta_MD

    def _dx_of_pairs(self, dgate_MF: Tensor, dup_MF: Tensor, saved: _Saved, part: SegmentPart) -> Tensor:
        dx_MD: Tensor | None = None
        for name, half, dy_MF in (("gate_proj", saved.gate, dgate_MF), ("up_proj", saved.up, dup_MF)):
            if half.s_MR is None:
                continue
            through = self.pairs[name].backward(dy_MF, saved.x_MD, half.s_MR, saved.routing.counts, part.beta)
            dx_MD = through if dx_MD is None else dx_MD + through
        if dx_MD is None:
            return torch.zeros_like(saved.x_ND)
        dx_ND = _sum_choices(dx_MD, saved.routing)
        if part.training and self.spec.dropout > 0:
            dx_ND = dx_ND * part.mask(f"{self.ffn}.gate_up", saved.x_ND, self.spec.dropout)
            part.release()
        return dx_ND

    def _router_backward(self, dw_M: Tensor, saved: _Saved, part: SegmentPart) -> Tensor:
        """Gradient of the router's weight (accumulated) and of x, from the mixing weights and the balance loss."""
        r = saved.routing
        dw_NK = dw_M[r.back_M].view_as(r.w_NK)
        p_sum_N1 = r.p_NE.gather(1, r.choice_NK).sum(dim=1, keepdim=True)
        dchosen_NK = (dw_NK - (dw_NK * r.w_NK).sum(dim=1, keepdim=True)) / p_sum_N1
        dp_NE = torch.zeros_like(r.p_NE).scatter_(1, r.choice_NK, dchosen_NK)
        shares = [share for share in part.routing.values() if isinstance(share, BalanceShare)]
        seen = sum(share.tokens for share in shares)
        f_E = torch.stack([share.chosen_E for share in shares]).sum(dim=0) / seen
        dp_NE += f_E * (part.aux_weight * self.spec.router_aux_loss_coef * self.spec.num_experts / seen)
        dlogits_NE = r.p_NE * (dp_NE - (dp_NE * r.p_NE).sum(dim=1, keepdim=True))
        self.router.grad.addmm_(dlogits_NE.T, wide(saved.x_ND), beta=part.beta)
        return dlogits_NE @ self.router.value


def _chosen(routing: Routing) -> Tensor:
    """How many choices fell on each expert, (E,)."""
    return torch.tensor(routing.counts, dtype=routing.p_NE.dtype, device=routing.p_NE.device)


def _combine(rows_M: Tensor, r: Routing) -> Tensor:
    """Σ_k w_k rows_k for every token, from rows sorted by expert."""
    w_NK = r.w_NK.to(rows_M.dtype)
    first, *others = range(w_NK.shape[1])
    mixed_N = rows_M[r.back_NK[:, first]].mul_(w_NK[:, first, None])
    for k in others:
        mixed_N.addcmul_(rows_M[r.back_NK[:, k]], w_NK[:, k, None])
    return mixed_N


def _sum_choices(rows_M: Tensor, r: Routing) -> Tensor:
    """Σ_k rows_k for every token."""
    first, *others = r.back_NK.unbind(dim=1)
    summed_N = rows_M[first]
    for back_N in others:
        summed_N.add_(rows_M[back_N])
    return summed_N


class MixLoraAdapter(Adapter):
    """Experts on every targeted FFN, plain LoRA on every other target."""

    marks: ClassVar[Mapping[str, object]] = {"peft_type": "MIXLORA", "routing_strategy": "mixlora"}

    def __init__(self, spec: MixLoraSpec, base: FrozenBase, seed: int) -> None:
        targets = target_sites(spec, base)
        inside = {f"{ffn}.{part}": ffn for ffn in base.ffns for part in EXPERT_SITES}
        self.spec, self.base = spec, base
        self.plain = tuple(site for site in targets if site.name not in inside)
        self.expert_sites = tuple(site for site in targets if site.name in inside)
        self.ffns = tuple(dict.fromkeys(inside[site.name] for site in self.expert_sites))
        self.params = Params(self._specs(seed), base.device, base.dtype)
        scale = spec.alpha / spec.r
        self.site_ops: dict[str, SiteOp] = {
            group.name: group_op(self.params, group, members, scale, spec.dropout)
            for group, members in by_group(self.plain)
        }
        self.routed_ops: dict[str, RoutedOp] = {ffn: self._routed(ffn, scale) for ffn in self.ffns}

    @classmethod
    def build(cls, spec: MixLoraSpec, base: FrozenBase, seed: int) -> Adapter:
        return cls(spec, base, seed)

    @classmethod
    def spec_of(cls, config: Mapping[str, Any]) -> AdapterSpec:
        refuse_patterns(config)
        return cls._meant(config, MixLoraSpec, "mixlora", ("num_experts", "top_k"))

    def _specs(self, seed: int) -> Iterator[ParamSpec]:
        for _, members in by_group(self.plain):
            yield from group_pairs(members, self.spec.r, seed, ("all", "all"))
        for ffn in self.ffns:
            shape = (self.spec.num_experts, self.base.ffns[ffn].gate_proj.in_features)
            generator = torch.Generator().manual_seed(stream_seed(seed, "start", ffn))
            start = torch.empty(shape).normal_(std=self.spec.router_init_range, generator=generator)
            yield ParamSpec(f"{ffn}.moe_gate.weight", start)
        for site in self.expert_sites:
            experts = [
                tuple(lora_pair(site, f"{site.name}.experts.{e}", self.spec.r, seed, ("all", "all")))
                for e in range(self.spec.num_experts)
            ]
            yield ParamSpec(f"{site.name}.lora_A.weight", torch.stack([a.start for a, _ in experts]))
            yield ParamSpec(f"{site.name}.lora_B.weight", torch.stack([b.start for _, b in experts]), transposed=True)

    def _pair(self, site: str) -> tuple[Param, Param]:
        return self.params[f"{site}.lora_A.weight"], self.params[f"{site}.lora_B.weight"]

    def _routed(self, ffn: str, scale: float) -> MixLoraOp:
        sites = [f"{ffn}.{part}" for part in EXPERT_SITES]
        pairs = {
            site.rpartition(".")[2]: ExpertPairs(*self._pair(site), scale)
            for site in sites
            if f"{site}.lora_A.weight" in self.params
        }
        return MixLoraOp(ffn, self.params[f"{ffn}.moe_gate.weight"], pairs, self.spec)

    def chunk_figures(self, part: SegmentPart) -> dict[str, float]:
        """`aux_loss`: the chunk's balance loss, with its coefficient."""
        shares = [share for share in part.routing.values() if isinstance(share, BalanceShare)]
        seen = sum(share.tokens for share in shares)
        chosen_E = torch.stack([share.chosen_E for share in shares]).sum(dim=0) / seen
        probability_E = torch.stack([share.probability_E for share in shares]).sum(dim=0) / seen
        (shared,) = numbers((chosen_E * probability_E).sum()[None])
        balance = shared * self.spec.num_experts
        return {"aux_loss": self.spec.router_aux_loss_coef * balance}

    def files(self) -> AdapterFiles:
        """The format of the `mixlora` package 0.2.3, as far as it can say what this adapter is."""
        tensors = {}
        for name in self.params:
            value = to_file(self.params[name].value)
            if value.dim() == 3:
                site, half = name.split(".lora_")
                tensors.update({f"{_file(site)}.experts.{e}.lora_{half}": v.clone() for e, v in enumerate(value)})
            else:
                tensors[_file(name)] = value
        return AdapterFiles(self._config(), tensors)

    def _config(self) -> dict[str, Any]:
        text = self.base.model.config.get_text_config()
        return {
            "peft_type": "MIXLORA",
            "routing_strategy": "mixlora",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base.portable_name,
            "r": self.spec.r,
            "lora_alpha": self.spec.alpha,
            # the package asserts a dropout above zero
            "lora_dropout": self.spec.dropout or 1e-9,
            "target_modules": target_names(self.spec, (*self.plain, *self.expert_sites)),
            "bias": "none",
            "num_experts": self.spec.num_experts,
            "top_k": self.spec.top_k,
            "act_fn": getattr(text, "hidden_act", None) or text.hidden_activation,
            "jitter_noise": 0.0,
            "router_init_range": self.spec.router_init_range,
            "router_aux_loss_coef": self.spec.router_aux_loss_coef,
            "router_loss": True,
        }

    def read(self, files: AdapterFiles) -> None:
        check_config(files.config, self._config())
        stacked: dict[str, Tensor] = {}
        wanted: dict[str, str] = {}
        for name in self.params:
            if self.params[name].value.dim() == 3:
                site, half = name.split(".lora_")
                keys = [f"{_file(site)}.experts.{e}.lora_{half}" for e in range(self.spec.num_experts)]
                if all(key in files.tensors for key in keys):
                    stacked[name] = torch.stack([files.tensors[key] for key in keys])
                wanted[name] = name
            else:
                wanted[_file(name)] = name
        plain = {key: value for key, value in files.tensors.items() if ".experts." not in key}
        self.params.load(matching(plain | stacked, wanted, self.params))
        self.begin_step()


def _file(name: str) -> str:
    """Our dotted path as the `mixlora` package names it: model.layers.3.… → mixlora.layers.3.…"""
    _, layers, rest = name.partition("layers.")
    return f"mixlora.{layers}{rest}"
