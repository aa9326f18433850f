"""Counts what a piece of work asks of the device: floating-point operations and GEMMs, without taking time.

Works on real tensors and on the meta device, where shapes run and numbers do not; so a step on an 8B base is counted
in seconds on any machine. Only matrix products and attention are counted as FLOPs, as in `torch.utils.flop_counter`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

_ATEN = torch.ops.aten
_MATRIX = frozenset({"mm", "addmm", "addmm_", "_grouped_mm"})
_BATCHED = frozenset({"bmm", "baddbmm", "baddbmm_"})


def _inplace_addmm(_self: Any, a: Any, b: Any, *_: Any, **__: Any) -> int:
    return 2 * int(a[0]) * int(a[1]) * int(b[1])


def _inplace_baddbmm(_self: Any, a: Any, b: Any, *_: Any, **__: Any) -> int:
    return 2 * int(a[0]) * int(a[1]) * int(a[2]) * int(b[2])


def _cpu_attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop(q, k, v))


def _cpu_attention_backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop(grad, q, k, v))


_MORE: Mapping[Any, Callable[..., int]] = {
    _ATEN.addmm_: _inplace_addmm,
    _ATEN.baddbmm_: _inplace_baddbmm,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
}
"""What torch's own table lacks; functions of shapes."""


@dataclass
class Counts:
    """What was asked.

    Attributes:
        flops: of products and attention. base_flops: those with a frozen weight in them.
        base_gemms: products with a frozen weight. other_gemms: the remaining 2-D products, which are the adapters'.
        calls: how often each operator ran, by name.
    """

    flops: int = 0
    base_flops: int = 0
    base_gemms: int = 0
    other_gemms: int = 0
    calls: Counter[str] = field(default_factory=Counter)


def count(work: Callable[[], object], frozen: Iterable[Tensor]) -> Counts:
    """Run `work` once and count.

    Args:
        frozen: the base's weights; views of them count as them.

    Raises:
        NotImplementedError: a product or attention ran that is not in the tables, so the count would be too low.
    """
    mode = _Counting({_storage(weight) for weight in frozen})
    with mode:
        work()
    return mode.counts


class _Counting(TorchDispatchMode):
    def __init__(self, frozen: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.frozen, self.counts = frozen, Counts()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if _reads_meta(func, args, kwargs):
            return torch.zeros(args[0].shape, dtype=args[0].dtype)
        out = func(*args, **kwargs)
        packet = func.overloadpacket
        self.counts.calls[packet.__name__] += 1
        flops = _flops(packet, args, kwargs, out)
        if flops is not None:
            self._add(packet.__name__, flops, args)
        return out

    def _add(self, name: str, flops: int, args: tuple[Any, ...]) -> None:
        self.counts.flops += flops
        if name not in _MATRIX | _BATCHED:
            return
        if any(isinstance(arg, Tensor) and _storage(arg) in self.frozen for arg in args):
            self.counts.base_gemms += 1
            self.counts.base_flops += flops
        elif name in _MATRIX:
            self.counts.other_gemms += 1


def _flops(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int | None:
    """FLOPs of one call; None for operators that are no product."""
    if packet in _MORE:
        return _MORE[packet](*(arg.shape if isinstance(arg, Tensor) else arg for arg in args))
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    name = packet.__name__
    if "mm" in name or "attention" in name or name in ("dot", "mv", "addmv", "addr", "matmul", "linear"):
        raise NotImplementedError(f"aten::{name} is not in the tables of mlora_sched.bench.counting; add it")
    return None


def _reads_meta(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """A result is fetched from the meta device, where there is none: zeros stand for it."""
    return (
        func.overloadpacket is _ATEN._to_copy
        and args[0].device.type == "meta"
        and torch.device(kwargs.get("device") or "meta").type == "cpu"
    )


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
