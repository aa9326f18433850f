"""The adapter methods written again, plainly: from the formulas, a sequence at a time, float64, gradients by autograd.

Nothing is packed, fused or chunked here, and nothing is shared with the engine but the dropout masks, which are a
function of (job seed, step, chunk, group). Used to judge the engine; as slow as it is simple.

Legend: L tokens of a sequence, D input width, O output width, R rank, E experts, K choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapters.reference_ffn import PlainMixFfn, ffn_balance
from adapters.reference_now import Now
from mlora_sched.adapters.part import SegmentPart
from mlora_sched.data.pack import Chunk
from mlora_sched.data.token_set import TokenSet
from mlora_sched.spec.routed import FfnExpertsSpec

FORMS = (
    (("gate_proj", "up_proj"), "down_proj", "act_fn"),
    (("gate_up_proj",), "down_proj", "activation_fn"),
    (("c_fc",), "c_proj", "act"),
    (("fc1",), "fc2", "activation_fn"),
)
"""Names of the inner linears of an FFN, of the outer one, and of the activation."""
SAME_INPUT = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up"}


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


class Reference:
    """A job's model, written plainly.

    Args:
        model: a float64 transformers model, not adopted by the engine.
        values: the job's parameters by name, as the engine's `Params` name them.
        spec: the job's adapter spec.
    """

    def __init__(self, model: Any, values: dict[str, Tensor], spec: Any) -> None:
        self.model, self.spec, self.now = model.requires_grad_(False), spec, Now()
        self.trained: dict[str, Tensor] = {}
        beside = spec.plain if isinstance(spec, FfnExpertsSpec) else spec
        plain = PlainDora if beside.method == "dora" else PlainLora
        scale = beside.alpha / (beside.r**0.5 if beside.method == "rslora" else beside.r)
        for name, module in list(model.named_modules()):
            if f"{name}.moe_gate.weight" in values:
                own = {key: value for key, value in values.items() if key.startswith(f"{name}.")}
                form = next(form for form in FORMS if all(hasattr(module, part) for part in (*form[0], *form[1:])))
                self._put(name, PlainMixFfn(name, module, form, own, spec, self.now))
        for site in sorted({key.rpartition(".lora_")[0] for key in values if ".lora_A" in key} - set(self._inside())):
            own = {key: value for key, value in values.items() if key.startswith(f"{site}.")}
            linear = model.get_submodule(site)
            self._put(site, plain(site, linear, own, scale, beside.dropout, self.now))

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
        return ffn_balance(self.spec, self.now.routers) if self.now.routers else 0.0

    def _row_loss(self, rows: TokenSet, index: int) -> Tensor:
        row = rows.row(index)
        ids = torch.from_numpy(row.input_ids).long()
        log_p = torch.log_softmax(self.model(input_ids=ids[None], use_cache=False).logits[0], dim=-1)
        picked = [log_p[i - 1, ids[i]] for i in range(1, len(ids)) if row.loss_mask[i]]
        return -sum(picked, start=torch.zeros((), dtype=torch.float64))
