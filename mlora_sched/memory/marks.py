"""Marks on a hollow pack's way through the layers: how many bytes live at each, and the peak since the one before.

Every group of sites gets an op that changes nothing and marks when it runs; every layer marks when it begins and ends,
and when its backward has ended.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from torch import Tensor, nn

from mlora_sched.memory.meter import PeakTensors
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.site import Placed, Site, SiteGroup


class Place(Enum):
    """Where on its way a pack is."""

    ENTER = auto()
    FORWARD = auto()
    LEAVE = auto()
    HIDDEN = auto()
    HEAD = auto()
    BACKWARD = auto()
    INPUT = auto()
    RETURN = auto()
    END = auto()


@dataclass(frozen=True)
class Mark:
    """One mark.

    Attributes:
        layer: whose; 0 at the ends of the pack's way. group: place of the group among the layer's, in forward order.
        live: bytes now. peak: most since the mark before. Both beside the weights.
    """

    place: Place
    layer: int
    group: int | None
    live: int
    peak: int


class Marks(PeakTensors):
    """Tracks live bytes while it is on, and keeps the marks that are put.

    Args:
        weights: they count in no mark.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__(apart=weights)
        self.seen: list[Mark] = []

    def put(self, place: Place, layer: int = 0, group: int | None = None) -> None:
        """Mark this moment."""
        self.seen.append(Mark(place, layer, group, self.live, self.peak))
        self.peak = self.live


@dataclass
class Groups:
    """The groups of each layer in the order in which they first run, and what each read.

    Attributes:
        order: by layer. inputs: the storage that a group's input lies in, as long as it lives.
        sources: a name of that storage that no other one of the pack has.
    """

    order: list[list[SiteGroup]]
    inputs: dict[SiteGroup, weakref.ref[Any]]
    sources: dict[SiteGroup, int]


class _Marker:
    """A `SiteOp` that does nothing but put marks."""

    rescales = False

    def __init__(self, group: SiteGroup, layer: int, marks: Marks, groups: Groups) -> None:
        self._group, self._layer, self._marks, self._groups = group, layer, marks, groups

    def forward(self, x_ND: Tensor, ys: Sequence[Tensor], part: Any) -> None:  # noqa: ARG002
        order = self._groups.order[self._layer]
        if self._group not in order:
            order.append(self._group)
        storage = x_ND.untyped_storage()
        same = [other for other, known in self._groups.inputs.items() if known() is storage]
        self._groups.sources[self._group] = self._groups.sources[same[0]] if same else len(self._groups.sources)
        self._groups.inputs[self._group] = weakref.ref(storage)
        self._put(Place.FORWARD)

    def backward(self, dys: Sequence[Tensor], x_ND: Tensor, saved: None, part: Any) -> None:  # noqa: ARG002
        self._put(Place.BACKWARD)

    def add_dx(self, carry: None, dx_ND: Tensor, part: Any) -> None:  # noqa: ARG002
        self._put(Place.INPUT)

    def _put(self, place: Place) -> None:
        self._marks.put(place, self._layer, self._groups.order[self._layer].index(self._group))


@dataclass(frozen=True)
class _Part:
    """The one segment of a marked pack."""

    start: int
    stop: int
    job_id: str = "marks"


@contextlib.contextmanager
def marked(
    base: FrozenBase,
    layers: nn.ModuleList,
    marks: Marks,
    tokens: int,
    rows: int,
    buckets: Sequence[int],
    *,
    keep: bool = True,
    below: bool = True,
    without: Collection[SiteGroup] = (),
) -> Iterator[Groups]:
    """Let the base's layers put marks while the context lasts.

    Args:
        tokens, rows: of the pack. buckets: pack lengths, to which the experts of a mixture pad.
        keep: every group keeps its input for backward, as if an adapter needed it.
        below: the embeddings want a gradient, as if there were layers with adapters below.
        without: groups that get no op.
    """
    slot, groups = base.slot, Groups([[] for _ in layers], {}, {})
    slot.sizes, slot.training, slot.buckets = (tokens, rows - tokens), keep, tuple(buckets)
    hooks = [base.model.get_input_embeddings().register_forward_hook(_require_grad)] if below else []
    for at, layer in enumerate(layers):
        found = dict.fromkeys(module.group for module in layer.modules() if isinstance(module, Site))
        for group in found.keys() - set(without):
            slot.placed[group.name] = [Placed(_Marker(group, at, marks, groups), _Part(0, tokens), 0)]
        hooks.append(layer.register_forward_pre_hook(functools.partial(_entered, marks, at), with_kwargs=True))
        hooks.append(layer.register_forward_hook(lambda *_, at=at: marks.put(Place.LEAVE, at)))
    try:
        yield groups
    finally:
        slot.clear()
        for hook in hooks:
            hook.remove()


def _entered(marks: Marks, at: int, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Mark that a layer begins, and when the gradient of what it was handed is complete, its end in the backward."""
    marks.put(Place.ENTER, at)
    hidden = args[0] if args else kwargs["hidden_states"]
    if hidden.requires_grad:
        hidden.register_hook(lambda _grad: marks.put(Place.RETURN, at))


def _require_grad(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output.requires_grad_()
