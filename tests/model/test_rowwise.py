"""Norms, rotations and gated products of ours against transformers' own, and their gradients against differences."""

from __future__ import annotations

import pytest
import torch
from engine.bases import llama_config, model_of
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.cohere import modeling_cohere
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.glm4 import modeling_glm4
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2 import modeling_olmo2
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from mlora_sched.model.base import adopt
from mlora_sched.model.rowwise import (
    RowNorm,
    as_transformers,
    gated_product,
    half_rotation,
    row_norm,
    turns_halves,
    use_half_rotation,
)

ROTARY = modeling_llama.apply_rotary_pos_emb


def seeded(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.empty(*shape, dtype=torch.float64).normal_(generator=generator).to(dtype)


def norm_of(kind: type[nn.Module], dtype: torch.dtype) -> nn.Module:
    module = kind(24, eps=1e-3)  # large, so that a lost ε would show
    with torch.no_grad():
        module.weight.copy_(seeded(24))
    return module.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("kind", [LlamaRMSNorm, GemmaRMSNorm, Olmo2RMSNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_norm_is_the_models_own(kind: type[nn.Module], dtype: torch.dtype) -> None:
    theirs = norm_of(kind, dtype)
    ours = row_norm(theirs)
    assert ours is not None
    assert ours.shift == (1.0 if kind is GemmaRMSNorm else 0.0)
    assert ours.gain_wide == (kind is not LlamaRMSNorm)
    assert dict(ours.named_parameters()).keys() == {"weight"}, "the original is no part of the tree"
    x, dy = seeded(2, 7, 24, dtype=dtype).requires_grad_(), seeded(2, 7, 24, dtype=dtype)
    y, expected = ours(x), theirs(x)
    torch.testing.assert_close(y.detach(), expected.detach())
    (dx,), (dx_expected,) = (torch.autograd.grad(out, x, dy) for out in (y, expected))
    # in bfloat16 theirs rounds the product with the gain on the way
    largest = float(dx_expected.abs().max())
    assert float((dx - dx_expected).abs().max()) <= 8 * torch.finfo(dtype).eps * largest


@pytest.mark.parametrize(("shift", "gain_wide"), [(0.0, False), (0.0, True), (1.0, True)])
def test_the_gradient_of_a_norm_is_the_limit_of_differences(shift: float, gain_wide: bool) -> None:
    original = LlamaRMSNorm(6).requires_grad_(False)
    original.weight = nn.Parameter(seeded(6), requires_grad=False)
    ours = RowNorm(original, 1e-3, shift, gain_wide)
    assert torch.autograd.gradcheck(ours, (seeded(3, 6).requires_grad_(),))


class OtherRMSNorm(nn.Module):
    """A name that promises what it does not do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().mean(-1, keepdim=True) * self.weight


class BiasedRMSNorm(LlamaRMSNorm):
    """More than a gain."""

    def __init__(self) -> None:
        super().__init__(8)
        self.bias = nn.Parameter(torch.zeros(8))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) + self.bias


class RoundingRMSNorm(LlamaRMSNorm):
    """Like Llama's in float32, another in bfloat16."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.weight * (hidden_states / hidden_states.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt())


@pytest.mark.parametrize(
    "module",
    [OtherRMSNorm(), BiasedRMSNorm(), RoundingRMSNorm(64), nn.LayerNorm(8), nn.Linear(8, 8)],
    ids=lambda module: type(module).__name__,
)
def test_what_computes_something_else_stays(module: nn.Module) -> None:
    assert row_norm(module) is None


def rotated() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries of four heads, keys of two, and angles whose halves differ, so that neither can stand for the other."""
    return seeded(1, 4, 5, 8), seeded(1, 2, 5, 8), seeded(1, 5, 8), seeded(1, 5, 8) + 1


def test_a_rotation_is_the_models_own() -> None:
    q, k, cos, sin = rotated()
    for one, other in zip(half_rotation(ROTARY)(q, k, cos, sin), ROTARY(q, k, cos, sin), strict=True):
        torch.testing.assert_close(one, other)


def test_the_gradient_of_a_rotation_is_the_limit_of_differences() -> None:
    q, k, cos, sin = rotated()
    turn = half_rotation(ROTARY)
    assert torch.autograd.gradcheck(lambda q, k: turn(q, k, cos, sin), (q.requires_grad_(), k.requires_grad_()))


def test_partial_heads_and_other_arguments_are_left_to_the_model() -> None:
    q, k, cos, sin = rotated()
    seen: list[int] = []

    def original(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        seen.append(unsqueeze_dim)
        return q, k

    turn = half_rotation(original)
    turn(q, k, cos[..., :4], sin[..., :4])
    turn(q, k, cos, sin, unsqueeze_dim=2)
    turn(q, k, cos, sin, 3)
    assert seen == [1, 2, 3]


def test_only_rotations_of_halves_are_recognised() -> None:
    assert turns_halves(ROTARY)
    assert not turns_halves(modeling_cohere.apply_rotary_pos_emb), "pairs of neighbours"
    assert not turns_halves(modeling_glm4.apply_rotary_pos_emb), "pairs of neighbours"
    assert not turns_halves(lambda x, cos, sin: (x, x))


def test_a_served_base_changes_no_other_model() -> None:
    """Of the same class in the same process: its function and its modules are transformers' own, bit for bit."""
    plain = model_of(llama_config())
    ids = torch.arange(12)[None]
    before = plain(ids).logits
    served = adopt(model_of(llama_config()), name="served")
    assert modeling_llama.apply_rotary_pos_emb is ROTARY
    assert torch.equal(plain(ids).logits, before)
    attention = served.model.base_model.layers[0].self_attn
    assert "forward" in vars(attention)
    assert "forward" not in vars(plain.base_model.layers[0].self_attn)


def test_angles_of_another_precision_are_left_to_the_model() -> None:
    """OLMo-2's are float32 on a bfloat16 base, and its own function casts back."""
    q, k, cos, sin = (tensor.to(torch.bfloat16) for tensor in rotated())
    turned = half_rotation(modeling_olmo2.apply_rotary_pos_emb)(q, k, cos.float(), sin.float())
    assert {tensor.dtype for tensor in turned} == {torch.bfloat16}


def test_the_models_own_pieces_come_back_for_a_while() -> None:
    served = adopt(model_of(llama_config()), name="served")
    attention = served.model.base_model.layers[0].self_attn
    with as_transformers(served.model):
        assert not any(isinstance(module, RowNorm) for module in served.model.modules())
        assert "forward" not in vars(attention)
    assert isinstance(served.model.base_model.norm, RowNorm)
    assert "forward" in vars(attention)


def test_a_module_without_rotation_keeps_its_forward() -> None:
    linear = nn.Linear(2, 2)
    assert not use_half_rotation(linear)
    assert "forward" not in vars(linear)


@pytest.mark.parametrize("act", ["silu", "gelu_pytorch_tanh", "relu", "linear"])
def test_a_gated_product_and_its_gradient(act: str) -> None:
    """The linear activation returns its input, which must not be changed in place."""
    function = ACT2FN[act]
    gate, up = seeded(3, 5).requires_grad_(), (seeded(3, 5) + 1).requires_grad_()
    torch.testing.assert_close(gated_product(function, gate, up), function(gate) * up)
    assert torch.autograd.gradcheck(lambda g, u: gated_product(function, g, u), (gate, up))
