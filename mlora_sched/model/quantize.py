"""A base in 4 bits: NF4 with double quantisation (Dettmers et al., 2023, arXiv 2305.14314), through bitsandbytes.

Every linear but the head is quantised while the base is laid out, one after another, so that the device never holds
the float weights. A site makes its weight anew for each product and keeps nothing of it; adapters, embeddings, norms
and the head are as on any base. The values are always the same, so what holds of a dense base holds here.

bitsandbytes is imported only where it is asked for (extra `gpu`). Not here: how a site computes.

Legend: O output width, D input width.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from typing import Any

import torch
from torch import Tensor

from mlora_sched.errors import BaseError
from mlora_sched.model.site import Site

_BLOCK = 64
"""Weights that share a scale."""
_SCALE_BLOCK = 256
"""Blocks whose scales share a scale of their own."""
_HALF_GAP, _SLACK = 0.2, 0.02
"""Most that a weight may change: of its block's largest (half the widest gap of NF4 is 0.152), of the largest of all
(the scales are quantised, too)."""


def check_bitsandbytes() -> None:
    """Refuse where bitsandbytes is not installed.

    Raises:
        BaseError: it is not.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BaseError(
            "--quantize nf4: bitsandbytes is not installed; pip install 'mlora_sched[gpu]', or serve without --quantize"
        )


def settle_bitsandbytes() -> None:
    """Import bitsandbytes, where it is installed, without the code that it would fetch from a hub and run.

    Its import does so where the package `kernels` is there, for products that are not used here. To be called before
    a library is imported that imports it by itself (PEFT).
    """
    if "bitsandbytes" in sys.modules or importlib.util.find_spec("bitsandbytes") is None:
        return
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says that it did not
    there = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]  # an import of it fails, and is excused there
    try:
        importlib.import_module("bitsandbytes")
    finally:
        del sys.modules["kernels"]
        if there is not None:
            sys.modules["kernels"] = there


def _functional() -> Any:
    """bitsandbytes' functions."""
    settle_bitsandbytes()
    return importlib.import_module("bitsandbytes.functional")


class Nf4Site(Site):
    """A site whose weight is kept in 4 bits. It has no attribute `weight`.

    Attributes:
        codes, absmax, absmax_scale, absmax_offset: two weights a byte; their blocks' scales in 8 bits, and the scales
            and the mean of these. Buffers, so that a hash over the base sees them.
    """

    codes: Tensor

    def __init__(self, name: str, weight_OD: Tensor, bias_O: Tensor | None, stored_transposed: bool = False) -> None:
        super().__init__(name, weight_OD, bias_O, stored_transposed)
        del self.weight
        self._dtype = weight_OD.dtype
        if weight_OD.is_meta:
            self._measure(weight_OD)
            return
        functional = _functional()
        # Flat: the CPU's kernel starts every row with a new block, the one that quantises does not.
        flat = weight_OD.reshape((-1, _BLOCK) if weight_OD.numel() % _BLOCK == 0 else (1, -1))
        codes, self._state = functional.quantize_4bit(
            flat, blocksize=_BLOCK, compress_statistics=True, quant_type="nf4"
        )
        self.register_buffer("codes", codes)
        self.register_buffer("absmax", self._state.absmax)
        self.register_buffer("absmax_scale", self._state.state2.absmax)
        self.register_buffer("absmax_offset", self._state.offset.reshape(1))
        _check(name, weight_OD, self.dense())

    def _measure(self, weight_OD: Tensor) -> None:
        """The sizes of a weight without numbers, which cannot be quantised."""
        self._state = None
        blocks = -(-weight_OD.numel() // _BLOCK)
        sizes = {"codes": (-(-weight_OD.numel() // 2), 1), "absmax": (blocks,), "absmax_offset": (1,)}
        for name, size in sizes.items():
            kind = torch.float32 if name == "absmax_offset" else torch.uint8
            self.register_buffer(name, weight_OD.new_empty(size, dtype=kind))
        scales = -(-blocks // _SCALE_BLOCK)
        self.register_buffer("absmax_scale", weight_OD.new_empty((scales,), dtype=torch.float32))

    def dense(self) -> Tensor:
        """(O, D) in the dtype of the base, made anew."""
        if self._state is None:
            return self.codes.new_empty(self.out_features, self.in_features, dtype=self._dtype)
        weight: Tensor = _functional().dequantize_4bit(self.codes, self._state)
        return weight.view(self.out_features, self.in_features)


def _check(name: str, weight_OD: Tensor, back_OD: Tensor) -> None:
    """Refuse a library that gives back other weights than it was given."""
    flat = weight_OD.float().reshape(-1)
    change = (back_OD.float().reshape(-1) - flat).abs()
    blocks, changes = (torch.nn.functional.pad(x, (0, -len(x) % _BLOCK)).view(-1, _BLOCK) for x in (flat, change))
    largest = blocks.abs().amax(dim=1)
    if bool((changes.amax(dim=1) <= _HALF_GAP * largest + _SLACK * largest.max()).all()):
        return
    raise BaseError(
        f"--quantize nf4: {name} comes back from 4 bits with other weights (by up to {float(change.max()):.2g}, its "
        f"largest is {float(largest.max()):.2g}); install another release of bitsandbytes, or serve without --quantize"
    )
