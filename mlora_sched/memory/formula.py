"""Closed form: what a job and a pack take of a device, from the base's shape, specs and sizes alone.

No weights, no tensors, no torch: the server refuses by it, the daemon admits by it, the worker sizes its packs by it.

A pack's peak is the highest of a few moments: the head, with all that the layers keep; and the stretches of the last
layer of each kind, in its forward and its backward, since layers of one kind are alike and the last has the most below
it. `BaseShape` says what a layer has in memory at each stretch when adapters keep nothing but their groups' inputs;
`mlora_sched.memory.costs` says what the adapters add.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlora_sched.memory.costs import LayerCost, OpCost, derived, layer_cost, parameters, step_work
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.memory import BaseShape, Extent, LayerShape, Linear, Moment, Work

_WIDE = 4
_HEAD_STEP = 32


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
    """

    rows: int
    segments: tuple[SegmentPlan, ...]
    training: bool
    squares: int
    longest: int

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
class _Known:
    """What is remembered of an adapter: its job, and its cost in each kind of layer, in training and evaluation."""

    job: JobMemory
    layers: tuple[LayerCost, ...]
    evaluating: tuple[LayerCost, ...]


class Formula:
    """The closed form for one base. What depends on a spec alone is remembered; asking costs well below a millisecond.

    Args:
        buckets: pack lengths in use, ascending, to which the pieces of the head are padded.
    """

    def __init__(self, shape: BaseShape, buckets: Sequence[int] = ()) -> None:
        self.shape = shape
        self.buckets = tuple(buckets)
        self._known: dict[AdapterSpec, _Known] = {}

    def job(self, adapter: AdapterSpec) -> JobMemory:
        """What a job with this adapter holds while it is attached."""
        return self._of(adapter).job

    def pack(self, plan: PackPlan) -> int:
        """Most bytes that running this pack takes at once, beside the base and what the jobs hold."""
        costs = [(segment.tokens, self._of(segment.adapter)) for segment in plan.segments]
        begin = max((known.job.step for _, known in costs), default=0)
        peak = self._training(plan, costs) if plan.training else self._evaluation(plan, costs)
        return max(begin, int(peak) + 1)

    # ------------------------------------------------------------------ a pack

    def _training(self, plan: PackPlan, costs: Sequence[tuple[int, _Known]]) -> float:
        shape, extent = self.shape, self._extent(plan)
        layers = [
            _Layer(layer, [(tokens, known.layers[kind]) for tokens, known in costs], extent, shape)
            for kind, layer in enumerate(shape.kinds)
        ]
        first = min(layers[shape.order[0]].used, default=0)
        below = shape.ends.at(extent) - shape.entrance[first].at(extent)
        last = {kind: at for at, kind in enumerate(shape.order)}
        peaks: list[float] = []
        for at, kind in enumerate(shape.order):
            if last[kind] == at:
                peaks.extend(layers[kind].peaks(below))
            below += layers[kind].kept
        gradient = plan.rows * shape.hidden * shape.itemsize
        return max(*peaks, below + gradient + self._head(plan))

    def _evaluation(self, plan: PackPlan, costs: Sequence[tuple[int, _Known]]) -> float:
        shape, extent = self.shape, self._extent(plan)
        peaks = [plan.rows * shape.hidden * shape.itemsize + self._head(plan)]
        for kind, layer in enumerate(shape.kinds):
            found = [(tokens, known.evaluating[kind]) for tokens, known in costs]
            peaks.extend(_Layer(layer, found, extent, shape).evaluating())
        return max(peaks)

    def _head(self, plan: PackPlan) -> float:
        """One piece of the head."""
        head, targets = self.shape.head, sum(segment.targets for segment in plan.segments)
        longest = min(head.rows_per_piece, self.buckets[-1]) if self.buckets else head.rows_per_piece
        rows = min(longest, max(1, targets))
        padded = next((bucket for bucket in self.buckets if bucket >= rows), -(-rows // _HEAD_STEP) * _HEAD_STEP)
        return (head.piece if plan.training else head.evaluation).at(Extent(padded))

    def _extent(self, plan: PackPlan) -> Extent:
        window = self.shape.window
        if window and plan.longest <= window:
            return Extent(plan.rows)
        return Extent(plan.rows, plan.squares, plan.longest**2)

    # ------------------------------------------------------------------ an adapter

    def _of(self, adapter: AdapterSpec) -> _Known:
        if adapter not in self._known:
            self._known[adapter] = self._work_out(adapter)
        return self._known[adapter]

    def _work_out(self, adapter: AdapterSpec) -> _Known:
        shape = self.shape
        targets = self._targets(adapter)
        count = sum(parameters(adapter, shape.kinds[kind], targets[at]) for at, kind in enumerate(shape.order))
        nothing = Linear()
        loose = LayerShape(groups=shape.loose, ffns=(), saved=nothing, forward=(), backward=(), evaluating=())
        named = frozenset(adapter.targets((s.path for g in shape.loose for s in g.sites), shape.is_mixture))
        count += parameters(adapter, loose, named)
        of_layer = list(zip(shape.order, targets, strict=True))
        job = JobMemory(
            parameters=count * _WIDE,
            gradients=count * _WIDE,
            moments=2 * count * _WIDE,
            compute=count * shape.itemsize if shape.itemsize < _WIDE else 0,
            derived=sum(derived(adapter, shape.kinds[kind], found, shape.itemsize) for kind, found in of_layer),
            step=max(step_work(adapter, shape.kinds[kind], found, shape.itemsize) for kind, found in of_layer),
        )
        # named in some layers of a kind only: counted as if in all of them
        anywhere = [
            frozenset(path for of, found in of_layer if of == kind for path in found)
            for kind in range(len(shape.kinds))
        ]
        layers, evaluating = (
            tuple(layer_cost(spec, *pair, shape.itemsize) for pair in zip(shape.kinds, anywhere, strict=True))
            for spec in (adapter, adapter.model_copy(update={"dropout": 0.0}))
        )
        return _Known(job, layers, evaluating)

    def _targets(self, adapter: AdapterSpec) -> list[frozenset[str]]:
        """Paths within each layer of the sites that the adapter sits on."""
        found = []
        for at, kind in enumerate(self.shape.order):
            prefix = f"{self.shape.path}.{at}."
            sites = [prefix + site.path for group in self.shape.kinds[kind].groups for site in group.sites]
            named = adapter.targets(sites, self.shape.is_mixture)
            found.append(frozenset(name.removeprefix(prefix) for name in named))
        return found


class _Layer:
    """One kind of layer in one pack."""

    def __init__(
        self, layer: LayerShape, costs: Sequence[tuple[int, LayerCost]], pack: Extent, shape: BaseShape
    ) -> None:
        self._layer, self._pack, self._rows, self._shape = layer, pack, pack.rows, shape
        self._ops: dict[int, list[tuple[int, OpCost]]] = {}
        for tokens, cost in costs:
            for at, op in cost.ops.items():
                self._ops.setdefault(at, []).append((tokens, op))
        self._routed = [(tokens, cost.routed) for tokens, cost in costs if cost.routed is not None]
        self._all_routed = bool(costs) and len(self._routed) == len(costs)
        self._unkept = list(self._inputs_not_kept())
        self._base_saved = layer.saved.at(pack)

    @property
    def kept(self) -> float:
        """What a layer of this kind keeps for backward."""
        if self._shape.recompute:
            return self._base_saved
        unkept = sum(size for _, size in self._unkept)
        return self._base_saved - unkept + self._ops_saved() + self._routed_saved() - self._gated()

    def peaks(self, below: float) -> Iterator[float]:
        """The stretches of the last layer of this kind, over `below` bytes of what lies beneath it."""
        for moment in self._layer.forward:
            own = 0.0 if self._shape.recompute else self._ops_saved(moment.alive)
            yield below + own + self._at(moment) + self._mixing(moment, backward=False)
        reached = not self._shape.recompute
        for moment in self._layer.backward:
            reached = reached or moment.work is Work.BACKWARD
            own = self._ops_saved() if reached else self._ops_saved(moment.alive)
            routed = self._routed_saved() if reached else 0.0
            yield below + self._base_saved + own + routed + self._at(moment) + self._mixing(moment, backward=reached)

    def evaluating(self) -> Iterator[float]:
        """The stretches of a forward that keeps nothing."""
        for moment in self._layer.evaluating:
            yield self._at(moment, unkept=False) + self._mixing(moment, backward=False)

    @property
    def used(self) -> set[int]:
        """Groups whose inputs an adapter needs."""
        return {*self._ops, self._before_experts()} if self._routed else set(self._ops)

    def _at(self, moment: Moment, *, unkept: bool = True) -> float:
        """The layer's own bytes at a stretch, and what the ops of the group take that runs then."""
        size = moment.bytes.at(self._pack)
        if unkept:
            size -= sum(width for at, width in self._unkept if at < moment.alive)
        ops = [] if moment.group is None else self._ops.get(moment.group, [])
        if not ops:
            return size
        if moment.work is Work.FORWARD:
            return size + sum(n * op.saved for n, op in ops) + max(n * op.forward for n, op in ops)
        size += sum(n * op.held for n, op in ops) + self._rows * max(op.copied for _, op in ops)
        if moment.work is Work.BACKWARD:
            return size + max(n * op.backward for n, op in ops)
        return size + max(n * op.input for n, op in ops)

    def _mixing(self, moment: Moment, *, backward: bool) -> float:
        """What routed experts take beside: between gate and up and down, in place of the plain product."""
        if not self._routed:
            return 0.0
        width = self._routed[0][1].ffn.width * self._shape.itemsize * self._rows
        hidden = self._routed[0][1].ffn.hidden * self._shape.itemsize * self._rows
        inner = self._before_experts()
        between = moment.group is None and moment.alive == inner + 1
        plain = 0 if self._all_routed else width
        if not backward:
            if moment.alive <= inner:
                return 0.0
            if not between:  # the experts' outputs wait to be added
                return self._routed_saved() + 2 * hidden
            # the mixed product lies where the plain one would, the experts' outputs where that of the group below would
            return self._routed_saved() + plain + max(n * cost.forward for n, cost in self._routed)
        if moment.alive > inner + 1:
            return -2 * width if self._all_routed else 0.0
        if not between:
            return 0.0
        # the gradients of gate and up are there when the group of both goes back; with them lie those of the mixed
        # product, of x, of the experts' outputs and of what goes round the FFN
        bare = moment.bytes.at(self._pack)
        then = next(m for m in self._layer.backward if m.work is Work.BACKWARD and m.group == inner)
        mixing = then.bytes.at(self._pack) + width + (3 if self._all_routed else 2) * hidden
        mixing += max(n * cost.backward for n, cost in self._routed)
        return (mixing if self._all_routed else max(mixing + 3 * width, bare + 2 * width + hidden)) - bare

    def _before_experts(self) -> int:
        """Place of the group that gate and up form."""
        path = self._routed[0][1].ffn.path
        return next(
            at
            for at, group in enumerate(self._layer.groups)
            if any(site.path == f"{path}.gate_proj" for site in group.sites)
        )

    def _gated(self) -> float:
        """Gate and up, which the plain product keeps, and which nobody keeps where all rows are routed."""
        if not self._all_routed:
            return 0.0
        return 2.0 * self._routed[0][1].ffn.width * self._shape.itemsize * self._rows

    def _ops_saved(self, alive: int | None = None) -> float:
        return sum(n * op.saved for at, ops in self._ops.items() if alive is None or at < alive for n, op in ops)

    def _routed_saved(self) -> float:
        return sum(n * cost.saved for n, cost in self._routed)

    def _inputs_not_kept(self) -> Iterator[tuple[int, float]]:
        """Groups without an op in the pack, whose inputs nobody keeps, and the bytes of those."""
        groups = self._layer.groups
        sources = [at if group.source is None else group.source for at, group in enumerate(groups)]
        used = {sources[at] for at in self.used}
        for at, group in enumerate(groups):
            if group.source is None and at not in used and not group.kept:
                yield at, float(self._rows * group.inputs * self._shape.itemsize)


def methods_of(plan: PackPlan) -> str:
    """The adapter methods of a pack, as corrections name them."""
    return "+".join(sorted(Counter(segment.adapter.method for segment in plan.segments)))
