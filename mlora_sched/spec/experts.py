"""What routers do with a job's tokens: what is recorded of them at some steps, and what that says of their experts.

The load of a step is a record a router. Over the newest records `routers_of` sums up, and judges which experts are dead
and where a few take everything; drawing that is `cli.experts_view`'s business.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from enum import StrEnum

from mlora_sched.spec.common import Frozen

RECORDS = 100
"""About how many steps of a job are recorded."""
JUDGED = 10
"""By so many of the newest records experts are judged."""
_IDLE = 1e-3
"""An expert that takes part in every token is dead where its mean probability is lower."""
_ROUNDING = 1e-6
"""Of what is recorded."""
_NEARLY_ALL = 0.9
"""Routers have collapsed where as many experts as a token takes have more than this share of the load."""


def is_recorded(step: int, total_steps: int) -> bool:
    """Whether routers are recorded in a step, from 1: in the first, the last and every so many in between.

    It depends on nothing else, so that a job that was interrupted has the records of one that was not.
    """
    return step in (1, total_steps) or step % math.ceil(total_steps / RECORDS) == 0


class LoadBy(StrEnum):
    """What an expert's share is of."""

    CHOICES = "choices"
    """Of the router's choices: a token has several where it goes to several experts."""
    PROBABILITY = "probability"
    """Of the router's probability, where all experts take part in every token."""


class RouterLoad(Frozen):
    """What one router did in a step.

    Attributes:
        router: where it is, as a dotted path: an FFN or a linear.
        by: what the shares are of. share: of each expert; they sum to 1 but for rounding to six decimals.
        per_token: experts that a token goes to, on average.
        entropy: of the probabilities, on average over tokens: 0 where one expert has all, 1 where all are alike.
    """

    router: str
    by: LoadBy = LoadBy.CHOICES
    share: tuple[float, ...]
    per_token: float
    entropy: float


class ExpertsRecord(Frozen):
    """What all routers of a job did in a recorded step, whose batch had so many `tokens`."""

    step: int
    tokens: int
    routers: tuple[RouterLoad, ...]


class ExpertsPage(Frozen):
    """The newest records of a job, by step."""

    records: tuple[ExpertsRecord, ...]


class RouterOverview(Frozen):
    """What a router did in several recorded steps together.

    Attributes:
        router, by, share, per_token, entropy: as of `RouterLoad`, over all tokens.
        dead: experts, from 0, that got no token in any of the steps; or next to no probability, if shares are of that.
        taken_by: the few experts that take nearly everything; empty where the load is spread.
    """

    router: str
    by: LoadBy
    share: tuple[float, ...]
    per_token: float
    entropy: float
    dead: tuple[int, ...]
    taken_by: tuple[int, ...]


class ExpertsBrief(Frozen):
    """The same of all routers in a few figures: how many there are, their mean entropy, how many experts are dead, and
    how many routers have collapsed."""

    routers: int
    entropy: float
    dead: int
    collapsed: int


def routers_of(records: Sequence[ExpertsRecord]) -> tuple[RouterOverview, ...]:
    """Every router over all of the records, in their order."""
    found: dict[str, list[tuple[int, RouterLoad]]] = {}
    for record in records:
        for load in record.routers:
            found.setdefault(load.router, []).append((record.tokens, load))
    return tuple(_overview(loads) for loads in found.values())


def brief(records: Sequence[ExpertsRecord]) -> ExpertsBrief | None:
    """All routers in a few figures; None where there are none."""
    routers = routers_of(records)
    if not routers:
        return None
    return ExpertsBrief(
        routers=len(routers),
        entropy=math.fsum(one.entropy for one in routers) / len(routers),
        dead=sum(len(one.dead) for one in routers),
        collapsed=sum(bool(one.taken_by) for one in routers),
    )


def _overview(loads: Sequence[tuple[int, RouterLoad]]) -> RouterOverview:
    """Of one router, from its loads with the tokens of their steps: a step weighs by those, or by its choices."""
    first = loads[0][1]
    tokens = [float(count) for count, _ in loads]
    by_choices = first.by is LoadBy.CHOICES
    weights = [count * load.per_token for count, load in loads] if by_choices else tokens
    share = tuple(_mean([load.share[expert] for _, load in loads], weights) for expert in range(len(first.share)))
    per_token = _mean([load.per_token for _, load in loads], tokens)
    return RouterOverview(
        router=first.router,
        by=first.by,
        share=share,
        per_token=per_token,
        entropy=_mean([load.entropy for _, load in loads], tokens),
        dead=tuple(expert for expert, part in enumerate(share) if part <= (0.0 if by_choices else _IDLE)),
        taken_by=_taken_by(share, math.ceil(per_token - _ROUNDING) if by_choices else 1),
    )


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(map(operator.mul, values, weights)) / math.fsum(weights)


def _taken_by(share: Sequence[float], few: int) -> tuple[int, ...]:
    """The `few` experts with the most load where they have nearly all of it, and others have none to speak of."""
    if few >= len(share):
        return ()
    busiest = sorted(range(len(share)), key=lambda expert: (-share[expert], expert))[:few]
    return tuple(sorted(busiest)) if math.fsum(share[expert] for expert in busiest) > _NEARLY_ALL else ()
