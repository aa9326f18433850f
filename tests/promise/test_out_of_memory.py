"""Memory that runs out anywhere in any pack leaves no trace: adapters and figures are bit for bit as without."""

from __future__ import annotations

import pytest
import torch
from adapters.methods import METHOD_CASES
from engine.memory_kit import Faults, memory_of

from mlora_sched.engine import loop, packer
from promise.test_same_as_alone import assert_same, tenant_of
from promise.world import Neighbour, World, base_in, formula_in, together


def run_with_faults(world: World, seed: int, faults: int, steps: int) -> int:
    """Jobs of all methods, of which packs run out of memory at random operators; how often they did."""
    tenants = [
        tenant_of(case, f"{case}-{at}", seed=seed + at, dropout=0.1 * (at % 2), max_steps=steps)
        for at, case in enumerate(METHOD_CASES)
    ]
    meter = Faults(seed, faults)
    memory = memory_of(base_in(world), formula_in(world), meter=meter)
    members = [Neighbour(tenant, joins=at % 3, parks=((3 * at + 2, 2),)) for at, tenant in enumerate(tenants)]
    company = together(world, members, memory=memory)
    for tenant in tenants:
        assert_same(world, tenant, company[tenant.name])
    return faults - meter.left


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No chunk is given up by so much bad luck, and packs grow again soon, so that large ones fail as well."""
    monkeypatch.setattr(loop, "TRIES_ALONE", 1000)
    monkeypatch.setattr(packer, "RECOVERY", 2)


@pytest.mark.parametrize("world", [World(), World(dtype=torch.bfloat16, threads=2)], ids=str)
def test_packs_that_run_out_of_memory_at_random_operators_leave_no_trace(world: World) -> None:
    assert run_with_faults(world, seed=1, faults=6, steps=2) == 6


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("world", [World(344), World(344, torch.bfloat16, threads=2)], ids=str)
def test_hundreds_of_packs_that_run_out_of_memory_leave_no_trace(world: World) -> None:
    assert sum(run_with_faults(world, seed=seed, faults=20, steps=4) for seed in range(8)) >= 100
