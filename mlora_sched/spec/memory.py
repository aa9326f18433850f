"""What processes tell one another about memory: the shape of a base, corrections, and a worker's report.

All sizes are bytes. Records only: the arithmetic is `mlora_sched.memory`'s.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, NamedTuple

from mlora_sched.spec.common import Frozen


class Extent(NamedTuple):
    """How large a pack is, as far as its base's layers go: rows T, Σ L² over its sequences, L² of the longest.

    The squares are 0 where attention keeps neither scores nor masks. `joined` is T where attention lays what it found
    for several runs of sequences, or for padding, into one tensor of all rows; 0 where a pack is one run. `padding` is
    those of T that no sequence has, which attention leaves out.
    """

    rows: int
    squares: int = 0
    longest: int = 0
    joined: int = 0
    padding: int = 0


class Linear(Frozen):
    """Bytes that grow with a pack: a term for each field of its `Extent`."""

    fixed: float = 0.0
    rows: float = 0.0
    squares: float = 0.0
    longest: float = 0.0
    joined: float = 0.0
    padding: float = 0.0

    def at(self, pack: Extent) -> float:
        """Bytes of a pack of this extent."""
        grown = self.rows * pack.rows + self.squares * pack.squares + self.longest * pack.longest
        return self.fixed + grown + self.joined * pack.joined + self.padding * pack.padding


class SiteShape(Frozen):
    """A linear of a decoder layer: dotted path within the layer, and its output width."""

    path: str
    outputs: int


class GroupShape(Frozen):
    """Sites that read one input of width `inputs`.

    Attributes:
        kept: the layer keeps that input for its own backward anyway. kept_whole: likewise, in a pack of one run, where
            what attention found is not joined.
        source: the earlier group of the layer that reads the same tensor, or None.
    """

    sites: tuple[SiteShape, ...]
    inputs: int
    kept: bool
    kept_whole: bool
    source: int | None


class Work(StrEnum):
    """What of an adapter's op runs at a moment."""

    FORWARD = "forward"
    BACKWARD = "backward"
    INPUT = "input"


class Moment(Frozen):
    """The most that lies in memory at a stretch of a layer's work, beyond what all layers up to it keep.

    Attributes:
        group: the group whose ops run then, doing `work`; both None between groups.
        alive: how many of the layer's groups, in forward order, hold what their ops keep for backward.
    """

    group: int | None
    work: Work | None
    alive: int
    bytes: Linear


class FfnShape(Frozen):
    """An FFN of a layer, where routed experts can sit.

    Attributes:
        path: within the layer. hidden, width: of its input and of the product that the outer linear reads.
        inner, outer: names of the linears that read its input, and of the one that makes its output.
        activation: numbers for each of the product's that autograd keeps of the activation, beside its input.
        is_gated: the product is an activation's output times a gate's.
    """

    path: str
    hidden: int
    width: int
    inner: tuple[str, ...] = ("gate_proj", "up_proj")
    outer: str = "down_proj"
    activation: float = 1.0
    is_gated: bool = True

    @property
    def linears(self) -> tuple[str, ...]:
        """Paths of its linears."""
        return tuple(f"{self.path}.{name}" for name in (*self.inner, self.outer))


class LayerShape(Frozen):
    """One kind of decoder layer, every group of it with an adapter that keeps nothing but the group's input.

    Attributes:
        groups: in forward order. ffns: where routed experts can sit.
        saved: what it keeps for backward.
        forward, backward: the stretches of running it, in order. evaluating: those of a forward without gradients, with
            all that lies beside the weights.
    """

    groups: tuple[GroupShape, ...]
    ffns: tuple[FfnShape, ...]
    saved: Linear
    forward: tuple[Moment, ...]
    backward: tuple[Moment, ...]
    evaluating: tuple[Moment, ...]

    @property
    def in_ffn(self) -> frozenset[str]:
        """Paths of the linears of its FFNs."""
        return frozenset(path for ffn in self.ffns for path in ffn.linears)


class HeadShape(Frozen):
    """The head: most rows of a piece, and what a piece takes by its padded rows, in training and in an evaluation."""

    rows_per_piece: int
    piece: Linear
    evaluation: Linear


class BaseShape(Frozen):
    """All that decides how much memory jobs take on a base, under the options it is served with.

    Attributes:
        weights: of the frozen base, a tied head counted once, quantised where it is served so.
        path: of the decoder layers in the model, e.g. "model.layers".
        kinds: the kinds of layers. order: the kind of every layer, from the first on.
        ends: what lies beside the layers at the end of a forward: embeddings, positions, last hidden states.
        entrance: what the lowest layer keeps less than others, since no gradient comes from below; by the first of its
            groups that has an adapter.
        hidden: width of the hidden states. itemsize: bytes of a number of the base.
        recompute: activations are recomputed: a layer keeps its input alone, and the rest while its own backward runs.
        buckets: pack lengths in use, ascending, to which the pieces of the head are padded; empty where unknown.
        window: rows of a sequence beyond which `Linear.squares` count; 0 for always.
        is_mixture: it routes tokens to experts of its own. loose: linears outside the decoder layers, by full path.
        vocabulary: outputs of the head. attention: width of all query heads, over all layers. experts: weights of its
            own experts that a token is multiplied with, over all layers. They say what work is, not what memory.
    """

    weights: int
    path: str
    kinds: tuple[LayerShape, ...]
    order: tuple[int, ...]
    ends: Linear
    entrance: tuple[Linear, ...]
    head: HeadShape
    hidden: int
    itemsize: int
    recompute: bool
    window: int
    is_mixture: bool
    loose: tuple[GroupShape, ...]
    buckets: tuple[int, ...] = ()
    vocabulary: int = 0
    attention: int = 0
    experts: int = 0


class Correction(Frozen):
    """What measuring has taught about an estimate.

    Attributes:
        methods: the adapter methods of the packs, sorted, joined by "+". rows: their size class, a power of two.
        training: packs with a backward.
        factor: measured ÷ estimated, of the packs' own bytes (without base and jobs); what estimates are multiplied by.
        error: largest relative error of the corrected estimates since. packs: how many were measured.
    """

    methods: str
    rows: int
    training: bool
    factor: float
    error: float
    packs: int


class JobBytes(Frozen):
    """What one job holds: on the device while it is attached, in the host's memory while it is parked."""

    job_id: str
    device: int
    host: int


class MemoryReport(Frozen):
    """How a worker's memory stands. Sent after every slice in which something has changed.

    Attributes:
        total: of the device. limit: what this daemon may use at most (`--memory-budget`, or total).
        others: what other processes hold of the device now. base: the frozen base and what the device's runtime takes.
        margin: kept free.
        budget: what jobs and packs may take together now: min(limit, total − others) − base − margin; may be negative.
        own: what the worker's process holds of the device, with what its allocator keeps; on a CPU its resident memory.
        jobs: by job. host_limit: what parked jobs may take of the host's memory.
        rows: rows of the last measured pack, 0 for none. estimated, measured: its peak, with base and jobs.
        peak: highest measured so far, with base and jobs.
        corrections: all that are known.
    """

    kind: Literal["memory"] = "memory"
    total: int
    limit: int
    others: int
    base: int
    margin: int
    budget: int
    own: int = 0
    jobs: tuple[JobBytes, ...] = ()
    host_limit: int = 0
    rows: int = 0
    estimated: int = 0
    measured: int = 0
    peak: int = 0
    corrections: tuple[Correction, ...] = ()
