"""The rule by which a job diverges, against the plainest form of it; and when a limit is reached."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.engine.guards import LOW_LOSS, WINDOW, Watched, limit_reached
from mlora_sched.engine.train_state import Progress
from mlora_sched.spec.limits import GuardsSpec, LimitsSpec
from mlora_sched.spec.state import StoppedBy


def plain_spike(losses: Sequence[float], factor: float, patience: int) -> int | None:
    """The step at which losses diverge, by the words of docs/spec.md."""
    calm, row = list[float](), 0
    for step, loss in enumerate(losses, 1):
        high = len(calm) >= WINDOW and loss > factor * max(LOW_LOSS, float(np.median(calm[-WINDOW:])))
        row = row + 1 if high else 0
        if not high:
            calm.append(loss)
        if row == patience:
            return step
    return None


def plain_steep(norms: Sequence[float], most: float, patience: int) -> int | None:
    for step in range(patience, len(norms) + 1):
        if all(norm > most for norm in norms[step - patience : step]):
            return step
    return None


def found(
    guards: GuardsSpec, losses: Sequence[float], norms: Sequence[float], resumed: int = 0
) -> tuple[int | None, str]:
    """The step at which a job ends, and why; after `resumed` steps it goes on from a checkpoint."""
    progress = Progress()
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), 1):
        said = progress.watched.look(guards, step, loss, norm)
        if said is not None:
            return step, said
        if step == resumed:
            progress = Progress.of_json(json.loads(json.dumps(progress.to_json())))
    return None, ""


# figures as jobs have them: mostly near one another, some far off, some very small
FIGURES = st.lists(
    st.one_of(st.floats(0.9, 1.6), st.floats(0.9, 1.6), st.floats(2.0, 9.0), st.floats(0.0, 0.2)),
    min_size=0,
    max_size=70,
)
PATIENCE = st.integers(1, 4)


@given(FIGURES, st.floats(1.01, 5.0), PATIENCE, st.integers(0, 70))
def test_losses_diverge_when_the_plain_rule_says_so(
    losses: list[float], factor: float, patience: int, resumed: int
) -> None:
    guards = GuardsSpec(loss_spike=factor, patience=patience)
    assert found(guards, losses, [1e9] * len(losses), resumed)[0] == plain_spike(losses, factor, patience)


@given(FIGURES, st.floats(0.1, 5.0), PATIENCE, st.integers(0, 70))
def test_gradients_diverge_when_the_plain_rule_says_so(
    norms: list[float], most: float, patience: int, resumed: int
) -> None:
    guards = GuardsSpec(grad_norm=most, patience=patience)
    assert found(guards, [1e9] * len(norms), norms, resumed)[0] == plain_steep(norms, most, patience)


@given(FIGURES, FIGURES)
def test_without_guards_nothing_is_found_or_remembered(losses: list[float], norms: list[float]) -> None:
    watched = Watched()
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=False), 1):
        assert watched.look(GuardsSpec(), step, loss, norm) is None
    assert watched == Watched()


def test_a_job_that_stays_too_high_is_not_usual_in_the_end() -> None:
    """A window over all steps would take the new height as usual after ten of them, and never find 30 in a row."""
    guards = GuardsSpec(loss_spike=3.0, patience=30)
    assert found(guards, [1.0] * 20 + [4.0] * 30, [0.0] * 50)[0] == 50


@pytest.mark.parametrize(
    ("guards", "says"),
    [
        (
            GuardsSpec(loss_spike=3.0, patience=1),
            "loss is 7.5 at step 21, more than guards.loss_spike 3 × 2, the median of the 20 steps before; lower "
            "training.learning_rate or raise training.warmup_ratio, or raise guards.loss_spike or guards.patience if "
            "such losses do no harm",
        ),
        (
            GuardsSpec(loss_spike=3.5, patience=2),
            "loss is 7.25 at step 22, more than guards.loss_spike 3.5 × 2, the median of the 20 steps before, for 2 "
            "steps in a row; lower",
        ),
        (
            GuardsSpec(grad_norm=10.0, patience=2),
            "gradient norm is 12.5 at step 22, more than guards.grad_norm 10, for 2 steps in a row; lower",
        ),
    ],
)
def test_the_message_has_figures_and_remedy(guards: GuardsSpec, says: str) -> None:
    _, message = found(guards, [2.0] * 20 + [7.5, 7.25], [1.0] * 20 + [11.0, 12.5])
    assert message.startswith(says)


@pytest.mark.parametrize(
    ("tokens", "seconds", "reached"),
    [
        (99, 9.9, None),
        (100, 0.0, StoppedBy.MAX_TOKENS),
        (0, 10.0, StoppedBy.MAX_TIME),
        (100, 10.0, StoppedBy.MAX_TOKENS),
    ],
)
def test_a_limit_is_reached_from_its_value_on(tokens: int, seconds: float, reached: StoppedBy | None) -> None:
    assert limit_reached(LimitsSpec(max_tokens=100, max_time=10.0), tokens, seconds) is reached
    assert limit_reached(LimitsSpec(), tokens, seconds) is None
