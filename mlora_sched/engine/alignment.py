"""Which pack lengths keep the CPU's elementwise kernels from treating some rows otherwise than others.

ATen's `parallel_for` splits an elementwise operation into equal parts, one a thread, of ceil(numel / n) elements with
n = min(threads, ceil(numel / 32768)); each part is worked off in vector steps and its last few elements by scalar
code. Where scalar and vector code round otherwise (exp, tanh, cos), the rows at the ends of the parts come out
otherwise. A pack length is *aligned* when for every width of the base each part is a whole number of vector steps:
then no element ever takes the scalar code. (aten/src/ATen/Parallel-inl.h, TensorIterator.h, cpu/Loops.h)

On a GPU a kernel treats every element alike; nothing is excluded there.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlora_sched.model.base import FrozenBase

_GRAIN = 32768
"""Elements below which an operation is not split (at::internal::GRAIN_SIZE)."""
_BYTES = 2 * 64
"""A vector step: two of the widest vectors (AVX-512)."""


def is_aligned(numel: int, threads: int, itemsize: int) -> bool:
    """Whether an elementwise kernel over so many elements ends no thread's part within a vector step.

    Args:
        itemsize: bytes of an element.
    """
    step = _BYTES // itemsize
    parts = max(1, min(threads, -(-numel // _GRAIN)))
    return numel % step == 0 and -(-numel // parts) % step == 0


def aligned(candidates: Sequence[int], base: FrozenBase, threads: int) -> tuple[int, ...]:
    """The candidates that are aligned at every width of the base; all of them on a GPU."""
    if base.device.type != "cpu":
        return tuple(candidates)
    widths = _widths(base)
    vocabulary = base.head.weight_VD.shape[0]
    # the loss is float32; only a soft-cap works on the logits in the base's own dtype
    of_logits = base.dtype.itemsize if base.head.softcap is not None else 4
    return tuple(
        rows
        for rows in candidates
        if all(is_aligned(rows * width, threads, base.dtype.itemsize) for width in widths)
        and is_aligned(rows * vocabulary, threads, of_logits)
    )


def _widths(base: FrozenBase) -> frozenset[int]:
    """Widths of the row-wise tensors of a base: of every linear, of a head, of its own experts."""
    text = base.model.config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 1
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    experts = getattr(text, "moe_intermediate_size", None) or getattr(text, "intermediate_size", None)
    sites = {width for site in base.sites.values() for width in (site.in_features, site.out_features)}
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    halves = {count * head // 2 for count in (heads, key_heads)}  # rotary positions work on half heads
    return frozenset(sites | {head} | halves | ({experts} if experts else set()))
