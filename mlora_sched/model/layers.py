"""Where a model keeps its decoder layers. Nothing is changed here."""

from __future__ import annotations

from typing import Any

from torch import nn


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The decoder layers of a causal language model, and their dotted path in its `base_model`.

    They are the longest `nn.ModuleList` that lies in no other; of equally long ones the first.
    """
    lists = {name: module for name, module in model.base_model.named_modules() if isinstance(module, nn.ModuleList)}
    outer = (name for name in lists if not any(name.startswith(f"{other}.") for other in lists))
    path = max(outer, key=lambda name: len(lists[name]))
    return path, lists[path]
