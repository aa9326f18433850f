"""MixLoRA as its formula reads: every expert runs the whole FFN, base included, on the rows routed to it.

The baseline for our one-pass form. One job, plain autograd, LoRA of PEFT on the attention, torch's AdamW.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mlora_sched.bench.jobs import BenchJob
from mlora_sched.bench.peft_side import Batching, adamw, collate, peft_library, with_peft
from mlora_sched.spec.routed import MixLoraSpec

_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


class LoopedMixLora:
    """One MixLoRA job on a plain model, which is changed in place."""

    def __init__(self, model: Any, job: BenchJob, rounds: int) -> None:
        spec = job.spec.adapter
        assert isinstance(spec, MixLoraSpec)
        self.spec, self.job = spec, job
        self.batches = [collate(job.batch(turn), Batching.PADDED) for turn in range(rounds)]
        self.experts = []
        for layer in model.base_model.layers:
            layer.mlp = _Experts(layer.mlp, spec)
            self.experts.append(layer.mlp)
        attention = peft_library().LoraConfig(
            r=spec.r, lora_alpha=int(spec.alpha), target_modules=_ATTENTION, task_type="CAUSAL_LM"
        )
        self.model = with_peft(model, attention)
        for experts in self.experts:  # PEFT froze whatever is not its own
            experts.requires_grad_(True)
            experts.ffn.requires_grad_(False)
        self.model.train()
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = adamw(self.trained, job.spec)

    def loss(self, turn: int) -> Tensor:
        """The batch's loss, balance included."""
        loss: Tensor = self.model(**self.batches[turn].inputs, use_cache=False).loss
        chosen_E = torch.stack([experts.chosen_E for experts in self.experts]).mean(dim=0)
        mean_E = torch.stack([experts.mean_E for experts in self.experts]).mean(dim=0)
        return loss + self.spec.router_aux_loss_coef * self.spec.num_experts * (chosen_E * mean_E).sum()

    def advance(self, turn: int) -> int:
        """One optimiser step; its real tokens."""
        self.loss(turn).backward()
        nn.utils.clip_grad_norm_(self.trained, self.job.spec.training.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self.batches[turn].tokens


class _Experts(nn.Module):
    """Router and experts around one frozen gated FFN.

    Legend: N tokens, K choices, E experts, D hidden width, R rank.
    """

    def __init__(self, ffn: Any, spec: MixLoraSpec) -> None:
        super().__init__()
        self.ffn, self.spec, self.scale = ffn, spec, spec.alpha / spec.r
        self.router_ED = nn.Parameter(torch.randn(spec.num_experts, ffn.gate_proj.in_features) * spec.router_init_range)
        self.pairs = nn.ModuleList(
            nn.ModuleDict({name: _Pair(getattr(ffn, name), spec.r) for name in ("gate_proj", "up_proj", "down_proj")})
            for _ in range(spec.num_experts)
        )
        self.chosen_E = self.mean_E = torch.zeros(spec.num_experts)

    def forward(self, x: Tensor) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        p_NE = torch.softmax(x_ND.float() @ self.router_ED.T, dim=-1)
        w_NK, choice_NK = p_NE.topk(self.spec.top_k, dim=-1)
        w_NK = (w_NK / w_NK.sum(dim=-1, keepdim=True)).to(x.dtype)
        self.mean_E = p_NE.mean(dim=0)
        self.chosen_E = torch.bincount(choice_NK.reshape(-1), minlength=len(self.pairs)) / len(x_ND)
        y_ND = torch.zeros_like(x_ND)
        for expert, pairs in enumerate(self.pairs):
            token, slot = torch.where(choice_NK == expert)
            if len(token):
                y_ND = y_ND.index_add(0, token, self._expert(x_ND[token], pairs) * w_NK[token, slot, None])
        return y_ND.view_as(x)

    def _expert(self, x: Tensor, pairs: Any) -> Tensor:
        gate = self.ffn.gate_proj(x) + pairs["gate_proj"](x) * self.scale
        up = self.ffn.up_proj(x) + pairs["up_proj"](x) * self.scale
        product = self.ffn.act_fn(gate) * up
        down: Tensor = self.ffn.down_proj(product) + pairs["down_proj"](product) * self.scale
        return down


class _Pair(nn.Module):
    """B A x of one expert at one projection."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.a = nn.Linear(linear.in_features, rank, bias=False)
        self.b = nn.Linear(rank, linear.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x))
        return y
