"""Synthetic traces by name, such as `poisson:users=8,load=0.9,jobs=200,seed=1`: drawn by a generator of their own.

The machine has round figures whose ratios are those of a base of 8 billion parameters in bfloat16 on a GPU that does
400 TFLOP a second: 32 GFLOP a token (two products a weight, forward and backward), so 80 µs; 40 ms for a pack however
small it is, which is what makes packing pay: weights are read and kernels launched once for all. Jobs are as LoRA jobs
are: some hundred steps of some hundred tokens, lengths spread over orders of magnitude.

*Load* is the time that all jobs would take in full packs, by the time over which they come: at 1 a machine that packs
perfectly is just busy, and one that runs jobs alone is overloaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from pydantic import Field, ValidationError

from mlora_sched.errors import UserError
from mlora_sched.spec.common import Frozen
from mlora_sched.spec.job import Priority
from mlora_sched.spec.trace import ChunkLoad, Machine, Trace, TraceJob, trace_of
from mlora_sched.spec.wire import StepTime

GFLOP_PER_TOKEN = 32.0
CHUNK_TOKENS = 1024
PACK_TOKENS = 2048
BATCHES = 4
"""Different batches of a job; its steps go round them."""

MACHINE = Machine(
    step_time=StepTime(pack=0.04, work=2.5e-6, padding=6e-5, job=0.004),
    buckets=tuple(range(64, PACK_TOKENS + 1, 64)),
    pack_tokens=PACK_TOKENS,
    places=64,
    memory=40 * 2**30,
    min_slice=10.0,
    slack=PACK_TOKENS * GFLOP_PER_TOKEN,
    prepare=0.5,
    attach=0.1,
    detach=0.1,
    finish=0.2,
)


class Sizes(StrEnum):
    """How many steps jobs have: about all the same, some orders of magnitude apart, or a few that outweigh the rest."""

    EQUAL = "equal"
    LOGNORMAL = "lognormal"
    PARETO = "pareto"


class TraceSpec(Frozen):
    """What can be said of a synthetic trace.

    Attributes:
        users: who submit. jobs: of all of them; of the greedy one in `greedy`. each: jobs of everybody else there.
        load: see the module. seed: of the draw. sizes: how steps are spread; steps: their mean.
        burst: jobs that are submitted at once in `burst`.
    """

    users: int = Field(default=8, ge=1, le=1000)
    jobs: int = Field(default=200, ge=1, le=100_000)
    load: float = Field(default=0.9, gt=0, le=100)
    seed: int = 1
    sizes: Sizes = Sizes.LOGNORMAL
    steps: int = Field(default=150, ge=1, le=1_000_000)
    burst: int = Field(default=20, ge=1)
    each: int = Field(default=5, ge=1)


@dataclass(frozen=True, slots=True)
class _Arrival:
    owner: str
    at: float
    """As a share of the time over which jobs come."""


Arrivals = Callable[[TraceSpec, Random], list[_Arrival]]


def _poisson(spec: TraceSpec, random: Random) -> list[_Arrival]:
    return [_Arrival(f"user{random.randrange(spec.users)}", at) for at in _times(spec.jobs, random)]


def _burst(spec: TraceSpec, random: Random) -> list[_Arrival]:
    """A user submits many jobs at once, then another one does."""
    bursts = math.ceil(spec.jobs / spec.burst)
    found = [
        _Arrival(owner, at)
        for at in _times(bursts, random)
        for owner in [f"user{random.randrange(spec.users)}"] * spec.burst
    ]
    return found[: spec.jobs]


def _greedy(spec: TraceSpec, random: Random) -> list[_Arrival]:
    """One user submits everything at the start; the others come while that lasts."""
    others = [_Arrival(f"user{user}", random.uniform(0.02, 0.6)) for user in range(1, spec.users)]
    return [_Arrival("greedy", 0.0)] * spec.jobs + [one for one in others for _ in range(spec.each)]


def _times(count: int, random: Random) -> Iterator[float]:
    """A Poisson process of so many events, scaled to [0, 1)."""
    gaps = [random.expovariate(1.0) for _ in range(count + 1)]
    at, total = 0.0, sum(gaps)
    for gap in gaps[:-1]:
        at += gap
        yield at / total


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of trace: its usual figures, and how jobs come."""

    usual: TraceSpec
    arrivals: Arrivals


KINDS = {
    "poisson": _Kind(TraceSpec(), _poisson),
    "burst": _Kind(TraceSpec(load=0.85), _burst),
    "greedy": _Kind(TraceSpec(users=5, jobs=500, load=1.0), _greedy),
    "heavy-tail": _Kind(TraceSpec(sizes=Sizes.PARETO), _poisson),
    "light": _Kind(TraceSpec(load=0.15, jobs=100), _poisson),
}


def is_synthetic(text: str) -> bool:
    """The text names a kind of trace, rather than a file."""
    return text.partition(":")[0] in KINDS


def synthetic_trace(text: str) -> Trace:
    """Draw the trace that `KIND:name=value,…` describes; what is left out is as usual for the kind.

    Raises:
        UserError: there is no such kind or figure, or a value is none.
    """
    name, _, rest = text.partition(":")
    kind = KINDS.get(name)
    if kind is None:
        raise UserError(f"trace {name!r} is not known; choose one of {', '.join(KINDS)}, or name a file")
    spec = _spec(text, kind.usual, rest)
    random = Random(spec.seed)
    arrivals = kind.arrivals(spec, random)
    jobs = [_job(spec, number, arrival.owner, random) for number, arrival in enumerate(arrivals)]
    span = sum(seconds_packed(job) for job in jobs) / spec.load
    came = zip(jobs, arrivals, strict=True)
    return trace_of(MACHINE, [job.model_copy(update={"arrival": round(one.at * span, 3)}) for job, one in came], name)


def seconds_packed(job: TraceJob) -> float:
    """How long the job would take if its chunks only ever ran in full packs; its load."""
    time = MACHINE.step_time
    training = job.steps * sum(chunk.tokens for batch in job.batches for chunk in batch) / len(job.batches)
    chunks = job.steps * sum(len(batch) for batch in job.batches) / len(job.batches)
    return training * (time.pack / PACK_TOKENS + time.work * GFLOP_PER_TOKEN) + chunks * time.job


def _spec(text: str, usual: TraceSpec, rest: str) -> TraceSpec:
    given: dict[str, str] = {}
    for part in rest.split(",") if rest else ():
        name, equals, value = part.partition("=")
        if not equals or name not in TraceSpec.model_fields:
            raise UserError(
                f"trace {text!r}: {part!r} is none of {', '.join(TraceSpec.model_fields)}; write name=value"
            )
        given[name] = value
    try:
        return TraceSpec.model_validate({**usual.model_dump(), **given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"trace {text!r}: {first['loc'][0]}: {first['msg']}, not {first['input']!r}") from None


def _job(spec: TraceSpec, number: int, owner: str, random: Random) -> TraceJob:
    steps = _steps(spec, random)
    tokens = min(4096.0, max(64.0, random.lognormvariate(math.log(450), 0.8)))
    batches = tuple(_batch(tokens * random.uniform(0.85, 1.15), 1.0) for _ in range(BATCHES))
    evaluates = random.random() < 0.5
    resident = int(random.choice((0.4, 0.8, 1.6)) * 2**30)
    return TraceJob(
        id=f"job{number}",
        owner=owner,
        priority=random.choices((Priority.NORMAL, Priority.HIGH, Priority.LOW), (8, 1, 1))[0],
        arrival=0.0,
        steps=steps,
        batches=batches,
        evaluation=_batch(2 * tokens, 0.5) if evaluates else (),
        eval_steps=max(1, steps // 4) if evaluates else None,
        resident=resident,
        chunk=200_000 * CHUNK_TOKENS,
    )


def _steps(spec: TraceSpec, random: Random) -> int:
    match spec.sizes:
        case Sizes.EQUAL:
            drawn = random.uniform(0.9, 1.1)
        case Sizes.LOGNORMAL:
            drawn = random.lognormvariate(-0.72, 1.2)  # its mean is 1
        case Sizes.PARETO:
            drawn = min(60.0, random.paretovariate(1.2) / 6)  # of an infinite variance but for the bound
    return max(2, round(spec.steps * drawn))


def _batch(tokens: float, cost: float) -> tuple[ChunkLoad, ...]:
    """A batch of about so many tokens in chunks of equal size; a token costs so much of one that is trained on."""
    count = math.ceil(tokens / CHUNK_TOKENS)
    size = max(1, round(tokens / count))
    return (ChunkLoad(size, size * GFLOP_PER_TOKEN * cost),) * count
