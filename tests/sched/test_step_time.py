"""What is learned of step times: the numbers behind noisy packs, whatever comes between them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlora_sched.sched.step_time import KNOWN_AFTER, Pack, StepTimeModel

COEFFICIENTS = st.tuples(
    st.floats(0.001, 0.01), st.floats(0.005, 0.05), st.sampled_from([0.0, 2e-5]), st.floats(0.0005, 0.004)
)
PACKS = st.builds(Pack, st.floats(0.01, 100.0), st.integers(0, 500), st.integers(1, 64))


def truth(coefficients: tuple[float, ...], pack: Pack) -> float:
    return sum(each * term for each, term in zip(coefficients, pack.terms, strict=True))


def drawn(rng: random.Random) -> Pack:
    return Pack(rng.uniform(0.2, 8.0), rng.randrange(120), rng.randrange(1, 9))


@settings(max_examples=25, deadline=None)
@given(coefficients=COEFFICIENTS, seed=st.integers(0, 2**32), noise=st.sampled_from([0.0, 0.05]))
def test_it_finds_the_numbers_behind_noisy_packs(
    coefficients: tuple[float, float, float, float], seed: int, noise: float
) -> None:
    """One pack in thirty takes several times as long, and so does the first."""
    rng, model = random.Random(seed), StepTimeModel()
    for at in range(300):
        pack = drawn(rng)
        far_off = 10.0 if at == 0 or rng.random() < 1 / 30 else 1.0
        model.learn(pack, truth(coefficients, pack) * rng.lognormvariate(0, noise) * far_off)
    packs = [drawn(rng) for _ in range(50)]
    errors = sorted(abs(model.seconds(pack) / truth(coefficients, pack) - 1) for pack in packs)
    assert errors[len(errors) // 2] < 0.03
    assert errors[-1] < 0.15
    known = model.known
    assert known is not None
    assert known.packs == 300
    assert known.spread < 0.03 + 2 * noise
    assert known.work == pytest.approx(coefficients[1], rel=0.15)


@settings(deadline=None)
@given(seen=st.lists(st.tuples(PACKS, st.floats(1e-4, 100.0)), max_size=40), asked=PACKS, more=PACKS)
def test_more_never_takes_less_and_nothing_takes_less_than_no_time(
    seen: list[tuple[Pack, float]], asked: Pack, more: Pack
) -> None:
    """Whatever it was told."""
    model, other = StepTimeModel(), StepTimeModel()
    for pack, seconds in seen:
        model.learn(pack, seconds)
        other.learn(pack, seconds)
    larger = Pack(asked.work + more.work, asked.padding + more.padding, asked.jobs + more.jobs)
    assert 0 <= model.seconds(asked) <= model.seconds(larger)
    assert model.known == other.known, "the same packs, the same numbers"
    assert (model.known is None) is (len(seen) < KNOWN_AFTER)


def test_it_follows_a_device_that_becomes_slower() -> None:
    rng, model = random.Random(1), StepTimeModel()
    for slower in (1.0, 2.0):
        for _ in range(600):
            pack = drawn(rng)
            model.learn(pack, slower * truth((0.004, 0.012, 0.0, 0.001), pack))
    pack = Pack(4.0, 50, 4)
    assert model.seconds(pack) == pytest.approx(2 * truth((0.004, 0.012, 0.0, 0.001), pack), rel=0.05)


def test_packs_that_are_all_alike_say_how_long_such_a_pack_takes() -> None:
    model = StepTimeModel()
    for _ in range(50):
        model.learn(Pack(3.0, 0, 2), 0.25)
    assert model.seconds(Pack(3.0, 0, 2)) == pytest.approx(0.25, rel=1e-3)
    assert model.seconds(Pack(6.0, 0, 2)) == pytest.approx(0.5, rel=0.2), "its work is what most likely takes the time"
