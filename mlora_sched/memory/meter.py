"""Measuring what a pack takes of a device: a CPU's tensors one by one, a GPU's by its allocator's own counters.

A pack's *own* bytes are what it takes beside what is held anyway (the base, the jobs that are attached). Following
tensors slows a pack, since every operator is looked at; no bit of a result changes. Needs torch.

Not seen on a CPU: what operators take and give back within themselves, and everything that is no tensor. What a GPU's
allocator says has not been compared with a card yet.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Measurement:
    """What a pack took; filled in when it has ended, well or not. Zeros where it was not measured.

    Attributes:
        own: most of its own bytes at once.
        wanted: where it ran out of memory, its own bytes with those that it was refused; as far as is known, at least.
        reserved: most that the allocator had of the device, base and jobs and unused pieces included; 0 on a CPU.
    """

    own: int = 0
    wanted: int = 0
    reserved: int = 0


class Meter(Protocol):
    """Measures packs on one device."""

    @property
    def free(self) -> bool:
        """Every pack is to be measured: it costs nothing, or must be."""

    def measure(self, held: Iterable[Tensor]) -> contextlib.AbstractContextManager[Measurement]:
        """While the context lasts a pack runs; `held` is what lies on the device anyway."""


class PeakTensors(TorchDispatchMode):
    """Bytes of all storages that operators touch or make while this is on, at their highest.

    Args:
        cap: bytes that may live at once. An operator whose results pass it raises `torch.OutOfMemoryError`, as an
            allocator would: the results are dropped, and do not count.
        apart: tensors whose storages do not count: what plays the host's memory, what is held anyway.

    Attributes:
        live: bytes now. peak: most bytes at once. refused: what would have lived when the cap was met last, 0 before.
    """

    def __init__(self, cap: int | None = None, apart: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cap = cap
        self.live = self.peak = self.refused = 0
        self._apart = frozenset(_storages(apart))
        self._seen: dict[int, weakref.finalize[Any, Any]] = {}

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        for seen in self._seen.values():  # what lives on is no longer of interest
            seen.detach()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        before = self.live
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        if self.live > before:
            leaf = None
            if not self.admits(self.live - before):
                self.refused = self.live
                del out
                raise torch.OutOfMemoryError(
                    f"{func} asked for {self.refused - before} bytes, beside {before} that live"
                    + ("" if self.cap is None else f" of at most {self.cap}")
                )
        self.peak = max(self.peak, self.live)
        return out

    def admits(self, made: int) -> bool:
        """Whether an operator that has just made so many bytes, counted in `live` already, may keep them."""
        del made
        return self.cap is None or self.live <= self.cap

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or key in self._apart:
            return
        self.live += size
        self._seen[key] = weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        del self._seen[key]
        self.live -= size


class TensorMeter:
    """Follows the tensors of a pack, on any device.

    Args:
        cap: bytes that base, jobs and pack may take together before the pack runs out of memory (tests); then every
            pack is followed.
    """

    def __init__(self, cap: int | None = None) -> None:
        self.cap = cap

    @property
    def free(self) -> bool:
        """With a cap every pack must be followed, whatever it costs."""
        return self.cap is not None

    @contextlib.contextmanager
    def measure(self, held: Iterable[Tensor]) -> Iterator[Measurement]:
        """See `Meter`."""
        apart = tuple(held)
        found = Measurement()
        watch = self.watch(None if self.cap is None else self.cap - bytes_of(apart), apart)
        try:
            with watch:
                yield found
        finally:
            found.own, found.wanted = watch.peak, watch.refused

    def watch(self, cap: int | None, apart: Iterable[Tensor]) -> PeakTensors:
        """What follows the tensors of one pack."""
        return PeakTensors(cap, apart)


class CudaMeter:
    """Reads the counters of torch's CUDA allocator: allocated bytes, and reserved ones. Not run on a card yet."""

    free = True

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @contextlib.contextmanager
    def measure(self, held: Iterable[Tensor]) -> Iterator[Measurement]:
        """See `Meter`; what is held is what is allocated when the pack begins."""
        del held
        found = Measurement()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        try:
            yield found
        except torch.OutOfMemoryError:
            found.wanted = torch.cuda.max_memory_allocated(self.device) - before + 1
            raise
        finally:
            found.own = torch.cuda.max_memory_allocated(self.device) - before
            found.reserved = torch.cuda.max_memory_reserved(self.device)


def meter_of(device: torch.device, *, compiled: bool) -> Meter | None:
    """What measures packs on a device; None on a CPU with compiled pieces, whose tensors cannot be followed."""
    if device.type == "cuda":
        return CudaMeter(device)
    return None if compiled else TensorMeter()


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages that these tensors lie in, each counted once."""
    return sum(_storages(tensors).values())


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes by storage."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage._cdata: storage.nbytes() for storage in storages}
