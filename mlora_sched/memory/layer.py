"""One kind of decoder layer in one pack: what it keeps, and the most it has in memory while it runs. Arithmetic alone.

`LayerShape` says what the layer has at each stretch when adapters keep nothing but their groups' inputs; the costs of
the jobs' adapters (`mlora_sched.memory.costs`) are added, inputs that nobody needs are taken off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlora_sched.memory.costs import LayerCost, OpCost
from mlora_sched.spec.memory import BaseShape, Extent, LayerShape, Moment, Work


class PackedLayer:
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
            return self._input
        unkept = sum(size for _, size in self._unkept)
        return self._base_saved - unkept + self._ops_saved() + self._routed_saved() - self._gated()

    @property
    def _input(self) -> float:
        """What the layer is handed."""
        return float(self._rows * self._shape.hidden * self._shape.itemsize)

    def peaks(self, below: float, embedded: float) -> Iterator[float]:
        """The stretches of the last layer of this kind, over `below` bytes of what lies beneath it.

        Args:
            embedded: of the embeddings, which live until the forward is done, what nobody keeps.
        """
        # a layer that runs again has its input kept and its output's gradient handed in
        beneath = below + (2 * self._input if self._shape.recompute else embedded)
        for moment in self._layer.forward:
            yield beneath + self._ops_saved(moment.alive) + self._at(moment) + self._mixing_forward(moment)
        above = below + self._base_saved + self._ops_saved() + self._routed_saved()
        if self._shape.recompute:
            above += self._input  # the layer's output, computed again
        for moment in self._layer.backward:
            yield above + self._at(moment) + self._mixing_backward(moment)

    def evaluating(self) -> Iterator[float]:
        """The stretches of a forward that keeps nothing."""
        for moment in self._layer.evaluating:
            yield self._at(moment, unkept=False) + self._mixing_forward(moment)

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

    def _mixing_forward(self, moment: Moment) -> float:
        """What routed experts take beside in a forward, once gate and up are there."""
        if not self._routed or moment.alive <= self._before_experts():
            return 0.0
        saved, (width, hidden) = self._routed_saved(), self._ffn_sizes()
        if not self._between(moment):  # the experts' outputs wait to be added
            return saved + 2 * hidden
        # the mixed product lies where the plain one would, the experts' outputs where that of the group below would
        return saved + (0 if self._all_routed else width) + max(n * cost.forward for n, cost in self._routed)

    def _mixing_backward(self, moment: Moment) -> float:
        """What routed experts take in a backward between down and gate and up, beside or in place of the product."""
        if not self._routed:
            return 0.0
        width, hidden = self._ffn_sizes()
        inner = self._before_experts()
        if moment.alive > inner + 1:
            return -2 * width if self._all_routed else 0.0
        if not self._between(moment):
            return 0.0
        # the gradients of gate and up are there when the group of both goes back; with them lie those of the mixed
        # product, of x, of the experts' outputs and of what goes round the FFN
        bare = moment.bytes.at(self._pack)
        then = next(m for m in self._layer.backward if m.work is Work.BACKWARD and m.group == inner)
        mixing = then.bytes.at(self._pack) + width + (3 if self._all_routed else 2) * hidden
        mixing += max(n * cost.backward for n, cost in self._routed)
        return (mixing if self._all_routed else max(mixing + 3 * width, bare + 2 * width + hidden)) - bare

    def _between(self, moment: Moment) -> bool:
        """After gate and up, and before down."""
        return moment.group is None and moment.alive == self._before_experts() + 1

    def _ffn_sizes(self) -> tuple[int, int]:
        """Bytes of the product and of the input of the FFN that has experts, over all rows."""
        ffn, row = self._routed[0][1].ffn, self._shape.itemsize * self._rows
        return ffn.width * row, ffn.hidden * row

    def _before_experts(self) -> int:
        """Place of the group that the inner linears form."""
        first = self._routed[0][1].ffn.linears[0]
        return next(
            at for at, group in enumerate(self._layer.groups) if any(site.path == first for site in group.sites)
        )

    def _gated(self) -> float:
        """What the plain product keeps: gate and up, or the activation's input and what it keeps of its own."""
        if not self._all_routed:
            return 0.0
        ffn = self._routed[0][1].ffn
        of_product = 2.0 if ffn.is_gated else 1.0 + ffn.activation
        return of_product * ffn.width * self._shape.itemsize * self._rows

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
            kept = group.kept if self._pack.joined else group.kept_whole
            if group.source is None and at not in used and not kept:
                yield at, float(self._rows * group.inputs * self._shape.itemsize)
