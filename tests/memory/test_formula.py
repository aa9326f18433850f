"""The closed form beside the trace: over the grid of `docs/benchmarks/estimates.py`, and over random packs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model.architectures import SETTINGS

from memory.small_bases import LADDER, estimates, hollow_small, shape_small
from mlora_sched.adapters.registry import build_adapter
from mlora_sched.bench import estimate_grid as grid
from mlora_sched.errors import SpecError
from mlora_sched.memory.formula import Formula, PackPlan
from mlora_sched.memory.meter import bytes_of
from mlora_sched.memory.trace import Chunked, trace
from mlora_sched.optim.adamw import JobAdamW
from mlora_sched.spec.adapter import AdapterSpec

NEAR = 0.03
"""How far the formula may be from the trace."""
BELOW = 0.01
"""How far below it."""
MARGIN = 0.05
"""The daemon's default."""
GRID = grid.combinations()
FAST = [it for it in GRID if it.base in grid.SMALL][::3] + [
    next(it for it in GRID if it.base == base and it.dtype == "bfloat16" and not it.real)
    for base in ("llama-1b", "phi3-mini", "opt-6.7b")
]
FFN = ("gate_proj", "up_proj", "down_proj")


def assert_near(combination: Any) -> None:
    found = estimates.measure(combination)
    derived = sum(formula_of(combination).job(chunk.adapter).derived for chunk in combination.chunks)
    assert found.formula_jobs - derived == found.traced_jobs
    assert 1 - BELOW <= found.formula / found.traced <= 1 + NEAR
    # what a job's method derives is held, and counted with the job; a trace sees it made, and counts it with the pack
    assert 1 - BELOW <= (found.formula_pack + derived) / found.traced_pack <= 1 + NEAR
    if found.weighed is not None:
        assert found.base + found.weighed <= (found.base + found.formula) / (1 - MARGIN)
        assert found.weighed <= found.formula * (1 + BELOW)


def formula_of(combination: Any) -> Formula:
    formula: Formula = estimates.formula_of(combination.base, combination.dtype, combination.recompute)
    return formula


def test_the_grid_is_as_wide_as_it_claims() -> None:
    assert len({str(it) for it in GRID}) == len(GRID) >= 60
    assert {it.base for it in GRID} == set(grid.BASES)
    assert {chunk.adapter.method for it in GRID for chunk in it.chunks} == {
        "lora",
        "rslora",
        "loraplus",
        "dora",
        "mixlora",
        "llava_mole",
    }


@pytest.mark.parametrize("combination", FAST, ids=str)
def test_formula_is_near_the_trace(combination: Any) -> None:
    assert_near(combination)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("combination", GRID, ids=str)
def test_formula_is_near_the_trace_in_the_whole_grid(combination: Any) -> None:
    assert_near(combination)


# ---------------------------------------------------------------------- random packs

_TARGETS = st.sampled_from(
    ["all-linear", ("q_proj", "v_proj"), ("o_proj",), FFN, ("down_proj",), ("k_proj", "gate_proj")]
)
_LENGTHS = st.one_of(
    st.lists(st.integers(2, 120), min_size=1, max_size=5),
    st.tuples(st.sampled_from([16, 32, 64]), st.integers(1, 5)).map(lambda pair: [pair[0]] * pair[1]),
)


@st.composite
def chunks(draw: st.DrawFn) -> Chunked:
    make = draw(
        st.sampled_from(
            [
                grid.lora,
                grid.rslora,
                grid.loraplus,
                grid.dora,
                grid.mixlora,
                grid.mixdora,
                grid.dynamic,
                grid.llava_mole,
                grid.dynmole,
                grid.mola,
                grid.loramoe,
            ],
        )
    )
    adapter = make(draw(st.sampled_from([1, 2, 4, 8, 16, 32])), draw(st.sampled_from([0.0, 0.1])))
    targets = draw(_TARGETS)
    if adapter.method not in ("mixlora", "llava_mole", "loramoe") or targets in ("all-linear", FFN):
        adapter = adapter.model_copy(update={"target_modules": targets})
    return Chunked(adapter, tuple(draw(_LENGTHS)))


def check_random_pack(packed: list[Chunked], dtype: str, recompute: bool, training: bool) -> None:
    combination = grid.Combination("llama-small", dtype, tuple(packed), recompute, training)
    traced = trace(estimates.hollow_of("llama-small", dtype, recompute), packed, LADDER, training=training)
    found = sum(estimates.ask(formula_of(combination), packed, combination.plan))
    assert 1 - BELOW <= found / (traced.jobs + traced.pack) <= 1 + NEAR


_RANDOM = {
    "packed": st.lists(chunks(), min_size=1, max_size=4),
    "dtype": st.sampled_from(["float32", "bfloat16"]),
    "recompute": st.booleans(),
    "training": st.sampled_from([True, True, True, False]),
}


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(**_RANDOM)
def test_random_packs(packed: list[Chunked], dtype: str, recompute: bool, training: bool) -> None:
    check_random_pack(packed, dtype, recompute, training)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(**_RANDOM)
def test_many_random_packs(packed: list[Chunked], dtype: str, recompute: bool, training: bool) -> None:
    check_random_pack(packed, dtype, recompute, training)


# ---------------------------------------------------------------------- jobs


def held_by(adapter: AdapterSpec, model_type: str) -> dict[str, int]:
    """Bytes of the buffers that the engine makes for a job."""
    hollow = hollow_small(model_type)
    with hollow.mode:
        built = build_adapter(adapter, hollow.base, 0)
        optimizer = JobAdamW(built.params, built.lr_scales, 0.0, 1.0)
        built.begin_step()
        flats = list(built.params.groups.values())
        return {
            "parameters": bytes_of(flat.value for flat in flats),
            "gradients": bytes_of(flat.grad for flat in flats),
            "moments": bytes_of([*optimizer.exp_avg.values(), *optimizer.exp_avg_sq.values()]),
            "derived": bytes_of(built.derived()),
        }


@pytest.mark.parametrize("model_type", SETTINGS)
@pytest.mark.parametrize("make", [grid.lora, grid.dora, grid.mixdora, grid.llava_mole, grid.mola])
def test_a_job_holds_exactly_what_the_engine_makes(make: Any, model_type: str) -> None:
    adapter = make(5)
    formula = Formula(shape_small(model_type))
    try:
        held = held_by(adapter, model_type)
    except SpecError:  # experts of an FFN on an architecture without one that is known
        assert adapter.method in ("mixlora", "llava_mole")
        return
    job = formula.job(adapter)
    assert {name: getattr(job, name) for name in held} == held
    assert job.compute == 0
    assert job.parked == held["parameters"] + held["moments"]


def test_a_job_on_a_narrow_base_holds_a_narrow_copy() -> None:
    wide, narrow = (
        estimates.formula_of("llama-tiny", dtype, False).job(grid.lora(8)) for dtype in ("float32", "bfloat16")
    )
    assert narrow.compute == wide.parameters // 2
    assert narrow.resident == wide.resident + narrow.compute


# ---------------------------------------------------------------------- what must hold whatever the base


def pack_bytes(packed: tuple[Chunked, ...], recompute: bool = False, training: bool = True) -> int:
    combination = grid.Combination("llama-small", "float32", packed, recompute, training)
    return formula_of(combination).pack(combination.plan)


@settings(deadline=None)
@given(chunk=chunks(), more=st.integers(1, 200))
def test_more_tokens_never_take_less(chunk: Chunked, more: int) -> None:
    longer = Chunked(chunk.adapter, (*chunk.lengths, more))
    assert pack_bytes((longer,)) >= 0.93 * pack_bytes((chunk,))
    assert pack_bytes((longer, chunk)) >= pack_bytes((longer,))


def test_recomputation_and_evaluation_take_less() -> None:
    packed = grid.one(grid.lora(8), 200, 200)
    plain = pack_bytes(packed)
    assert pack_bytes(packed, recompute=True) < 0.6 * plain
    assert pack_bytes(packed, training=False) < 0.6 * plain


def test_a_chunk_alone_is_an_upper_bound() -> None:
    formula, adapter = estimates.formula_of("llama-small", "float32", False), grid.dora(8)
    bound = formula.pack(PackPlan.of_chunk(adapter, 300, 200, LADDER))
    for lengths in ((200, 100), (150, 150), (100,) * 3, (299,)):
        assert pack_bytes(grid.one(adapter, *lengths)) <= bound
