"""Experts of one FFN against the formula, whatever the sizes: output, all gradients, the balance loss; in float64."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.mixed import Rows
from adapters.one_ffn import BASES, OneFfn, compare, rows

MIXLORA: dict[str, Any] = {"method": "mixlora", "router_aux_loss_coef": 0.3}


@st.composite
def adapters(draw: st.DrawFn) -> dict[str, Any]:
    """MixLoRA by both routings and LLaVA-MoLE, with experts of every kind."""
    experts = draw(st.integers(1, 6))
    methods = {
        "top_k": MIXLORA | {"top_k": draw(st.integers(1, experts))},
        "dynamic": MIXLORA | {"routing": "dynamic", "top_p": draw(st.sampled_from([1e-6, 0.3, 0.55, 0.77, 0.93, 1.0]))},
        "llava_mole": {"method": "llava_mole", "router_aux_loss_coef": 0.3},
    }
    own = {
        "num_experts": experts,
        "expert_method": draw(st.sampled_from(["lora", "rslora", "dora", "dora"])),
        "r": draw(st.integers(1, 4)),
        "alpha": 3.0,
        "dropout": draw(st.sampled_from([0.0, 0.4])),
    }
    return methods[draw(st.sampled_from(sorted(methods)))] | own


@settings(max_examples=60, deadline=None)
@given(model_type=st.sampled_from(BASES), adapter=adapters(), rows=rows())
def test_output_and_gradients(model_type: str, adapter: dict[str, Any], rows: Rows) -> None:
    compare(OneFfn(model_type, adapter, rows))
