"""The shape of a base is the base's: sites, kinds, weights, and lines that hold at sizes that were not traced."""

from __future__ import annotations

import pytest
import torch
from engine.bases import NEEDS_BITSANDBYTES, VOCAB, base_of, llama_config
from model.architectures import SETTINGS
from transformers import MambaConfig

from memory.small_bases import LADDER, hollow_small, real_small, shape_small
from mlora_sched.bench import estimate_grid as grid
from mlora_sched.errors import BaseError
from mlora_sched.memory.formula import Formula
from mlora_sched.memory.meter import bytes_of
from mlora_sched.memory.profile import profile_base
from mlora_sched.memory.trace import trace
from mlora_sched.model.layers import layer_kinds
from mlora_sched.spec.memory import BaseShape, Extent, Linear


def sites_in(shape: BaseShape) -> dict[str, tuple[int, int]]:
    """Input and output widths by full path."""
    found = {site.path: (group.inputs, site.outputs) for group in shape.loose for site in group.sites}
    for at, kind in enumerate(shape.order):
        for group in shape.kinds[kind].groups:
            found |= {f"{shape.path}.{at}.{site.path}": (group.inputs, site.outputs) for site in group.sites}
    return found


@pytest.mark.parametrize("model_type", SETTINGS)
def test_a_shape_knows_every_site_kind_and_weight(model_type: str) -> None:
    shape, base = shape_small(model_type), real_small(model_type)
    assert sites_in(shape) == {name: (site.in_features, site.out_features) for name, site in base.sites.items()}
    assert shape.order == layer_kinds(base)
    assert shape.weights == bytes_of([*base.model.parameters(), *base.model.buffers()])
    assert shape.is_mixture is base.is_mixture
    assert shape.hidden == base.head.weight_VD.shape[1]
    ffns = {f"{shape.path}.{at}.{ffn.path}" for at, kind in enumerate(shape.order) for ffn in shape.kinds[kind].ffns}
    assert ffns == set(base.ffns)


@pytest.mark.parametrize("model_type", SETTINGS)
def test_a_shape_holds_at_sizes_that_were_not_traced(model_type: str) -> None:
    shape = shape_small(model_type)
    formula, adapter = Formula(shape), grid.lora(8)
    for lengths in ((300, 200, 90), (100,) * 3, (64,)):
        chunks = grid.one(adapter, *lengths)
        combination = grid.Combination(model_type, "float32", chunks)
        traced = trace(hollow_small(model_type), chunks, LADDER)
        found = formula.job(adapter).resident + formula.pack(combination.plan)
        assert 0.99 * (traced.jobs + traced.pack) <= found <= 1.05 * (traced.jobs + traced.pack)


def test_layers_of_more_than_one_kind() -> None:
    assert shape_small("gemma3_text").order == (0, 1)
    assert shape_small("deepseek_v3").order == (0, 1), "a dense layer, then mixtures"
    assert shape_small("llama").order == (0, 0)


def test_a_tied_head_counts_once() -> None:
    apart, tied = llama_config(), llama_config()
    tied.tie_word_embeddings = True
    weights = [profile_base(config, torch.float32).weights for config in (apart, tied)]
    assert weights[0] - weights[1] == VOCAB * apart.hidden_size * 4


def test_a_base_in_bfloat16_is_half_as_large() -> None:
    wide, narrow = (profile_base(llama_config(), dtype) for dtype in (torch.float32, torch.bfloat16))
    assert narrow.itemsize == 2
    assert narrow.weights == pytest.approx(wide.weights / 2, rel=0.01)
    assert narrow.kinds[0].saved.rows == pytest.approx(wide.kinds[0].saved.rows / 2, rel=0.1)


@NEEDS_BITSANDBYTES
def test_a_quantised_base_counts_as_it_is_served() -> None:
    config = llama_config()
    shape = profile_base(config, torch.float32, quantize="nf4")
    base = base_of(config, quantize="nf4")
    assert shape.weights == bytes_of([*base.model.parameters(), *base.model.buffers()])


def test_deeper_bases_take_no_longer_to_read() -> None:
    """Only the first layers run: layers of a kind are alike."""
    few, many = (profile_base(llama_config(layers=layers), torch.float32) for layers in (4, 64))
    assert many.order == (0,) * 64
    assert many.kinds == few.kinds
    assert many.ends == few.ends


def test_a_shape_survives_its_way_to_the_daemon() -> None:
    shape = shape_small("gemma2").model_copy(update={"recompute": True})
    again = BaseShape.model_validate_json(shape.model_dump_json())
    assert again == shape
    assert again.recompute
    assert again.buckets == LADDER


def test_what_the_engine_cannot_serve_has_no_shape() -> None:
    with pytest.raises(BaseError):
        profile_base(MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2), torch.float32)


def test_a_line_adds_up_its_terms() -> None:
    line = Linear(fixed=1, rows=10, squares=100, longest=1000, joined=3, padding=-2)
    assert line.at(Extent(5)) == 51
    assert line.at(Extent(5, squares=2, longest=4, joined=5, padding=1)) == 1 + 50 + 200 + 4000 + 15 - 2
