"""`verify_base`: what the engine serves equals transformers' own forward, and what does not is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from engine.bases import base_of
from torch import Tensor

from mlora_sched.errors import BaseError
from mlora_sched.model.attention import PACKED_ATTENTION
from mlora_sched.model.verify import TOLERANCE, verify_base
from model.architectures import SETTINGS, config_of

SCALE = 2.0
"""Of the random matrices: large enough that attention is far from uniform, so that a wrong mask shows."""


@pytest.mark.parametrize("model_type", SETTINGS)
def test_packed_logits_equal_transformers(model_type: str) -> None:
    base = base_of(config_of(model_type), scale=SCALE)
    assert verify_base(base) < 5e-6


@pytest.mark.parametrize("model_type", SETTINGS)
def test_bfloat16_within_its_rounding(model_type: str) -> None:
    base = base_of(config_of(model_type), torch.bfloat16, scale=SCALE)
    assert verify_base(base) <= TOLERANCE[torch.bfloat16]


def test_a_norm_in_place_of_another_is_refused() -> None:
    """The comparison is with the model's own norms, not with ours."""
    base = base_of(config_of("llama"), scale=SCALE)
    base.model.base_model.norm.eps = 1.0
    with pytest.raises(BaseError, match="differ from transformers"):
        verify_base(base)


def test_a_layer_that_is_applied_twice_is_refused() -> None:
    """A step's first chunk writes its gradients: a second backward of the same op would lose those of the first."""
    base = base_of(config_of("llama"), scale=SCALE)
    layers = base.model.base_model.layers
    layers[1] = layers[0]
    with pytest.raises(BaseError, match="more than once in a forward"):
        verify_base(base)


def test_the_base_is_left_as_it_was() -> None:
    base = base_of(config_of("mixtral"), scale=SCALE)
    before = (base.model.config._attn_implementation, base.model.get_experts_implementation())
    assert before[0] == PACKED_ATTENTION
    verify_base(base)
    assert (base.model.config._attn_implementation, base.model.get_experts_implementation()) == before


@pytest.mark.parametrize(
    ("model_type", "change"),
    [
        ("granite", {"scale": 1.0}),
        ("cohere", {"scale": 0.5}),
        ("gemma2", {"softcap": None}),
        ("gemma2", {"softcap": 6.0}),
    ],
)
def test_a_wrong_head_is_refused(model_type: str, change: dict[str, Any]) -> None:
    base = base_of(config_of(model_type), scale=SCALE)
    wrong = dataclasses.replace(base, head=dataclasses.replace(base.head, **change))
    with pytest.raises(BaseError, match="differ from transformers"):
        verify_base(wrong)


def test_a_missing_head_bias_is_refused() -> None:
    base = base_of(config_of("phi"), scale=SCALE)
    bias = base.head.bias_V
    assert bias is not None
    bias.uniform_(-1, 1)
    verify_base(base)
    with pytest.raises(BaseError, match="differ from transformers"):
        verify_base(dataclasses.replace(base, head=dataclasses.replace(base.head, bias_V=None)))


@pytest.mark.parametrize(("model_type", "dropped"), [("gemma2", "softcap"), ("granite", "scaling")])
def test_a_dropped_attention_option_is_refused(model_type: str, dropped: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of(config_of(model_type), scale=SCALE)
    verify_base(base)
    _drop_option(monkeypatch, dropped)
    with pytest.raises(BaseError, match="differ from transformers"):
        verify_base(base)


@pytest.mark.parametrize("model_type", ["mistral", "gemma3_text", "mixtral"])
def test_a_short_window_ignored_by_attention_shows_in_the_logits(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of(config_of(model_type), scale=SCALE)
    _drop_option(monkeypatch, "sliding_window")
    with pytest.raises(BaseError, match="differ from transformers"):
        verify_base(base)


def _drop_option(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import mlora_sched.model.verify as verify

    whole = verify.packed_attention

    def without(*tensors: Any, **options: Any) -> tuple[Tensor, None]:
        return whole(*tensors, **{**options, name: None})

    monkeypatch.setattr(verify, "packed_attention", without)


@pytest.mark.parametrize("window", [16, 300])
def test_a_window_that_never_reaches_attention_is_refused(window: int) -> None:
    base = base_of(config_of("starcoder2", sliding_window=window), scale=SCALE)
    verify_base(base)
    for layer in base.model.model.layers:
        _keep_window_to_itself(layer.self_attn)
    with pytest.raises(BaseError, match="its attention was handed none"):
        verify_base(base)


def _keep_window_to_itself(attention: Any) -> None:
    """Let a layer call its attention without the window, as a model does that puts it into a mask alone."""
    whole = attention.config

    class Windowless:
        sliding_window = None

        def __getattr__(self, name: str) -> Any:
            return getattr(whole, name)

    attention.config = Windowless()
    attention.sliding_window = None


def test_a_window_beyond_the_longest_sequence_does_not_matter() -> None:
    base = base_of(config_of("mistral", sliding_window=4096), scale=SCALE)
    verify_base(base)


@pytest.mark.parametrize(
    ("model_type", "more", "reason"),
    [
        ("falcon", {}, "only 0 of the 2 layers"),
        ("bloom", {}, "only 0 of the 2 layers"),
        ("stablelm", {}, "no keyword arguments"),
        ("granite_swa", {}, "s_aux"),
        ("doge", {}, "attention_mask"),
        ("bart", {"d_model": 64}, "differ from transformers"),
        ("bert", {}, "differ from transformers"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_architectures_that_cannot_be_packed_are_refused(model_type: str, more: dict[str, Any], reason: str) -> None:
    base = base_of(config_of(model_type, **more), scale=SCALE)
    with pytest.raises(BaseError, match=reason):
        verify_base(base)
