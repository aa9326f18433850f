"""The adapter methods written again, plainly: from the formulas, a sequence at a time, float64, gradients by autograd.

Nothing is packed, fused or chunked here, and nothing is shared with the engine but the dropout masks, which are a
function of (job seed, step, chunk, group). Used to judge the engine; as slow as it is simple.

Legend: L tokens of a sequence, D input width, O output width, R rank, E experts, K choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mlora_sched.adapters.part import SegmentPart
from mlora_sched.data.pack import Chunk
from mlora_sched.data.token_set import TokenSet

SAME_INPUT = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up"}


@dataclass
class Now:
    """What the sequence that is running needs to know of its chunk.

    Attributes:
        part: source of the chunk's masks. at, tokens: the sequence's first token in the chunk, and the chunk's tokens.
        task: of the sequence, where the job's rows are of tasks.
        routers: of every routed layer and sequence of the chunk: probabilities (L, E) and choices (L, K).
    """

    part: SegmentPart | None = None
    at: int = 0
    tokens: int = 0
    task: int | None = None
    routers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def mask(self, group: str, length: int, width: int, p: float, rows_per_token: int = 1) -> Tensor | float:
        """The sequence's rows of the group's mask."""
        if p == 0 or self.part is None:
            return 1.0
        rows = self.tokens * rows_per_token
        whole = self.part.mask(group, torch.empty(rows, width, dtype=torch.float64), p)
        return whole[self.at * rows_per_token : (self.at + length) * rows_per_token]


def group_of(site: str) -> str:
    """Sites that read the same input share a mask."""
    parent, _, leaf = site.rpartition(".")
    return f"{parent}.{SAME_INPUT[leaf]}" if leaf in SAME_INPUT else site


class PlainLora(nn.Module):
    """W x + b + s B A drop(x)."""

    def __init__(self, site: str, linear: nn.Linear, values: dict[str, Tensor], scale: float, p: float, now: Now):
        super().__init__()
        self.site, self.linear, self.scale, self.p, self.now = site, linear, scale, p, now
        self.trained = {name: value.clone().requires_grad_() for name, value in values.items()}

    def _value(self, name: str) -> Tensor:
        return self.trained[f"{self.site}.{name}"]

    def forward(self, x_1LD: Tensor) -> Tensor:
        dropped = x_1LD * self.now.mask(group_of(self.site), x_1LD.shape[1], x_1LD.shape[2], self.p)
        low = dropped @ self._value("lora_A.weight").T
        return self.linear(x_1LD) + self.scale * (low @ self._value("lora_B.weight").T)


class PlainDora(PlainLora):
    """m ⊙ (W x + s B A drop(x)) / ‖W + s B A‖_row + b, the norm held constant."""

    def forward(self, x_1LD: Tensor) -> Tensor:
        weight, bias = self.linear.weight, self.linear.bias
        delta = self.scale * self._value("lora_B.weight") @ self._value("lora_A.weight")
        norm_O = torch.linalg.norm(weight + delta, dim=1).detach()
        dropped = x_1LD * self.now.mask(group_of(self.site), x_1LD.shape[1], x_1LD.shape[2], self.p)
        y = (x_1LD @ weight.T + dropped @ delta.T) * (self._value("lora_magnitude_vector") / norm_O)
        return y if bias is None else y + bias


class PlainMixFfn(nn.Module):
    """Σ_e w_e y_e over the chosen experts of each token, every projection of every expert by itself."""

    def __init__(self, name: str, ffn: Any, values: dict[str, Tensor], spec: Any, now: Now) -> None:
        super().__init__()
        self.name, self.ffn, self.spec, self.now = name, ffn, spec, now
        self.scale = spec.alpha / spec.r
        self.trained = {name: value.clone().requires_grad_() for name, value in values.items()}

    def forward(self, x_1LD: Tensor) -> Tensor:
        x_LD = x_1LD[0]
        probability_LE = torch.softmax(x_LD @ self.trained[f"{self.name}.moe_gate.weight"].T, dim=1)
        choices = [_best(p_E, self.spec.top_k) for p_E in probability_LE.tolist()]
        self.now.routers.append((probability_LE, torch.tensor(choices)))
        masks = self._masks(len(x_LD), x_LD.shape[1])
        tokens = [
            self._token(x_LD[token], probability_LE[token], choices[token], token, masks) for token in range(len(x_LD))
        ]
        return torch.stack(tokens)[None]

    def _masks(self, length: int, width: int) -> tuple[Tensor, Tensor]:
        """Of the FFN's input (L, D), and of the down projection's input (L·K, F), token by token, choice by choice."""
        p, k, inner = self.spec.dropout, self.spec.top_k, self.ffn.down_proj.in_features
        shared = self.now.mask(f"{self.name}.gate_up", length, width, p)
        down = self.now.mask(f"{self.name}.down_proj", length, inner, p, rows_per_token=k)
        return torch.ones(length, width) * shared, torch.ones(length * k, inner) * down

    def _token(
        self, x_D: Tensor, probability_E: Tensor, choice: Sequence[int], token: int, masks: tuple[Tensor, Tensor]
    ) -> Tensor:
        shared, down = masks
        total = sum(probability_E[e] for e in choice)
        out: Tensor | float = 0.0
        for k, e in enumerate(choice):
            dropped = x_D * shared[token]
            gate = self._project("gate_proj", e, x_D, dropped)
            up = self._project("up_proj", e, x_D, dropped)
            inner = self.ffn.act_fn(gate) * up
            y = self._project("down_proj", e, inner, inner * down[token * self.spec.top_k + k])
            out = out + probability_E[e] / total * y
        assert isinstance(out, Tensor)
        return out

    def _project(self, part: str, e: int, x: Tensor, dropped: Tensor) -> Tensor:
        y = getattr(self.ffn, part)(x)
        a = self.trained.get(f"{self.name}.{part}.lora_A.weight")
        if a is None:
            return y
        return y + self.scale * self.trained[f"{self.name}.{part}.lora_B.weight"][e] @ (a[e] @ dropped)


def _best(probabilities: Sequence[float], k: int) -> list[int]:
    """The k most probable experts, ties to the lower."""
    return sorted(range(len(probabilities)), key=lambda e: (-probabilities[e], e))[:k]


def balance_loss(routers: Sequence[tuple[Tensor, Tensor]], coef: float) -> Tensor:
    """coef · E · Σ_j Σ_e f_{j,e} P_e over all the tokens and layers given."""
    probability_NE = torch.cat([p for p, _ in routers])
    choice_NK = torch.cat([c for _, c in routers])
    experts = probability_NE.shape[1]
    total = torch.zeros((), dtype=probability_NE.dtype)
    for j in range(choice_NK.shape[1]):
        for e in range(experts):
            total = total + (choice_NK[:, j] == e).double().mean() * probability_NE[:, e].mean()
    return coef * experts * total


class Reference:
    """A job's model, written plainly.

    Args:
        model: a float64 transformers model, not adopted by the engine.
        values: the job's parameters by name, as the engine's `Params` name them.
        spec: the job's adapter spec. scale: s of the method.
    """

    def __init__(self, model: Any, values: dict[str, Tensor], spec: Any, scale: float) -> None:
        self.model, self.spec, self.now = model.requires_grad_(False), spec, Now()
        self.trained: dict[str, Tensor] = {}
        plain = PlainDora if spec.method == "dora" else PlainLora
        for name, module in list(model.named_modules()):
            if f"{name}.moe_gate.weight" in values:
                own = {key: value for key, value in values.items() if key.startswith(f"{name}.")}
                self._put(name, PlainMixFfn(name, module, own, spec, self.now))
        for site in sorted({key.rpartition(".lora_")[0] for key in values if ".lora_A" in key} - set(self._inside())):
            own = {key: value for key, value in values.items() if key.startswith(f"{site}.")}
            linear = model.get_submodule(site)
            self._put(site, plain(site, linear, own, scale, spec.dropout, self.now))

    def _inside(self) -> list[str]:
        return [name.rpartition(".lora_")[0] for name in self.trained]

    def _put(self, name: str, module: Any) -> None:
        parent, _, leaf = name.rpartition(".")
        setattr(self.model.get_submodule(parent), leaf, module)
        self.trained.update(module.trained)

    def loss(self, rows: TokenSet, chunks: Sequence[Chunk], seed: int, step: int, *, dropout: bool = True) -> Tensor:
        """The batch's loss, balance losses weighted by their chunks' tokens included."""
        targets = sum(int(rows.targets[row]) for chunk in chunks for row in chunk.rows)
        # the engine's row weight is a float32 number
        weight = float(torch.tensor(1.0 / targets, dtype=torch.float32))
        batch_tokens = sum(chunk.tokens for chunk in chunks)
        total = torch.zeros((), dtype=torch.float64)
        for chunk in chunks:
            part = SegmentPart("job", 0, chunk.tokens, training=True, stream=(seed, step, chunk.index))
            part.lengths = tuple(int(rows.lengths[row]) for row in chunk.rows)
            self.now.part, self.now.tokens, self.now.at = part if dropout else None, chunk.tokens, 0
            self.now.routers.clear()
            for row in chunk.rows:
                self.now.task = rows.row(row).task
                total = total + weight * self._row_loss(rows, row)
                self.now.at += int(rows.lengths[row])
            total = total + chunk.tokens / batch_tokens * self._auxiliary()
        return total

    def _auxiliary(self) -> Tensor | float:
        """The auxiliary losses of the chunk that has run."""
        return balance_loss(self.now.routers, self.spec.router_aux_loss_coef) if self.now.routers else 0.0

    def _row_loss(self, rows: TokenSet, index: int) -> Tensor:
        row = rows.row(index)
        ids = torch.from_numpy(row.input_ids).long()
        log_p = torch.log_softmax(self.model(input_ids=ids[None], use_cache=False).logits[0], dim=-1)
        picked = [log_p[i - 1, ids[i]] for i in range(1, len(ids)) if row.loss_mask[i]]
        return -sum(picked, start=torch.zeros((), dtype=torch.float64))
