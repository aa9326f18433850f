"""Experts of a whole FFN written again, plainly: token by token, every projection of every expert by itself.

Of MixLoRA (top-k and dynamic; LoRA, rsLoRA and DoRA experts) and LLaVA-MoLE, on FFNs of any form known here.

Legend: L tokens of a sequence, D input width, F width of the product, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapters.reference_now import Now, Seen


class PlainMixFfn(nn.Module):
    """Σ_e w_e y_e over the chosen experts of each token.

    Args:
        form: names of the FFN's inner linears, of its outer one, and of its activation.
    """

    def __init__(
        self, name: str, ffn: Any, form: tuple[Sequence[str], str, str], values: dict[str, Tensor], spec: Any, now: Now
    ) -> None:
        super().__init__()
        self.name, self.ffn, self.spec, self.now = name, ffn, spec, now
        self.inner, self.outer, self.act = form
        root = spec.r**0.5 if spec.expert_method == "rslora" else spec.r
        self.scale = spec.alpha / root
        self.trained = {name: value.clone().requires_grad_() for name, value in values.items()}

    def forward(self, x_1LD: Tensor) -> Tensor:
        x_LD = x_1LD[0]
        logits_LE = x_LD @ self._value("moe_gate.weight").T
        if f"{self.name}.moe_gate.bias" in self.trained:
            logits_LE = logits_LE + self._value("moe_gate.bias")
        p_LE = torch.softmax(logits_LE, dim=1)
        choices = [chosen_of(self.spec, p_E) for p_E in p_LE.tolist()]
        self.now.routers.append(Seen(self.now.at, p_LE, choices))
        masks = self._masks(len(x_LD), x_LD.shape[1])
        tokens = [self._token(x_LD[at], p_LE[at], choices[at], at, masks) for at in range(len(x_LD))]
        return torch.stack(tokens)[None]

    def _masks(self, length: int, width: int) -> tuple[Tensor, Tensor]:
        """Of the FFN's input (L, D), and of the outer linear's (L·C, F), token by token, candidate by candidate."""
        p, outer_linear = self.spec.dropout, getattr(self.ffn, self.outer)
        inner_width = outer_linear.weight.shape[0 if type(outer_linear).__name__ == "Conv1D" else 1]
        group = f"{self.name}.gate_up" if len(self.inner) == 2 else f"{self.name}.{self.inner[0]}"
        shared = self.now.mask(group, length, width, p)
        many = candidates(self.spec)
        outer = self.now.mask(f"{self.name}.{self.outer}", length, inner_width, p, rows_per_token=many)
        return torch.ones(length, width) * shared, torch.ones(length * many, inner_width) * outer

    def _token(
        self, x_D: Tensor, p_E: Tensor, choice: Sequence[int], token: int, masks: tuple[Tensor, Tensor]
    ) -> Tensor:
        shared, outer = masks
        out: Tensor | float = 0.0
        for k, e in enumerate(choice):
            dropped = x_D * shared[token]
            product = self._product([self._project(part, e, x_D, dropped) for part in self.inner])
            y = self._project(self.outer, e, product, product * outer[token * candidates(self.spec) + k])
            out = out + self._weight(p_E, choice, e) * y
        assert isinstance(out, Tensor)
        return out

    def _weight(self, p_E: Tensor, choice: Sequence[int], e: int) -> Tensor | float:
        if self.spec.method == "llava_mole":
            return 1.0
        return p_E[e] if self.spec.routing == "dynamic" else p_E[e] / sum(p_E[other] for other in choice)

    def _product(self, inner: Sequence[Tensor]) -> Tensor:
        act = getattr(self.ffn, self.act)
        if len(inner) == 2:
            return act(inner[0]) * inner[1]
        if self.inner[0] == "gate_up_proj":
            gate, up = inner[0].chunk(2)
            return act(gate) * up
        activated: Tensor = act(inner[0])
        return activated

    def _project(self, part: str, e: int, x: Tensor, dropped: Tensor) -> Tensor:
        linear = getattr(self.ffn, part)
        if f"{self.name}.{part}.lora_A.weight" not in self.trained:
            plain: Tensor = linear(x[None])[0]
            return plain
        delta_OD = self.scale * self._value(f"{part}.lora_B.weight")[e] @ self._value(f"{part}.lora_A.weight")[e]
        if self.spec.expert_method != "dora":
            y: Tensor = linear(x[None])[0] + delta_OD @ dropped
            return y
        weight = linear.weight.T if type(linear).__name__ == "Conv1D" else linear.weight
        norm_O = torch.linalg.norm(weight + delta_OD, dim=1).detach()
        scaled = (weight @ x + delta_OD @ dropped) * (self._value(f"{part}.lora_magnitude_vector")[e] / norm_O)
        return scaled if linear.bias is None else scaled + linear.bias

    def _value(self, name: str) -> Tensor:
        return self.trained[f"{self.name}.{name}"]


def candidates(spec: Any) -> int:
    """Most experts that a token can take."""
    if spec.method == "llava_mole":
        return 1
    return spec.num_experts if spec.routing == "dynamic" else spec.top_k


def chosen_of(spec: Any, p: Sequence[float]) -> list[int]:
    """The experts of a token, the most probable first, ties to the lower."""
    order = sorted(range(len(p)), key=lambda e: (-p[e], e))
    if spec.method == "llava_mole":
        return order[:1]
    if spec.routing == "top_k":
        return order[: spec.top_k]
    found: list[int] = []
    for e in order:
        found.append(e)
        if sum(p[other] for other in found) > spec.top_p:
            break
    return found


def ffn_balance(spec: Any, seen: Sequence[Seen]) -> Tensor:
    """The balance loss of a chunk, with its coefficient."""
    found = sample_balance(seen) if spec.method == "llava_mole" else balance_loss(seen)
    return spec.router_aux_loss_coef * found


def balance_loss(seen: Sequence[Seen]) -> Tensor:
    """E · Σ_j Σ_e f_{j,e} P_e over all the tokens and layers given."""
    p_NE = torch.cat([router.p_LE for router in seen])
    choices = [choice for router in seen for choice in router.choices]
    total = torch.zeros((), dtype=p_NE.dtype)
    for j in range(max(map(len, choices))):
        for e in range(p_NE.shape[1]):
            share = sum(len(choice) > j and choice[j] == e for choice in choices) / len(choices)
            total = total + share * p_NE[:, e].mean()
    return p_NE.shape[1] * total


def sample_balance(seen: Sequence[Seen]) -> Tensor:
    """mean_b Σ_e P_{b,e} f_{b,e}, each sample's means over all layers and its tokens."""
    samples = dict.fromkeys(router.at for router in seen)
    total = torch.zeros((), dtype=torch.float64)
    for at in samples:
        own = [router for router in seen if router.at == at]
        p_NE = torch.cat([router.p_LE for router in own])
        taken = [choice[0] for router in own for choice in router.choices]
        for e in range(p_NE.shape[1]):
            total = total + p_NE[:, e].mean() * taken.count(e) / len(taken)
    return total / len(samples)
