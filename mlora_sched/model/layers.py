"""Where a model keeps its decoder layers, and which of them differ. Nothing is changed here but for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from mlora_sched.model.base import FrozenBase


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The decoder layers of a causal language model, and their dotted path in its `base_model`.

    They are the longest `nn.ModuleList` that lies in no other; of equally long ones the first.
    """
    lists = {name: module for name, module in model.base_model.named_modules() if isinstance(module, nn.ModuleList)}
    outer = (name for name in lists if not any(name.startswith(f"{other}.") for other in lists))
    path = max(outer, key=lambda name: len(lists[name]))
    return path, lists[path]


def layer_kinds(base: FrozenBase) -> tuple[int, ...]:
    """The kind of every decoder layer: layers of equal attention type and sub-module classes are of one kind.

    Kinds are numbered in the order in which they first appear.
    """
    _, layers = decoder_layers(base.model)
    types: Sequence[str] = getattr(base.model.config.get_text_config(), "layer_types", None) or [""] * len(layers)
    kinds = [(types[at], tuple(type(module).__name__ for module in layer.modules())) for at, layer in enumerate(layers)]
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    return tuple(numbers[kind] for kind in kinds)


@contextlib.contextmanager
def first_layers(base: FrozenBase, *, above: bool = False) -> Iterator[list[str]]:
    """Leave only the first decoder layers, enough to see every kind; yield the names of the sites in them.

    Args:
        above: the lowest layer's kind is wanted once more above it, and a layer above all these, where there are any.
    """
    kinds = layer_kinds(base)
    again = kinds.index(kinds[0], 1) if above and kinds.count(kinds[0]) > 1 else 0
    keep = max(again, *(kinds.index(kind) for kind in set(kinds))) + (2 if above else 1)
    with lowest_layers(base, keep):
        kept = {id(module) for module in base.model.base_model.modules()}
        yield [name for name, site in base.sites.items() if id(site) in kept]


@contextlib.contextmanager
def lowest_layers(base: FrozenBase, count: int) -> Iterator[nn.ModuleList]:
    """Leave only so many decoder layers; yield them."""
    path, layers = decoder_layers(base.model)
    parent_path, _, leaf = path.rpartition(".")
    parent = base.model.base_model.get_submodule(parent_path)
    left = nn.ModuleList(list(layers)[:count])
    setattr(parent, leaf, left)
    try:
        yield left
    finally:
        setattr(parent, leaf, layers)
