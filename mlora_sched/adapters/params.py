"""The trainable parameters of one job: flat float32 buffers by optimiser group, and named views into them.

One flat buffer a group means one optimiser call a group and one norm a group. With a bfloat16 base a compute copy is
kept beside, refreshed once a step. On a float64 base, which tests use, everything is float64. No optimiser state here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_NARROW = (torch.bfloat16, torch.float16)
_ALIGN = 16
"""Elements: every view starts on a 64-byte boundary of its buffer."""


@dataclass(frozen=True)
class ParamSpec:
    """One tensor to train.

    Attributes:
        name: its key in files, e.g. "model.layers.0.self_attn.q_proj.lora_A.weight".
        start: its first value, float32; its shape is the parameter's.
        group: optimiser group.
        transposed: keep it in memory with its last two dimensions swapped; its views still have its own shape. The
            skinny GEMMs of a pair run two to eight times faster when B lies as (R, O).
        joined: it lies directly behind the one before it of its group, so that `Params.joined` can view both as one.
    """

    name: str
    start: Tensor
    group: str = "all"
    transposed: bool = False
    joined: bool = False

    def view(self, flat: Tensor) -> Tensor:
        """This parameter's piece of a flat buffer, in its own shape."""
        if not self.transposed:
            return flat.view(self.start.shape)
        return flat.view(self.start.mT.shape).mT


@dataclass(frozen=True)
class Param:
    """Views of one parameter: the float32 value, its gradient, and the copy that GEMMs read."""

    value: Tensor
    grad: Tensor
    compute: Tensor


@dataclass(frozen=True)
class FlatGroup:
    """The buffers of one optimiser group, all of equal length."""

    value: Tensor
    grad: Tensor
    compute: Tensor


class Params:
    """All parameters of one job."""

    def __init__(self, specs: Iterable[ParamSpec], device: torch.device, compute_dtype: torch.dtype) -> None:
        self._specs = tuple(specs)
        self._places: dict[str, slice] = {}
        self.groups: dict[str, FlatGroup] = {}
        self._views: dict[str, Param] = {}
        for group in dict.fromkeys(spec.group for spec in self._specs):
            members = [spec for spec in self._specs if spec.group == group]
            starts, size = _layout(members)
            value = wide(torch.zeros(size, dtype=compute_dtype, device=device))
            compute = value if value.dtype == compute_dtype else value.to(compute_dtype)
            flat = self.groups[group] = FlatGroup(value, torch.zeros_like(value), compute)
            for spec, at in zip(members, starts, strict=True):
                place = self._places[spec.name] = slice(at, at + spec.start.numel())
                views = (spec.view(buffer[place]) for buffer in (flat.value, flat.grad, flat.compute))
                self._views[spec.name] = Param(*views)
        self.load({spec.name: spec.start for spec in self._specs})
        # of the starts only the shapes are asked for from here on
        self._specs = tuple(dataclasses.replace(spec, start=spec.start.to("meta")) for spec in self._specs)

    def __getitem__(self, name: str) -> Param:
        return self._views[name]

    def __contains__(self, name: str) -> bool:
        return name in self._views

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def joined(self, names: Sequence[str]) -> Param:
        """Parameters that lie behind one another as one, their first dimensions added up."""
        params = [self._views[name] for name in names]
        return Param(*(_span([getattr(param, what) for param in params]) for what in ("value", "grad", "compute")))

    @property
    def layout(self) -> str:
        """Which parameter lies where in the flat buffers: equal for checkpoints that fit one another."""
        places = [
            (spec.name, spec.group, tuple(spec.start.shape), spec.transposed, spec.joined) for spec in self._specs
        ]
        return hashlib.sha256(repr(places).encode()).hexdigest()

    @property
    def count(self) -> int:
        """Trainable numbers, without alignment."""
        return sum(param.value.numel() for param in self._views.values())

    @property
    def finite(self) -> bool:
        """No value has overflowed: one reduction a group, since an infinity or a NaN survives a sum."""
        return all(bool(flat.value.sum().isfinite()) for flat in self.groups.values())

    def load(self, values: dict[str, Tensor]) -> None:
        """Overwrite the named parameters."""
        for name, value in values.items():
            self._views[name].value.copy_(value)
        self.refresh()

    @contextlib.contextmanager
    def reading(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Let the values be read from other flat buffers, by group, while the context lasts; nothing may be changed."""
        own = self._views
        views = ((spec.name, spec.view(values[spec.group][self._places[spec.name]])) for spec in self._specs)
        self._views = {name: Param(view, view, view) for name, view in views}
        try:
            yield
        finally:
            self._views = own

    def refresh(self) -> None:
        """Bring the compute copies up to date after the values have changed."""
        for flat in self.groups.values():
            if flat.compute is not flat.value:
                flat.compute.copy_(flat.value)

    def drop_grads(self) -> None:
        """Give back the memory of the gradients, for good: an adapter that only runs has none."""
        for flat in self.groups.values():
            flat.grad.untyped_storage().resize_(0)


def wide(tensor: Tensor) -> Tensor:
    """The tensor itself, or in float32 where its dtype is narrower: the precision of parameters and accumulators."""
    return tensor.float() if tensor.dtype in _NARROW else tensor


def _layout(members: Sequence[ParamSpec]) -> tuple[list[int], int]:
    """Where each parameter of a group starts in its flat buffer, and the buffer's length."""
    starts, end = [], 0
    for spec in members:
        starts.append(end if spec.joined else _aligned(end))
        end = starts[-1] + spec.start.numel()
    return starts, _aligned(end)


def _span(pieces: Sequence[Tensor]) -> Tensor:
    """Contiguous tensors that lie behind one another, as one along their first dimension."""
    first = pieces[0]
    end = first.storage_offset()
    for piece in pieces:
        assert piece.is_contiguous(), "the parameters are transposed"
        assert piece.storage_offset() == end, "the parameters are not joined"
        end += piece.numel()
    rows = sum(len(piece) for piece in pieces)
    return first.as_strided((rows, *first.shape[1:]), first.stride())


def _aligned(n: int) -> int:
    return -(-n // _ALIGN) * _ALIGN
