"""The promise: what a tenant gets is bit for bit what it would have got alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from adapters.methods import METHOD_CASES, VARIANT_CASES, MethodCase
from engine.bases import NEEDS_BITSANDBYTES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promise.world import Got, Neighbour, Tenant, World, alone, together

WORLDS = (
    *(World(ff, dtype, threads) for ff in (96, 344) for dtype in (torch.float32, torch.bfloat16) for threads in (1, 2)),
    # parts of an elementwise kernel that are no whole vector steps: only some pack lengths are exact
    World(344, torch.float32, 3, pack_tokens=1152),
    World(344, torch.float32, 8, pack_tokens=1152),
    World(344, torch.bfloat16, 12, pack_tokens=1920),
)


def tenant_of(case: MethodCase, name: str, seed: int, dropout: float = 0.0, **training: Any) -> Tenant:
    """A tenant of a method whose batch makes several chunks."""
    more = {"seed": seed, "max_steps": 2, "batch_size": 4, "chunk_tokens": 64, "learning_rate": 1e-2, **training}
    lengths = tuple(10 + (7 * seed + 13 * row) % 50 for row in range(10))
    return Tenant(name, case.adapter(dropout=dropout), more, lengths, validation=(20, 31))


def assert_same(world: World, tenant: Tenant, company: Got) -> None:
    """The tenant was trained to its end, and got what it gets alone."""
    solo = alone(world, tenant)
    assert solo.finished
    assert company.failed is None
    assert company.figures == solo.figures
    assert company.files == solo.files


IN_4_BITS = [
    pytest.param(World(dtype=dtype, threads=2, quantize="nf4"), marks=NEEDS_BITSANDBYTES)
    for dtype in (torch.float32, torch.bfloat16)
]


@pytest.mark.parametrize("world", [*WORLDS, *IN_4_BITS], ids=str)
def test_every_method_in_mixed_company_is_as_alone(world: World) -> None:
    """All methods in one pack, dropout on and off, each parked twice, each compared with itself alone."""
    check_company(world, METHOD_CASES)


@pytest.mark.parametrize("world", [World(), World(dtype=torch.bfloat16)], ids=str)
def test_experts_of_every_kind_are_as_alone(world: World) -> None:
    """Among them those that DoRA rescales, whose row norms are let go when a job is parked and made anew."""
    check_company(world, (*VARIANT_CASES, METHOD_CASES[0]))


def check_company(world: World, cases: Sequence[MethodCase]) -> None:
    """One job of each, in one pack."""
    tenants = [
        tenant_of(case, f"{case}-{at}", seed=at, dropout=0.2 * ((at + world.threads) % 2))
        for at, case in enumerate(cases)
    ]
    parks = [((at + 1, 2), (at + 4, 1)) for at in range(len(tenants))]
    company = together(world, [Neighbour(tenant, at % 3, parks=parks[at]) for at, tenant in enumerate(tenants)])
    for tenant in tenants:
        assert_same(world, tenant, company[tenant.name])


def test_a_balance_between_tasks_is_as_alone() -> None:
    """LoRAMoE's balance looks at the rows of its own chunk and at their tasks."""
    adapter = {"method": "loramoe", "r": 4, "alpha": 8, "num_experts": 4, "router_aux_loss_coef": 0.2, "dropout": 0.2}
    plain = tenant_of(METHOD_CASES[0], "plain", seed=1)
    tenant = dataclasses.replace(tenant_of(METHOD_CASES[0], "balanced", seed=2), adapter=adapter, tasks=("a", "b"))
    world = World()
    company = together(world, [Neighbour(plain), Neighbour(tenant, 1)])
    assert_same(world, tenant, company["balanced"])


@pytest.mark.parametrize("case", METHOD_CASES, ids=str)
def test_neighbours_that_are_cancelled_break_or_run_out_of_memory_leave_no_trace(case: MethodCase) -> None:
    """A pack that fails takes its gradients with it, also those it had added to the tenant."""
    world = World(ff=344)
    tenant = tenant_of(case, "tenant", seed=3, dropout=0.1)
    plain = METHOD_CASES[0]
    members = (
        Neighbour(tenant, joins=1),
        Neighbour(tenant_of(plain, "cancelled", seed=4), joins=0, leaves=2),
        Neighbour(tenant_of(plain, "broken", seed=5), joins=0, breaks=2),
        Neighbour(tenant_of(plain, "hopeless", seed=6, learning_rate=1e30), joins=1),
    )
    got = together(world, members, out_of_memory=(1, 4))
    assert_same(world, tenant, got["tenant"])
    assert (got["broken"].failed or "").startswith("adapter_error")
    assert (got["hopeless"].failed or "").startswith("non_finite_loss")
    assert not got["cancelled"].ended


def test_chunks_decide_the_bits_and_company_does_not() -> None:
    """The comparison above can fail: another chunk length gives other bits, hence is part of the job."""
    world = World()
    tenant = tenant_of(METHOD_CASES[0], "tenant", seed=1)
    recut = Tenant(tenant.name, tenant.adapter, {**tenant.training, "chunk_tokens": 200}, tenant.lengths, (20, 31))
    assert alone(world, tenant).figures != alone(world, recut).figures


def tenants(name: str) -> st.SearchStrategy[Tenant]:
    """Any job small enough to train in a moment."""
    adapters = st.builds(
        lambda case, r, alpha, dropout, targets: case.adapter(
            r=r, alpha=alpha, dropout=dropout, target_modules=_targets(case, targets)
        ),
        st.sampled_from((*METHOD_CASES, *VARIANT_CASES)),
        st.sampled_from([1, 3, 4, 8, 16]),
        st.sampled_from([1.0, 8.0, 32.0]),
        st.sampled_from([0.0, 0.05, 0.5]),
        st.sampled_from(["all-linear", ["q_proj", "v_proj"], ["down_proj"], ["o_proj", "gate_proj"]]),
    )
    training = st.fixed_dictionaries(
        {
            "seed": st.integers(0, 10_000),
            "max_steps": st.integers(1, 3),
            "batch_size": st.integers(1, 6),
            "chunk_tokens": st.sampled_from([16, 40, 64, 130, 300]),
            "learning_rate": st.sampled_from([1e-4, 1e-2]),
            "lr_scheduler": st.sampled_from(["cosine", "linear", "constant"]),
            "weight_decay": st.sampled_from([0.0, 0.1]),
            "max_grad_norm": st.sampled_from([0.0, 1.0]),
        }
    )
    lengths = st.lists(st.integers(2, 120), min_size=1, max_size=12).map(tuple)
    held_out = st.lists(st.integers(2, 60), max_size=3).map(tuple)
    return st.builds(Tenant, st.just(name), adapters, training, lengths, held_out)


def _targets(case: MethodCase, targets: Any) -> Any:
    """Experts of an FFN need a part of it among their targets."""
    routed = case.method in ("mixlora", "llava_mole") and isinstance(targets, list)
    return [*targets, "up_proj"] if routed else targets


PARKS = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 4)), max_size=2).map(tuple)


@st.composite
def companies(draw: st.DrawFn) -> tuple[Neighbour, ...]:
    """One to three neighbours that come when they like and may be parked or cancelled."""
    return tuple(
        Neighbour(
            draw(tenants(f"neighbour-{at}")),
            joins=draw(st.integers(0, 4)),
            leaves=draw(st.none() | st.integers(1, 6)),
            parks=draw(PARKS),
        )
        for at in range(draw(st.integers(1, 3)))
    )


RANDOM = {
    "world": st.sampled_from(WORLDS),
    "tenant": tenants("tenant"),
    "company": companies(),
    "joins": st.integers(0, 3),
    "parks": PARKS,
    "out_of_memory": st.lists(st.integers(0, 6), max_size=2),
}
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(**RANDOM)
def test_any_tenant_in_any_company_is_as_alone(
    world: World,
    tenant: Tenant,
    company: tuple[Neighbour, ...],
    joins: int,
    parks: tuple[tuple[int, int], ...],
    out_of_memory: list[int],
) -> None:
    members = [Neighbour(tenant, joins, parks=parks), *company]
    assert_same(world, tenant, together(world, members, out_of_memory, until=tenant.name)[tenant.name])


@pytest.mark.slow
@pytest.mark.timeout(7200)
@settings(max_examples=500, deadline=None, suppress_health_check=QUIET)
@given(**RANDOM)
def test_any_tenant_in_any_company_is_as_alone_at_length(
    world: World,
    tenant: Tenant,
    company: tuple[Neighbour, ...],
    joins: int,
    parks: tuple[tuple[int, int], ...],
    out_of_memory: list[int],
) -> None:
    members = [Neighbour(tenant, joins, parks=parks), *company]
    assert_same(world, tenant, together(world, members, out_of_memory, until=tenant.name)[tenant.name])
