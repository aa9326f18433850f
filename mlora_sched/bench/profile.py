"""Where a step's time goes: the coarse phases by wall clock, then kernels grouped by what they are for.

The kernel part runs under torch's profiler, which slows down what is called often; read it as shares, not as times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch.profiler import ProfilerActivity

_ADAPTER_WIDTH = 64
"""A matrix product with a side of at most this is counted as an adapter's."""


class Kind(StrEnum):
    """What an operator is for."""

    BASE = "base GEMMs"
    ADAPTER = "adapter GEMMs"
    ATTENTION = "attention"
    HEAD = "softmax of head and routers"
    MOVE = "copy, cat, gather"
    ELEMENTWISE = "elementwise, norms, sums"
    OPTIMISER = "optimiser"
    OTHER = "views, autograd, Python"


_BY_NAME: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    (Kind.ATTENTION, ("attention",)),
    (Kind.HEAD, ("softmax", "argmax")),
    (Kind.OPTIMISER, ("adamw", "linalg_vector_norm")),
    (Kind.MOVE, ("copy_", "cat", "index", "gather", "scatter", "clone", "fill_", "zero_", "sort", "bincount")),
    (Kind.ELEMENTWISE, ("mul", "add", "sub", "div", "silu", "pow", "mean", "sum", "rsqrt", "neg", "exp", "cos", "sin")),
)
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm_", "aten::_grouped_mm")


@dataclass(frozen=True)
class Part:
    """Self time of one kind of operator in one step."""

    kind: Kind
    seconds: float
    calls: int


def profile(step: Callable[[], object]) -> list[Part]:
    """Profile one step after one to warm up; parts, largest first."""
    step()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        step()
    events = recorded.key_averages(group_by_input_shape=True)
    seconds: Counter[Kind] = Counter()
    calls: Counter[Kind] = Counter()
    for event in events:
        kind = kind_of(event.key, event.input_shapes)
        seconds[kind] += event.self_cpu_time_total / 1e6
        calls[kind] += event.count
    return [Part(kind, took, calls[kind]) for kind, took in seconds.most_common()]


def kind_of(name: str, shapes: Sequence[Sequence[int]] | None) -> Kind:
    """Tell by an operator's name and, for a product, by its operands' shapes."""
    if name in _PRODUCTS:
        sides = list(_sides(shapes or ()))
        return Kind.ADAPTER if sides and min(sides) <= _ADAPTER_WIDTH else Kind.BASE
    if name.startswith("aten::"):
        for kind, parts in _BY_NAME:
            if any(part in name for part in parts):
                return kind
    return Kind.OTHER


def _sides(shapes: Iterable[Any]) -> Iterable[int]:
    return (side for shape in shapes if len(shape) >= 2 for side in shape[-2:])
