"""Closed form: what a job and a pack take of a device, from the base's shape, specs and sizes alone.

No weights, no tensors, no torch: the server refuses by it, the daemon admits by it, the worker sizes its packs by it.

A pack's peak is the highest of a few moments: the head, with all that the layers keep; and the stretches of the last
layer of each kind, in its forward and its backward, since layers of one kind are alike and the last has the most below
it. `mlora_sched.memory.layer` adds up one layer's stretches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlora_sched.memory.costs import LayerCost, derived, layer_cost, parameters, step_work
from mlora_sched.memory.layer import PackedLayer
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.adapter_common import Linears
from mlora_sched.spec.memory import BaseShape, Extent, LayerShape, Linear

_WIDE = 4
_HEAD_STEP = 32
FORMULA_REVISION = 1
"""To be raised when the same pack is estimated otherwise: what was learned about the estimates before is void then."""
_TARGET = 8 + 8 + 4 + 4 + 1
"""Bytes that every token with loss keeps to the end of its pack: its place, its target, weight, loss and hit."""


@dataclass(frozen=True, slots=True)
class JobMemory:
    """Bytes that one attached job holds for as long as it is attached.

    Attributes:
        parameters, gradients, moments: float32 buffers; moments are AdamW's two.
        compute: copy of the parameters in the base's dtype, 0 on a float32 base.
        derived: what the method keeps beside (DoRA's row norms).
        step: what beginning a step takes for a moment; not held.
    """

    parameters: int
    gradients: int
    moments: int
    compute: int
    derived: int
    step: int

    @property
    def resident(self) -> int:
        """All that is held."""
        return self.parameters + self.gradients + self.moments + self.compute + self.derived

    @property
    def parked(self) -> int:
        """What of it must be kept while the job does not run: values and moments."""
        return self.parameters + self.moments


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """One chunk of a pack: its job's adapter, its tokens and the tokens that carry loss."""

    adapter: AdapterSpec
    tokens: int
    targets: int


@dataclass(frozen=True, slots=True)
class PackPlan:
    """A pack as far as its memory goes.

    Attributes:
        rows: padded length, a bucket. training: with a backward.
        squares, longest: Σ L² over its sequences, and the longest; upper bounds are enough.
        joined: not all of its sequences are of one length, or it is padded; where nobody knows, it is.
    """

    rows: int
    segments: tuple[SegmentPlan, ...]
    training: bool
    squares: int
    longest: int
    joined: bool = True

    @classmethod
    def of_chunk(cls, adapter: AdapterSpec, tokens: int, longest: int, buckets: Sequence[int]) -> PackPlan:
        """One chunk of a job by itself, in the smallest bucket that holds it, all of its tokens with loss.

        Args:
            longest: tokens of its longest row. buckets: pack lengths in use, ascending; a larger chunk keeps its size.
        """
        rows = next((bucket for bucket in buckets if bucket >= tokens), tokens)
        longest = min(longest, tokens)
        return cls(rows, (SegmentPlan(adapter, tokens, tokens),), True, tokens * longest, longest)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A decoder layer in a pack: its kind, and for each segment the place of its adapter's cost there."""

    kind: int
    which: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    """What is remembered of an adapter: its job, and its cost in layers that differ, in training and evaluation.

    Attributes:
        which: of every decoder layer, the place of its cost among them.
    """

    job: JobMemory
    layers: tuple[LayerCost, ...]
    evaluating: tuple[LayerCost, ...]
    which: tuple[int, ...]


class Formula:
    """The closed form for one base. What depends on a spec alone is remembered; asking takes far less than 1 ms."""

    def __init__(self, shape: BaseShape) -> None:
        self.shape = shape
        self._known: dict[AdapterSpec, _Known] = {}

    def job(self, adapter: AdapterSpec) -> JobMemory:
        """What a job with this adapter holds while it is attached."""
        return self._of(adapter).job

    def pack(self, plan: PackPlan) -> int:
        """Most bytes that running this pack takes at once, beside the base and what the jobs hold."""
        costs = [(segment.tokens, self._of(segment.adapter)) for segment in plan.segments]
        return int(self._training(plan, costs) if plan.training else self._evaluation(plan, costs)) + 1

    def begin(self, plan: PackPlan) -> int:
        """Most bytes that beginning a step takes for a moment, of one of the jobs in this pack."""
        return max((self._of(segment.adapter).job.step for segment in plan.segments), default=0)

    def head(self, plan: PackPlan) -> float:
        """What of a pack one piece of the head takes."""
        head, targets = self.shape.head, sum(segment.targets for segment in plan.segments)
        longest = min(head.rows_per_piece, self.shape.buckets[-1]) if self.shape.buckets else head.rows_per_piece
        rows = min(longest, max(1, targets))
        padded = next((bucket for bucket in self.shape.buckets if bucket >= rows), -(-rows // _HEAD_STEP) * _HEAD_STEP)
        return (head.piece if plan.training else head.evaluation).at(Extent(padded))

    # ------------------------------------------------------------------ a pack

    def _training(self, plan: PackPlan, costs: Sequence[tuple[int, _Known]]) -> float:
        shape, extent = self.shape, self._extent(plan)
        order = self._order(costs)
        layers = {
            layer: PackedLayer(
                shape.kinds[layer.kind],
                [(tokens, known.layers[at]) for (tokens, known), at in zip(costs, layer.which, strict=True)],
                extent,
                shape,
            )
            for layer in set(order)
        }
        first = min(layers[order[0]].used, default=0)
        below = shape.ends.at(extent) + _TARGET * sum(segment.targets for segment in plan.segments)
        entrance = 0.0 if shape.recompute else shape.entrance[first].at(extent)
        below -= entrance
        embedded = min(entrance, plan.rows * shape.hidden * shape.itemsize)
        last = {layer: at for at, layer in enumerate(order)}
        peaks: list[float] = []
        for at, layer in enumerate(order):
            if last[layer] == at:
                peaks.extend(layers[layer].peaks(below, embedded))
            below += layers[layer].kept
        gradient = plan.rows * shape.hidden * shape.itemsize
        return max(*peaks, below + gradient + self.head(plan))

    def _evaluation(self, plan: PackPlan, costs: Sequence[tuple[int, _Known]]) -> float:
        shape, extent = self.shape, self._extent(plan)
        peaks = [plan.rows * shape.hidden * shape.itemsize + self.head(plan)]
        for layer in set(self._order(costs)):
            found = [(tokens, known.evaluating[at]) for (tokens, known), at in zip(costs, layer.which, strict=True)]
            peaks.extend(PackedLayer(shape.kinds[layer.kind], found, extent, shape).evaluating())
        return max(peaks)

    def _order(self, costs: Sequence[tuple[int, _Known]]) -> list[_Layer]:
        """The decoder layers, as far as they differ in this pack."""
        return [_Layer(kind, tuple(known.which[at] for _, known in costs)) for at, kind in enumerate(self.shape.order)]

    def _extent(self, plan: PackPlan) -> Extent:
        window, joined = self.shape.window, plan.rows if plan.joined else 0
        padding = plan.rows - sum(segment.tokens for segment in plan.segments)
        if window and plan.longest <= window:
            return Extent(plan.rows, 0, 0, joined, padding)
        return Extent(plan.rows, plan.squares, plan.longest**2, joined, padding)

    # ------------------------------------------------------------------ an adapter

    def _of(self, adapter: AdapterSpec) -> _Known:
        if adapter not in self._known:
            self._known[adapter] = self._work_out(adapter)
        return self._known[adapter]

    def _work_out(self, adapter: AdapterSpec) -> _Known:
        shape = self.shape
        targets = targets_in(shape, adapter)
        specs = [adapter.at_layer(at, len(shape.order)) for at in range(len(shape.order))]
        of_layer = list(zip(specs, shape.order, targets, strict=True))
        count = sum(parameters(spec, shape.kinds[kind], found) for spec, kind, found in of_layer)
        loose = loose_layer(shape)
        named = loose_targets(shape, adapter)
        count += parameters(adapter, loose, named)
        job = JobMemory(
            parameters=count * _WIDE,
            gradients=count * _WIDE,
            moments=2 * count * _WIDE,
            compute=count * shape.itemsize if shape.itemsize < _WIDE else 0,
            derived=sum(derived(spec, shape.kinds[kind], found, shape.itemsize) for spec, kind, found in of_layer),
            step=max(step_work(spec, shape.kinds[kind], found, shape.itemsize) for spec, kind, found in of_layer),
        )
        # named in some layers of a kind only: counted as if in all of them
        anywhere = [
            frozenset(path for _, of, found in of_layer if of == kind for path in found)
            for kind in range(len(shape.kinds))
        ]
        differ = list(dict.fromkeys(zip(specs, shape.order, strict=True)))
        layers, evaluating = (
            tuple(
                layer_cost(
                    spec.model_copy(update=change), shape.kinds[kind], anywhere[kind], shape.itemsize, training=training
                )
                for spec, kind in differ
            )
            for change, training in (({}, True), ({"dropout": 0.0}, False))
        )
        which = tuple(differ.index(each) for each in zip(specs, shape.order, strict=True))
        return _Known(job, layers, evaluating, which)


def targets_in(shape: BaseShape, adapter: AdapterSpec) -> list[frozenset[str]]:
    """Paths within each layer of the sites that the adapter sits on."""
    found = []
    for at, kind in enumerate(shape.order):
        prefix = f"{shape.path}.{at}."
        sites = [prefix + site.path for group in shape.kinds[kind].groups for site in group.sites]
        inside = frozenset(prefix + path for path in shape.kinds[kind].in_ffn)
        named = adapter.targets(Linears(sites, inside, shape.is_mixture))
        found.append(frozenset(name.removeprefix(prefix) for name in named))
    return found


def loose_targets(shape: BaseShape, adapter: AdapterSpec) -> frozenset[str]:
    """Paths of the sites outside the decoder layers that the adapter sits on."""
    sites = [site.path for group in shape.loose for site in group.sites]
    return frozenset(adapter.targets(Linears(sites, frozenset(), shape.is_mixture)))


def loose_layer(shape: BaseShape) -> LayerShape:
    """The linears outside the decoder layers, as if they were one more."""
    nothing = Linear()
    return LayerShape(groups=shape.loose, ffns=(), saved=nothing, forward=(), backward=(), evaluating=())
