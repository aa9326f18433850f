"""Experts of a mixture base (Mixtral, Qwen3-MoE, …), run so that a token's result does not depend on its company.

transformers' own loops multiply as many rows as happened to be routed to an expert, and a GEMM of few rows may use
another kernel. Here each expert's rows are padded with zeros to one of the pack's probed lengths.
The experts are frozen; only the gradient of the input flows.

Legend: T rows of the pack, K experts a token is sent to, D hidden width, N rows of one expert.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from mlora_sched.data.pack import bucket_for
from mlora_sched.model.device import is_hollow

_STEP = 32
"""Pack lengths, to which experts pad, are multiples of it."""
PACKED_EXPERTS = "mlora_packed"
SLOT = "mlora_slot"
"""Attribute of an experts module under which it finds the base's `PackSlot`."""


def packed_experts(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Σ_k w_k · expert_k(x).

    Args:
        module: a transformers experts module with fused weights (gate_up_proj and down_proj, 3-D).
        hidden_states: (T, D). top_k_index: (T, K) int64. top_k_weights: (T, K).

    Returns:
        (T, D) in the dtype of hidden_states; each token's K results are added in the order of its choices.
    """
    buckets = getattr(module, SLOT).buckets
    T, K = top_k_index.shape
    D = hidden_states.shape[-1]
    choice, order = torch.sort(top_k_index.reshape(-1), stable=True)
    counts = rows_by_expert(choice, module.num_experts)
    # Expanded, then permuted: autograd adds a token's K gradients in the order of its choices, whatever the company.
    x_sorted = hidden_states[:, None].expand(T, K, D).reshape(T * K, D).index_select(0, order)
    pieces = []
    for expert, x_ND in enumerate(torch.split(x_sorted, counts)):
        if len(x_ND) and expert < module.num_experts:
            length = bucket_for(len(x_ND), buckets) or len(x_ND)
            padded = nn.functional.pad(x_ND, (0, 0, 0, length - len(x_ND)))
            pieces.append(_expert(module, expert, padded)[: len(x_ND)])
        else:  # beyond num_experts stand the sentinels of expert parallelism, whose weight is 0
            pieces.append(torch.zeros_like(x_ND))
    y_TKD = torch.cat(pieces).index_select(0, torch.argsort(order)).view(T, K, D)
    return (y_TKD * top_k_weights[..., None]).sum(dim=1).to(hidden_states.dtype)


def rows_by_expert(choice_M: Tensor, experts: int) -> list[int]:
    """How many of the routed rows fall on each expert; more than `experts` counts where sentinels stand beyond them.

    Rows without numbers fall so that experts pad the most: on each one more than a multiple of the pack lengths' step.
    """
    if is_hollow(choice_M):
        rows = len(choice_M)
        if rows < experts:
            return [1] * rows + [0] * (experts - rows)
        steps, rest = divmod(rows - experts, _STEP)
        each, more = divmod(steps, experts)
        return [1 + _STEP * (each + (expert < more)) + (rest if expert == 0 else 0) for expert in range(experts)]
    counts: list[int] = torch.bincount(choice_M, minlength=experts).tolist()
    return counts


def _expert(module: Any, expert: int, x_ND: Tensor) -> Tensor:
    up = module.gate_up_proj if module.has_gate else module.up_proj
    up_bias = (module.gate_up_proj_bias if module.has_gate else module.up_proj_bias) if module.has_bias else None
    h = _linear(x_ND, up[expert], None if up_bias is None else up_bias[expert], module.is_transposed)
    h = module._apply_gate(h) if module.has_gate else module.act_fn(h)
    bias = module.down_proj_bias[expert] if module.has_bias else None
    y = _linear(h, module.down_proj[expert], bias, module.is_transposed)
    return module.post_expert_norm(y) if module.has_post_expert_norm else y


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, is_transposed: bool) -> Tensor:
    return nn.functional.linear(x, weight.T if is_transposed else weight, bias)


ALL_EXPERTS_FUNCTIONS.register(PACKED_EXPERTS, packed_experts)
